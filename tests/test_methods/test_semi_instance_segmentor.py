# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Every mmdet segmenter trains on pseudo-labels, and as it should."""
import copy

import numpy as np
import pytest
import torch
from mmdet.models.utils import filter_gt_instances
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmsemi.methods import SemiInstanceSegmentor
from mmsemi.methods.semi_instance_segmentor import fit_canvas, pseudo_sample
from mmsemi.structures.tensor_masks import TensorMasks

SEGMENTERS = ('mask_rcnn', 'cascade_mask_rcnn', 'maskformer', 'mask2former',
              'rtmdet_ins', 'solov2')
KEEP_ALL = [dict(type='mmsemi.FilterByScore', score_thr=0.)]


@pytest.fixture(scope='module')
def models():
    """Built models by name; a test must leave them in working order."""
    return {}


@pytest.fixture
def build(models, tiny_segmentor_config):

    def build_once(name: str) -> SemiInstanceSegmentor:
        if name not in models:
            torch.manual_seed(0)
            models[name] = SemiInstanceSegmentor(
                tiny_segmentor_config(name), pseudo_label_pipeline=KEEP_ALL)
        models[name].train()
        models[name].zero_grad()
        return models[name]

    return build_once


def with_predictions(model, monkeypatch, instances):
    """Make the teacher find the given instances in every image."""

    def predict(inputs, data_samples, rescale=True):
        assert not rescale and not model.teacher.training
        assert not torch.is_grad_enabled()
        for sample in data_samples:
            sample.pred_instances = copy.deepcopy(instances)
        return data_samples

    monkeypatch.setattr(model.teacher, 'predict', predict)


def gradients_are_finite(model) -> bool:
    return all(
        p.grad is None or bool(torch.isfinite(p.grad).all())
        for p in model.parameters())


BOXES = [[5, 6, 31, 29], [32, 20, 61, 60], [8, 36, 28, 62]]


