# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from mmsemi.datasets.transforms.mix import BatchMix, BoxMix, MixPlan
from mmsemi.methods import CPS
from mmsemi.methods.cps import cross_pseudo_loss
from mmsemi.models.dense_forward import dense_logits
from mmsemi.models.losses import dense_cross_entropy
from mmsemi.registry import MODELS, TRANSFORMS


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@pytest.fixture
def make(dense_segmentor_config):

    def build(head=None, **kwargs):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type='mmsemi.CPS',
                segmentor=dense_segmentor_config(**(head or {})),
                **kwargs))
        model.init_weights()
        # Classifiers start with nearly equal probabilities.
        for network in model.networks:
            network.decode_head.conv_seg.weight.data *= 100
        return model

    return build


def wave(shape, phase, amp=3.):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (amp * torch.sin(1.1 * index + phase)).reshape(shape)


def total(losses):
    return sum(
        value if torch.is_tensor(value) else sum(value)
        for key, value in losses.items() if 'loss' in key)


@TRANSFORMS.register_module(force=True)
class LeftHalfMix(BatchMix):
    """Takes the partner's left half; as 'unmixed' nothing."""

    unmixed = False

    def _take(self, targets):
        if self.unmixed:
            return None
        take = torch.zeros(targets.label.shape, dtype=torch.bool)
        take[..., :targets.label.shape[2] // 2] = True
        return take


# The loss -----------------------------------------------------------------


def test_reference_without_mix():
    logits_a = wave((2, 4, 3, 3), .1).requires_grad_()
    logits_b = wave((2, 4, 3, 3), 1.3)
    assert logits_a[0].argmax(0).flatten().tolist() == [
        2, 0, 0, 3, 1, 2, 2, 0, 3
    ]
    assert logits_b[1].argmax(0).flatten().tolist() == [
        3, 1, 1, 2, 0, 0, 3, 1, 2
    ]
    loss = cross_pseudo_loss(logits_a, logits_b)
    assert loss.item() == pytest.approx(3.90768951, abs=1e-8)
    loss.backward()
    assert logits_a.grad.abs().sum().item() == pytest.approx(
        1.50124327, abs=1e-8)
    label = torch.arange(9).remainder(4).reshape(1, 3, 3)
    label[0, 0, 0] = 255
    sup = [dense_cross_entropy(part[:1], label) for part in
           (logits_a, logits_b)]
    assert sup[0].item() == pytest.approx(2.74304644, abs=1e-8)
    assert sup[1].item() == pytest.approx(3.50100428, abs=1e-8)
    assert (sum(sup) + 1.5 * loss).item() == pytest.approx(
        12.10558498, abs=1e-7)


def test_reference_with_mix():
    take = torch.zeros(1, 3, 3, dtype=torch.bool)
    take[0, :2, 1:] = True
    plan = MixPlan(take, torch.zeros(1, dtype=torch.long))
    labels = []
    for phase in (.1, 1.3):
        logits = wave((2, 4, 3, 3), phase)
        labels.append(plan.mix(logits[:1], logits[1:]).argmax(1))
    assert labels[0].flatten().tolist() == [2, 3, 1, 3, 2, 0, 2, 0, 3]
    assert labels[1].flatten().tolist() == [0, 1, 1, 1, 0, 0, 0, 3, 1]
    loss = (
        dense_cross_entropy(wave((1, 4, 3, 3), 2.), labels[1]) +
        dense_cross_entropy(wave((1, 4, 3, 3), .5), labels[0]))
    assert loss.item() == pytest.approx(2.37635211, abs=1e-8)


def test_invalid_pixels_do_not_count():
    logits_a, logits_b = wave((1, 4, 3, 3), .1), wave((1, 4, 3, 3), 1.3)
    valid = torch.zeros(1, 3, 3, dtype=torch.bool)
    valid[..., 1] = True
    assert torch.allclose(
        cross_pseudo_loss(logits_a, logits_b, valid),
        cross_pseudo_loss(logits_a[..., 1:2], logits_b[..., 1:2]))
    assert cross_pseudo_loss(logits_a, logits_b, ~valid & valid) == 0


# The model ----------------------------------------------------------------


def expected_cps(model, inputs, samples, padding):
    """Compute what the model should, in separate steps."""
    logits, valid = [[] for _ in model.networks], []
    for network, own in zip(model.networks, logits):
        both = dense_logits(
            network, torch.cat([inputs['sup'], inputs['unsup_teacher']]))
        own.append(both)
    valid = torch.ones(4, 16, 24, dtype=torch.bool)
    if not padding:
        valid[1, 12:] = False
        valid[3, 12:] = False
    return sum(
        F.cross_entropy(a[0], b[0].argmax(1), reduction='none')[valid].mean()
        for a, b in permutations(logits, 2))


@pytest.mark.parametrize('num, padding', [(2, False), (2, True), (3, False)])
def test_loss_without_mix(make, dense_batch_factory, num, padding):
    model = make(num_networks=num, train_padding=padding, cps_weight=6.)
    inputs, samples = dense_batch_factory()
    del inputs['unsup_student'], samples['unsup_student']
    plain = copy.deepcopy(model)
    losses = model.loss(inputs, samples)
    assert set(losses) == {
        f'sup_{i}_{name}'
        for i in range(num) for name in ('decode.loss_ce', 'decode.acc_seg',
                                         'aux.loss_ce', 'aux.acc_seg')
    } | {'loss_cps', 'pseudo/agreement', 'pseudo/kept_share'}
    expected = expected_cps(plain, inputs, samples, padding)
    assert torch.allclose(losses['loss_cps'], 6 * expected, rtol=1e-5)
    assert 0 <= losses['pseudo/agreement'] <= 1
    assert losses['pseudo/kept_share'] == 1
    assert not losses['pseudo/agreement'].requires_grad
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_supervised_losses_are_the_networks_own(make, dense_batch_factory):
    """With separate passes, each equals that of the plain segmenter."""
    model = make(joint_forward=False, sup_weight=.5)
    inputs, samples = dense_batch_factory()
    alone = copy.deepcopy(model.networks[1])
    losses = model.loss(inputs, samples)
    own = alone.loss(inputs['sup'], samples['sup'])
    for key in ('decode.loss_ce', 'aux.loss_ce'):
        assert torch.allclose(losses[f'sup_1_{key}'], own[key] / 2)
    # Another pass, other batch statistics.
    joint = make(sup_weight=.5).loss(inputs, samples)
    assert not torch.allclose(losses['sup_1_decode.loss_ce'],
                              joint['sup_1_decode.loss_ce'])


def test_passes(make, dense_batch_factory):
    """One pass per network without mix; labels cost one more with it."""
    inputs, samples = dense_batch_factory()
    for settings, expected in (
        (dict(), [(4, True)]),
        (dict(joint_forward=False), [(2, True), (2, True)]),
        (dict(mix=dict(type='mmsemi.LeftHalfMix')), [(2, False), (4, True)]),
        (dict(student_view='unsup_student'), [(2, False), (4, True)])):
        model, calls = make(**settings), []
        for network in model.networks:
            network.backbone.register_forward_hook(
                lambda _, args, out: calls.append(
                    (len(args[0]), out[0].requires_grad)))
        heads = []
        model.networks[0].decode_head.conv_seg.register_forward_hook(
            lambda *_: heads.append(1))
        model.loss(inputs, samples)
        assert sorted(calls) == sorted(expected * 2)
        # Nothing is decoded a second time for the supervised loss.
        assert len(heads) == len(expected)


def test_sizes_may_differ(make, dense_batch_factory):
    inputs, samples = dense_batch_factory(
        dict(sup=(2, 8, 16), unsup_teacher=(3, 16, 24)))
    model = make()
    separate = copy.deepcopy(model)
    separate.joint_forward = False
    losses = model.loss(inputs, samples)
    assert torch.equal(losses['loss_cps'],
                       separate.loss(inputs, samples)['loss_cps'])
    total(losses).backward()


@pytest.mark.parametrize('in_train_mode', [True, False])
def test_loss_with_mix(make, dense_batch_factory, in_train_mode):
    inputs, samples = dense_batch_factory()
    model = make(
        mix=dict(type='mmsemi.LeftHalfMix', partner='batch_roll'),
        label_in_train_mode=in_train_mode,
        joint_forward=False,
        cps_weight=1.)
    plain = copy.deepcopy(model)
    losses = model.loss(inputs, samples)

    half = torch.zeros(2, 16, 24, dtype=torch.bool)
    half[..., :12] = True
    plan = MixPlan(half, torch.tensor([1, 0]))
    weak = inputs['unsup_teacher']
    labels, logits = [], []
    for network in plain.networks:
        network.train(in_train_mode)
        with torch.no_grad():
            labels.append(plan.mix(dense_logits(network, weak)).argmax(1))
        network.train()
    for network in plain.networks:
        logits.append(dense_logits(network, plan.mix(weak)))
    # The second image has four rows of padding, each mixed one has half.
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[0, 12:, :12] = False
    valid[1, 12:, 12:] = False
    expected = sum(
        F.cross_entropy(logits[a], labels[1 - a], reduction='none')
        [valid].mean() for a in (0, 1))
    assert torch.allclose(losses['loss_cps'], expected, rtol=1e-5)
    assert torch.allclose(
        losses['pseudo/agreement'],
        (labels[0] == labels[1])[valid].float().mean())
    assert all(network.training for network in model.networks)


def test_no_plan_leaves_images_as_they_are(make, dense_batch_factory,
                                           monkeypatch):
    monkeypatch.setattr(LeftHalfMix, 'unmixed', True)
    inputs, samples = dense_batch_factory()
    losses = make(mix=dict(type='mmsemi.LeftHalfMix')).loss(inputs, samples)
    assert losses['loss_cps'].isfinite()


def test_published_mix(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(mix=dict(type='mmsemi.BoxMix'))
    assert isinstance(model.mix, BoxMix)
    total(model.loss(inputs, samples)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_partner_views(make, dense_batch_factory):
    sizes = dict.fromkeys(('sup', 'unsup_teacher', 'unsup_student'),
                          (2, 16, 24))
    inputs, samples = dense_batch_factory(
        dict(sizes, unsup_partner_teacher=(2, 16, 24)))
    model = make(mix=dict(type='mmsemi.LeftHalfMix'), joint_forward=False)
    seen = []
    model.networks[0].backbone.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].clone()))
    model.loss(inputs, samples)
    weak, partner = inputs['unsup_teacher'], inputs['unsup_partner_teacher']
    assert torch.equal(seen[0], weak) and torch.equal(seen[1], partner)
    assert torch.equal(seen[3][..., :12], partner[..., :12])
    assert torch.equal(seen[3][..., 12:], weak[..., 12:])

    inputs['unsup_partner_teacher'] = partner[:1]
    with pytest.raises(ValueError, match='2 unlabelled images and 1 partner'):
        model.loss(inputs, samples)
    model.student_view = 'unsup_student'
    with pytest.raises(ValueError, match="lacks.*'unsup_partner_student'"):
        model.loss(inputs, samples)


