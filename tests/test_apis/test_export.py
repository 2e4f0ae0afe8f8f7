# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

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
            val_cfg=dict(type='mmsemi.MultiViewValLoop'),
            test_dataloader=dict(batch_size=1, dataset=dataset),
            test_evaluator=dict(type='CocoMetric', metric='segm')))


def test_part_of_checkpoint():
    state = {'teacher.a.b': 1, 'student.a.b': 2, 'step': 3}
    assert part_of_checkpoint(state, 'teacher') == {'a.b': 1}
    assert part_of_checkpoint(state, 'student') == {'a.b': 2}
    networks = {'networks.0.a': 1, 'networks.10.a': 2, 'networks.1.a': 3}
    assert part_of_checkpoint(networks, 'network_1') == {'a': 3}
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
    (dict(scope='mmengine'),
     "default_scope='mmengine': only models of mmdet and mmseg"),
])
def test_what_mmdet_does_not_have(arguments, message):
    with pytest.raises(ValueError, match=message):
        plain_config(config(**arguments), META)


def semantic_config(**test_cfg) -> Config:
    head = dict(
        type='mmseg.FCNHead',
        loss_decode=[dict(type='mmsemi.OhemCrossEntropyLoss')])
    auxiliary = dict(
        type='FCNHead', loss_decode=dict(type='CrossEntropyLoss'))
    source = dict(
        type='mmsemi.DigitsSemanticDataset',
        pipeline=[dict(type='mmsemi.PackSegInputs')])
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='mmsemi.CPS',
                segmentor=dict(
                    type='EncoderDecoder',
                    pretrained='open-mmlab://x',
                    decode_head=[head],
                    auxiliary_head=auxiliary,
                    test_cfg=test_cfg)),
            test_dataloader=dict(
                dataset=dict(type='ConcatDataset', datasets=[source, source])),
            test_evaluator=[
                dict(type='mmsemi.SemanticMetric', ignore_index=9),
                dict(type='mmseg.IoUMetric')
            ]))


def test_plain_mmseg_config():
    cfg = plain_config(
        semantic_config(
            mode='slide', crop_size=64, stride=(40, 50), border='shift'), META)
    assert 'mmsemi' not in cfg.pretty_text
    assert cfg.model == dict(
        type='EncoderDecoder',
        # Its default loss is mmseg's cross entropy.
        decode_head=[dict(type='FCNHead')],
        auxiliary_head=dict(
            type='FCNHead', loss_decode=dict(type='CrossEntropyLoss')),
        test_cfg=dict(
            mode='slide', crop_size=(64, 64), stride=(40, 50)))
    for source in cfg.test_dataloader.dataset.datasets:
        assert (source.type, source.img_suffix) == ('BaseSegDataset', '.png')
        assert source.metainfo == META
    assert cfg.test_pipeline[0].type == 'PackSegInputs'
    assert cfg.test_evaluator == [
        dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=9),
        dict(type='IoUMetric')
    ]
    assert cfg.visualizer.type == 'SegLocalVisualizer'


@pytest.mark.parametrize('field, value', [('border', 'truncate'),
                                          ('average', 'softmax')])
def test_what_mmseg_ignores_is_refused(field, value):
    windows = dict(mode='slide', crop_size=(8, 8), stride=(4, 4))
    with pytest.raises(
            ValueError, match=f"test_cfg.{field}='{value}': mmseg ignores"):
        plain_config(semantic_config(**windows, **{field: value}), META)


def test_compare_label_maps():

    def sample(label, logits=0.) -> SegDataSample:
        return SegDataSample(
            pred_sem_seg=PixelData(data=torch.full((1, 2, 2), label)),
            seg_logits=PixelData(data=torch.full((1, 2, 2), logits)))

    assert compare_predictions(sample(1), sample(1)) is None
    assert compare_predictions(sample(1), sample(2)) == 'pred_sem_seg.data'
    assert compare_predictions(sample(1), sample(1, 1e-7)) == 'seg_logits.data'
    assert compare_predictions(
        sample(1), SegDataSample()) == "fields ['data'] and []"


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