@pytest.mark.parametrize('num_found', [0, 1, 3])
@pytest.mark.parametrize('name', SEGMENTERS)
def test_trains_on_none_one_and_many(name, num_found, build, monkeypatch,
                                     instances_factory, batch_factory):
    model = build(name)
    found = instances_factory(BOXES[:num_found],
                              list(range(num_found)), (64, 64),
                              [0.9, 0.8, 0.7][:num_found])
    with_predictions(model, monkeypatch, found)
    inputs, samples = batch_factory()
    losses = model(inputs, samples, mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()

    assert torch.isfinite(total)
    assert gradients_are_finite(model)
    assert all(p.grad is None for p in model.teacher.parameters())
    assert log['pseudo/per_image'] == num_found
    unsup = [float(v) for k, v in log.items()
             if k.startswith('unsup_') and 'loss' in k]
    assert unsup
    if num_found == 0:
        assert unsup == [0.] * len(unsup)
        assert 'pseudo/mean_score' not in log
    else:
        assert sum(unsup) > 0
        expected = float(torch.tensor([0.9, 0.8, 0.7])[:num_found].mean())
        assert float(log['pseudo/mean_score']) == pytest.approx(expected)
    sup = {k[4:] for k in log if k.startswith('sup_')}
    assert sup == {k[6:] for k in log if k.startswith('unsup_')}


@pytest.mark.parametrize('name', SEGMENTERS)
def test_views_of_different_geometry_and_padding(name, build, monkeypatch,
                                                 instances_factory,
                                                 batch_factory,
                                                 sample_factory):
    """Teacher view 48 x 56 padded to 64, student flipped and twice as big."""
    model = build(name)
    found = instances_factory([[10, 4, 30, 20], [0, 24, 12, 48]], [1, 0],
                              (48, 56), [0.9, 0.8])
    with_predictions(model, monkeypatch, found)
    flip_and_scale = np.array([[-2, 0, 112], [0, 2, 0], [0, 0, 1]],
                              np.float32)
    inputs, samples = batch_factory()
    samples['unsup_teacher'] = [
        sample_factory((48, 56), (64, 64)) for _ in range(2)
    ]
    inputs['unsup_student'] = torch.randn(2, 3, 96, 128)
    samples['unsup_student'] = [
        sample_factory((96, 112), (96, 128), flip_and_scale)
        for _ in range(2)
    ]
    seen = []
    student_loss = model.student.loss

    def spy(batch_inputs, batch_samples):
        # Heads change the samples they are given.
        seen.append(copy.deepcopy(batch_samples))
        return student_loss(batch_inputs, batch_samples)

    monkeypatch.setattr(model.student, 'loss', spy)
    total, log = model.parse_losses(model(inputs, samples, mode='loss'))
    total.backward()
    assert gradients_are_finite(model)
    instances = seen[1][0].gt_instances
    expected = [[52., 8., 92., 40.], [88., 48., 112., 96.]]
    assert instances.bboxes.tolist() == expected
    masks = instances.masks
    assert isinstance(masks, TensorMasks)
    assert (len(masks), masks.height, masks.width) == (2, 96, 128)
    for mask, (x1, y1, x2, y2) in zip(masks, expected):
        truth = torch.zeros(96, 128, dtype=torch.bool)
        truth[int(y1):int(y2), int(x1):int(x2)] = True
        assert torch.equal(mask, truth)


@pytest.mark.parametrize('name', SEGMENTERS)
def test_teacher_answers_in_the_frame_of_its_view(name, build, monkeypatch,
                                                  sample_factory):
    """Whatever rescaling the sample has seen, masks fit the view."""
    model = build(name)
    for head in (getattr(model.teacher, 'bbox_head', None),
                 getattr(model.teacher, 'mask_head', None)):
        # Untrained dense heads find nothing above their usual thresholds.
        if head is not None and 'score_thr' in (head.test_cfg or {}):
            monkeypatch.setitem(head.test_cfg, 'score_thr', 0.)
            if 'filter_thr' in head.test_cfg:
                monkeypatch.setitem(head.test_cfg, 'filter_thr', 0.)
            if 'mask_thr' in head.test_cfg:
                monkeypatch.setitem(head.test_cfg, 'mask_thr', 0.)
    sample = sample_factory((40, 56), (64, 64))
    sample.set_metainfo(dict(ori_shape=(20, 100), scale_factor=(.56, 2.)))
    label, = model.predict_unfiltered(torch.randn(1, 3, 64, 64), [sample])
    assert len(label) > 0
    assert label.masks.shape == (len(label), 40, 56)
    assert label.masks.dtype == torch.bool
    assert label.bboxes.dtype == label.scores.dtype == torch.float32
    assert (label.bboxes[:, 0::2] <= 56).all()
    assert (label.bboxes[:, 1::2] <= 40).all()
    # Box-free heads get their boxes from the masks.
    found = label.masks.flatten(1).any(1)
    size = label.bboxes[:, 2:] - label.bboxes[:, :2]
    assert (size[found] > 0).all()


def test_losses_equal_mmdet_semi_base_detector(tiny_segmentor_config,
                                               batch_factory,
                                               sample_factory,
                                               instances_factory):
    """Must hold 1: a box-only detector, same weights, seed and buffers."""
    from mmdet.models.detectors import SemiBaseDetector
    from mmengine.config import ConfigDict

    from mmsemi.methods import load_segmentor_config
    config = load_segmentor_config(tiny_segmentor_config('faster_rcnn'))
    preprocessor = config.pop('data_preprocessor')
    torch.manual_seed(0)
    ours = SemiInstanceSegmentor(
        config,
        data_preprocessor=preprocessor,
        unsup_weight=2.,
        pseudo_label_pipeline=KEEP_ALL)
    inputs, samples = batch_factory()
    predicted = ours.predict_unfiltered(inputs['unsup_teacher'],
                                        samples['unsup_teacher'])
    # A threshold that keeps some: an untrained detector's scores are close.
    threshold = float(torch.cat([p.scores for p in predicted]).median())
    ours.pseudo_label_pipeline.stages[0].score_thr = threshold
    theirs = SemiBaseDetector(
        detector=copy.deepcopy(config),
        semi_train_cfg=ConfigDict(
            freeze_teacher=True,
            sup_weight=1.,
            unsup_weight=2.,
            cls_pseudo_thr=threshold,
            min_pseudo_bbox_wh=(1e-2, 1e-2)),
        semi_test_cfg=ConfigDict(predict_on='teacher'),
        data_preprocessor=dict(
            type='mmdet.MultiBranchDataPreprocessor',
            data_preprocessor=preprocessor))
    state = ours.state_dict()
    state.pop('step')
    theirs.load_state_dict(state)
    ours.train()
    theirs.train()

    # mmdet goes by way of the original image; matrices that are exact in
    # floating point make both ways end in the same numbers.
    double = np.diag([2, 2, 1]).astype(np.float32)
    quadruple = np.diag([4, 4, 1]).astype(np.float32)
    double_flip = np.array([[-2, 0, 128], [0, 2, 0], [0, 0, 1]], np.float32)
    for sample in samples['sup']:
        del sample.gt_instances.masks
    inputs['unsup_student'] = torch.randn(2, 3, 128, 128)
    samples['unsup_teacher'][1].set_metainfo(
        dict(homography_matrix=double, ori_shape=(32, 32)))
    samples['unsup_student'] = []
    for matrix in (double_flip, quadruple):
        sample = sample_factory((128, 128), homography=matrix)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples['unsup_student'].append(sample)

    torch.manual_seed(1)
    reference = theirs.loss(inputs, copy.deepcopy(samples))
    torch.manual_seed(1)
    losses = ours.loss(inputs, copy.deepcopy(samples))
    assert float(losses['pseudo/per_image']) > 3
    assert 0.4 < float(losses['pseudo/kept_share']) < 0.6
    names = {k for k in losses if not k.startswith('pseudo/')}
    assert names == set(reference)
    for name in names:
        mine, other = losses[name], reference[name]
        if not isinstance(mine, (list, tuple)):
            mine, other = [mine], [other]
        for a, b in zip(mine, other):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_unusable_images_are_left_out(build, monkeypatch, instances_factory,
                                      batch_factory):
    model = build('solov2')
    good = instances_factory(BOXES[:2], [0, 1], (64, 64), [0.9, 0.8])
    calls = []
    student_loss = model.student.loss
    monkeypatch.setattr(
        model.student, 'loss', lambda inputs, samples:
        (calls.append((inputs, samples)), student_loss(inputs, samples))[1])
    inputs, samples = batch_factory(num_unsup=3)
    labels = [good.clone() for _ in range(3)]
    labels[1].set_metainfo(dict(usable=False))
    losses, factor = model.loss_by_pseudo_labels(inputs, samples, labels)
    # The image left out counts as zero in the mean.
    assert factor == pytest.approx(2 / 3)
    assert torch.equal(calls[0][0], inputs['unsup_student'][[0, 2]])
    assert len(calls[0][1]) == 2

    for label in labels:
        label.set_metainfo(dict(usable=False))
    losses, factor = model.loss_by_pseudo_labels(inputs, samples, labels)
    # The student still runs, on every process, but learns nothing.
    assert factor == 0
    assert len(calls[1][1]) == 3


def test_images_without_pseudo_instances(build, monkeypatch,
                                         instances_factory, batch_factory):
    model = build('solov2')
    found = instances_factory(BOXES[:1], [0], (64, 64), [0.9])
    labels = [found, found[:0]]
    inputs, samples = batch_factory()
    used = []
    student_loss = model.student.loss
    monkeypatch.setattr(
        model.student, 'loss', lambda inputs, samples:
        (used.append(len(samples)), student_loss(inputs, samples))[1])
    args = (inputs, samples, labels)
    model.loss_by_pseudo_labels(*args)
    monkeypatch.setattr(model, 'keep_empty_images', False)
    model.loss_by_pseudo_labels(*args)
    assert used == [2, 1]


def test_instances_that_leave_the_view_are_dropped(build, instances_factory,
                                                   sample_factory):
    model = build('solov2')
    label = instances_factory([[0, 0, 10, 10], [40, 40, 60, 60]], [0, 1],
                              (64, 64), [0.9, 0.8])
    crop = np.array([[1, 0, -32], [0, 1, -32], [0, 0, 1]], np.float32)
    moved, = model.project([label], [sample_factory()],
                           [sample_factory((32, 32), homography=crop)])
    assert moved.labels.tolist() == [1]
    assert moved.bboxes.tolist() == [[8., 8., 28., 28.]]
    assert moved.masks.shape == (1, 32, 32)
    # The input is not touched.
    assert len(label) == 2 and label.masks.shape == (2, 64, 64)


def test_rotated_boxes_come_from_the_masks(build, instances_factory,
                                           sample_factory):
    model = build('solov2')
    yy, xx = torch.meshgrid(
        torch.arange(64), torch.arange(64), indexing='ij')
    disc = (xx + .5 - 32)**2 + (yy + .5 - 32)**2 < 20**2
    label = instances_factory([[12, 12, 52, 52]], [0], (64, 64), [0.9])
    label.masks = disc[None]
    c = np.cos(np.pi / 4)
    about_centre = np.array([[c, -c, 32], [c, c, 32 - 64 * c], [0, 0, 1]])
    moved, = model.project([label], [sample_factory()],
                           [sample_factory(homography=about_centre)])
    # A disc stays a disc; the hull of its rotated box would span 56 pixels.
    torch.testing.assert_close(
        moved.bboxes, label.bboxes, atol=1.01, rtol=0)


def test_same_view_shares_memory(build, instances_factory, sample_factory):
    model = build('solov2')
    label = instances_factory(BOXES[:1], [0], (64, 64), [0.9])
    for kept in (label, ):
        moved, = model.project([kept], [sample_factory()],
                               [sample_factory()])
        assert torch.equal(moved.masks, kept.masks)
        assert torch.equal(moved.bboxes, kept.bboxes)


def test_missing_homography_is_named(build, instances_factory,
                                     sample_factory):
    model = build('solov2')
    label = instances_factory(BOXES[:1], [0], (64, 64), [0.9])
    bare = DetDataSample(metainfo=dict(img_shape=(64, 64)))
    with pytest.raises(ValueError, match='homography_matrix.*PackDetInputs'):
        model.project([label], [bare], [sample_factory()])


@pytest.mark.parametrize('name', ['mask2former', 'solov2'])
def test_bfloat16_autocast(name, build, monkeypatch, instances_factory,
                           batch_factory):
    model = build(name)
    found = instances_factory(BOXES, [0, 1, 2], (64, 64), [0.9, 0.8, 0.7])
    found.scores = found.scores.bfloat16()
    with_predictions(model, monkeypatch, found)
    inputs, samples = batch_factory()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        total, log = model.parse_losses(model(inputs, samples, mode='loss'))
    total.backward()
    assert torch.isfinite(total)
    assert gradients_are_finite(model)
    assert log['pseudo/per_image'] == 3


def test_hidden_labels_are_measured_and_never_learnt(build, monkeypatch,
                                                     instances_factory,
                                                     batch_factory,
                                                     sample_factory):
    model = build('solov2')
    found = instances_factory(BOXES, [0, 1, 2], (64, 64), [0.9, 0.8, 0.7])
    with_predictions(model, monkeypatch, found)
    monkeypatch.setattr(model, 'hidden_label_interval', 1)
    inputs, samples = batch_factory()

    def losses_with(hidden):
        batch = copy.deepcopy(samples)
        batch['unsup_teacher'] = [
            sample_factory(instances=hidden) for _ in range(2)
        ]
        return model(inputs, batch, mode='loss')

    # One of three has the wrong class, and one object was overlooked.
    truth = instances_factory(BOXES + [[40, 2, 50, 12]], [0, 1, 1, 0],
                              (64, 64))
    first = losses_with(truth)
    assert float(first['pseudo/precision']) == pytest.approx(2 / 3)
    assert float(first['pseudo/recall']) == pytest.approx(2 / 4)
    assert float(first['pseudo/iou']) == pytest.approx(1.)
    second = losses_with(instances_factory([[1, 1, 9, 9]], [2], (64, 64)))
    assert float(second['pseudo/precision']) == 0
    for name, value in first.items():
        if 'loss' in name:
            torch.testing.assert_close(value, second[name])


def test_soft_masks_give_mask_scores(tiny_segmentor_config, sample_factory):
    torch.manual_seed(0)
    model = SemiInstanceSegmentor(
        tiny_segmentor_config('mask_rcnn'),
        pseudo_label_pipeline=[
            dict(type='mmsemi.FilterByMaskQuality', min_mask_score=0.)
        ])
    image = torch.randn(1, 3, 64, 64)
    label, = model.predict_unfiltered(image, [sample_factory()])
    assert model.teacher.roi_head.test_cfg.mask_thr_binary == 0.5
    hard = model.teacher.predict(image, [sample_factory()], rescale=False)
    hard = hard[0].pred_instances
    assert torch.equal(label.labels, hard.labels)
    # Probabilities are quantised to 1 / 255 on the way.
    assert (label.masks != hard.masks).float().mean() < 0.02
    found = label.masks.flatten(1).any(1)
    assert found.any()
    assert (label.mask_scores[found] >= 0.5).all()
    assert (label.mask_scores <= 1).all()


def test_mask_quality_needs_what_the_model_gives(tiny_segmentor_config):
    pipeline = [dict(type='mmsemi.FilterByMaskQuality', min_mask_score=.5)]
    with pytest.raises(ValueError, match="needs .'mask_scores'"):
        SemiInstanceSegmentor(
            tiny_segmentor_config('solov2'), pseudo_label_pipeline=pipeline)
    with pytest.raises(ValueError, match="needs .'masks'"):
        SemiInstanceSegmentor(
            tiny_segmentor_config('faster_rcnn'),
            pseudo_label_pipeline=[
                dict(type='mmsemi.FilterByMaskQuality', min_box_iou=.5)
            ])


def test_query_models_must_output_instances(tiny_segmentor_config):
    config = tiny_segmentor_config('mask2former')
    config['test_cfg'] = dict(instance_on=False)
    with pytest.raises(ValueError, match='instance_on=True'):
        SemiInstanceSegmentor(config)


def test_prediction_equals_the_plain_detector(build, sample_factory):
    model = build('solov2').eval()
    image = torch.randn(1, 3, 64, 64)
    for which in ('teacher', 'student'):
        model.predict_on = which
        mine = model(image, [sample_factory()], mode='predict')
        plain = getattr(model, which)(
            image, [sample_factory()], mode='predict')
        assert torch.equal(mine[0].pred_instances.scores,
                           plain[0].pred_instances.scores)
    model.predict_on = 'teacher'


def test_fit_canvas_crops_and_pads():
    masks = torch.ones(2, 4, 6, dtype=torch.bool)
    assert fit_canvas(masks, (4, 6)).data_ptr() == masks.data_ptr()
    assert fit_canvas(masks, (3, 5)).shape == (2, 3, 5)
    padded = fit_canvas(masks, (5, 7))
    assert padded.shape == (2, 5, 7)
    assert padded.sum() == masks.sum()
    assert fit_canvas(masks, (3, 8)).sum() == 2 * 3 * 6


def test_pseudo_sample_is_filtered_by_mmdet(instances_factory,
                                            sample_factory):
    """mmdet's own tools must be able to handle what we hand over."""
    label = instances_factory(BOXES, [0, 1, 2], (64, 64), [.9, .2, .8])
    sample = pseudo_sample(sample_factory(batch_shape=(64, 96)), label)
    filtered = filter_gt_instances([sample], score_thr=0.5)[0]
    assert filtered.gt_instances.labels.tolist() == [0, 2]
    assert filtered.gt_instances.masks.to_ndarray().shape == (2, 64, 96)


def test_a_model_of_every_pixel_is_refused(dense_segmentor_config):
    segmentor = dense_segmentor_config()
    with pytest.raises(ValueError, match='EncoderDecoder predicts label maps'):
        SemiInstanceSegmentor(segmentor)
