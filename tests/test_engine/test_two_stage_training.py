# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What ``tools/train.py`` does with SemInst: SOLOv2 on digits."""
import uuid

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS

from mmsemi.apis import prepare_training, train
from mmsemi.apis.training import build_runner


class Stopped(Exception):
    """Stands in for a kill."""


class StopHook(Hook):

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == 4:
            raise Stopped


@pytest.fixture
def config_file(tiny_training, digits_root, tmp_path):
    """str: A config of three supervised iterations and two others."""
    model = tiny_training.model_config()
    model.update(type='mmsemi.SemInst', teacher=dict(mode='frozen'))
    batch = dict(batch_size=4)
    config = dict(
        default_scope='mmdet',
        custom_imports=dict(
            imports=['mmsemi'], allow_failed_imports=False),
        model=model,
        train_dataloader=dict(
            **batch,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
            sampler=dict(
                type='mmsemi.MultiSourceSampler',
                source_ratio=[1, 1],
                **batch),
            dataset=dict(
                type='mmsemi.MultiSourceDataset',
                datasets=[
                    tiny_training.dataset_config(digits_root, unlabeled)
                    for unlabeled in (False, True)
                ])),
        train_cfg=dict(
            type='mmsemi.TwoStageTrainLoop',
            stage1_iters=3,
            stage2_iters=2,
            stage2_param_scheduler=[]),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-3),
            clip_grad=dict(max_norm=10)),
        param_scheduler=dict(
            type='PolyLR', power=.9, eta_min=0., by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=10, by_epoch=False)),
        custom_hooks=[
            dict(type='mmsemi.IterSeedHook'),
            dict(type='mmsemi.TeacherUpdateHook'),
            dict(type='mmsemi.PseudoLabelMonitorHook')
        ],
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        experiment_name=uuid.uuid4().hex)
    path = tmp_path / 'two_stages.py'
    Config(config).dump(path)
    return str(path)


def test_one_command_trains_both_and_resumes(config_file, tiny_training,
                                             tmp_path):
    work_dir = tmp_path / 'stopped'
    runner = build_runner(prepare_training(config_file, work_dir))
    runner.register_hook(StopHook())
    with pytest.raises(Stopped):
        runner.train()
    names = {path.name for path in work_dir.glob('*.pth')}
    assert names == {'iter_3.pth', 'stage1.pth'}
    again = train(
        config_file,
        work_dir=work_dir,
        resume=True,
        cfg_options=dict(experiment_name=uuid.uuid4().hex))
    whole = train(
        config_file,
        work_dir=tmp_path / 'whole',
        cfg_options=dict(experiment_name=uuid.uuid4().hex))
    assert again.iter == whole.iter == 5
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # The base rate, from the first iteration of stage 2 on.
    assert again.optim_wrapper.get_lr()['lr'] == [1e-3]
    # mmdet's model alone takes the result of stage 1.
    kept = torch.load(work_dir / 'stage1.pth', weights_only=True)
    plain = MODELS.build(tiny_training.model_config()['segmentor'])
    plain.load_state_dict(kept['state_dict'], strict=True)
    assert len(kept['meta']['dataset_meta']['classes']) == 10
