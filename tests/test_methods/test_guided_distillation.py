# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Guided distillation: its defaults, its rule for labels, its phases."""
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset, ClassBalancedDataset
from mmengine.registry import MODELS as ROOT_MODELS

from mmsemi.methods import GuidedDistillation, load_segmentor_config
from mmsemi.methods.guided_distillation import CONFIDENT_MASKS
from mmsemi.pseudo_labels import PseudoLabelPipeline
from mmsemi.registry import MODELS


@pytest.fixture
def build(tiny_segmentor_config, tmp_path):
    """callable: A small SOLOv2 whose teacher was trained elsewhere."""

    def make(**kwargs):
        config = load_segmentor_config(tiny_segmentor_config('solov2'))
        torch.manual_seed(1)
        trained = MODELS.build(config)
        path = tmp_path / 'teacher.pth'
        torch.save(dict(state_dict=trained.state_dict()), path)
        teacher = dict(checkpoint=str(path), **kwargs.pop('teacher', {}))
        torch.manual_seed(2)
        return GuidedDistillation(config, teacher, **kwargs), trained

    return make


# Defaults ------------------------------------------------------------------


def test_defaults_are_those_of_the_released_code(build):
    model, _ = build()
    settings = model.teacher_settings
    # An EMA decay of 0.9996 from the first average on.
    assert [settings.momentum_at(k) for k in (1, 2, 10**6)] == [4e-4] * 3
    assert settings.guided_steps == 50000
    assert settings.burn_in_steps == 0
    assert model.sup_weight == 1.
    assert [model.unsup_weight(step) for step in (0, 10**6)] == [2., 2.]
    by_score, by_size = model.pseudo_label_pipeline.stages
    assert by_score.score_thr == 0.7
    assert (by_size.min_cells, by_size.stride) == (5., 4)
    assert model.predict_on == 'student'
    assert model.predictor is model.student
    assert not model.soft_labels
    assert model.keep_empty_images


def test_defaults_may_be_changed(build):
    model, _ = build(
        teacher=dict(momentum=0.1, guided_steps=3),
        pseudo_label_pipeline=[
            dict(type='mmsemi.FilterByScore', score_thr=0.5)
        ],
        unsup_weight=1.,
        predict_on='teacher')
    assert model.teacher_settings.momentum == 0.1
    assert model.teacher_settings.guided_steps == 3
    assert len(model.pseudo_label_pipeline.stages) == 1
    assert model.predictor is model.teacher


@pytest.mark.parametrize('teacher, message', [
    (None, 'guided_steps=50000 needs a trained teacher: set teacher.check'),
    (dict(momentum=0.1), 'needs a trained teacher'),
    ('teacher.pth', "teacher='teacher.pth'; it must be a dict"),
    (dict(checkpoint='x.pth', guided_steps=0), 'guided_steps=0; .*at least 1'),
    (dict(checkpoint='x.pth', burn_in_steps=5), 'burn-in of its own'),
    (dict(checkpoint='x.pth', mode='frozen'), "teacher.mode='ema'"),
    (dict(checkpoint='x.pth', decay=0.9), r"unknown keys \['decay'\]"),
])
def test_bad_teachers_name_the_field(teacher, message):
    with pytest.raises(ValueError, match=message):
        # Refused before the segmenter is looked at.
        GuidedDistillation(dict(type='Unknown'), teacher)


# The rule for labels -------------------------------------------------------


def test_a_query_gives_at_most_one_label():
    """Group G: of five queries one is left."""
    head = ROOT_MODELS.build(
        dict(
            type='mmsemi.QueryFusionHead',
            num_things_classes=2,
            num_stuff_classes=0,
            loss_panoptic=None,
            test_cfg=ConfigDict(max_per_image=100)))
    head.emit_soft_labels = True
    mask_cls = torch.tensor([[3., 0, 0], [.5, 0, 0], [0, 0, 3], [0, 4, 0],
                             [0, 4, 0]])
    # 100, 100, 100, 80 and no pixels; 80 are 5 cells of 4 x 4.
    mask_pred = torch.full((5, 16, 16), -20.)
    mask_pred[:3, :10, :10] = 20.
    mask_pred[3, :8, :10] = 20.
    found = head.instance_postprocess(mask_cls, mask_pred)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.scores.tolist() == pytest.approx(
        [.909443, .451863, .964663, .964663], abs=1e-6)
    pipeline = PseudoLabelPipeline(
        CONFIDENT_MASKS, ('bboxes', 'labels', 'scores', 'masks'))
    kept, = pipeline([found], [None])
    assert kept.labels.tolist() == [0]
    assert kept.scores.item() == pytest.approx(.909443, abs=1e-6)
    assert kept.soft_labels[0].tolist() == pytest.approx(
        [.909443, .045279, .045279], abs=1e-6)
    assert kept.masks.sum() == 100


@pytest.mark.parametrize('threshold, factor', [(1e-3, 1.), (10., 31.622777)])
def test_threshold_of_ten_balances_all_classes(threshold, factor):
    """Group K: not the few rare ones alone, as 0.001 does on LVIS."""

    class Rare(BaseDataset):
        """100 images, the first of which has a class of its own."""

        def load_data_list(self):
            return [dict(classes=[int(i == 0)]) for i in range(100)]

        def get_cat_ids(self, idx):
            return self.get_data_info(idx)['classes']

    dataset = ClassBalancedDataset(Rare(), oversample_thr=threshold)
    factors = dataset._get_repeat_factors(dataset.dataset, threshold)
    assert factors[0] == pytest.approx(factor, abs=1e-6)
    assert factors[1] == pytest.approx(
        max(1., (threshold / .99)**.5), abs=1e-6)


# The phases ----------------------------------------------------------------


def train_step(model, optimizer, batch):
    total, log = model.parse_losses(model(*batch, mode='loss'))
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    model.update_teacher()
    return log


def test_teacher_is_frozen_then_copied_then_averaged(build, batch_factory):
    model, trained = build(
        teacher=dict(guided_steps=2, momentum=0.25),
        pseudo_label_pipeline=[
            dict(type='mmsemi.FilterByScore', score_thr=0.)
        ])
    model.init_weights()
    model.train()
    assert model.teacher_student_distance() > 0.1
    weights = [p for p in model.student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1e-3)
    log = train_step(model, optimizer, batch_factory())
    # The teacher's answers count from the first step on.
    assert any(key.startswith('unsup_loss') for key in log)
    for key, value in trained.state_dict().items():
        assert torch.equal(model.teacher.state_dict()[key], value), key
    train_step(model, optimizer, batch_factory(seed=1))
    copied = {k: v.clone() for k, v in model.student.state_dict().items()}
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(copied[key], value), key
    train_step(model, optimizer, batch_factory(seed=2))
    for key, value in model.teacher.state_dict().items():
        if value.is_floating_point():
            student = model.student.state_dict()[key]
            torch.testing.assert_close(value, 0.75 * copied[key] +
                                       0.25 * student)
