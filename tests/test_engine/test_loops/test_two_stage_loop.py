# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Two stages in one run: data, schedules, and a resume inside either."""
import uuid

import pytest
import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from mmsemi.engine.loops import two_stage_loop
from mmsemi.methods import SemInst

VIEWS = ('sup', 'unsup_teacher', 'unsup_student')
STAGE1, STAGE2 = 6, 8


@MODELS.register_module(force=True)
class NoisyToy(BaseModel):
    """Two trainable layers and batch statistics, on vectors of 4."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.backbone = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)

    def loss(self, inputs, data_samples=None):
        noisy = F.dropout(torch.stack(inputs), .2)
        out = self.head(self.backbone(noisy))
        return dict(loss=(out - 1).square().mean())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.backbone(torch.stack(inputs)))


@MODELS.register_module(force=True)
class ToySemInst(SemInst):
    """The student learns the teacher's output; batches are noted."""

    def __init__(self, **kwargs):
        super().__init__(
            segmentor=dict(
                type='NoisyToy',
                data_preprocessor=dict(type='BaseDataPreprocessor')),
            pseudo_label_pipeline=[
                dict(type='mmsemi.FilterByScore', score_thr=.5)
            ],
            **kwargs)
        self.batches = []

    def loss(self, inputs, data_samples):
        self.batches.append(
            {view: len(images)
             for view, images in inputs.items()})
        return super().loss(inputs, data_samples)

    def label_unlabeled(self, inputs, data_samples):
        with torch.no_grad():
            return list(self.teacher(inputs))

    def loss_by_pseudo_labels(self, inputs, data_samples, pseudo_labels):
        out = self.student(inputs['unsup_student'])
        target = torch.stack(pseudo_labels) + 1
        return dict(loss=(out - target).square().mean()), 1.

    def pseudo_label_figures(self, pseudo_labels, teacher_samples):
        return {}


@DATASETS.register_module(force=True)
class ToySource(BaseDataset):
    """Vectors, drawn anew each time, in some of the views."""

    METAINFO = dict(classes=('a', 'b'))

    def __init__(self, views, size, **kwargs):
        self.views, self.size = views, size
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self):
        return [dict(idx=i) for i in range(self.size)]

    def prepare_data(self, idx):
        mine = {view: idx + torch.rand(4) for view in self.views}
        return dict(
            inputs={view: mine.get(view)
                    for view in VIEWS},
            data_samples={
                view: BaseDataElement() if view in mine else None
                for view in VIEWS
            })


@DATASETS.register_module(force=True)
class FewVectors(BaseDataset):

    def load_data_list(self):
        return [dict(idx=i) for i in range(3)]

    def prepare_data(self, idx):
        return dict(inputs=torch.ones(4), data_samples=BaseDataElement())


class Stopped(Exception):
    """Stands in for a kill."""


