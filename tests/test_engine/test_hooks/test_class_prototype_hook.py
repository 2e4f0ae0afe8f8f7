# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.dataset import Compose
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from mmsemi.datasets import split_stem
from mmsemi.engine.hooks import ClassPrototypeHook, class_prototype_hook
from mmsemi.engine.hooks.class_prototype_hook import annotations_first
from mmsemi.methods import TeacherStudent, load_segmentor_config
from mmsemi.models.label_smoothing import (ClassPrototypes,
                                           SimilarityLabelSmoothing)
from mmsemi.pseudo_labels import CalibrateScores

LOAD = dict(type='LoadImageFromFile')
ANNOTATIONS = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
BOXES = dict(type='LoadAnnotations', with_bbox=True)
PACK = dict(
    type='PackDetInputs',
    meta_keys=('img_path', 'ori_shape', 'img_shape', 'scale_factor'))
PIPELINE = [LOAD, ANNOTATIONS, PACK]
SMOOTHING = dict(type='mmsemi.SimilarityLabelSmoothing', num_classes=10)
PREPROCESSOR = dict(
    type='DetDataPreprocessor',
    mean=[114.] * 3,
    std=[60.] * 3,
    pad_size_divisor=16)


class ToyBackbone(nn.Module):
    """Two levels; notes whether it trains."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, torch.is_grad_enabled()))
        x = self.norm(self.conv(x))
        return x, x[:, :, ::2, ::2] + 1


@MODELS.register_module(force=True)
class ToyDetector(BaseModel):
    """A backbone, and a loss that smooths the labels of all instances."""

    def __init__(self, smoothing=SMOOTHING, data_preprocessor=PREPROCESSOR):
        super().__init__(data_preprocessor=data_preprocessor)
        self.backbone = ToyBackbone()
        self.head = nn.Linear(4, 11)
        self.loss_cls = MODELS.build(
            dict(type='mmsemi.SoftCrossEntropyLoss', smoothing=smoothing))

    def loss(self, inputs, data_samples):
        features = self.backbone(inputs)[-1].mean((2, 3))
        labels = [s.gt_instances.labels for s in data_samples]
        logits = self.head(features).repeat_interleave(
            torch.tensor([len(found) for found in labels]), dim=0)
        return dict(loss=self.loss_cls(logits, torch.cat(labels)))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.loss(inputs, data_samples)


def labeled(root, unlabeled=False, **changes):
    stem = split_stem('instances_train', 50)
    suffix = '-unlabeled' if unlabeled else ''
    return dict(
        type='mmsemi.DigitsInstanceDataset',
        data_root=root,
        ann_file=f'annotations/{stem}{suffix}.json',
        data_prefix=dict(img='train/'),
        pipeline=PIPELINE,
        **changes)


def loader(dataset, **changes):
    return dict(
        batch_size=2,
        num_workers=0,
        dataset=dataset,
        sampler=dict(type='InfiniteSampler'),
        collate_fn=dict(type='pseudo_collate'),
        **changes)


@pytest.fixture
def make(digits_root, runner_factory):
    """callable: Runner of a toy detector with the hook."""

    def make_runner(dataset=None, hook=None, model=None, **changes):
        return runner_factory(
            model=model or dict(type='ToyDetector'),
            max_iters=2,
            train_dataloader=loader(dataset or labeled(digits_root)),
            custom_hooks=[
                dict(
                    type='mmsemi.ClassPrototypeHook',
                    **(dict(pipeline=PIPELINE) if hook is None else hook))
            ],
            param_scheduler=None,
            default_scope='mmdet',
            **changes)

    return make_runner


def smoothing_of(model):
    return [
        m for m in model.modules() if isinstance(m, SimilarityLabelSmoothing)
    ]


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, ClassPrototypeHook))


def measure(runner):
    """Measure without training."""
    return hook_of(runner).measure(runner, runner.model, 10)


def by_hand(runner, level=-1, scale=1, boxes=False):
    """Prototypes and counts, instance by instance."""
    model = runner.model.eval()
    total = torch.zeros(10, 4, dtype=torch.float64)
    counts = torch.zeros(10, dtype=torch.long)
    dataset = runner.train_dataloader.dataset
    for index in range(len(dataset)):
        data = Compose(PIPELINE)(dataset.get_data_info(index))
        sample = data['data_samples']
        image = data['inputs']
        if scale != 1:
            image = F.interpolate(
                image[None].float(), scale_factor=scale)[0].byte()
        batch = model.data_preprocessor(
            dict(inputs=[image], data_samples=[copy.deepcopy(sample)]))
        with torch.no_grad():
            feature_map = model.backbone(batch['inputs'])[level][0]
        instances = sample.gt_instances
        masks = instances.masks.to_tensor(torch.float32, 'cpu')
        for mask, box, label in zip(masks, instances.bboxes.tensor,
                                    instances.labels):
            if boxes:
                mask = torch.zeros_like(mask)
                x1, y1, x2, y2 = box.round().int().tolist()
                mask[y1:y2, x1:x2] = 1
            mask = F.interpolate(mask[None, None], scale_factor=scale)
            share = F.interpolate(mask, feature_map.shape[1:], mode='area')
            embedding = (feature_map * share[0]).sum((1, 2))
            total[label] += F.normalize(embedding, dim=0).double()
            counts[label] += 1
    model.train()
    prototypes = F.normalize(total, dim=1)
    return prototypes @ prototypes.t(), counts


def assert_close(found, expected):
    torch.testing.assert_close(
        found[0].double(), expected[0], atol=1e-5, rtol=0)
    assert torch.equal(found[1], expected[1])


# What is measured ----------------------------------------------------------


def test_fills_the_model_before_training(make):
    runner = make()
    expected = by_hand(runner)
    assert 3 < (expected[1] > 0).sum() and expected[1].sum() > 10
    seen = runner.model.backbone.seen
    seen.clear()
    runner.train()
    smoothing, = smoothing_of(runner.model)
    assert smoothing.has_statistics
    assert_close((smoothing.similarity, smoothing.counts), expected)
    # Six images one by one without gradient, then two iterations.
    assert seen == [(False, False)] * 6 + [(True, True)] * 2


@pytest.mark.parametrize('settings', [dict(level=0), dict(max_per_class=None)])
def test_settings(make, settings):
    runner = make(hook=dict(pipeline=PIPELINE, **settings))
    expected = by_hand(runner, settings.get('level', -1))
    assert_close(measure(runner), expected)


def test_enough_instances_of_a_class(make, monkeypatch):
    """Fewer are looked at, all are counted."""
    runner = make(hook=dict(pipeline=PIPELINE, max_per_class=1))
    expected = by_hand(runner)[1]
    counts = []
    reduce = ClassPrototypes.reduce
    monkeypatch.setattr(
        ClassPrototypes, 'reduce', lambda self:
        (counts.append(self.count), reduce(self)))
    runner.model.backbone.seen.clear()
    similarity, found = measure(runner)
    assert torch.equal(found, expected)
    assert torch.equal(counts[0], expected.clamp(max=1))
    assert torch.equal(similarity.diagonal() > .5, expected > 0)


def test_validation_pipeline_with_resize(make, digits_root):
    """Annotations follow the resize that comes before them."""
    size = 2 * 64
    pipeline = [
        LOAD,
        dict(type='Resize', scale=(size, size), keep_ratio=True), ANNOTATIONS,
        PACK
    ]
    validation = dict(
        val_dataloader=dict(
            batch_size=1,
            num_workers=0,
            dataset=dict(
                type='RepeatDataset',
                times=2,
                dataset={
                    **labeled(digits_root), 'pipeline': pipeline,
                    'test_mode': True
                }),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate')),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='DumpResults', out_file_path='none.pkl'))
    runner = make(hook={}, **validation)
    runner._val_loop = runner.build_val_loop(runner._val_loop)
    explicit = make(
        hook=dict(pipeline=[pipeline[0], ANNOTATIONS, pipeline[1], PACK]))
    explicit.model.load_state_dict(runner.model.state_dict())
    found, expected = measure(runner), measure(explicit)
    assert torch.equal(found[0], expected[0])
    assert not torch.allclose(found[0], by_hand(runner)[0], atol=1e-3)
    # The images are resized with OpenCV, so only nearly as by hand.
    torch.testing.assert_close(
        found[0], by_hand(runner, scale=size // 64)[0], atol=.1, rtol=0)


def test_annotations_first():
    pipeline = Compose([
        LOAD,
        dict(type='Resize', scale=(8, 8)), BOXES,
        dict(type='Pad', size=(9, 9)), PACK
    ])
    names = [type(t).__name__ for t in annotations_first(pipeline).transforms]
    assert names == [
        'LoadImageFromFile', 'LoadAnnotations', 'Resize', 'Pad',
        'PackDetInputs'
    ]
    other = Compose([dict(type='Resize', scale=(8, 8)), BOXES, PACK])
    assert annotations_first(other) is other


def test_boxes_stand_in_for_masks(make):
    runner = make(hook=dict(pipeline=[LOAD, BOXES, PACK]))
    assert_close(measure(runner), by_hand(runner, boxes=True))


def test_two_processes_measure_what_one_does(make, monkeypatch):
    runner = make()
    whole = measure(runner)
    parts = []
    monkeypatch.setattr(
        ClassPrototypes, 'reduce', lambda self: parts.append(self))
    monkeypatch.setattr(class_prototype_hook, 'get_world_size', lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(
            class_prototype_hook, 'get_rank', lambda rank=rank: rank)
        runner.model.backbone.seen.clear()
        assert torch.equal(measure(runner)[1], whole[1])
        assert len(runner.model.backbone.seen) == 3
    both = ClassPrototypes(10, 4)
    for part in parts:
        both.sum += part.sum
        both.count += part.count
    assert torch.equal(both.count, whole[1])
    torch.testing.assert_close(
        both.similarity(), whole[0], atol=1e-12, rtol=0)


def test_more_processes_than_images(make, monkeypatch):
    """One without an image takes part with nothing."""
    runner = make()
    monkeypatch.setattr(class_prototype_hook, 'get_world_size', lambda: 9)
    monkeypatch.setattr(class_prototype_hook, 'get_rank', lambda: 8)
    monkeypatch.setattr(class_prototype_hook, 'all_reduce',
                        lambda channels, op: channels.fill_(4))
    similarity, counts = measure(runner)
    assert not similarity.any() and counts.sum() > 10


def test_loading_processes(make):
    runner = make()
    expected = measure(runner)
    hook_of(runner).num_workers = 2
    found = measure(runner)
    assert torch.equal(found[0], expected[0])


# Which images --------------------------------------------------------------


def test_nothing_is_repeated_and_nothing_unlabeled(make, digits_root):
    plain = make()
    expected = measure(plain)
    source = labeled(digits_root)
    repeated = dict(type='RepeatDataset', times=3, dataset=source)
    balanced = dict(
        type='ClassBalancedDataset', oversample_thr=.9, dataset=source)
    views = dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[balanced, labeled(digits_root, unlabeled=True)])
    for dataset in (repeated, balanced, views):
        runner = make(dataset)
        runner.model.load_state_dict(plain.model.state_dict())
        assert len(runner.train_dataloader.dataset) > 6
        found = measure(runner)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


# What stays as it was ------------------------------------------------------


def test_random_states_and_modes_stay(make):
    runner = make()
    runner.model.backbone.norm.eval()
    runner.model.backbone.train(False)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    before = (random.getstate(), np.random.get_state()[1].tolist(),
              torch.get_rng_state())
    norm = copy.deepcopy(runner.model.backbone.norm.state_dict())
    measure(runner)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not runner.model.backbone.training and runner.model.training
    for key, value in runner.model.backbone.norm.state_dict().items():
        assert torch.equal(value, norm[key])


def test_resume_goes_on_with_the_same_bits(make, tmp_path, monkeypatch):
    first = make(work_dir=tmp_path / 'run')
    first.train()
    tables = [m.table.clone() for m in smoothing_of(first.model)]
    assert tables[0].any()
    # The weights have moved, so another measurement would differ.
    assert not torch.allclose(
        measure(first)[0].float(),
        smoothing_of(first.model)[0].similarity,
        atol=1e-4)
    calls = []
    monkeypatch.setattr(ClassPrototypeHook, 'measure',
                        lambda *args: calls.append(args))
    second = make(work_dir=tmp_path / 'run', resume=True)
    second._train_loop['max_iters'] = 4
    second.train()
    assert second.iter == 4 and not calls
    for module, table in zip(smoothing_of(second.model), tables):
        assert torch.equal(module.table, table)
    # So does a training that starts from its weights.
    third = make(
        work_dir=tmp_path / 'other',
        load_from=str(tmp_path / 'run' / 'iter_2.pth'))
    third.train()
    assert not calls
    assert torch.equal(smoothing_of(third.model)[0].table, tables[0])


# Models --------------------------------------------------------------------


def test_student_and_teacher_are_filled(make, digits_root):

    class Toy(TeacherStudent):

        def label_unlabeled(self, inputs, data_samples):
            return []

        def loss_by_pseudo_labels(self, inputs, data_samples, labels):
            return {}, 1.

    model = Toy(
        segmentor=dict(type='ToyDetector', data_preprocessor=PREPROCESSOR))
    plain = make()
    plain.model.load_state_dict(model.student.state_dict())
    expected = measure(plain)
    sources = dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[
            labeled(digits_root),
            labeled(digits_root, unlabeled=True)
        ])
    runner = make(sources, model=model)
    hook_of(runner).before_train(runner)
    student, teacher = smoothing_of(model)
    for module in (student, teacher):
        assert torch.equal(module.similarity, expected[0].float())
        assert torch.equal(module.counts, expected[1])
    # Averaging leaves them as they are.
    table = student.table.clone()
    model.update_teacher()
    assert torch.equal(teacher.table, table)
    assert torch.equal(student.table, table)


def test_supervised_mask_rcnn(make, tiny_segmentor_config):
    """The first stage as its config has it: another loss, nothing else."""
    config = load_segmentor_config(
        copy.deepcopy(tiny_segmentor_config('mask_rcnn')))
    head = config.roi_head.bbox_head
    head.num_classes = config.roi_head.mask_head.num_classes = 10
    head.loss_cls = dict(
        type='mmsemi.SoftCrossEntropyLoss', smoothing=SMOOTHING)
    runner = make(model=config)
    runner.train()
    smoothing, = smoothing_of(runner.model)
    assert smoothing.has_statistics
    assert 'roi_head.bbox_head.loss_cls.smoothing.similarity' in \
        runner.model.state_dict()


def test_calibrator_gets_similarities(make):
    runner = make(model=dict(type='ToyDetector', smoothing=None))
    stage = CalibrateScores(dict(num_classes=10, rest='similarity'))
    other = CalibrateScores(dict(num_classes=10))
    runner.model.stages = nn.ModuleList([stage, other])
    with pytest.raises(ValueError, match='ClassPrototypeHook'):
        stage.calibrator.check_similarity()
    cosines, counts = measure(runner)
    hook_of(runner).before_train(runner)
    stage.calibrator.check_similarity()
    smoothing = SimilarityLabelSmoothing(10)
    smoothing.set_statistics(cosines, counts)
    torch.testing.assert_close(stage.calibrator.similarity,
                               smoothing.neighbours().float())
    # Who keeps the ratios asks for nothing.
    assert not other.calibrator.has_statistics
    # What is known is not measured again.
    runner.model.backbone.seen.clear()
    hook_of(runner).before_train(runner)
    assert runner.model.backbone.seen == []


# Mistakes ------------------------------------------------------------------


def test_nothing_to_fill(make):
    runner = make(model=dict(type='ToyDetector', smoothing=None))
    runner.model.stage = CalibrateScores(dict(num_classes=10))
    with pytest.raises(ValueError, match='SimilarityLabelSmoothing'):
        hook_of(runner).before_train(runner)


def test_other_number_of_classes(make):
    runner = make(
        model=dict(
            type='ToyDetector', smoothing=dict(SMOOTHING, num_classes=2)))
    with pytest.raises(ValueError, match='num_classes=2'):
        hook_of(runner).before_train(runner)
    runner.model.other = SimilarityLabelSmoothing(3)
    with pytest.raises(ValueError, match=r'num_classes=\[2, 3\]'):
        hook_of(runner).before_train(runner)


def test_no_pipeline(make):
    with pytest.raises(ValueError, match='ClassPrototypeHook.pipeline'):
        measure(make(hook={}))


def test_pipeline_without_annotations(make):
    with pytest.raises(ValueError, match='LoadAnnotations'):
        measure(make(hook=dict(pipeline=[LOAD, PACK])))


def test_pipeline_that_drops_images(make):
    drop = dict(type='FilterAnnotations', min_gt_bbox_wh=(999, 999))
    with pytest.raises(ValueError, match='drops the labelled image'):
        measure(make(hook=dict(pipeline=[LOAD, ANNOTATIONS, drop, PACK])))


def test_masks_of_another_size(make):
    """A loader that the hook does not know cannot be moved."""

    def load(results):
        return Compose([LOAD])(results)

    resize = dict(type='Resize', scale=(96, 96))
    with pytest.raises(ValueError, match='before the image'):
        measure(make(hook=dict(pipeline=[load, resize, ANNOTATIONS, PACK])))


def test_no_instances(make, monkeypatch):
    runner = make()
    dataset = runner.train_dataloader.dataset
    monkeypatch.setattr(dataset, 'get_data_info',
                        lambda index: dict(instances=[]))
    with pytest.raises(ValueError, match='no annotated instance'):
        measure(runner)
    monkeypatch.setattr(dataset, 'get_data_info', lambda index: {})
    with pytest.raises(ValueError, match='DigitsInstanceDataset lists none'):
        measure(runner)


def test_no_backbone(make):
    runner = make()
    del runner.model.backbone
    with pytest.raises(ValueError, match='ToyDetector has none'):
        measure(runner)


@pytest.mark.parametrize('settings', [
    dict(max_per_class=0),
    dict(max_per_class=2.),
    dict(num_workers=-1),
])
def test_wrong_settings(settings):
    field = list(settings)[0]
    with pytest.raises(ValueError, match=f'ClassPrototypeHook.{field}'):
        ClassPrototypeHook(**settings)
