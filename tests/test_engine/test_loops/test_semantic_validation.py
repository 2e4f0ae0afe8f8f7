# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""mmsemi.SemanticMetric under mmsemi.MultiViewValLoop."""
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmsemi.methods import TeacherStudent

CLASSES = ('a', 'b', 'c')


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@DATASETS.register_module(force=True)
class ToyMaps(BaseDataset):
    """Five maps of 2 x 3 pixels, four of class 1 and two of class 0."""

    METAINFO = dict(classes=CLASSES)

    def load_data_list(self):
        return [dict(idx=i) for i in range(5)]

    def prepare_data(self, idx):
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=torch.tensor([[[0, 1, 1]] * 2]))
        return dict(inputs=torch.zeros(3, 2, 3), data_samples=sample)


@MODELS.register_module(force=True)
class ToyMapSegmenter(BaseModel):
    """One class everywhere: that of the largest bias."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.bias = nn.Parameter(torch.zeros(3))

    def loss(self, inputs, data_samples=None):
        return dict(loss=self.bias.square().sum())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for sample in data_samples:
            sample.pred_sem_seg = PixelData(
                data=torch.full((1, 2, 3), int(self.bias.argmax())))
        return data_samples


@MODELS.register_module(force=True)
class ToyMapTeacherStudent(TeacherStudent):
    """Has no use for pseudo-labels."""

    def __init__(self, **kwargs):
        super().__init__(
            segmentor=dict(
                type='ToyMapSegmenter',
                data_preprocessor=dict(type='BaseDataPreprocessor')),
            **kwargs)

    def label_unlabeled(self, inputs, data_samples):
        return [None] * len(inputs)

    def loss_by_pseudo_labels(self, inputs, *args):
        return self.student.loss(inputs), 1.


def make(runner_factory, **changes):
    settings = dict(
        model=dict(
            type='ToyMapTeacherStudent', teacher=dict(mode='frozen')),
        max_iters=2,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        val_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type='ToyMaps'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate')),
        val_cfg=dict(type='mmsemi.MultiViewValLoop'),
        val_evaluator=dict(type='mmsemi.SemanticMetric'))
    settings.update(changes)
    runner = runner_factory(**settings)
    with torch.no_grad():
        runner.model.teacher.bias.copy_(torch.tensor([0., 1., 0.]))
        runner.model.student.bias.copy_(torch.tensor([1., 0., 0.]))
    return runner


def test_both_models_have_all_keys(runner_factory):
    runner = make(runner_factory)
    metrics = runner.val()
    plain = ['PA', 'MA', 'mIoU', 'FWIoU']
    plain += [f'{field}/{name}' for field in ('IoU', 'Acc')
              for name in CLASSES]
    assert list(metrics) == [
        prefix + key for prefix in ('', 'teacher/', 'student/')
        for key in plain
    ]
    assert metrics['teacher/PA'] == pytest.approx(200 / 3)
    assert metrics['teacher/mIoU'] == pytest.approx(100 / 3)
    assert metrics['teacher/IoU/b'] == pytest.approx(200 / 3)
    assert metrics['student/PA'] == pytest.approx(100 / 3)
    assert metrics['student/mIoU'] == pytest.approx(100 / 6)
    assert metrics['mIoU'] == metrics['teacher/mIoU']
    # Nothing of the first run is left for the second.
    assert runner.val() == pytest.approx(metrics, nan_ok=True)


def test_best_checkpoint_by_miou(runner_factory):
    runner = make(
        runner_factory,
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook',
                interval=2,
                by_epoch=False,
                save_best='mIoU',
                rule='greater')))
    runner.train()
    # The training starts with a teacher that equals the student.
    best = runner.message_hub.get_info('best_score')
    assert best == pytest.approx(100 / 6)
    assert best == runner.message_hub.get_scalar('val/mIoU').current()


def test_results_of_a_broken_validation_are_dropped(runner_factory):
    runner = make(runner_factory)
    loop = runner._val_loop = runner.build_val_loop(runner._val_loop)
    first = loop.run()
    metric, = loop.evaluator.metrics
    sample = next(iter(loop.dataloader))['data_samples'][0]
    sample.pred_sem_seg = sample.gt_sem_seg
    metric.process({}, [sample.to_dict()])
    assert len(metric.results) == 1
    assert loop.run() == pytest.approx(first, nan_ok=True)
