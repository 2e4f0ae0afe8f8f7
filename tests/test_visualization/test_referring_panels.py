# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample

from mmsemi.pseudo_labels import PseudoLabelPipeline
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import DensePseudoLabel
from mmsemi.structures.packed_masks import PackedMasks
from mmsemi.visualization import collect_panels, training_panels
from mmsemi.visualization.drawing import GAP, TITLE_HEIGHT
from mmsemi.visualization.referring_panels import trace_refinement

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
FIELDS = ('label', 'confidence', 'weight', 'valid', 'prob')


def square(*corners):
    """Return a mask of 64 x 64 pixels, set between two corners."""
    mask = torch.zeros((SIZE, SIZE), dtype=torch.bool)
    low, high = corners
    mask[low:high, low:high] = True
    return mask


TEACHER = square(20, 40)
# The first covers the teacher's mask, the second does not touch it.
PROPOSALS = torch.stack([square(16, 44), square(50, 60)])


@pytest.fixture
def model(monkeypatch):
    init_default_scope('mmseg')
    config = Config.fromfile(ROOT / 'configs/_base_/models/lavt_digits.py')
    config.merge_from_dict(
        dict(
            model=dict(
                text_encoder=dict(config=dict(num_hidden_layers=1)),
                backbone=dict(
                    patch_size=4, strides=(4, 2, 2, 2), depths=(1, 1, 1, 1),
                    embed_dims=8),
                decode_head=dict(
                    in_channels=[8, 16, 32, 64], channels=8))))
    torch.manual_seed(0)
    model = MODELS.build(
        dict(type='mmsemi.SemiRES', segmentor=config.model)).train()
    prob = torch.where(TEACHER, .8, .1)

    def predict(inputs, samples):
        return [
            DensePseudoLabel(
                label=TEACHER.long(),
                confidence=torch.where(TEACHER, .8, .9),
                weight=torch.ones(SIZE, SIZE),
                valid=torch.ones((SIZE, SIZE), dtype=torch.bool),
                prob=torch.stack([1 - prob, prob])) for _ in samples
        ]

    monkeypatch.setattr(model, 'predict_unfiltered', predict)
    return model


@pytest.fixture
def batch():
    """dict: Two images; proposals of the second do not fit."""
    image = torch.full((3, SIZE, SIZE), 100, dtype=torch.uint8)
    samples = {}
    for view in ('unsup_teacher', 'unsup_student'):
        samples[view] = [
            SegDataSample(
                metainfo=dict(
                    text='the big seven',
                    img_shape=(SIZE, SIZE),
                    ori_shape=(SIZE, SIZE))) for _ in range(2)
        ]
    for sample, masks in zip(samples['unsup_teacher'],
                             (PROPOSALS, PROPOSALS[1:])):
        sample.set_data(dict(mask_proposals=PackedMasks.from_bool(masks)))
    inputs = {view: [image, image] for view in samples}
    return dict(inputs=inputs, data_samples=samples)


def titles_and_columns(model, batch, monkeypatch):
    found, panel = [], training_panels.pseudo_label_panel
    monkeypatch.setattr(
        training_panels, 'pseudo_label_panel',
        lambda columns: found.append([t for t, _ in columns]) or panel(columns)
    )
    panels = collect_panels(
        model, batch, palette=[[0, 0, 0], [200, 0, 0]], scale=1)
    pictures = [[
        panel[TITLE_HEIGHT:TITLE_HEIGHT + SIZE, left:left + SIZE]
        for left in range(GAP, panel.shape[1], SIZE + GAP)
    ] for panel in panels]
    return found, pictures


def tinted(mask):
    red = np.array([40 + .6 * 200, 40, 40])
    return np.where(mask.numpy()[..., None], red, [40, 40, 40])


def test_panel_shows_what_the_refinement_did(model, batch, monkeypatch):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    titles, pictures = titles_and_columns(model, batch, monkeypatch)
    # Weights of the mask without a match: w(0.8) and w(0.1).
    assert titles == [[
        'the big seven', "teacher's mask", '1 of 2 proposals', 'refined mask',
        'weights 1.00 - 1.00', 'strong view', "student's prediction"
    ],
                      [
                          'the big seven', "teacher's mask",
                          '0 of 1 proposals', 'no proposal fits',
                          'weights 0.50 - 0.73', 'strong view',
                          "student's prediction"
                      ]]
    for row, refined in zip(pictures, (PROPOSALS[0], TEACHER)):
        image, teacher, chosen, mask, weights, strong, _ = row[:7]
        assert (image == 100).all() and (strong == 100).all()
        assert (teacher == tinted(TEACHER)).all()
        assert (mask == tinted(refined)).all()
    # Something is drawn where the proposal is, and nothing without one.
    assert (pictures[0][2][16:44, 16:44] != 100).any(-1).all()
    assert (pictures[1][2] == 100).all()
    # One colour for one weight, the brightest for the largest.
    assert len(np.unique(pictures[0][4].reshape(-1, 3), axis=0)) == 1
    weights = pictures[1][4]
    assert (weights[30, 30] != weights[5, 5]).any()
    assert (weights[5, 5] == pictures[0][4][5, 5]).all()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.student.training


def test_without_refinement_there_are_the_masks_and_weights(
        model, batch, monkeypatch):
    model.pseudo_label_pipeline = PseudoLabelPipeline([], FIELDS)
    for sample in batch['data_samples']['unsup_teacher']:
        sample.pop('mask_proposals')
    titles, _ = titles_and_columns(model, batch, monkeypatch)
    assert titles[0] == [
        'the big seven', "teacher's mask", 'weights 1.00 - 1.00',
        'strong view', "student's prediction"
    ]


def trace(model, batch, **stage):
    model.pseudo_label_pipeline = PseudoLabelPipeline(
        [dict(type='mmsemi.RefineByProposals', **stage)], FIELDS)
    samples = batch['data_samples']['unsup_teacher'][:1]
    return trace_refinement(model, torch.zeros(1, 3, SIZE, SIZE), samples)[0]


def test_trace_keeps_every_step(model, batch):
    found = trace(model, batch)
    assert torch.equal(found.before.label, TEACHER.long())
    assert torch.equal(found.refined.label, PROPOSALS[0].long())
    assert torch.equal(found.chosen, PROPOSALS[:1])
    assert found.num_proposals == 2


@pytest.mark.parametrize('stage', [
    dict(max_area_ratio=1.5),
    dict(min_iou=.9),
    dict(strategy='iom', iou_thr=.6),
])
def test_what_a_guard_or_threshold_refuses_is_not_shown(model, batch, stage):
    found = trace(model, batch, **stage)
    assert len(found.chosen) == 0
    assert torch.equal(found.refined.label, TEACHER.long())


def test_proposals_of_pieces(model, batch):
    found = trace(model, batch, by_piece=True)
    assert torch.equal(found.chosen, PROPOSALS[:1])
