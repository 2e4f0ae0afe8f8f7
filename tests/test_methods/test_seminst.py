# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""SemInst's stages: who teaches, what is learned, what checkpoints hold."""
import copy

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS

from mmsemi.apis.checkpoints import check_teacher
from mmsemi.methods import SemInst, load_segmentor_config
from mmsemi.methods.seminst import CONFIDENT_INSTANCES
from mmsemi.pseudo_labels import PseudoLabelPipeline

FIELDS = ('bboxes', 'labels', 'scores', 'masks')


@pytest.fixture
def build(tiny_segmentor_config):
    """callable: A small SOLOv2 in two stages."""

    def make(**kwargs):
        torch.manual_seed(0)
        config = load_segmentor_config(tiny_segmentor_config('solov2'))
        return SemInst(config, **kwargs).train()

    return make


@pytest.fixture
def instances(instances_factory):
    """callable: Two instances, of 676 and 988 pixels."""

    def make(shape=(64, 64), scores=(.9, .8)):
        return instances_factory([[4, 4, 30, 30], [34, 20, 60, 58]], [0, 2],
                                 shape, scores)

    return make


def train(model, batch, steps=1):
    optimizer = torch.optim.SGD(model.student.parameters(), lr=1e-3)
    for _ in range(steps):
        total, _ = model.parse_losses(model(*batch, mode='loss'))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        model.update_teacher()


def labelled_part(batch):
    return tuple(dict(sup=part['sup']) for part in batch)


def weights(module):
    return copy.deepcopy(module.state_dict())


def same(ours, theirs):
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


# Arguments -----------------------------------------------------------------


def test_defaults(build):
    model = build()
    assert model.teacher_settings.mode == 'frozen'
    assert model.unsup_weight(0) == model.unsup_weight(10**6) == 1.
    by_score, by_size = model.pseudo_label_pipeline.stages
    assert by_score.score_thr == .7
    assert (by_size.min_cells, by_size.stride) == (5., 8)
    assert model.predict_on == 'student'
    assert model.keep_empty_images and not model.soft_labels
    follower = build(teacher=dict(mode='ema'))
    settings = follower.teacher_settings
    assert [settings.momentum_at(k) for k in (1, 10**6)] == [4e-4] * 2
    assert follower.predict_on == 'teacher'
    assert build(teacher=dict(mode='student')).predict_on == 'student'


@pytest.mark.parametrize('options, message', [
    (dict(teacher='ema'), "teacher='ema'; it must be a dict"),
    (dict(teacher=dict(burn_in_steps=5)), 'teacher.burn_in_steps=5 has no'),
    (dict(teacher=dict(guided_steps=5)), 'teacher.guided_steps=5 has no'),
    (dict(teacher=dict(checkpoint='x.pth')), "checkpoint='x.pth' has no"),
    (dict(teacher=dict(mode='fixed')), "teacher.mode='fixed'; allowed"),
    (dict(unsup_losses='loss_cls'), "unsup_losses='loss_cls'; it must be"),
    (dict(unsup_losses=[]), r'unsup_losses=\[\]; it must be'),
])
def test_bad_arguments_name_the_field(options, message):
    with pytest.raises(ValueError, match=message):
        # Refused before the segmenter is looked at.
        SemInst(dict(type='Unknown'), **options)


# Stages --------------------------------------------------------------------


def test_stage_one_is_supervised(build, batch_factory):
    model = build(teacher=dict(mode='ema'))
    batch = batch_factory()
    with pytest.raises(ValueError, match='stage 1.*TwoStageTrainLoop'):
        model(*batch, mode='loss')
    before = weights(model.teacher)
    losses = model(*labelled_part(batch), mode='loss')
    assert losses and all(name.startswith('sup_') for name in losses)
    train(model, labelled_part(batch), steps=2)
    assert same(weights(model.teacher), before)
    # The teacher holds nothing yet.
    assert model.predict_on == 'teacher'
    assert model.predictor is model.student
    assert model.burning_in and int(model.step) == 2
    with pytest.raises(ValueError, match='of stage 1, at optimizer step 2'):
        check_teacher(model.teacher_settings, int(model.step),
                      int(model.stage2_begin))


