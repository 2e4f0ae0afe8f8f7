# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A tiny mmseg segmenter and batches of its views."""
import pytest
import torch
from mmengine.structures import PixelData

NUM_CLASSES = 4


def tiny_dense_segmentor(**head) -> dict:
    """Return the config of a small EncoderDecoder with an auxiliary head."""
    common = dict(
        type='mmseg.FCNHead',
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=NUM_CLASSES,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss', avg_non_ignore=True))
    return dict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(
            type='mmseg.SegDataPreProcessor',
            mean=[114.] * 3,
            std=[60.] * 3,
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=255,
            size_divisor=8),
        backbone=dict(
            type='mmseg.ResNetV1c',
            depth=18,
            base_channels=8,
            stem_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(0, 1),
            norm_cfg=dict(type='BN')),
        decode_head=dict(
            common, in_channels=16, in_index=1, **dict(
                dict(dropout_ratio=0.), **head)),
        auxiliary_head=dict(
            common, in_channels=8, in_index=0, dropout_ratio=0.))


def dense_batch(sizes=None, seed: int = 0) -> tuple:
    """Return inputs and data samples by view, as after preprocessing.

    Args:
        sizes (dict, optional): (number, height, width) by view. Defaults to
            two images of 16 x 24 pixels in 'sup' and the weak and strong
            views. The last image of each is 4 pixels shorter.
        seed (int): Of the images.
    """
    from mmseg.structures import SegDataSample
    sizes = sizes or dict.fromkeys(
        ('sup', 'unsup_teacher', 'unsup_student'), (2, 16, 24))
    generator = torch.Generator().manual_seed(seed)
    inputs, data_samples = {}, {}
    for view, (num, height, width) in sizes.items():
        inputs[view] = torch.randn((num, 3, height, width),
                                   generator=generator)
        samples = []
        for i in range(num):
            h = height - 4 if i == num - 1 else height
            sample = SegDataSample(
                metainfo=dict(
                    img_shape=(h, width),
                    ori_shape=(h, width),
                    pad_shape=(height, width),
                    padding_size=(0, 0, 0, height - h)))
            if view.startswith('sup'):
                label = torch.randint(
                    0, NUM_CLASSES, (1, height, width), generator=generator)
                label[:, h:] = 255
                sample.gt_sem_seg = PixelData(data=label)
            samples.append(sample)
        data_samples[view] = samples
    return inputs, data_samples


@pytest.fixture
def dense_segmentor_config():
    """callable: :func:`tiny_dense_segmentor`."""
    return tiny_dense_segmentor


@pytest.fixture
def dense_batch_factory():
    """callable: :func:`dense_batch`."""
    return dense_batch
