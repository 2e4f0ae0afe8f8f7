# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A training of milliseconds per step, and the tools to run on it."""
import gc
import importlib
import os
import runpy
import signal
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import Callable, List, NamedTuple, NoReturn, Tuple

import pytest
import torch
from yapf.yapflib import yapf_api

from mmsemi.apis import train
from mmsemi.datasets import make_digits

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / 'tools'

# The configs of the tests stand alone, so that no tuning of the shipped ones
# changes them.
CONFIG = '''
default_scope = 'mmdet'
custom_imports = dict(imports=['mmsemi'], allow_failed_imports=False)
data_root = {data_root!r}
views = ['sup', 'unsup_teacher', 'unsup_student']
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
]
pack = dict(type='mmsemi.PackDetInputs')
labeled_dataset = dict(
    type='mmsemi.DigitsInstanceDataset',
    data_root=data_root,
    ann_file='annotations/instances_train.seed0-fold0@50.json',
    data_prefix=dict(img='train/'),
    pipeline=load + [
        dict(type='mmsemi.MultiBranch', branch_field=views, sup=[pack])
    ])
unlabeled_dataset = dict(
    type='mmsemi.UnlabeledImageDataset',
    img_dir='train',
    data_root=data_root,
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(
            type='mmsemi.MultiBranch',
            branch_field=views,
            unsup_teacher=[pack],
            unsup_student=[dict(type='mmsemi.StrongColor'), pack])
    ])
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=2, source_ratio=[1, 1]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[labeled_dataset, unlabeled_dataset]))
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmsemi.DigitsInstanceDataset',
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=load + [pack]))
test_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + '/annotations/instances_val.json',
    metric=['segm'])
test_cfg = dict(type='TestLoop')
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
norm_cfg = dict(type='GN', num_groups=2)
segmentor = dict(
    type='SOLOv2',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[114.] * 3,
        std=[60.] * 3,
        pad_mask=True,
        pad_size_divisor=16),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=4,
        stem_channels=4,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=dict(type='BN'),
        norm_eval=False),
    neck=dict(
        type='FPN', in_channels=[4, 8, 16], out_channels=8, num_outs=3),
    mask_head=dict(
        type='SOLOV2Head',
        num_classes=10,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        strides=[4, 4, 4],
        scale_ranges=((1, 20), (14, 28), (22, 64)),
        num_grids=[6, 5, 4],
        cls_down_index=0,
        mask_feature_head=dict(
            feat_channels=8,
            start_level=0,
            end_level=2,
            out_channels=8,
            mask_stride=4,
            norm_cfg=norm_cfg),
        norm_cfg=norm_cfg,
        loss_mask=dict(type='DiceLoss', use_sigmoid=True, loss_weight=3.0),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True)),
    # So low that an untrained model predicts something.
    test_cfg=dict(
        nms_pre=20,
        score_thr=0.001,
        mask_thr=0.5,
        filter_thr=0.001,
        kernel='gaussian',
        sigma=2.0,
        max_per_img=5))
model = dict(
    type='mmsemi.SemiInstanceSegmentor',
    segmentor=segmentor,
    teacher=dict(momentum=0.1),
    pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=0.002)
    ])
default_hooks = dict(
    iter_seed=dict(type='mmsemi.IterSeedHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False))
custom_hooks = [dict(type='mmsemi.TeacherUpdateHook')]
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
'''

# A segmenter of every pixel, and a semi-supervised model around it.
SEMANTIC_CONFIG = '''
default_scope = 'mmseg'
custom_imports = dict(imports=['mmsemi'], allow_failed_imports=False)
data_root = {data_root!r}
views = ['sup', 'unsup_teacher', 'unsup_student']
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
pack = dict(type='mmsemi.PackSegInputs')
labeled_dataset = dict(
    type='mmsemi.DigitsSemanticDataset',
    data_root=data_root,
    ann_file='splits/train.seed0-fold0@50.txt',
    data_prefix=dict(img_path='train/', seg_map_path='masks/train/'),
    pipeline=load + [
        dict(type='mmsemi.MultiBranch', branch_field=views, sup=[pack])
    ])
unlabeled_dataset = dict(
    type='mmsemi.DigitsSemanticDataset',
    data_root=data_root,
    ann_file='splits/train.seed0-fold0@50-unlabeled.txt',
    data_prefix=dict(img_path='train/'),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(
            type='mmsemi.MultiBranch',
            branch_field=views,
            unsup_teacher=[pack],
            unsup_student=[dict(type='mmsemi.StrongColor'), pack])
    ])
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=4, source_ratio=[1, 1]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[labeled_dataset, unlabeled_dataset]))
test_pipeline = load + [pack]
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmsemi.DigitsSemanticDataset',
        data_root=data_root,
        ann_file='splits/val.txt',
        data_prefix=dict(img_path='val/', seg_map_path='masks/val/'),
        test_mode=True,
        pipeline=test_pipeline))
test_evaluator = dict(type='mmsemi.SemanticMetric')
test_cfg = dict(type='TestLoop')
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2))
segmentor = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[114.] * 3,
        std=[60.] * 3,
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(64, 64)),
    backbone=dict(
        type='mmseg.ResNet',
        depth=18,
        base_channels=4,
        stem_channels=4,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        norm_cfg=dict(type='BN'),
        norm_eval=False),
    decode_head=dict(
        type='FCNHead',
        in_channels=8,
        in_index=1,
        channels=8,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(
            type='mmsemi.OhemCrossEntropyLoss', thresh=0.7, min_kept=10)),
    test_cfg=dict(mode='slide', crop_size=(32, 48), stride=(20, 30)))
model = dict(
    type='mmsemi.FixMatch', segmentor=segmentor, teacher=dict(momentum=0.1))
default_hooks = dict(
    iter_seed=dict(type='mmsemi.IterSeedHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False))
custom_hooks = [dict(type='mmsemi.TeacherUpdateHook')]
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
'''
OTHER_MODELS = dict(
    fixmatch='',
    # Its student labels for itself.
    student="""
model['teacher'] = dict(mode='student')
""",
    cps="""
model = dict(
    type='mmsemi.CPS', segmentor=segmentor, student_view='unsup_student')
custom_hooks = []
""",
    plain="""
model = segmentor
labeled_dataset['pipeline'] = load + [pack]
train_dataloader['sampler']['source_ratio'] = [1]
train_dataloader['dataset']['datasets'] = [labeled_dataset]
custom_hooks = []
""")