def test_strong_view_learns_labels_of_the_weak_one(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(student_view='unsup_student', label_in_train_mode=False)
    assert model.views == ('sup', 'unsup_teacher', 'unsup_student')
    plain = copy.deepcopy(model)
    losses = model.loss(inputs, samples)
    labels, logits = [], []
    for network in plain.networks:
        network.eval()
        labels.append(dense_logits(network, inputs['unsup_teacher']).argmax(1))
        network.train()
        logits.append(
            dense_logits(network,
                         torch.cat([inputs['sup'],
                                    inputs['unsup_student']])))
    labels = [
        torch.cat([own[:2].argmax(1), label])
        for own, label in zip(logits, labels)
    ]
    valid = torch.ones(4, 16, 24, dtype=torch.bool)
    valid[1::2, 12:] = False
    expected = sum(
        F.cross_entropy(logits[a], labels[1 - a], reduction='none')
        [valid].mean() for a in (0, 1))
    assert torch.allclose(losses['loss_cps'], 1.5 * expected, rtol=1e-5)


def test_dropped_pixels_teach_nobody(make, dense_batch_factory):
    stage = dict(type='mmsemi.KeepConfidentPixels', conf_thr=.4)
    model = make(pseudo_label_pipeline=[stage], joint_forward=False)
    inputs, samples = dense_batch_factory()
    plain = copy.deepcopy(model)
    losses = model.loss(inputs, samples)
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[1, 12:] = False
    summed, kept_share = 0., 0.
    for view in ('sup', 'unsup_teacher'):
        logits = [
            dense_logits(network, inputs[view]) for network in plain.networks
        ]
        for a, b in permutations(logits, 2):
            confidence, label = b.softmax(1).max(1)
            kept = valid.clone()
            if view == 'unsup_teacher':
                kept &= confidence >= .4
                kept_share += kept.sum() / valid.sum() / 2
            summed += F.cross_entropy(a, label, reduction='none')[kept].sum()
    assert 0.05 < kept_share < 0.95
    assert torch.allclose(losses['pseudo/kept_share'], kept_share)
    expected = 1.5 * summed / (2 * valid.sum())
    assert torch.allclose(losses['loss_cps'], expected, rtol=1e-5)


def test_nothing_kept_of_mixed_images(make, dense_batch_factory):
    model = make(
        mix=dict(type='mmsemi.LeftHalfMix'),
        pseudo_label_pipeline=[
            dict(type='mmsemi.KeepConfidentPixels', conf_thr=1.)
        ])
    losses = model.loss(*dense_batch_factory())
    assert losses['loss_cps'] == 0
    assert losses['pseudo/kept_share'] == 0


def test_each_network_has_its_own_stages(make, dense_batch_factory):
    stage = dict(type='mmsemi.KeepAboveAdaptiveThreshold', momentum=.5)
    model = make(pseudo_label_pipeline=[stage])
    model.loss(*dense_batch_factory())
    first, second = (
        pipeline.stages[0].threshold
        for pipeline in model.pseudo_label_pipelines)
    assert first != second and .85 not in (first, second)

    other = make(pseudo_label_pipeline=[stage])
    plain = model.networks[0].state_dict()
    other.load_state_dict(plain)
    other.load_state_dict(model.state_dict())
    stages = other.pseudo_label_pipelines
    assert stages[0].stages[0].threshold == first
    assert stages[1].stages[0].threshold == second


def test_stages_know_the_step(make, dense_batch_factory):
    stage = dict(type='mmsemi.KeepLowEntropyPixels', num_steps=10)
    model = make(
        pseudo_label_pipeline=[stage], cps_weight=dict(weight=1., begin=3))
    model.iteration.fill_(7)
    model.loss(*dense_batch_factory())
    assert [pipeline.stages[0].step
            for pipeline in model.pseudo_label_pipelines] == [4, 4]


def test_views_are_checked(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    del inputs['unsup_teacher']
    with pytest.raises(ValueError, match="lacks the views.*'unsup_teacher'"):
        make().loss(inputs, samples)
    with pytest.raises(TypeError, match='trains on batches of views'):
        make().loss(torch.zeros(1, 3, 16, 16), [])
    inputs, samples = dense_batch_factory()
    samples['unsup_student'][0].set_metainfo(dict(img_shape=(8, 24)))
    with pytest.raises(ValueError, match='differ in their geometry'):
        make(student_view='unsup_student').loss(inputs, samples)


@pytest.mark.parametrize('kwargs, message', [
    (dict(num_networks=1), 'num_networks=1'),
    (dict(num_networks=2.), 'num_networks=2.0'),
    (dict(cps_weight=-1.), 'cps_weight=-1'),
    (dict(cps_weight=dict(ramp='cubic')), "cps_weight.ramp='cubic'"),
    (dict(sup_weight=float('nan')), 'sup_weight=nan'),
    (dict(student_view='sup'), "student_view='sup'"),
    (dict(label_in_train_mode=False), 'label_in_train_mode=False has no'),
    (dict(predict_on='teacher'), "predict_on='teacher'.*'network_0'.*'mean'"),
])
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_sigmoid_segmenter_is_refused(make):
    with pytest.raises(ValueError, match='out_channels=2'):
        make(dict(num_classes=2, out_channels=1, threshold=.3))


# Prediction ---------------------------------------------------------------


def test_prediction(make, dense_batch_factory):
    model = make().eval()
    inputs, samples = dense_batch_factory()
    images, metas = inputs['unsup_teacher'], samples['unsup_teacher']
    logits = [dense_logits(network, images) for network in model.networks]
    maps = [part.argmax(1) for part in logits]
    maps.append(sum(part.softmax(1) for part in logits).argmax(1))
    assert model.predictors == ('network_0', 'network_1', 'mean')
    assert model.predict_on == 'network_0'
    assert model.predictor is model.networks[0]
    for name, expected in zip(model.predictors, maps):
        model.predict_on = name
        found = model(images, copy.deepcopy(metas), mode='predict')
        for i, height in enumerate((16, 12)):
            assert torch.equal(found[i].pred_sem_seg.data[0],
                               expected[i, :height])
    assert model.predictor is model.networks


def test_raw_output_of_the_mean(make, dense_batch_factory):
    model = make(predict_on='mean').eval()
    images = dense_batch_factory()[0]['unsup_teacher']
    mean = sum(network(images).softmax(1) for network in model.networks) / 2
    assert torch.allclose(model(images).exp(), mean, atol=1e-6)
    model.predict_on = 'network_1'
    assert torch.equal(model(images), model.networks[1](images))


# Weights ------------------------------------------------------------------


def test_heads_differ_and_pretrained_backbones_agree(
        dense_segmentor_config, tmp_path):
    config = dense_segmentor_config()
    backbone = MODELS.build(copy.deepcopy(config)).backbone
    path = str(tmp_path / 'backbone.pth')
    torch.save(backbone.state_dict(), path)
    config['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=path)
    model = CPS(config)
    model.init_weights()
    first, second = model.networks
    for key, value in backbone.state_dict().items():
        assert torch.equal(first.backbone.state_dict()[key], value)
        assert torch.equal(second.backbone.state_dict()[key], value)
    assert not torch.equal(first.decode_head.conv_seg.weight,
                           second.decode_head.conv_seg.weight)


def test_equal_networks_are_refused(dense_segmentor_config, tmp_path):
    config = dense_segmentor_config()
    path = str(tmp_path / 'whole.pth')
    torch.save(MODELS.build(copy.deepcopy(config)).state_dict(), path)
    config['init_cfg'] = dict(type='Pretrained', checkpoint=path)
    with pytest.raises(ValueError, match='never disagree.*load_from'):
        CPS(config).init_weights()


@pytest.mark.parametrize('num', [2, 3])
def test_plain_checkpoint(make, dense_segmentor_config, num, caplog):
    """The backbone fills all networks, the heads only the first."""
    model = make(num_networks=num)
    own = copy.deepcopy(model.state_dict())
    plain = MODELS.build(dense_segmentor_config())
    model.load_state_dict(plain.state_dict(), strict=True)
    for i, network in enumerate(model.networks):
        for key, value in network.state_dict().items():
            is_head = key.startswith(('decode_head', 'auxiliary_head'))
            expected = own[f'networks.{i}.{key}'] if is_head and i else \
                plain.state_dict()[key]
            assert torch.equal(value, expected), key


def test_own_checkpoint(make, dense_batch_factory):
    model = make()
    state = copy.deepcopy(model.state_dict())
    assert all(key.startswith(('networks.0.', 'networks.1.', 'iteration'))
               for key in state)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1.)
    model.load_state_dict(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_foreign_checkpoint_is_refused(make):
    with pytest.raises(RuntimeError, match='matches nothing'):
        make().load_state_dict({'layer.weight': torch.zeros(2)})


# Optimizers ---------------------------------------------------------------

SGD = dict(type='SGD', lr=.05, momentum=.9, weight_decay=1e-3)


def train(model, batches, **wrapper):
    wrapper = dict(dict(type='OptimWrapper', optimizer=dict(SGD)), **wrapper)
    optim_wrapper = build_optim_wrapper(model, wrapper)
    optim_wrapper.initialize_count_status(model, 0, len(batches))
    for inputs, samples in batches:
        with optim_wrapper.optim_context(model):
            losses = model(inputs, samples, mode='loss')
            loss, _ = model.parse_losses(losses)
        optim_wrapper.update_params(loss)
    return {key: p.detach() for key, p in model.named_parameters()}


@pytest.mark.parametrize('counts', [1, 2])
def test_one_optimizer_equals_two(make, dense_batch_factory, counts):
    batches = [dense_batch_factory(seed=seed) for seed in range(5)]
    model = make()
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    one = train(copy.deepcopy(model), batches, accumulative_counts=counts)
    two = train(
        model,
        batches,
        accumulative_counts=counts,
        constructor='mmsemi.NetworkOptimWrapperConstructor')
    for key, value in one.items():
        assert torch.equal(value, two[key]), key
        assert not torch.equal(value, start[key]), key


def test_loss_is_not_reduced_over_processes(make, dense_batch_factory,
                                            monkeypatch):
    """In the released code gradients shrink with the number of processes."""

    def fail(*args, **kwargs):
        raise AssertionError('reduced inside the graph')

    for name in ('all_reduce', 'reduce', 'all_gather'):
        monkeypatch.setattr(torch.distributed, name, fail)
    total(make().loss(*dense_batch_factory())).backward()


def test_weight_may_rise(make, dense_batch_factory):
    batch = dense_batch_factory()
    expected = make(cps_weight=1.).loss(*batch)['loss_cps'].item()
    model = make(cps_weight=dict(weight=4., ramp='linear', begin=1,
                                 ramp_steps=2))
    state = copy.deepcopy(model.networks.state_dict())
    for factor in (0., 0., 2., 4.):
        model.networks.load_state_dict(state)
        found = model.loss(*batch)['loss_cps'].item()
        assert found == pytest.approx(factor * expected)
    again = make(cps_weight=1.)
    again.load_state_dict(model.state_dict())
    assert int(again.iteration) == 4
    again.eval().loss(*batch)
    assert int(again.iteration) == 4
