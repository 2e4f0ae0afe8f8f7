# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import numpy as np
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch import nn

from mmsemi.datasets.transforms.mix import BatchMix
from mmsemi.methods import SemiSemanticSegmentor
from mmsemi.models.dense_forward import dense_logits
from mmsemi.models.dense_prediction import predict_dense
from mmsemi.models.losses import dense_cross_entropy
from mmsemi.registry import MODELS, TRANSFORMS

STUDENT = dict(mode='student')
PARTNERS = ('unsup_partner_teacher', 'unsup_partner_student')
SIZES = dict.fromkeys(('sup', 'unsup_teacher', 'unsup_student'), (2, 16, 24))


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@MODELS.register_module(force=True)
class PixelBackbone(BaseModule):
    """Looks at one pixel at a time."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 16, 1)

    def forward(self, inputs):
        first = self.first(inputs).relu()
        return first, self.second(first).relu()


@TRANSFORMS.register_module(force=True)
class LeftHalf(BatchMix):
    """Takes the partner's left half."""

    def _take(self, targets):
        take = torch.zeros(targets.label.shape, dtype=torch.bool)
        take[..., :targets.label.shape[2] // 2] = True
        return take


class HardLabels(SemiSemanticSegmentor):
    """The mean cross entropy of the kept pixels."""

    def unlabeled_loss(self, logits, targets):
        self.seen = logits.detach(), targets
        return dict(
            loss=dense_cross_entropy(logits, targets.label, targets.weight,
                                     targets.valid))


@pytest.fixture
def make(dense_segmentor_config):

    def build(pixelwise=False, head=None, **kwargs):
        torch.manual_seed(0)
        config = dense_segmentor_config(**(head or {}))
        if pixelwise:
            config['backbone'] = dict(type='mmsemi.PixelBackbone')
            config['decode_head'].update(kernel_size=1, norm_cfg=None)
            config.pop('auxiliary_head')
        model = HardLabels(config, **kwargs)
        model.init_weights()
        # Classifiers start with nearly equal probabilities.
        model.student.decode_head.conv_seg.weight.data *= 100
        model.copy_student_to_teacher()
        return model

    return build


def losses_of(model, batch):
    found = model(*batch, mode='loss')
    return {
        key: value.detach()
        for key, value in found.items() if torch.is_tensor(value)
    }


def assert_equal(first, second, keys=None):
    assert first.keys() == second.keys()
    for key in keys or first:
        assert torch.equal(first[key], second[key]), key


def add_hidden(samples, fill):
    for sample in samples['unsup_teacher']:
        height, width = sample.pad_shape
        sample.gt_sem_seg = PixelData(data=torch.full((1, height, width),
                                                      fill))


# The losses ---------------------------------------------------------------


def test_losses_by_hand(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(sup_weight=2., unsup_weight=.5)
    plain = copy.deepcopy(model)
    found = losses_of(model, (inputs, samples))
    with torch.no_grad():
        supervised = plain.student.loss(inputs['sup'], samples['sup'])
        label = dense_logits(plain.teacher, inputs['unsup_teacher']).argmax(1)
        logits = dense_logits(plain.student, inputs['unsup_student'])
    for key, value in supervised.items():
        weight = 2. if 'loss' in key else 1.
        assert torch.equal(found[f'sup_{key}'], value * weight)
    # The last image has four rows of padding.
    label[1, 12:] = 255
    expected = .5 * nn.functional.cross_entropy(
        logits, label, ignore_index=255)
    assert torch.allclose(found['unsup_loss'], expected, rtol=1e-5)
    assert found['pseudo/kept_share'] == 1
    assert set(found) == {f'sup_{key}' for key in supervised} | {
        'unsup_loss', 'pseudo/kept_share', 'pseudo/mean_confidence'
    }


def test_gradient_reaches_the_student_alone(make, dense_batch_factory):
    model = make()
    losses = model(*dense_batch_factory(), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize('view', ['unsup_teacher', 'unsup_student', 'sup'])
@pytest.mark.parametrize('mix', [None, dict(type='mmsemi.LeftHalf')])
def test_content_of_padding_does_not_matter(make, dense_batch_factory, view,
                                            mix):
    inputs, samples = dense_batch_factory()
    model = make(
        pixelwise=True,
        mix=mix,
        pseudo_label_pipeline=[
            dict(type='mmsemi.KeepConfidentPixels', conf_thr=.4),
            dict(type='mmsemi.KeepLowEntropyPixels', num_steps=9),
            dict(type='mmsemi.KeepAboveAdaptiveThreshold', initial_thr=.3)
        ])
    state = copy.deepcopy(model.state_dict())
    before = losses_of(model, (inputs, samples))
    assert before['unsup_loss'] > 0 and 0 < before['pseudo/kept_share'] < 1
    model.load_state_dict(state)
    inputs[view][1, :, 12:] = 7.
    after = losses_of(model, (inputs, samples))
    assert_equal(before, after, [key for key in before if 'acc' not in key])


def test_padding_is_not_learned_from(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(pixelwise=True)
    inputs['unsup_student'].requires_grad_()
    losses = model(inputs, samples, mode='loss')
    losses['unsup_loss'].backward()
    gradient = inputs['unsup_student'].grad
    assert (gradient[1, :, 12:] == 0).all()
    assert gradient[1, :, :12].abs().sum() > 0


def test_views_of_another_size_than_the_labelled(make, dense_batch_factory):
    sizes = dict(
        SIZES, unsup_teacher=(3, 24, 32), unsup_student=(3, 24, 32))
    found = losses_of(make(), dense_batch_factory(sizes))
    assert found['unsup_loss'] > 0


def test_burn_in_learns_from_labels_alone(make, dense_batch_factory):
    model = make(teacher=dict(burn_in_steps=2))
    batch = dense_batch_factory()
    for step, has_labels in enumerate((False, False, True)):
        assert ('unsup_loss' in losses_of(model, batch)) is has_labels, step
        model.update_teacher()


def test_stages_see_steps_after_the_burn_in(make, dense_batch_factory):
    stage = dict(type='mmsemi.KeepLowEntropyPixels', num_steps=4)
    model = make(
        teacher=dict(burn_in_steps=2), pseudo_label_pipeline=[stage])
    steps = []
    for _ in range(5):
        losses_of(model, dense_batch_factory())
        steps.append(model.pseudo_label_pipeline.stages[0].step)
        model.update_teacher()
    assert steps == [0, 0, 0, 1, 2]


# Views --------------------------------------------------------------------


@pytest.mark.parametrize('view', ['sup', 'unsup_teacher', 'unsup_student'])
def test_missing_view_is_named(make, dense_batch_factory, view):
    inputs, samples = dense_batch_factory()
    inputs.pop(view)
    with pytest.raises(ValueError, match=view):
        make()(inputs, samples, mode='loss')


@pytest.mark.parametrize('change', ['size', 'img_shape', 'homography_matrix'])
def test_views_that_moved_against_each_other(make, dense_batch_factory,
                                             change):
    inputs, samples = dense_batch_factory()
    sample = samples['unsup_student'][0]
    if change == 'size':
        inputs['unsup_student'] = inputs['unsup_student'][..., :16]
    elif change == 'img_shape':
        sample.set_metainfo(dict(img_shape=(16, 20)))
    else:
        shifted = np.eye(3)
        shifted[0, 2] = 1.
        sample.set_metainfo(dict(homography_matrix=shifted))
    with pytest.raises(ValueError, match='differ in their geometry'):
        make()(inputs, samples, mode='loss')


def test_views_that_moved_together(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    for view in ('unsup_teacher', 'unsup_student'):
        for sample in samples[view]:
            sample.set_metainfo(dict(homography_matrix=np.eye(3) * 2))
    make()(inputs, samples, mode='loss')


def test_padding_at_the_left_is_refused(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    samples['unsup_teacher'][1].set_metainfo(dict(padding_size=(2, 0, 0, 0)))
    with pytest.raises(ValueError, match='padded by 2 pixels at the left'):
        make()(inputs, samples, mode='loss')


# Mixing -------------------------------------------------------------------


def test_images_and_labels_are_mixed_alike(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(mix=dict(type='mmsemi.LeftHalf'), pixelwise=True)
    label = dense_logits(model.teacher, inputs['unsup_teacher']).argmax(1)
    logits = dense_logits(model.student, inputs['unsup_student'])
    losses_of(model, (inputs, samples))
    seen, targets = model.seen
    assert torch.equal(targets.label[..., :12], label.flip(0)[..., :12])
    assert torch.equal(targets.label[..., 12:], label[..., 12:])
    assert targets.valid.sum((1, 2)).tolist() == [16 * 24 - 4 * 12] * 2
    assert torch.allclose(seen[..., :12], logits.flip(0)[..., :12], atol=1e-5)
    assert torch.allclose(seen[..., 12:], logits[..., 12:], atol=1e-5)


def test_partner_views(make, dense_batch_factory):
    inputs, samples = dense_batch_factory(
        dict(SIZES, **dict.fromkeys(PARTNERS, (2, 16, 24))))
    model = make(
        mix=dict(type='mmsemi.LeftHalf'), pixelwise=True, teacher=STUDENT)
    own = dense_logits(model.student, inputs['unsup_teacher']).argmax(1)
    other = dense_logits(model.student, inputs[PARTNERS[0]]).argmax(1)
    strong = dense_logits(model.student, inputs[PARTNERS[1]])
    losses_of(model, (inputs, samples))
    seen, targets = model.seen
    assert torch.equal(targets.label[..., :12], other[..., :12])
    assert torch.equal(targets.label[..., 12:], own[..., 12:])
    assert torch.allclose(seen[..., :12], strong[..., :12], atol=1e-5)
    # The last partner is padded as the last image is.
    assert targets.valid.sum((1, 2)).tolist() == [16 * 24, 12 * 24]


def test_partner_views_for_a_batch_of_one(make, dense_batch_factory):
    sizes = {view: (1, 16, 24) for view in (*SIZES, *PARTNERS)}
    inputs, samples = dense_batch_factory(sizes)
    model = make(mix=dict(type='mmsemi.LeftHalf'))
    losses_of(model, (inputs, samples))
    mixed = model.mixed(
        inputs, samples,
        model.seen[1])[0]
    assert torch.equal(mixed[..., :12], inputs[PARTNERS[1]][..., :12])


def test_wrong_partner_views(make, dense_batch_factory):
    model = make(mix=dict(type='mmsemi.LeftHalf'))
    inputs, samples = dense_batch_factory(
        dict(SIZES, **{PARTNERS[0]: (2, 16, 24)}))
    with pytest.raises(ValueError, match=f"lacks.*'{PARTNERS[1]}'"):
        model(inputs, samples, mode='loss')
    inputs, samples = dense_batch_factory(
        dict(SIZES, **dict.fromkeys(PARTNERS, (1, 16, 24))))
    with pytest.raises(ValueError, match='2 unlabelled images and 1 partner'):
        model(inputs, samples, mode='loss')


def test_partners_that_do_not_fit(make, dense_batch_factory):
    model = make(mix=dict(type='mmsemi.LeftHalf'))
    sizes = dict(SIZES, **dict.fromkeys(PARTNERS, (2, 16, 16)))
    with pytest.raises(ValueError, match=r"'unsup_partner_teacher' has the "
                       r'shape \(2, 3, 16, 16\)'):
        model(*dense_batch_factory(sizes), mode='loss')
    inputs, samples = dense_batch_factory(
        dict(SIZES, **dict.fromkeys(PARTNERS, (2, 16, 24))))
    samples[PARTNERS[1]][0].set_metainfo(
        dict(homography_matrix=np.diag([-1., 1., 1.])))
    with pytest.raises(ValueError, match='partner_student.*geometry'):
        model(inputs, samples, mode='loss')


def test_partners_are_not_labelled_for_nothing(make, dense_batch_factory):
    batch = dense_batch_factory(
        dict(SIZES, **dict.fromkeys(PARTNERS, (2, 16, 24))))
    model, calls = make(), []
    model.teacher.backbone.register_forward_hook(lambda *_: calls.append(1))
    model(*batch, mode='loss')
    assert len(calls) == 1


def test_mix_must_mix(make):
    with pytest.raises(TypeError, match='mix is a StrongColor'):
        make(mix=dict(type='mmsemi.StrongColor'))


# Hidden labels ------------------------------------------------------------


def test_hidden_labels_only_measure(make, dense_batch_factory):
    model = make(hidden_label_interval=1)
    state = copy.deepcopy(model.state_dict())
    found = []
    for fill in (0, 1):
        model.load_state_dict(state)
        inputs, samples = dense_batch_factory()
        add_hidden(samples, fill)
        found.append(losses_of(model, (inputs, samples)))
    label = model.seen[1].label[model.seen[1].valid]
    for fill, losses in enumerate(found):
        assert losses['pseudo/accuracy'].item() == pytest.approx(
            (label == fill).float().mean().item())
    assert_equal(*found, [key for key in found[0] if 'accuracy' not in key])


def test_accuracy_is_that_of_kept_pixels_with_a_class(make,
                                                      dense_batch_factory):
    model = make(
        hidden_label_interval=1,
        pseudo_label_pipeline=[
            dict(type='mmsemi.KeepConfidentPixels', conf_thr=.5)
        ])
    inputs, samples = dense_batch_factory()
    add_hidden(samples, 255)
    assert 'pseudo/accuracy' not in losses_of(model, (inputs, samples))
    targets = model.seen[1]
    kept = targets.weight > 0
    assert 0 < kept.sum() < kept.numel()
    for i, sample in enumerate(samples['unsup_teacher']):
        # Wrong where nothing is kept, unknown in the first rows.
        sample.gt_sem_seg.data[0] = torch.where(kept[i], targets.label[i], 0)
        sample.gt_sem_seg.data[0, :2] = 255
    found = losses_of(model, (inputs, samples))
    assert found['pseudo/accuracy'] == 1


def test_hidden_labels_at_their_interval(make, dense_batch_factory):
    model, found = make(hidden_label_interval=2), []
    inputs, samples = dense_batch_factory()
    add_hidden(samples, 0)
    for _ in range(4):
        found.append('pseudo/accuracy' in losses_of(model, (inputs, samples)))
        model.update_teacher()
    assert found == [True, False, True, False]


def test_hidden_labels_that_are_not_there(make, dense_batch_factory):
    with pytest.raises(ValueError, match='hidden_label_interval=0'):
        make(hidden_label_interval=1)(*dense_batch_factory(), mode='loss')


def test_figures_by_hand(make, dense_batch_factory):
    model = make(pseudo_label_pipeline=[
        dict(type='mmsemi.KeepConfidentPixels', conf_thr=.6)
    ])
    found = losses_of(model, dense_batch_factory())
    targets = model.seen[1]
    confidence = targets.confidence[targets.valid]
    assert len(confidence) == 28 * 24
    assert found['pseudo/mean_confidence'].item() == pytest.approx(
        confidence.mean().item(), rel=1e-5)
    assert found['pseudo/kept_share'].item() == pytest.approx(
        (confidence >= .6).float().mean().item())


# Who labels ---------------------------------------------------------------


def test_student_labels_for_itself(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(teacher=STUDENT)
    assert model.teacher is None and model.predictors == ('student', )
    assert not any(key.startswith('teacher') for key in model.state_dict())
    plain = copy.deepcopy(model.student).eval()
    labels = model.label_unlabeled(inputs['unsup_teacher'],
                                   samples['unsup_teacher'])
    expected = dense_logits(plain, inputs['unsup_teacher']).argmax(1)
    assert torch.equal(torch.stack([part.label for part in labels]), expected)
    # In evaluation mode, which leaves the statistics and ends afterwards.
    assert all(module.training for module in model.modules())
    for key, value in plain.state_dict().items():
        assert torch.equal(model.student.state_dict()[key], value)
    model.update_teacher()
    assert int(model.step) == 1 and model.teacher_student_distance() == 0


def test_labelling_in_training_mode(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(teacher=STUDENT, label_in_train_mode=True)
    plain = copy.deepcopy(model.student).train()
    view = 'unsup_teacher'
    labels = model.label_unlabeled(inputs[view], samples[view])
    expected = dense_logits(plain, inputs[view]).argmax(1)
    assert torch.equal(torch.stack([part.label for part in labels]), expected)
    key = 'backbone.stem.1.num_batches_tracked'
    assert model.student.state_dict()[key] == 1
    # Only in training.
    model.eval()
    evaluated = model.label_unlabeled(inputs[view], samples[view])
    assert model.student.state_dict()[key] == 1
    assert any((a.label != b.label).any() for a, b in zip(labels, evaluated))


def test_an_error_gives_the_student_back(make, dense_batch_factory):
    model = make(teacher=STUDENT)
    with pytest.raises(RuntimeError):
        model.label_unlabeled(torch.zeros(1, 4, 8, 8), [])
    assert model.student.training


def test_teacher_evaluates(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make()
    view = 'unsup_teacher'
    first = model.label_unlabeled(inputs[view], samples[view])
    again = model.label_unlabeled(inputs[view][:1], samples[view][:1])
    assert torch.allclose(first[0].confidence, again[0].confidence, atol=1e-5)
    assert not first[0].confidence.requires_grad


def test_ground_truth_does_not_reach_the_stages(make, dense_batch_factory,
                                                monkeypatch):
    model, seen = make(), []
    monkeypatch.setattr(
        model.pseudo_label_pipeline, 'forward',
        lambda labels, samples, step: seen.extend(samples) or labels)
    inputs, samples = dense_batch_factory()
    model.label_unlabeled(inputs['sup'], samples['sup'])
    assert len(seen) == 2 and not any('gt_sem_seg' in s for s in seen)
    assert all('gt_sem_seg' in s for s in samples['sup'])


@pytest.mark.parametrize('kwargs, message', [
    (dict(label_in_train_mode=True), "label_in_train_mode=True.*'ema'"),
    (dict(hidden_label_interval=-1), 'hidden_label_interval=-1'),
    (dict(teacher=STUDENT, predict_on='teacher'), "predict_on='teacher'"),
    (dict(head=dict(num_classes=2, out_channels=1, threshold=.3)),
     'out_channels=2'),
    (dict(teacher=dict(STUDENT, checkpoint='a.pth')), 'has no effect'),
])
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


# Prediction and weights ---------------------------------------------------


@pytest.mark.parametrize('who', ['teacher', 'student'])
def test_prediction(make, dense_batch_factory, who):
    model = make(predict_on=who).eval()
    model.student.decode_head.conv_seg.bias.data[1] += 1
    inputs, samples = dense_batch_factory()
    view = 'unsup_teacher'
    with torch.no_grad():
        expected = predict_dense(
            getattr(model, who), inputs[view], copy.deepcopy(samples[view]))
        found = model(inputs[view], samples[view], mode='predict')
        raw = model(inputs[view])
    assert torch.equal(raw, getattr(model, who)(inputs[view]))
    for ours, theirs, height in zip(found, expected, (16, 12)):
        assert ours.pred_sem_seg.data.shape == (1, height, 24)
        assert torch.equal(ours.seg_logits.data, theirs.seg_logits.data)
        assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)


@pytest.mark.parametrize('teacher', [None, STUDENT])
def test_checkpoint_of_a_plain_segmenter(make, dense_segmentor_config,
                                         teacher):
    model = make(teacher=teacher)
    torch.manual_seed(9)
    plain = MODELS.build(dense_segmentor_config())
    model.load_state_dict(plain.state_dict())
    for name in model.predictors:
        state = getattr(model, name).state_dict()
        for key, value in plain.state_dict().items():
            assert torch.equal(state[key], value), key


def test_checkpoint_of_a_student_without_teacher(make, dense_batch_factory):
    """As of UniMatch: an averaged teacher starts as the student."""
    source = make(teacher=STUDENT)
    source.student.decode_head.conv_seg.bias.data += 3
    model = make()
    model.load_state_dict(source.state_dict())
    assert model.teacher_student_distance() == 0
    for name in ('student', 'teacher'):
        for key, value in source.student.state_dict().items():
            assert torch.equal(getattr(model, name).state_dict()[key], value)


def test_state_brings_everything_back(make, dense_batch_factory):
    kwargs = dict(
        teacher=dict(momentum=.5),
        pseudo_label_pipeline=[
            dict(
                type='mmsemi.KeepAboveAdaptiveThreshold',
                initial_thr=.3,
                momentum=.5),
            dict(type='mmsemi.KeepAboveClassThresholds', initial_thr=.1)
        ])
    model = make(**kwargs)
    model.pseudo_label_pipeline.stages[1].move_thresholds(torch.rand(4))
    for seed in range(2):
        losses_of(model, dense_batch_factory(seed=seed))
        model.update_teacher()
    other = make(**kwargs)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert int(other.step) == 2
    batch = dense_batch_factory(seed=3)
    assert_equal(losses_of(model, batch), losses_of(other, batch))
    assert_equal(model.state_dict(), other.state_dict())