def test_frozen_teacher_stays_what_stage_one_ended_with(build, batch_factory):
    model = build(pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=0.)
    ])
    batch = batch_factory()
    train(model, labelled_part(batch))
    model.begin_stage_two()
    start = weights(model.student)
    assert same(weights(model.teacher), start)
    assert not model.burning_in and model.steps_since_burn_in == 0
    train(model, batch, steps=5)
    assert same(weights(model.teacher), start)
    assert not same(weights(model.student), start)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert not any(module.training for module in model.teacher.modules())
    assert model.steps_since_burn_in == 5
    check_teacher(model.teacher_settings, 6, int(model.stage2_begin))


def test_ema_teacher_moves_by_its_share(build, batch_factory):
    model = build(teacher=dict(mode='ema'))
    model.step.fill_(7)
    model.begin_stage_two()
    before = {
        name: value.clone()
        for name, value in model.teacher.named_parameters()
    }
    train(model, batch_factory())
    assert model.predictor is model.teacher
    moved = 0
    for (name, student), teacher in zip(model.student.named_parameters(),
                                        model.teacher.parameters()):
        assert torch.equal(teacher,
                           torch.lerp(before[name], student.detach(), 4e-4))
        torch.testing.assert_close(
            teacher.double(),
            .9996 * before[name].double() + 4e-4 * student.double(),
            rtol=1e-6,
            atol=1e-7)
        moved += not torch.equal(student, before[name])
    assert moved


def test_schedule_counts_from_stage_two(build, batch_factory):
    model = build(unsup_weight=dict(weight=2., begin=1))
    model.step.fill_(100)
    model.begin_stage_two()
    seen = []
    model.semi_supervised_loss = lambda *args: seen.append(args[2]) or {}
    model(*batch_factory(), mode='loss')
    model.update_teacher()
    model(*batch_factory(), mode='loss')
    assert seen == [0, 1]
    model.begin_stage_one()
    assert model.burning_in


# Checkpoints ---------------------------------------------------------------


def test_checkpoint_tells_the_stage(build):
    model = build()
    model.step.fill_(3)
    model.begin_stage_two()
    model.step.fill_(5)
    other = build()
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.steps_since_burn_in == 2


def test_plain_weights_start_both_stages(build):
    plain = {
        key: torch.full_like(value, .5)
        for key, value in build().student.state_dict().items()
    }
    model = build()
    model.load_state_dict(plain, strict=True)
    assert model.burning_in
    assert same(weights(model.student), plain)
    model.begin_stage_two()
    assert same(weights(model.teacher), plain)


# Pseudo-labels -------------------------------------------------------------


def test_filters_at_their_limits(instances_factory):
    """Above 0.7 and above 5 cells of 8 x 8, which are 320 pixels."""
    pipeline = PseudoLabelPipeline(CONFIDENT_INSTANCES, FIELDS)
    boxes = [[0, 0, 40, 40]] * 3 + [[0, 0, 20, 16], [0, 0, 19, 17]]
    label = instances_factory(boxes, [0, 1, 2, 3, 4], (64, 64),
                              [.7, .7001, .71, .9, .9])
    kept, = pipeline([label], [None])
    assert kept.labels.tolist() == [1, 2, 4]


def test_no_object_is_no_label():
    """Not even where a class passes among the classes alone."""
    head = ROOT_MODELS.build(
        dict(
            type='mmsemi.QueryFusionHead',
            num_things_classes=2,
            num_stuff_classes=0,
            loss_panoptic=None,
            test_cfg=ConfigDict(max_per_image=100)))
    head.emit_soft_labels = True
    prob = torch.tensor([[.4, .1, .5], [.75, .05, .2], [.6, .2, .2]])
    assert prob[0, 0] / prob[0, :2].sum() > .7
    found = head.instance_postprocess(prob.log(), torch.ones(3, 32, 32))
    pipeline = PseudoLabelPipeline(CONFIDENT_INSTANCES, FIELDS)
    kept, = pipeline([found], [None])
    assert kept.scores.tolist() == pytest.approx([.75])


