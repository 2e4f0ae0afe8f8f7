# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Self-training and ST++: what each round sees, and what a config may be."""
import copy
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
ST = dict(type='mmsemi.SelfTrainingLoop', round_iters=6)
ST_PLUS_PLUS = dict(ST, select_reliable=True)


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


class SeenHook(Hook):
    """Note learning rates, masks and weights as training goes on."""

    priority = 'HIGHEST'

    def __init__(self):
        self.lr, self.masks, self.first = [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.lr.append(runner.optim_wrapper.get_lr()['lr'][0])
        self.masks.append(
            sorted(s.seg_map_path for s in data_batch['data_samples']))
        if runner.train_loop._step == 0:
            self.first.append(copy.deepcopy(runner.model.state_dict()))


@pytest.fixture(scope='module')
def st_plus_plus(tiny_rounds, boxes_root, tmp_path_factory):
    """tuple: Runner after ST++ on a flipping TTA, and what was seen."""
    init_default_scope('mmseg')
    work_dir = tmp_path_factory.mktemp('stpp')
    runner = tiny_rounds.make_runner(boxes_root, work_dir, ST_PLUS_PLUS)
    seen = SeenHook()
    runner.register_hook(seen)
    runner.train()
    return runner, seen, work_dir


@pytest.mark.parametrize('loop, rounds', [(ST, 2), (ST_PLUS_PLUS, 3)])
def test_closing_round_goes_on_with_human_labels(tiny_rounds, boxes_root,
                                                 tmp_path, loop, rounds):
    runner = tiny_rounds.make_runner(boxes_root, tmp_path,
                                     dict(loop, closing_iters=4))
    seen = SeenHook()
    runner.register_hook(seen)
    runner.train()
    last = 6 * rounds
    assert len(seen.lr) == last + 4
    assert seen.lr[last] == .01
    assert not any(
        path.startswith(str(tmp_path)) for batch in seen.masks[last:]
        for path in batch)
    before = torch.load(tmp_path / f'iter_{last}.pth', weights_only=False)
    for name, value in before['state_dict'].items():
        assert torch.equal(seen.first[-1][name], value), name
    loop = runner.train_loop
    assert loop.title(rounds).endswith('(closing, labelled images)')
    # Nothing learns from labels of the last network before.
    assert not (tmp_path / 'self_training' / f'round_{rounds - 1}').exists()


class WorkersHook(Hook):
    """Count living loader workers as training goes on."""

    def __init__(self):
        self.counts = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.counts.append(len(multiprocessing.active_children()))


def test_workers_end_with_their_round(tiny_rounds, boxes_root, tmp_path):
    config = tiny_rounds.make_config(
        boxes_root, tmp_path, ST, num_workers=1, validate=False)
    config.train_dataloader.persistent_workers = True
    runner = tiny_rounds.Runner.from_cfg(config)
    workers = WorkersHook()
    runner.register_hook(workers)
    before = len(multiprocessing.active_children())
    runner.train()
    assert set(workers.counts) == {before + 1}


def test_round_0_is_the_supervised_training(tiny_rounds, boxes_root,
                                            st_plus_plus, tmp_path):
    config = tiny_rounds.make_config(boxes_root, tmp_path, {})
    config.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=6, val_interval=4)
    tiny_rounds.Runner.from_cfg(config).train()
    ours = torch.load(st_plus_plus[2] / 'iter_6.pth', weights_only=False)
    theirs = torch.load(tmp_path / 'iter_6.pth', weights_only=False)
    for name, value in theirs['state_dict'].items():
        assert torch.equal(ours['state_dict'][name], value), name


def test_every_round_has_its_own_schedule(st_plus_plus):
    lr = st_plus_plus[1].lr
    assert len(lr) == 18
    assert lr[0] == .01 and lr[5] < .003
    assert lr[6:12] == lr[:6] == lr[12:]


def test_every_round_starts_from_other_fresh_weights(st_plus_plus):
    name = 'backbone.encoder.0.0.convs.0.conv.weight'
    starts = [weights[name] for weights in st_plus_plus[1].first]
    assert len(starts) == 3
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])
    # Statistics of a fresh network, not of the one before.
    norm = 'backbone.encoder.0.0.convs.0.bn.running_mean'
    for weights in st_plus_plus[1].first:
        assert not weights[norm].any()


