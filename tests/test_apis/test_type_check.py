# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
from mmcv.transforms import Resize as CvResize
from mmdet.datasets.transforms import Resize as DetResize
from mmengine.registry import HOOKS, MODELS, TRANSFORMS, DefaultScope

from mmsemi.apis.type_check import (Finding, check_types, resolve_type,
                                    suggest_types)
from mmsemi.pseudo_labels import FilterByScore


def messages(**cfg) -> list:
    return [(f.where, f.message)
            for f in check_types(dict(default_scope='mmdet', **cfg))]


def pipeline(*transforms: dict, **more) -> dict:
    return dict(
        test_dataloader=dict(dataset=dict(pipeline=list(transforms))), **more)


@pytest.mark.parametrize('name, scope, expected', [
    ('Resize', 'mmdet', DetResize),
    ('Resize', 'mmengine', CvResize),
    ('Resize', 'mmsemi', CvResize),
    ('mmdet.Resize', 'mmsemi', DetResize),
    ('mmsemi.FilterByScore', 'mmdet', FilterByScore),
    ('FilterByScore', 'mmdet', None),
    ('mmdet.NoSuchThing', 'mmdet', None),
    ('nowhere.Resize', 'mmdet', None),
])
def test_resolve_type(name, scope, expected):
    with DefaultScope.overwrite_default_scope(scope):
        assert resolve_type(name, [TRANSFORMS]) is expected


def test_right_types_say_nothing():
    assert messages(
        model=dict(
            type='mmdet.SOLOv2',
            backbone=dict(
                type='ResNet',
                norm_cfg=dict(type='BN', requires_grad=True),
                init_cfg=dict(type='Pretrained', checkpoint='x')),
            train_cfg=dict(assigner=dict(type='MaxIoUAssigner')),
            test_cfg=dict(nms=dict(type='soft_nms'))),
        train_dataloader=dict(
            sampler=dict(type='mmsemi.MultiSourceSampler'),
            batch_sampler=dict(type='AspectRatioBatchSampler'),
            collate_fn=dict(type='pseudo_collate'),
            dataset=dict(
                type='mmsemi.MultiSourceDataset',
                datasets=[
                    dict(
                        type='CocoDataset',
                        ann_file='x',
                        backend_args=None,
                        pipeline=[
                            dict(type='LoadImageFromFile'),
                            dict(
                                type='mmsemi.MultiBranch',
                                branch_field=['sup'],
                                sup=[dict(type='PackDetInputs')])
                        ])
                ])),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
        val_evaluator=[dict(type='CocoMetric', metric='segm')],
        optim_wrapper=dict(
            type='OptimWrapper',
            constructor='mmsemi.StudentOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1)),
        param_scheduler=dict(
            type='LinearLR', end=1, convert_to_iter_based=True),
        default_hooks=dict(timer=dict(type='IterTimerHook')),
        custom_hooks=[
            dict(type='mmsemi.TeacherUpdateHook', priority=1),
            dict(type='EMAHook', ema_type='ExpMomentumEMA')
        ],
        visualizer=dict(
            type='DetLocalVisualizer',
            vis_backends=[dict(type='LocalVisBackend')])) == []


def test_scope_holds_for_what_is_inside():
    inner = dict(type='Resize', scale=(1, 1))
    wrong = pipeline(inner, default_scope='mmengine')
    assert [f.level for f in check_types(wrong)] == ['error']
    right = pipeline(
        dict(
            type='RandomChoice', transforms=[[inner]], _scope_='mmdet'),
        default_scope='mmengine')
    assert check_types(right) == []


def test_silent_mmcv_transform():
    assert check_types(
        pipeline(dict(type='Resize', scale=(1, 1)),
                 default_scope='mmengine')) == [
                     Finding(
                         'error', 'test_dataloader.dataset.pipeline[0].type',
                         "'Resize' resolves to mmcv's Resize under "
                         "default_scope='mmengine', not to mmdet.Resize or "
                         "mmseg.Resize. Write 'mmdet.Resize' or "
                         "'mmseg.Resize', or 'mmengine.Resize' if you mean "
                         'it.')
                 ]


def test_a_bare_name_means_the_default_scope():
    # mmdet has a Pad of its own, mmseg takes mmcv's.
    pad = pipeline(dict(type='Pad', size=(1, 1)))
    assert check_types(dict(default_scope='mmseg', **pad)) == []
    assert check_types(dict(default_scope='mmdet', **pad)) == []
    finding, = check_types(dict(default_scope='mmengine', **pad))
    assert 'not to mmdet.Pad.' in finding.message


def test_data_sets_of_a_loop():
    loop = dict(
        type='mmsemi.SelfTrainingLoop',
        round_iters=1,
        unlabeled_dataset=dict(
            type='mmsemi.UnlabeledImageDataset', img_dir='x'),
        pseudo_pipeline=[dict(type='LoadAnnotation')])
    finding, = check_types(dict(default_scope='mmseg', train_cfg=loop))
    assert finding.where == 'train_cfg.pseudo_pipeline[0].type'
    assert 'Did you mean' in finding.message


def test_schedules_of_a_loop():
    loop = dict(
        type='mmsemi.TwoStageTrainLoop',
        stage1_iters=1,
        stage2_iters=1,
        stage2_param_scheduler=[
            dict(type='LinearLR', by_epoch=False),
            dict(type='MultiStepRL', milestones=[1])
        ])
    finding, = check_types(dict(default_scope='mmdet', train_cfg=loop))
    assert finding.where == 'train_cfg.stage2_param_scheduler[1].type'
    assert 'Did you mean' in finding.message


@pytest.mark.parametrize('name, registries, expected', [
    ('FilterByScore', [TRANSFORMS], 'Did you mean mmsemi.FilterByScore?'),
    ('PseudoLabelMonitor', [HOOKS],
     'Did you mean mmsemi.PseudoLabelMonitorHook'),
    ('TeacherUpdateHook', [MODELS],
     'mmsemi.TeacherUpdateHook is a hook, which does not belong here.'),
    ('mmsemi.Qwertyuiop', [HOOKS], ''),
])
def test_suggest_types(name, registries, expected):
    found = suggest_types(name, registries)
    assert found.startswith(expected) and bool(found) == bool(expected)


def test_unknown_arguments():
    assert messages(
        train_cfg=dict(type='IterBasedTrainLoop', max_itres=1),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=1, momentun=0.9))) == [
                ('train_cfg.max_itres',
                 "IterBasedTrainLoop has no argument 'max_itres'. Did you "
                 'mean max_iters?'),
                ('optim_wrapper.optimizer.momentun',
                 "SGD has no argument 'momentun'. Did you mean momentum?"),
            ]


def test_argument_of_a_class_that_hands_on_is_a_warning():
    cfg = dict(
        default_scope='mmdet',
        train_dataloader=dict(dataset=dict(type='CocoDataset', ann_fil='x')))
    finding, = check_types(cfg)
    assert finding == Finding(
        'warning', 'train_dataloader.dataset.ann_fil',
        "CocoDataset has no argument 'ann_fil'. Did you mean ann_file?")


def test_foreign_types_are_left_alone():
    assert messages(**pipeline(
        dict(type='Albu', transforms=[dict(type='ShiftScaleRotate')]))) == []
    assert messages(runner_type='Runer') == [
        ('runner_type', "'Runer' is unknown under default_scope='mmdet'. "
         'Did you mean Runner?')
    ]
