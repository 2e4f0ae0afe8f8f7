# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A toy teacher-student model and runners that train it in a blink."""
import importlib.util
import uuid
from pathlib import Path

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from mmsemi.datasets import make_digits
from mmsemi.methods import TeacherStudent

VIEWS = ('sup', 'unsup_teacher', 'unsup_student')


@MODELS.register_module(force=True)
class ToySegmenter(BaseModel):
    """Two trainable layers and batch statistics, on vectors of 4."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.backbone = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)

    def loss(self, inputs, data_samples=None):
        out = self.head(self.backbone(torch.stack(inputs)))
        return dict(loss=out.square().mean())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.backbone(torch.stack(inputs)))


@MODELS.register_module(force=True)
class ToyTeacherStudent(TeacherStudent):
    """Finds as many pseudo-labels as ``counts`` says, one per iteration."""

    def __init__(self, counts=(1., ), **kwargs):
        super().__init__(
            segmentor=dict(
                type='ToySegmenter',
                data_preprocessor=dict(type='BaseDataPreprocessor')),
            **kwargs)
        self.counts = list(counts)

    def label_unlabeled(self, inputs, data_samples):
        return [None] * len(inputs)

    def loss_by_pseudo_labels(self, inputs, data_samples, pseudo_labels):
        return self.student.loss(inputs['unsup_student']), 1.

    def pseudo_label_figures(self, pseudo_labels, teacher_samples):
        count = self.counts.pop(0) if self.counts else 0.
        figures = {'pseudo/per_image': torch.tensor(count)}
        if count:
            figures['pseudo/mean_score'] = torch.tensor(0.5)
        return figures


@DATASETS.register_module(force=True)
class ToyViews(BaseDataset):
    """Vectors in three views."""

    METAINFO = dict(classes=('a', 'b'))

    def load_data_list(self):
        return [dict(idx=i) for i in range(64)]

    def prepare_data(self, idx):
        generator = torch.Generator().manual_seed(int(idx))
        views = torch.randn((len(VIEWS), 4), generator=generator)
        return dict(
            inputs=dict(zip(VIEWS, views)),
            data_samples={view: BaseDataElement()
                          for view in VIEWS})


@DATASETS.register_module(force=True)
class ToyVectors(BaseDataset):
    """Seven vectors to predict on."""

    def load_data_list(self):
        return [dict(idx=i) for i in range(7)]

    def prepare_data(self, idx):
        return dict(
            inputs=torch.full((4, ), float(idx)),
            data_samples=BaseDataElement())


class CallHook(Hook):
    """Call a function with the runner after every iteration.

    It runs after the hooks of the package and before checkpoints.
    """

    priority = 'BELOW_NORMAL'

    def __init__(self, function):
        self.function = function

    def after_train_iter(self,
                         runner,
                         batch_idx,
                         data_batch=None,
                         outputs=None):
        self.function(runner)


def make_runner(work_dir, max_iters=8, **changes):
    """Return a runner of the toy model with all of mmengine's hooks."""
    settings = dict(
        model=dict(type='ToyTeacherStudent', teacher=dict(momentum=0.1)),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=dict(type='ToyViews'),
            sampler=dict(type='InfiniteSampler'),
            collate_fn=dict(type='pseudo_collate')),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=dict(
            type='LinearLR', start_factor=0.5, end=max_iters, by_epoch=False),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=2),
            checkpoint=dict(
                type='CheckpointHook', interval=max_iters, by_epoch=False)),
        custom_hooks=[dict(type='mmsemi.TeacherUpdateHook')],
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        # The logs of two runners in one second would end up in one.
        experiment_name=uuid.uuid4().hex)
    settings.update(changes)
    return Runner(**settings)


@pytest.fixture(scope='session', autouse=True)
def plain_environment():
    """Keep mmengine from describing the machine, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda self, cfg: None)
        yield


@pytest.fixture(scope='session')
def tiny_training():
    """module: ``tiny_training.py`` beside this file."""
    path = Path(__file__).with_name('tiny_training.py')
    spec = importlib.util.spec_from_file_location('tiny_training', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def digits_root(tmp_path_factory):
    """str: Twelve digit scenes, six of them labelled."""
    root = tmp_path_factory.mktemp('data') / 'digits'
    return str(make_digits(root, num_train=12, num_val=2, percents=(50, )))


@pytest.fixture
def runner_factory(tmp_path):
    """callable: :func:`make_runner` in a temporary folder."""
    return lambda **changes: make_runner(
        changes.pop('work_dir', tmp_path / 'run'), **changes)


@pytest.fixture
def call_hook():
    """type: :class:`CallHook`."""
    return CallHook