def test_rounds_see_the_right_masks(st_plus_plus):
    runner, seen, work_dir = st_plus_plus
    reliable = runner.message_hub.get_info('self_training')['reliable']
    assert len(reliable) == 4
    names = runner.train_loop.writer.names

    def pseudo(batches):
        root = str(work_dir / 'self_training')
        return {
            path[len(root) + 1:]
            for batch in batches for path in batch if path.startswith(root)
        }

    assert not pseudo(seen.masks[:6])
    first = {f'round_0/masks/{names[i]}' for i in reliable}
    assert pseudo(seen.masks[6:12]) <= first
    second = {
        f'round_1/masks/{names[i]}'
        for i in range(9) if i not in reliable
    }
    found = pseudo(seen.masks[12:])
    assert found <= first | second and found & first and found & second
    written = (work_dir / 'self_training' / 'round_1' / 'masks').rglob('*.png')
    assert len(list(written)) == 5


def test_reliable_images_have_the_highest_scores(st_plus_plus):
    runner, _, work_dir = st_plus_plus
    path = work_dir / 'self_training' / 'round_0' / 'reliability.json'
    scores = list(json.loads(path.read_text()).values())
    reliable = runner.message_hub.get_info('self_training')['reliable']
    rest = [s for i, s in enumerate(scores) if i not in reliable]
    assert len(scores) == 9
    assert min(scores[i] for i in reliable) >= max(rest)


def test_masks_are_the_argmax_of_the_last_weights(tiny_rounds, st_plus_plus):
    runner, _, work_dir = st_plus_plus
    loop = runner.train_loop
    model = loop.new_model().eval()
    checkpoint = torch.load(work_dir / 'iter_6.pth', weights_only=False)
    model.load_state_dict(checkpoint['state_dict'])
    for index in (0, 4, 8):
        sample = loop.writer.images[index]
        data = {key: [value] for key, value in sample.items()}
        prob = loop.writer.predict(model, data, (.5, .75, 1., 1.5, 2.), True)
        path = loop.writer.paths(loop.folder(0), [index])[index]
        written = np.array(Image.open(path))
        assert written.dtype == np.uint8
        assert np.array_equal(written, prob[0].argmax(0).numpy())


@pytest.fixture
def build(tiny_rounds, boxes_root, tmp_path):
    """callable: Build the loop of changed fields, without training."""

    def build_loop(loop=ST, **changes):
        runner = tiny_rounds.make_runner(boxes_root, tmp_path, loop,
                                         **changes)
        return runner.build_train_loop(runner._train_loop)

    return build_loop


def sizes(loader):
    return [len(source) for source in loader.dataset.datasets]


def test_mixing_in_one_list_or_by_a_ratio(build):
    everything = range(9)
    loader = build()._mixed_loader(list(everything), {}, seed=0)
    # Six labelled images, twice, and nine unlabelled ones.
    assert sizes(loader) == [21]
    loop = build(dict(ST, source_ratio=[1, 3]))
    loader = loop._mixed_loader(list(everything), {}, seed=0)
    assert sizes(loader) == [6, 9]
    assert loader.sampler.num_per_source == [1, 3]


def test_schedules_end_with_the_round(build):
    loop = build()
    assert loop.runner.param_schedulers['end'] == 6
    loop = build(
        dict(ST, round_iters=[4, 8]),
        param_scheduler=[
            dict(type='LinearLR', start_factor=.1, by_epoch=False, end=2),
            dict(type='PolyLR', by_epoch=False, begin=2)
        ])
    assert [s['end'] for s in loop._schedules(1)] == [2, 8]


def test_zero_is_not_reduced_in_pseudo_masks(build):
    loop = build()
    loop.writer.images.reduce_zero_label = True
    item = loop.pseudo_labeled({2: 'mask.png'}).get_data_info(0)
    assert item['seg_map_path'] == 'mask.png'
    assert item['img_path'].endswith('unlabeled2.png')
    assert item['label_map'] is None and item['reduce_zero_label'] is False