def captured(model, batch, label):
    """Return the ground truth that the student is given."""
    found = []
    model.student.loss = lambda images, samples: found.extend(samples) or {}
    inputs, samples = batch
    model.loss_by_pseudo_labels(inputs, samples, [label])
    return found[0]


def test_shared_geometry_leaves_masks_as_they_are(build, batch_factory,
                                                  sample_factory, instances):
    inputs, samples = batch_factory(num_unsup=1)
    for view in ('unsup_teacher', 'unsup_student'):
        samples[view] = [sample_factory((60, 62), (64, 64))]
    label = instances((60, 62))
    sample = captured(build(), (inputs, samples), label)
    masks = sample.gt_instances.masks.to_tensor(torch.bool, 'cpu')
    assert masks.shape == (2, 64, 64)
    assert torch.equal(masks[:, :60, :62], label.masks)
    assert masks.sum() == label.masks.sum()
    assert torch.equal(sample.gt_instances.bboxes, label.bboxes)
    assert sample.batch_input_shape == (64, 64)


def test_a_flip_between_the_views_flips_masks(build, batch_factory,
                                              sample_factory, instances):
    inputs, samples = batch_factory(num_unsup=1)
    flip = np.array([[-1., 0, 64], [0, 1, 0], [0, 0, 1]], np.float32)
    samples['unsup_student'] = [sample_factory(homography=flip)]
    label = instances()
    sample = captured(build(), (inputs, samples), label)
    masks = sample.gt_instances.masks.to_tensor(torch.bool, 'cpu')
    assert torch.equal(masks, label.masks.flip(2))


# Losses --------------------------------------------------------------------


def test_nothing_found_teaches_nothing(build, batch_factory):
    model = build(pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=1.)
    ])
    model.begin_stage_two()
    batch = batch_factory()
    losses = model(*batch, mode='loss')
    unsup = [v for k, v in losses.items() if k.startswith('unsup_loss')]
    assert unsup and all(float(value) == 0. for value in unsup)
    model.parse_losses(losses)[0].backward()
    ours = [p.grad.clone() for p in model.student.parameters()
            if p.grad is not None]
    model.zero_grad()
    alone = model.supervised_loss(batch[0]['sup'], batch[1]['sup'])
    model.parse_losses(alone)[0].backward()
    theirs = [p.grad for p in model.student.parameters()
              if p.grad is not None]
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_a_perfect_teacher_is_as_good_as_labels(build, batch_factory,
                                                instances):
    model = build()
    model.begin_stage_two()
    inputs, samples = batch_factory()
    inputs['unsup_student'] = inputs['sup'].clone()

    def label_perfectly(images, views):
        labels = [instances() for _ in views]
        for label in labels:
            label.set_metainfo(dict(num_predicted=2))
        return labels

    model.label_unlabeled = label_perfectly
    losses = model(inputs, samples, mode='loss')
    names = [name[4:] for name in losses if name.startswith('sup_')]
    assert any(float(losses[f'sup_{name}']) > 0 for name in names)
    for name in names:
        torch.testing.assert_close(losses[f'unsup_{name}'],
                                   losses[f'sup_{name}'])


def test_losses_of_pseudo_labels_can_be_chosen(build, batch_factory,
                                               instances):
    batch = batch_factory(num_unsup=1)
    model = build(unsup_losses=['*_cls'])
    losses, factor = model.loss_by_pseudo_labels(*batch, [instances()])
    assert set(losses) == {'loss_cls'} and factor == 1.
    everything, _ = build().loss_by_pseudo_labels(*batch, [instances()])
    assert set(everything) == {'loss_cls', 'loss_mask'}
    torch.testing.assert_close(losses['loss_cls'], everything['loss_cls'])
    model = build(unsup_losses=['loss_cls', 'loss_masks'])
    with pytest.raises(ValueError, match=r"'loss_masks', which is none.*cls"):
        model.loss_by_pseudo_labels(*batch, [instances()])
