# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmsemi.registry import MODELS
from mmsemi.visualization import collect_panels
from mmsemi.visualization.drawing import (GAP, TITLE_HEIGHT, default_palette,
                                          draw_label_map)

PALETTE = [[0, 0, 0], [200, 0, 0], [0, 200, 0]]
SCALE = 3
# Of the two images, before padding.
SIZES = ((24, 32), (16, 20))


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@MODELS.register_module(force=True)
class ColourAsFeature(BaseModule):
    """Features are the colours themselves, so that channels are classes."""

    def forward(self, inputs):
        return (inputs, )


@pytest.fixture
def model():
    model = MODELS.build(
        dict(
            type='mmsemi.FixMatch',
            segmentor=dict(
                type='mmseg.EncoderDecoder',
                data_preprocessor=dict(
                    type='mmseg.SegDataPreProcessor',
                    mean=[100.] * 3,
                    std=[50.] * 3,
                    bgr_to_rgb=True,
                    size=(24, 32)),
                backbone=dict(type='mmsemi.ColourAsFeature'),
                decode_head=dict(
                    type='mmseg.FCNHead',
                    in_channels=3,
                    in_index=0,
                    channels=3,
                    num_convs=0,
                    concat_input=False,
                    dropout_ratio=0.,
                    num_classes=3,
                    align_corners=False,
                    loss_decode=dict(type='mmseg.CrossEntropyLoss')))))
    for part in (model.student, model.teacher):
        last = part.decode_head.conv_seg
        last.weight.data = 10 * torch.eye(3).reshape(3, 3, 1, 1)
        nn.init.zeros_(last.bias)
    return model.train()


@pytest.fixture
def batch():
    """dict: Plain images of class 2 with a doubtful, then a sure row of 1."""
    inputs = dict(sup=[torch.zeros(3, 24, 32), None, None])
    samples = dict(sup=[SegDataSample(), None, None])
    for view in ('unsup_teacher', 'unsup_student'):
        inputs[view], samples[view] = [None], [None]
        for height, width in SIZES:
            image = torch.zeros(3, height, width, dtype=torch.uint8)
            # Loaded as BGR: the classes are R, G and B.
            image[0] = 200
            image[1, :4] = 201
            image[1, 4:8], image[0, 4:8] = 255, 0
            inputs[view].append(image)
            samples[view].append(
                SegDataSample(
                    metainfo=dict(
                        img_shape=(height, width), ori_shape=(
                            height, width))))
    return dict(inputs=inputs, data_samples=samples)


def columns(panel, size):
    height, width = (side * SCALE for side in size)
    below = panel[TITLE_HEIGHT:TITLE_HEIGHT + height]
    starts = [GAP + i * (width + GAP) for i in range(4)]
    return [below[::SCALE, start:start + width:SCALE] for start in starts]


def test_columns_show_views_labels_and_prediction(model, batch):
    panels = collect_panels(model, batch, palette=PALETTE, scale=SCALE)
    assert len(panels) == 2
    for panel, size, image in zip(panels, SIZES,
                                  batch['inputs']['unsup_teacher'][1:]):
        weak, labels, strong, prediction = columns(panel, size)
        rgb = image.flip(0).permute(1, 2, 0).numpy()
        assert (weak == rgb).all() and (strong == rgb).all()
        # Red and green are classes 0 and 1, blue is 2.
        classes = np.full(size, 2)
        classes[:8] = 1
        tint = .4 * rgb + .6 * np.array(PALETTE)[classes]
        assert (np.abs(prediction - tint) <= 1).all()
        # What is not learned from is dark.
        tint[:4] *= .25
        assert (np.abs(labels - tint) <= 1).all()


def test_share_of_kept_pixels_is_that_of_the_image(model, batch,
                                                   monkeypatch):
    from mmsemi.visualization import training_panels
    titles, panel = [], training_panels.pseudo_label_panel
    monkeypatch.setattr(
        training_panels, 'pseudo_label_panel', lambda columns: titles.append(
            columns[1][0]) or panel(columns))
    collect_panels(model, batch, palette=PALETTE, scale=SCALE)
    assert titles == [
        f"teacher's pseudo-labels ({1 - 4 / height:.0%} of pixels)"
        for height, _ in SIZES
    ]


def test_without_palette(model, batch):
    panels = collect_panels(model, batch, scale=SCALE, max_images=1)
    assert len(panels) == 1
    prediction = columns(panels[0], SIZES[0])[3]
    rgb = batch['inputs']['unsup_teacher'][1].flip(0).permute(1, 2, 0).numpy()
    expected = .4 * rgb[20, 0] + .6 * np.array(default_palette(3)[2])
    assert (np.abs(prediction[20, 0] - expected) <= 1).all()


def test_nothing_is_changed_by_drawing(model, batch):
    stage = dict(type='mmsemi.KeepAboveAdaptiveThreshold', initial_thr=.5)
    from mmsemi.pseudo_labels import PseudoLabelPipeline
    model.pseudo_label_pipeline = PseudoLabelPipeline(
        [stage], ('label', 'confidence', 'weight', 'valid'))
    for sample in batch['data_samples']['unsup_teacher'][1:]:
        sample.gt_sem_seg = PixelData(
            data=torch.zeros((1, *sample.img_shape), dtype=torch.long))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    collect_panels(model, batch, palette=PALETTE)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.student.training and not model.teacher.training
    for sample, size in zip(batch['data_samples']['unsup_teacher'][1:],
                            SIZES):
        assert sample.gt_sem_seg.shape == size
        assert 'padding_size' not in sample


def test_student_that_labels_for_itself(model, batch):
    model.teacher = None
    assert len(collect_panels(model, batch, palette=PALETTE)) == 2


def test_label_map_by_hand():
    image = np.full((1, 3, 3), 100, np.uint8)
    label = torch.tensor([[0, 2, 255]])
    drawn = draw_label_map(
        image, label, PALETTE, weight=torch.tensor([[1., 0., .5]]),
        opacity=.5)
    assert drawn.tolist() == [[[50] * 3, [12, 38, 12], [50] * 3]]
    twice = draw_label_map(image, label, PALETTE, scale=2, opacity=1.)
    assert twice.shape == (2, 6, 3)
    assert twice[0].tolist() == [[0] * 3] * 2 + [[0, 200, 0]] * 2 + [[0] * 3
                                                                     ] * 2


def test_label_map_needs_an_image():
    with pytest.raises(ValueError, match='uint8'):
        draw_label_map(
            np.zeros((2, 2, 3)), torch.zeros(2, 2).long(), PALETTE)