@pytest.mark.parametrize('fields, message', [
    (dict(round_iters=0), 'round_iters=0'),
    (dict(round_iters=[6, 6, 6]), '3 numbers for 2 rounds'),
    (dict(rounds=1), 'rounds=1'),
    (dict(select_reliable=True, rounds=2), r'ST\+\+ .* has 3'),
    (dict(select_reliable=True, round_iters=2), 'at least 3'),
    (dict(select_reliable=True, reliable_fraction=.05), 'are 0'),
    (dict(select_reliable='yes'), "select_reliable='yes'"),
    (dict(select='worst'), "select='worst'"),
    (dict(source_ratio=[9, 1]), 'source_ratio'),
    (dict(source_ratio=[1]), 'source_ratio'),
    (dict(val_interval=0), 'val_interval=0'),
    (dict(pseudo_pipeline=None), 'pseudo_pipeline is missing'),
    (dict(pseudo_pipeline=[dict(type='LoadImageFromFile')]),
     'no LoadAnnotations'),
    (dict(pseudo_pipeline=[
        dict(type='LoadAnnotations', reduce_zero_label=True)
    ]), 'reduce_zero_label'),
    (dict(labeling=dict(scale=1)), r"unknown keys \['scale'\]"),
    (dict(labeling=dict(scales=[])), 'scales'),
    (dict(labeling=dict(scales=[0])), 'positive numbers'),
    (dict(labeling=dict(flip=1)), 'flip=1'),
    (dict(labeling=dict(confidence_thr=0)), 'confidence_thr=0'),
    (dict(labeling=dict(batch_size=0)), 'batch_size=0'),
    (dict(closing_iters=-1), 'closing_iters=-1'),
])
def test_bad_fields_are_refused_before_training(build, fields, message):
    with pytest.raises(ValueError, match=message):
        build({**ST, **fields})


@pytest.mark.parametrize('changes, error, message', [
    (dict(custom_hooks=[dict(type='EMAHook')]), ValueError, 'EMAHook'),
    (dict(
        custom_hooks=[dict(type='EarlyStoppingHook', monitor='mIoU')
                      ]), ValueError, 'EarlyStoppingHook'),
    (dict(accumulative_counts=4), ValueError, 'accumulative_counts=4'),
    (dict(param_scheduler=dict(type='PolyLR')), ValueError, 'by_epoch'),
])
def test_what_cannot_start_anew_is_refused(build, changes, error, message):
    with pytest.raises(error, match=message):
        build(**changes)


def test_best_weights_need_a_validation(build):
    with pytest.raises(ValueError, match="select='best' needs a validation"):
        build(dict(ST, select='best'), validate=False)


def change_unlabeled(config, **changes):
    config.train_cfg.unlabeled_dataset.update(changes)


@pytest.mark.parametrize('change, error, message', [
    (lambda c, root: change_unlabeled(c, ann_file='none.txt'),
     FileNotFoundError, 'unlabeled_dataset: .*none.txt'),
    (lambda c, root: change_unlabeled(c, ann_file='', img_suffix='.jpg'),
     ValueError, 'unlabeled_dataset: .* is empty'),
    (lambda c, root: change_unlabeled(c, pipeline=[]), ValueError,
     'pipeline is empty'),
    (lambda c, root: change_unlabeled(
        c, pipeline=[dict(type='LoadAnnotations')]), ValueError,
     'loads annotations'),
    (lambda c, root: c.train_cfg.update(unlabeled_dataset=None), TypeError,
     'unlabeled_dataset must be'),
    (lambda c, root: c.train_dataloader.update(
        dataset=c.val_dataloader.dataset), ValueError, 'only source'),
    (lambda c, root: c.train_dataloader.dataset.datasets.append(
        c.val_dataloader.dataset), ValueError, 'only source'),
    (lambda c, root: c.train_dataloader.update(
        sampler=dict(type='InfiniteSampler')), ValueError, 'InfiniteSampler'),
    (lambda c, root: c.model.decode_head.update(
        num_classes=2, out_channels=1, threshold=.5, loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=True)), ValueError,
     'out_channels=1'),
    (lambda c, root: setattr(
        c, 'model',
        Config.fromfile(ROOT / 'configs/_base_/models/lavt_digits.py').model),
     ValueError, 'ReferringSegmentor reads sentences'),
])
def test_bad_data_and_models_are_refused(tiny_rounds, boxes_root, tmp_path,
                                         change, error, message):
    config = tiny_rounds.make_config(boxes_root, tmp_path, ST)
    change(config, boxes_root)
    runner = tiny_rounds.Runner.from_cfg(config)
    with pytest.raises(error, match=message):
        runner.build_train_loop(runner._train_loop)
