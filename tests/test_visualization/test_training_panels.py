# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import random

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from mmsemi.visualization import collect_panels
from mmsemi.visualization.drawing import GAP, TITLE_HEIGHT

CLASSES = ('a', 'b', 'c')
SCALE = 6
COLUMN = 64 * SCALE


@pytest.fixture(scope='module')
def built():
    return {}


@pytest.fixture
def model(built, tiny_segmentor_config):
    if not built:
        built['model'] = MODELS.build(
            dict(
                type='mmsemi.SemiInstanceSegmentor',
                segmentor=tiny_segmentor_config('solov2'),
                pseudo_label_pipeline=[
                    dict(type='mmsemi.FilterByScore', score_thr=0.)
                ]))
    return built['model'].train()


@pytest.fixture
def batch(sample_factory):
    """dict: As the loader gives it: a labelled and two unlabelled images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    views = ('unsup_teacher', 'unsup_student')
    samples = {
        view: [None, sample_factory(),
               sample_factory()]
        for view in views
    }
    return dict(
        inputs=dict(
            sup=[images[0], None, None],
            unsup_teacher=[None, *images],
            unsup_student=[None, *(255 - images)]),
        data_samples=dict(sup=[sample_factory(), None, None], **samples))


def columns(panel):
    """Cut a panel into its four images."""
    below = panel[TITLE_HEIGHT:TITLE_HEIGHT + COLUMN]
    starts = [GAP + i * (COLUMN + GAP) for i in range(4)]
    return [below[:, start:start + COLUMN] for start in starts]


def enlarged(image):
    rgb = image.flip(0).permute(1, 2, 0).numpy()
    return rgb.repeat(SCALE, 0).repeat(SCALE, 1)


def test_columns_show_the_views_and_what_was_found(model, batch, monkeypatch,
                                                   instances_factory):
    label = instances_factory([[8, 8, 30, 30]], [1], (64, 64), [.9])
    nothing = instances_factory([], [], (64, 64), [])
    monkeypatch.setattr(model, 'label_unlabeled',
                        lambda inputs, samples: [label, nothing])
    panels = collect_panels(model, batch, CLASSES, score_thr=1.)
    assert len(panels) == 2
    for i, panel in enumerate(panels):
        assert panel.dtype == np.uint8
        weak, labels, strong, prediction = columns(panel)
        expected = enlarged(batch['inputs']['unsup_teacher'][i + 1])
        assert (weak == expected).all()
        assert (strong == 255 - expected).all()
        changed = (labels != weak).any(-1)
        # Nothing scores above 1, so the student's column is the view.
        assert (prediction == strong).all()
        if i == 0:
            assert changed[SCALE * 8:SCALE * 30, SCALE * 8:SCALE * 30].all()
            assert not changed[SCALE * 31:].any()
        else:
            assert not changed.any()


def test_what_the_models_say_is_drawn(model, batch):
    panel, = collect_panels(model, batch, CLASSES, max_images=1, score_thr=0.)
    weak, labels, strong, prediction = columns(panel)
    assert (labels != weak).any()
    assert (prediction != strong).any()


def test_nothing_is_changed_by_drawing(model, batch, monkeypatch):
    # A single module in another mode, as frozen layers are.
    model.student.backbone.bn1.eval()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    predict = model.student.predict

    def draw_and_predict(*args, **kwargs):
        assert not model.student.training
        random.random(), np.random.rand(), torch.rand(1)
        return predict(*args, **kwargs)

    monkeypatch.setattr(model.student, 'predict', draw_and_predict)
    states = (random.getstate(), np.random.get_state()[1].tolist(),
              torch.get_rng_state())
    collect_panels(model, batch, CLASSES)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_an_exception_restores_the_modes(model, batch, monkeypatch):

    def fail(*args, **kwargs):
        raise RuntimeError('broken')

    monkeypatch.setattr(model.student, 'predict', fail)
    with pytest.raises(RuntimeError, match='broken'):
        collect_panels(model, batch, CLASSES)
    assert model.student.training and not model.teacher.training


def test_views_of_different_size_and_scale(model, batch, sample_factory):
    inputs, samples = batch['inputs'], batch['data_samples']
    for i in (1, 2):
        inputs['unsup_student'][i] = inputs['unsup_student'][i][:, :40, :48]
        samples['unsup_student'][i] = sample_factory((40, 48))
    panel = collect_panels(model, batch, CLASSES, max_images=1, scale=2)[0]
    assert panel.shape == (128 + TITLE_HEIGHT + GAP,
                           2 * 128 + 2 * 96 + 5 * GAP, 3)


@pytest.mark.parametrize('keep', [['sup'], ['sup', 'unsup_teacher']])
def test_batch_without_unlabelled_images_is_refused(model, batch, keep):
    for part in batch:
        batch[part] = {view: batch[part][view] for view in keep}
    with pytest.raises(ValueError, match='no unlabelled image'):
        collect_panels(model, batch, CLASSES)


def test_plain_batch_is_refused(model, batch):
    plain = {part: batch[part]['sup'] for part in batch}
    with pytest.raises(ValueError, match='no unlabelled image'):
        collect_panels(model, plain, CLASSES)
