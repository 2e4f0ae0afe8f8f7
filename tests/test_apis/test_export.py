# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmsemi.apis.export import (compare_predictions, part_of_checkpoint,
                                plain_config)

META = dict(classes=('a', 'b'), palette=[(1, 2, 3), (4, 5, 6)])


def config(segmentor=None, dataset=None, scope='mmdet', **model) -> Config:
    pack = dict(type='mmsemi.PackDetInputs')
    dataset = dataset or dict(
        type='mmsemi.DigitsInstanceDataset',
        ann_file='x.json',
        pipeline=[dict(type='mmdet.Resize', scale=(8, 8)), pack])
    return Config(
        dict(
            default_scope=scope,
            model=dict(
                type='mmsemi.SemiInstanceSegmentor',
                segmentor=segmentor or dict(
                    type='mmdet.SOLOv2',
                    backbone=dict(
                        type='ResNet', init_cfg=dict(type='Pretrained'))),
                **model),
            val_cfg=dict(type='mmsemi.TeacherStudentValLoop'),
            test_dataloader=dict(batch_size=1, dataset=dataset),
            test_evaluator=dict(type='CocoMetric', metric='segm')))


def test_part_of_checkpoint():
    state = {'teacher.a.b': 1, 'student.a.b': 2, 'step': 3}
    assert part_of_checkpoint(state, 'teacher') == {'a.b': 1}
    assert part_of_checkpoint(state, 'student') == {'a.b': 2}
    with pytest.raises(
            ValueError, match='x.pth holds no teacher: none of its 1 weights'):
        part_of_checkpoint({'a.b': 1}, 'teacher', 'x.pth')


def test_plain_config():
    cfg = plain_config(config(), META)
    assert 'mmsemi' not in cfg.pretty_text
    assert cfg.model == dict(
        type='SOLOv2', backbone=dict(type='ResNet', init_cfg=None))
    assert cfg.test_dataloader.dataset == dict(
        type='CocoDataset',
        ann_file='x.json',
        metainfo=META,
        pipeline=[
            dict(type='Resize', scale=(8, 8)),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                           'scale_factor', 'flip', 'flip_direction',
                           'homography_matrix'))
        ])
    assert cfg.test_pipeline == cfg.test_dataloader.dataset.pipeline
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.val_cfg == dict(type='ValLoop')


def test_named_segmentor_with_preprocessor_of_the_wrapper():
    inner = dict(type='mmdet.DetDataPreprocessor', pad_size_divisor=8)
    cfg = plain_config(
        config(
            'mmdet::solov2/solov2_r50_fpn_1x_coco.py',
            data_preprocessor=dict(
                type='mmsemi.MultiBranchDataPreprocessor',
                data_preprocessor=inner)), META)
    assert cfg.model.type == 'SOLOv2'
    assert '_scope_' not in cfg.model
    assert cfg.model.data_preprocessor == dict(
        type='DetDataPreprocessor', pad_size_divisor=8)


@pytest.mark.parametrize('arguments, message', [
    (dict(segmentor=dict(type='SOLOv2', neck=dict(type='mmsemi.Neck'))),
     r"model.neck.type='mmsemi.Neck': mmdet has no such type"),
    (dict(dataset=dict(type='mmsemi.UnlabeledImageDataset', pipeline=[])),
     r"test_dataloader.dataset.type='mmsemi.UnlabeledImageDataset' is no "
     'COCO data set'),
    (dict(dataset=dict(type='CocoDataset', pipeline=[
        dict(type='mmsemi.StrongColor')])),
     r"test_pipeline\[0\].type='mmsemi.StrongColor'"),
    (dict(scope='mmengine'), "default_scope='mmengine': only mmdet models"),
])
def test_what_mmdet_does_not_have(arguments, message):
    with pytest.raises(ValueError, match=message):
        plain_config(config(**arguments), META)


def test_compare_predictions():

    def sample(scores, **more) -> DetDataSample:
        return DetDataSample(
            pred_instances=InstanceData(
                scores=torch.tensor(scores), **more))

    assert compare_predictions(sample([0.5]), sample([0.5])) is None
    assert compare_predictions(sample([0.5]),
                               sample([0.5 + 1e-7])) == 'pred_instances.scores'
    assert compare_predictions(sample([0.5]), sample([0.5, 0.5])) is not None
    assert compare_predictions(
        sample([0.5]), sample([0.5], labels=torch.ones(1))
    ) == "fields ['scores'] and ['labels', 'scores']"
