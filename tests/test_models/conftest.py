# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The official FastInst weights and a tiny FastInst."""
import importlib.util
from pathlib import Path

import pytest
from mmengine.config import ConfigDict


@pytest.fixture(scope='session')
def official():
    """module: ``official_fastinst.py`` beside this file."""
    path = Path(__file__).with_name('official_fastinst.py')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fastinst_head(num_classes: int = 3,
                  in_channels: tuple = (16, 24, 32),
                  width: int = 32,
                  num_layers: int = 2,
                  **kwargs) -> ConfigDict:
    """Return the config of a small head, that of the reference run."""
    attention = dict(embed_dims=width, num_heads=8)
    costs = [
        dict(type='ClassificationCost', weight=2.),
        dict(type='mmsemi.LocationCost')
    ]
    return ConfigDict(
        dict(
            type='mmsemi.FastInstHead',
            in_channels=in_channels,
            feat_channels=width,
            out_channels=width,
            num_things_classes=num_classes,
            num_queries=9,
            num_aux_queries=2,
            transformer_decoder=dict(
                num_layers=num_layers,
                layer_cfg=dict(
                    self_attn_cfg=attention,
                    cross_attn_cfg=attention,
                    ffn_cfg=dict(embed_dims=width, feedforward_channels=64))),
            loss_cls=dict(
                type='CrossEntropyLoss',
                loss_weight=2.,
                class_weight=[1.] * num_classes + [.1]),
            loss_mask=dict(
                type='CrossEntropyLoss', use_sigmoid=True, loss_weight=5.),
            loss_dice=dict(
                type='DiceLoss', naive_dice=True, eps=1., loss_weight=5.),
            loss_proposal=dict(type='CrossEntropyLoss', loss_weight=20.),
            train_cfg=dict(
                assigner=dict(
                    type='HungarianAssigner',
                    match_costs=[
                        *costs,
                        dict(type='CrossEntropyLossCost', weight=5.),
                        dict(
                            type='DiceCost', weight=5., pred_act=True, eps=1.)
                    ]),
                proposal_assigner=dict(
                    type='HungarianAssigner', match_costs=costs),
                sampler=dict(type='MaskPseudoSampler'),
                num_points=kwargs.pop('num_points', 64))), **kwargs)


def fastinst(**head) -> ConfigDict:
    """Return the config of a small detector for images of 64 x 64 pixels."""
    head = fastinst_head(in_channels=(16, 32, 64), **head)
    return ConfigDict(
        type='mmsemi.FastInst',
        data_preprocessor=dict(
            type='DetDataPreprocessor', pad_mask=True, pad_size_divisor=32),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            out_indices=(1, 2, 3),
            norm_cfg=dict(type='BN', requires_grad=False),
            norm_eval=True),
        panoptic_head=head,
        panoptic_fusion_head=dict(
            type='mmsemi.QueryFusionHead',
            num_things_classes=head.num_things_classes,
            num_stuff_classes=0),
        train_cfg=head.pop('train_cfg'),
        test_cfg=dict(panoptic_on=False, instance_on=True, max_per_image=100))


@pytest.fixture
def fastinst_head_config():
    """callable: :func:`fastinst_head`."""
    return fastinst_head


@pytest.fixture
def fastinst_config():
    """callable: :func:`fastinst`."""
    return fastinst
