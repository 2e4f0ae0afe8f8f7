# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Tiny versions of mmdet's segmenters and batches for them."""
import os
from typing import List, Optional, Sequence

# Tiny models gain nothing from threads, and how a sum is split over them
# decides its last bits. Before torch, and for the processes that tests start.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# isort: split
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

NUM_CLASSES = 3
CHANNELS = 16

_RESNET = dict(depth=18, base_channels=8, init_cfg=None, frozen_stages=-1)
_FPN = dict(in_channels=[8, 16, 32, 64], out_channels=CHANNELS)
_RPN = dict(in_channels=CHANNELS, feat_channels=CHANNELS)
_SHARED_BOX_HEAD = dict(
    in_channels=CHANNELS, fc_out_channels=32, num_classes=NUM_CLASSES)
_MASK_HEAD = dict(
    in_channels=CHANNELS,
    conv_out_channels=CHANNELS,
    num_convs=1,
    num_classes=NUM_CLASSES)
_EXTRACTOR = dict(out_channels=CHANNELS)
_ATTENTION = dict(embed_dims=CHANNELS, num_heads=2)
_FEEDFORWARD = dict(embed_dims=CHANNELS, feedforward_channels=32)
_INSTANCE_TEST = dict(panoptic_on=False, semantic_on=False, instance_on=True)


def _transformer(num_layers: int, cross: bool) -> dict:
    layer = dict(self_attn_cfg=_ATTENTION, ffn_cfg=_FEEDFORWARD)
    if cross:
        layer['cross_attn_cfg'] = _ATTENTION
    return dict(num_layers=num_layers, layer_cfg=layer)