class Finished(NamedTuple):
    """A tool that ended."""
    code: int
    out: str
    err: str


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """16 training scenes, 8 of them labelled, and 2 others."""
    return make_digits(
        tmp_path_factory.mktemp('digits') / 'data',
        num_train=16,
        num_val=2,
        percents=(50, ))


@pytest.fixture(scope='session')
def config_text(digits) -> str:
    """Text of the tiny config."""
    return CONFIG.format(data_root=str(digits))


@pytest.fixture(scope='session')
def semantic_text(digits) -> Callable:
    """Return the text of a tiny semantic config, by the model's name."""
    text = SEMANTIC_CONFIG.format(data_root=str(digits))
    return lambda model='fixmatch': text + OTHER_MODELS[model]


@pytest.fixture
def write_semantic(semantic_text, tmp_path) -> Callable:
    """Write a tiny semantic config, with lines added at its end."""

    def write(model: str = 'fixmatch', extra: str = '') -> Path:
        path = tmp_path / f'{model}.py'
        path.write_text(semantic_text(model) + extra)
        return path

    return write


@pytest.fixture
def write_config(config_text, tmp_path) -> Callable:
    """Write the tiny config, with lines added at its end."""

    def write(extra: str = '', name: str = 'tiny') -> Path:
        path = tmp_path / f'{name}.py'
        path.write_text(config_text + extra)
        return path

    return write


@pytest.fixture(scope='session')
def imported() -> None:
    """Import what the tools need, once."""
    for name in ('mmdet.apis', 'mmdet.visualization', 'mmseg.apis',
                 'mmseg.engine.hooks', 'mmseg.visualization',
                 'mmsemi.engine.hooks', 'mmsemi.engine.loops',
                 'mmsemi.visualization'):
        importlib.import_module(name)


@pytest.fixture
def run_tool(tmp_path, imported) -> Callable:
    """Run a tool as a script, in a folder of its own and under a limit.

    The process is a fork of this one, which has everything imported: that
    saves many seconds per tool.
    """

    def run(name: str, *args: object, seconds: float = 60) -> Finished:
        folder = tmp_path / f'{name}-{uuid.uuid4()}'
        folder.mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            run_as_script(name, [str(arg) for arg in args], folder)
        deadline = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                pytest.fail(f'{name}.py did not end in {seconds} s')
            time.sleep(0.01)
        return Finished(
            os.waitstatus_to_exitcode(status),
            (folder / 'out').read_text(), (folder / 'err').read_text())

    return run


@pytest.fixture(scope='session')
def trained(config_text, tmp_path_factory) -> Path:
    """Folder with the tiny config and its checkpoint of step 2."""
    folder = tmp_path_factory.mktemp('trained')
    (folder / 'tiny.py').write_text(config_text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yapf_api, 'FormatCode', unformatted)
        train(
            folder / 'tiny.py',
            work_dir=folder / 'work_dir',
            cfg_options={'train_cfg.max_iters': 2})
    return folder


@pytest.fixture(scope='session')
def semantic_trained(semantic_text, tmp_path_factory) -> Callable:
    """Return a folder with a semantic config and its checkpoint of step 2."""
    folders = {}

    def folder_of(model: str) -> Path:
        if model not in folders:
            folder = tmp_path_factory.mktemp(f'semantic_{model}')
            (folder / 'tiny.py').write_text(semantic_text(model))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(yapf_api, 'FormatCode', unformatted)
                train(folder / 'tiny.py', work_dir=folder / 'work_dir')
            folders[model] = folder
        return folders[model]

    return folder_of


def unformatted(text: str, **kwargs) -> Tuple[str, bool]:
    """Stand in for yapf."""
    return text, False


def run_as_script(name: str, args: List[str], folder: Path) -> NoReturn:
    """Become the process of a script; its output goes into two files."""
    code = 1
    try:
        for number, stream in ((1, 'out'), (2, 'err')):
            file = os.open(folder / stream, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
            setattr(sys, f'std{stream}', open(number, 'w', closefd=False))
        # Data sets collect garbage, which would copy the parent's memory.
        gc.freeze()
        # The threads of the parent do not exist here.
        torch.set_num_threads(1)
        # A runner formats its config four times, longer than it trains here.
        yapf_api.FormatCode = unformatted
        os.chdir(folder.parent)
        sys.argv = [f'{name}.py', *args]
        runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