class StopHook(Hook):
    """Stop after an iteration, before its checkpoint is written."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.after:
            raise Stopped


class RateHook(Hook):
    """Note the rate of every iteration."""

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])


SCHEDULES = [
    dict(type='LinearLR', start_factor=.5, end=2, by_epoch=False),
    dict(type='MultiStepLR', milestones=[6], gamma=.1, by_epoch=False)
]


def make_runner(work_dir,
                loop=None,
                teacher=None,
                ratio=(1, 1),
                accumulative_counts=1,
                **changes):
    settings = dict(
        model=dict(type='ToySemInst', teacher=teacher),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
            sampler=dict(
                type='mmsemi.MultiSourceSampler',
                batch_size=4,
                source_ratio=list(ratio)),
            dataset=dict(
                type='mmsemi.MultiSourceDataset',
                datasets=[
                    dict(type='ToySource', views=VIEWS[:1], size=5),
                    dict(type='ToySource', views=VIEWS[1:], size=11)
                ])),
        train_cfg={
            'type': 'mmsemi.TwoStageTrainLoop',
            'stage1_iters': STAGE1,
            'stage2_iters': STAGE2,
            'stage2_param_scheduler': SCHEDULES,
            **(loop or {})
        },
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=.1, momentum=.9),
            accumulative_counts=accumulative_counts),
        param_scheduler=dict(
            type='CosineAnnealingLR', eta_min=0., by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=4, by_epoch=False)),
        custom_hooks=[
            dict(type='mmsemi.IterSeedHook'),
            dict(type='mmsemi.TeacherUpdateHook')
        ],
        log_processor=dict(by_epoch=False),
        default_scope='mmdet',
        randomness=dict(seed=0),
        experiment_name=uuid.uuid4().hex)
    settings.update(changes)
    return Runner(**settings)


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def differences(ours, theirs, where=''):
    """List where nested containers of tensors differ."""
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [where]
        pairs = [(key, ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, (list, tuple)):
        if len(ours) != len(theirs):
            return [where]
        pairs = [(i, *pair) for i, pair in enumerate(zip(ours, theirs))]
    else:
        same = torch.equal(ours, theirs) if isinstance(
            ours, torch.Tensor) else ours == theirs
        return [] if same else [where]
    return [
        text for key, one, other in pairs
        for text in differences(one, other, f'{where}/{key}')
    ]


def student_of(state):
    return {
        key[len('student.'):]: value
        for key, value in state.items() if key.startswith('student.')
    }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """tuple: Runner and work folder of an uninterrupted training."""
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    work_dir = tmp_path_factory.mktemp('whole')
    runner = make_runner(work_dir)
    runner.register_hook(RateHook())
    runner.train()
    return runner, work_dir


# What the stages are -------------------------------------------------------


def test_batches_of_the_stages(whole):
    runner, _ = whole
    alone = dict(sup=4)
    both = dict(sup=2, unsup_teacher=2, unsup_student=2)
    assert runner.model.batches == [alone] * STAGE1 + [both] * STAGE2


def test_every_stage_has_its_schedule(whole):
    runner, _ = whole
    hook, = (h for h in runner.hooks if isinstance(h, RateHook))
    cosine = [
        .05 * (1 + torch.cos(torch.tensor(torch.pi * i / STAGE1)).item())
        for i in range(STAGE1)
    ]
    assert hook.rates[:STAGE1] == pytest.approx(cosine, abs=1e-6)
    # From the full rate on: not that which stage 1 ended with.
    assert hook.rates[STAGE1:] == pytest.approx(
        [.05, .1, .1, .1, .1, .1, .01, .01])


def test_steps_are_counted_over_both_optimizers(whole):
    state = load(whole[1] / 'iter_14.pth')['state_dict']
    assert int(state['step']) == STAGE1 + STAGE2
    assert int(state['stage2_begin']) == STAGE1


def test_stage_one_is_kept_as_a_plain_checkpoint(whole):
    runner, work_dir = whole
    kept = torch.load(work_dir / 'stage1.pth', weights_only=True)
    end = load(work_dir / f'iter_{STAGE1}.pth')['state_dict']
    assert differences(dict(kept['state_dict']), student_of(end)) == []
    assert kept['meta'] == dict(
        dataset_meta=dict(classes=('a', 'b')), iter=STAGE1)
    plain = MODELS.build(
        dict(
            type='NoisyToy',
            data_preprocessor=dict(type='BaseDataPreprocessor')))
    plain.load_state_dict(kept['state_dict'], strict=True)
    # It is what teaches in stage 2.
    assert differences(runner.model.teacher.state_dict(),
                       dict(kept['state_dict'])) == []


def test_momentum_starts_anew(whole, tmp_path):
    """The first step of stage 2 goes along the gradient alone."""
    options = dict(stage1_iters=STAGE1, stage2_iters=1)
    make_runner(tmp_path, dict(options, stage2_param_scheduler=None)).train()
    buffers = load(tmp_path / 'iter_7.pth')['optimizer']['state']
    before = load(tmp_path / 'iter_6.pth')['state_dict']
    after = load(tmp_path / 'iter_7.pth')['state_dict']
    for number, (key, value) in enumerate(
            (key, value) for key, value in before.items()
            if key.startswith('student.') and 'running' not in key
            and 'num_batches' not in key):
        torch.testing.assert_close(
            after[key], value - .1 * buffers[number]['momentum_buffer'])


def test_ema_follows_in_stage_two_alone(tmp_path):
    make_runner(tmp_path, teacher=dict(mode='ema', momentum=.5)).train()
    kept = load(tmp_path / 'stage1.pth')['state_dict']
    end = load(tmp_path / 'iter_8.pth')['state_dict']
    teacher, student = end['teacher.head.weight'], end['student.head.weight']
    assert not torch.equal(teacher, kept['head.weight'])
    assert not torch.equal(teacher, student)


def test_stage_one_can_be_left_out(whole, tmp_path):
    runner = make_runner(
        tmp_path,
        dict(stage1_iters=0),
        load_from=str(whole[1] / 'stage1.pth'))
    runner.train()
    assert not (tmp_path / 'stage1.pth').exists()
    assert all('unsup_student' in batch for batch in runner.model.batches)
    kept = load(whole[1] / 'stage1.pth')['state_dict']
    end = load(tmp_path / f'iter_{STAGE2}.pth')['state_dict']
    assert differences(runner.model.teacher.state_dict(), dict(kept)) == []
    assert int(end['stage2_begin']) == 0


def test_weights_to_start_from_do_not_skip_stage_one(whole, tmp_path):
    runner = make_runner(
        tmp_path, load_from=str(whole[1] / f'iter_{STAGE1 + STAGE2}.pth'))
    runner.train()
    assert runner.model.batches[0] == dict(sup=4)
    assert int(runner.model.stage2_begin) == 2 * STAGE1 + STAGE2


def test_batch_size_and_validation(tmp_path):
    runner = make_runner(
        tmp_path,
        dict(stage1_batch_size=3, val_interval=4),
        val_dataloader=dict(
            batch_size=3,
            dataset=dict(type='FewVectors'),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=[],
        val_cfg=dict(type='ValLoop'))
    seen = []
    runner.val_loop.run = lambda: seen.append(runner.iter) or {}
    runner._val_loop = runner.val_loop
    runner.train()
    assert runner.model.batches[0] == dict(sup=3)
    assert runner.model.batches[-1]['sup'] == 2
    # Counted in each stage, and at its end.
    assert seen == [4, 6, 10, 14]


# Resume --------------------------------------------------------------------


def assert_same_end(work_dir, whole):
    name = f'iter_{STAGE1 + STAGE2}.pth'
    ours, theirs = load(work_dir / name), load(whole[1] / name)
    for part in ('state_dict', 'optimizer', 'param_schedulers',
                 'mmsemi_seeds'):
        assert differences(ours[part], theirs[part]) == [], part
    assert differences(
        load(work_dir / 'stage1.pth'), load(whole[1] / 'stage1.pth')) == []
    logs = [{
        key: buffer.data[0].tolist()
        for key, buffer in end['message_hub']['log_scalars'].items()
        if 'time' not in key
    } for end in (ours, theirs)]
    assert logs[0]['train/loss'] and differences(*logs) == []


# In stage 1, in its last and in the first iteration of stage 2, in the second
# half of stage 2.
@pytest.mark.parametrize('after', [5, 6, 7, 9, 13])
def test_stopped_training_goes_on_exactly(whole, tmp_path, after):
    runner = make_runner(tmp_path)
    runner.register_hook(StopHook(after))
    with pytest.raises(Stopped):
        runner.train()
    make_runner(tmp_path, resume=True).train()
    assert_same_end(tmp_path, whole)


def test_stopped_while_stage_one_is_kept(whole, tmp_path, monkeypatch):

    def stop(*args):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(two_stage_loop.os, 'replace', stop)
        with pytest.raises(Stopped):
            make_runner(tmp_path).train()
    assert not (tmp_path / 'stage1.pth').exists()
    assert (tmp_path / f'iter_{STAGE1}.pth').is_file()
    make_runner(tmp_path, resume=True).train()
    assert_same_end(tmp_path, whole)


def test_a_finished_training_stays(whole, tmp_path):
    name = f'iter_{STAGE1 + STAGE2}.pth'
    runner = make_runner(
        tmp_path, load_from=str(whole[1] / name), resume=True)
    runner.train()
    assert differences(runner.model.state_dict(),
                       load(whole[1] / name)['state_dict']) == []


def test_the_comparison_can_fail(whole, tmp_path):
    make_runner(tmp_path, randomness=dict(seed=1)).train()
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path, whole)


def test_another_length_cannot_be_resumed(whole, tmp_path):
    runner = make_runner(
        tmp_path,
        dict(stage2_iters=9),
        load_from=str(whole[1] / 'iter_8.pth'),
        resume=True)
    with pytest.raises(ValueError, match=r'rounds of \[6, 8\] iterations'):
        runner.train()


# Mistakes ------------------------------------------------------------------


@pytest.mark.parametrize('loop, changes, error, message', [
    (dict(stage1_iters=-1), {}, ValueError, 'train_cfg.stage1_iters=-1'),
    (dict(stage2_iters=0), {}, ValueError, 'train_cfg.stage2_iters=0'),
    (dict(stage1_batch_size=0), {}, ValueError, 'stage1_batch_size=0'),
    (dict(stage1_iters=0), {}, ValueError, 'so load_from must name'),
    (dict(stage2_param_scheduler=dict(type='MultiStepLR', milestones=[1])),
     {}, ValueError, 'by_epoch=True'),
    ({}, dict(model=dict(type='ToyTeacherStudent')), TypeError,
     'model.type is ToyTeacherStudent'),
    ({}, dict(accumulative_counts=4), ValueError, 'accumulative_counts=4'),
    ({}, dict(custom_hooks=[dict(type='EMAHook')]), ValueError, 'EMAHook'),
])
def test_mistakes_name_the_field(tmp_path, loop, changes, error, message):
    runner = make_runner(tmp_path, loop, **changes)
    with pytest.raises(error, match=message):
        runner.train()


def test_one_source_is_no_two_stages(tmp_path):
    runner = make_runner(tmp_path)
    runner._train_dataloader['dataset']['datasets'].pop()
    with pytest.raises(ValueError, match='with 1 sources'):
        runner.train()