def _query_head(decoder_layers: int) -> dict:
    return dict(
        in_channels=[8, 16, 32, 64],
        feat_channels=CHANNELS,
        out_channels=CHANNELS,
        num_things_classes=NUM_CLASSES,
        num_stuff_classes=0,
        num_queries=10,
        positional_encoding=dict(num_feats=CHANNELS // 2),
        transformer_decoder=_transformer(decoder_layers, True),
        loss_cls=dict(class_weight=[1.0] * NUM_CLASSES + [0.1]))


def tiny_segmentor(name: str) -> dict:
    """Return mmdet's config of a model, shrunk to run in milliseconds."""
    fusion = dict(num_things_classes=NUM_CLASSES, num_stuff_classes=0)
    if name == 'mask_rcnn':
        return dict(
            cfg_path='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
            backbone=_RESNET,
            neck=_FPN,
            rpn_head=_RPN,
            roi_head=dict(
                bbox_roi_extractor=_EXTRACTOR,
                mask_roi_extractor=_EXTRACTOR,
                bbox_head=_SHARED_BOX_HEAD,
                mask_head=_MASK_HEAD))
    if name == 'faster_rcnn':
        return dict(
            cfg_path='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            backbone=_RESNET,
            neck=_FPN,
            rpn_head=_RPN,
            roi_head=dict(
                bbox_roi_extractor=_EXTRACTOR, bbox_head=_SHARED_BOX_HEAD))
    if name == 'cascade_mask_rcnn':
        from mmsemi.methods import load_segmentor_config
        config = load_segmentor_config(
            dict(
                cfg_path='mmdet::cascade_rcnn/'
                'cascade-mask-rcnn_r50_fpn_1x_coco.py',
                backbone=_RESNET,
                neck=_FPN,
                rpn_head=_RPN,
                roi_head=dict(
                    bbox_roi_extractor=_EXTRACTOR,
                    mask_roi_extractor=_EXTRACTOR,
                    mask_head=_MASK_HEAD)))
        for head in config.roi_head.bbox_head:
            head.update(_SHARED_BOX_HEAD)
        return config
    if name == 'solov2':
        return dict(
            cfg_path='mmdet::solov2/solov2_r50_fpn_1x_coco.py',
            backbone=_RESNET,
            neck=_FPN,
            mask_head=dict(
                num_classes=NUM_CLASSES,
                in_channels=CHANNELS,
                feat_channels=CHANNELS,
                stacked_convs=1,
                cls_down_index=0,
                num_grids=[8, 6, 6, 4, 4],
                scale_ranges=((1, 16), (8, 24), (16, 32), (24, 48), (32, 64)),
                mask_feature_head=dict(
                    feat_channels=16, out_channels=16,
                    norm_cfg=dict(num_groups=4)),
                norm_cfg=dict(type='GN', num_groups=4)))
    if name == 'rtmdet_ins':
        return dict(
            cfg_path='mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
            backbone=dict(
                widen_factor=0.125, deepen_factor=0.167, init_cfg=None),
            neck=dict(
                in_channels=[32, 64, 128],
                out_channels=CHANNELS,
                num_csp_blocks=1),
            bbox_head=dict(
                num_classes=NUM_CLASSES,
                in_channels=CHANNELS,
                feat_channels=CHANNELS))
    if name == 'maskformer':
        return dict(
            cfg_path='mmdet::maskformer/'
            'maskformer_r50_ms-16xb1-75e_coco.py',
            backbone=_RESNET,
            panoptic_head=dict(
                **_query_head(1),
                pixel_decoder=dict(
                    norm_cfg=dict(num_groups=4),
                    encoder=_transformer(1, False),
                    positional_encoding=dict(num_feats=CHANNELS // 2))),
            panoptic_fusion_head=fusion,
            test_cfg=dict(**_INSTANCE_TEST, max_per_image=10))
    if name == 'mask2former':
        return dict(
            cfg_path='mmdet::mask2former/'
            'mask2former_r50_8xb2-lsj-50e_coco.py',
            backbone=_RESNET,
            panoptic_head=dict(
                **_query_head(2),
                num_transformer_feat_level=3,
                pixel_decoder=dict(
                    norm_cfg=dict(num_groups=4),
                    encoder=_transformer(1, False),
                    positional_encoding=dict(num_feats=CHANNELS // 2))),
            panoptic_fusion_head=fusion,
            test_cfg=dict(**_INSTANCE_TEST, max_per_image=10),
            train_cfg=dict(num_points=64))
    raise ValueError(name)


INSTANCE_SEGMENTERS = ('mask_rcnn', 'cascade_mask_rcnn', 'maskformer',
                       'mask2former', 'rtmdet_ins', 'solov2')


@pytest.fixture(autouse=True)
def one_thread():
    """Undo what a tool of an earlier test may have set."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_visualizer():
    """Let no test draw with the visualizer of an earlier one."""
    classes = [Visualizer]
    for cls in classes:
        # Each class keeps its own.
        cls._instance_dict.clear()
        classes += cls.__subclasses__()


@pytest.fixture(autouse=True)
def mmdet_scope():
    """Resolve bare types in mmdet, as every config's default_scope does."""
    init_default_scope('mmdet')


def make_instances(boxes: Sequence[Sequence[int]],
                   labels: Sequence[int],
                   shape: Sequence[int],
                   scores: Optional[Sequence[float]] = None) -> InstanceData:
    """Return instances whose masks fill their integer boxes."""
    masks = torch.zeros((len(boxes), *shape), dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
        masks=masks)
    if scores is not None:
        instances.scores = torch.tensor(scores, dtype=torch.float32)
    return instances


def make_sample(img_shape=(64, 64),
                batch_shape=None,
                homography=None,
                instances: Optional[InstanceData] = None) -> DetDataSample:
    """Return a data sample as mmdet's packing and preprocessing leave it."""
    batch_shape = tuple(batch_shape or img_shape)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=tuple(img_shape),
            ori_shape=tuple(img_shape),
            pad_shape=batch_shape,
            batch_input_shape=batch_shape,
            scale_factor=(1., 1.),
            homography_matrix=np.eye(3, dtype=np.float32)
            if homography is None else homography))
    if instances is not None:
        from mmsemi.structures.tensor_masks import TensorMasks
        instances = instances.clone()
        instances.masks = TensorMasks(instances.masks).pad(batch_shape)
        sample.gt_instances = instances
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return sample


def make_batch(num_sup: int = 2, num_unsup: int = 2, seed: int = 0) -> tuple:
    """Return inputs and data samples of the three views, 64 x 64 pixels."""
    generator = torch.Generator().manual_seed(seed)

    def images(num: int) -> torch.Tensor:
        return torch.randn((num, 3, 64, 64), generator=generator)

    def labelled(num: int) -> List[DetDataSample]:
        return [
            make_sample(
                instances=make_instances([[4, 4, 30, 30], [34, 20, 60, 58]],
                                         [0, 2], (64, 64)))
            for _ in range(num)
        ]

    weak = images(num_unsup)
    inputs = dict(
        sup=images(num_sup),
        unsup_teacher=weak,
        unsup_student=weak + 0.1 * images(num_unsup))
    samples = dict(
        sup=labelled(num_sup),
        unsup_teacher=[make_sample() for _ in range(num_unsup)],
        unsup_student=[make_sample() for _ in range(num_unsup)])
    return inputs, samples


@pytest.fixture
def tiny_segmentor_config():
    """callable: :func:`tiny_segmentor`."""
    return tiny_segmentor


@pytest.fixture
def instances_factory():
    """callable: :func:`make_instances`."""
    return make_instances


@pytest.fixture
def sample_factory():
    """callable: :func:`make_sample`."""
    return make_sample


@pytest.fixture
def batch_factory():
    """callable: :func:`make_batch`."""
    return make_batch
