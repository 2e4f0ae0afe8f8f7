# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmsemi.models import SemanticBranch, SemanticClsPredictor
from mmsemi.models.semantic_branch import cosine_logits, prepare_text_vectors
from mmsemi.models.text import TextEmbeddings

MODES = ('similarity', 'feature', 'concat')
CLASSES = ('crab', 'eel', 'starfish', 'rov')


def make_texts(classes=CLASSES, seed=0, width=6):
    vectors = torch.randn((len(CLASSES), width),
                          generator=torch.Generator().manual_seed(seed))
    rows = [CLASSES.index(name) for name in classes]
    return TextEmbeddings(classes, classes, vectors[rows], 'random', 'mean')


def make_branch(mode='similarity', texts=None, **options):
    torch.manual_seed(1)
    texts = make_texts() if texts is None else texts
    options = {**dict(num_classes=4, in_channels=8), **options}
    return SemanticBranch(texts, mode=mode, **options)


def make_predictor(mode='similarity', texts=None, **options):
    torch.manual_seed(2)
    return SemanticClsPredictor(
        8,
        5,
        mode=mode,
        text_embeddings=make_texts() if texts is None else texts,
        **options)


def features(*shape):
    return torch.randn((*shape, 8), generator=torch.Generator().manual_seed(5))


def toy_branch(gate):
    """Return a branch with v = x and T = (1, 0), (0, 2), (-1, 0)."""
    texts = TextEmbeddings(['a', 'b'], ['a', 'b'],
                           torch.tensor([[1., 0.], [0., 2.]]), 'toy', 'mean')
    branch = SemanticBranch(
        texts, 2, 2, center=False, tau=10, gate=gate, embed_channels=2)
    with torch.no_grad():
        for linear in (branch.visual, branch.projector[0]):
            linear.weight.copy_(torch.eye(2))
        branch.projector[2].weight.copy_(torch.diag(torch.tensor([1., 2.])))
        branch.background.copy_(torch.tensor([[-1., 0.]]))
    return branch.train()


# Golden values -------------------------------------------------------------


@pytest.mark.parametrize('visual, expected', [
    ((0, 0, 0), (.6652, .2447, .0900)),
    ((1.5, 2, 0), (.6110, .3706, .0185)),
])
def test_toy_example(visual, expected):
    branch = toy_branch(gate=.1)
    visual = torch.tensor([visual]).float()
    with branch.recording() as recorded:
        fused = branch(torch.tensor([[1., 0.]]), visual)
    torch.testing.assert_close(recorded[0], torch.tensor([[10., 0., -10.]]))
    torch.testing.assert_close(
        fused.softmax(1), torch.tensor([expected]), atol=6e-5, rtol=0)
    if visual.any():
        # The names change the winner.
        assert visual.argmax() == 1
        assert fused.argmax() == 0


def test_cosines_take_no_lengths():
    targets = torch.tensor([[1., 0.], [0., 2.], [-1., 0.]])
    expected = torch.tensor([[10., 0., -10.]])
    for length in (1e-3, 1., 1e3):
        v = torch.tensor([[length, 0.]])
        torch.testing.assert_close(cosine_logits(v, targets, 10), expected)


def test_zero_features_are_finite_in_half_precision():
    zero = torch.zeros(2, 4, dtype=torch.float16)
    assert not cosine_logits(zero, torch.eye(4), 20).any()
    branch = make_branch()
    x = torch.zeros(2, 8, requires_grad=True)
    branch(x, torch.zeros(2, 5)).sum().backward()
    for name, parameter in branch.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() < 1e3, name


def test_feature_mode_by_hand():
    branch = make_branch('feature', gate=.5)
    x = features(3)
    classifier = nn.Linear(8, 5)
    texts = branch.projector(branch.text_vectors)
    scores = branch.query(x) @ branch.key(texts).T / math.sqrt(8)
    expected = classifier(x + .5 * scores.softmax(1) @ texts)
    with branch.recording() as recorded:
        torch.testing.assert_close(branch(x, classifier), expected)
    background = branch.query(x) @ branch.key(branch.background).T
    torch.testing.assert_close(
        recorded[0], torch.cat([scores, background / math.sqrt(8)], 1))


def test_concat_mode_by_hand():
    branch = make_branch('concat', concat_channels=7)
    x, visual = features(3), torch.randn(3, 5)
    texts = torch.cat(
        [branch.projector(branch.text_vectors), branch.background])
    weight = torch.cat([branch.visual.weight, branch.textual.weight], 1)
    for i in range(3):
        for c in range(5):
            hidden = F.linear(
                torch.cat([x[i], texts[c]]), weight, branch.visual.bias)
            expected = visual[i, c] + branch.score(hidden.relu())[0]
            torch.testing.assert_close(branch(x, visual)[i, c], expected)


# Gate ----------------------------------------------------------------------


@pytest.mark.parametrize('mode', MODES)
def test_gate_0_is_the_base_model_to_the_last_bit(mode):
    plain = nn.Linear(8, 5)
    predictor = make_predictor(mode, gate=0)
    result = predictor.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith('branch.') for key in result.missing_keys)
    x = features(2, 7)
    assert torch.equal(predictor(x), plain(x))
    with torch.no_grad():
        predictor.branch.gate.fill_(.1)
    assert not torch.equal(predictor(x), plain(x))


@pytest.mark.parametrize('mode, gate', [('similarity', 1.), ('feature', .1),
                                        ('concat', 1.)])
def test_gate_at_the_start(mode, gate):
    branch = make_branch(mode)
    assert branch.gate.item() == pytest.approx(gate)
    assert branch.gate.requires_grad
    assert make_branch(mode, gate=.3).gate.item() == pytest.approx(.3)
    assert not make_branch(mode, learn_gate=False).gate.requires_grad


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('background', [True, False])
def test_every_parameter_learns(mode, background):
    branch = make_branch(mode, background=background).train()
    width = 4 + background
    with branch.recording() as recorded:
        logits = branch(features(6), nn.Linear(8, width))
    assert logits.shape == recorded[0].shape == (6, width)
    target = torch.arange(6) % width
    loss = F.cross_entropy(logits, target)
    (loss + F.cross_entropy(recorded[0], target)).backward()
    for name, parameter in branch.named_parameters():
        assert parameter.grad.any(), name


# Order of classes ----------------------------------------------------------


@pytest.mark.parametrize('mode', MODES)
def test_permuted_classes_permute_logits(mode):
    order = [2, 0, 3, 1]
    plain = make_predictor(mode)
    turned = make_predictor(
        mode, make_texts(tuple(CLASSES[i] for i in order)))
    columns = [*order, 4]
    torch.testing.assert_close(turned.branch.text_vectors,
                               plain.branch.text_vectors[order])
    state = {
        key: value
        for key, value in plain.state_dict().items()
        if not key.endswith('text_vectors')
    }
    state['weight'] = plain.weight[columns]
    state['bias'] = plain.bias[columns]
    turned.load_state_dict(state, strict=False)
    x = features(3)
    torch.testing.assert_close(turned(x), plain(x)[:, columns])


def test_other_classes_are_refused():
    branch = make_branch()
    branch.check_classes(list(CLASSES))
    with pytest.raises(ValueError, match='another order'):
        branch.check_classes(CLASSES[::-1])
    with pytest.raises(ValueError, match='allowed are 4'):
        make_branch(num_classes=3)


# Text vectors --------------------------------------------------------------


def test_text_vectors_are_centred_and_of_length_1():
    vectors = torch.tensor([[3., 4.], [3., 0.], [0., 2.]])
    expected = F.normalize(vectors - torch.tensor([2., 2.]), dim=1)
    torch.testing.assert_close(prepare_text_vectors(vectors), expected)
    plain = prepare_text_vectors(vectors, center=False)
    torch.testing.assert_close(
        plain, torch.tensor([[.6, .8], [1., 0.], [0., 1.]]))
    # Centring would leave nothing of a single class.
    torch.testing.assert_close(
        prepare_text_vectors(vectors[:1]), torch.tensor([[.6, .8]]))
    with pytest.raises(ValueError, match='center=False'):
        prepare_text_vectors(torch.tensor([[1., 0.], [2., 0.], [3., 0.]]))


def test_length_of_texts_does_not_matter():
    texts = make_texts()
    long = TextEmbeddings(CLASSES, CLASSES, texts.vectors * 7, 'x', 'mean')
    torch.testing.assert_close(
        make_branch(texts=long).text_vectors,
        make_branch(texts=texts).text_vectors)


def test_text_vectors_are_a_saved_buffer():
    branch = make_branch()
    assert 'text_vectors' in branch.state_dict()
    assert 'text_vectors' not in dict(branch.named_parameters())
    before = branch.text_vectors.clone()
    optimizer = torch.optim.SGD(branch.parameters(), lr=.1)
    teacher = copy.deepcopy(branch)
    for _ in range(3):
        optimizer.zero_grad()
        branch(features(4), torch.zeros(4, 5)).square().sum().backward()
        optimizer.step()
        # As the teacher follows the student.
        for own, other in zip(teacher.state_dict().values(),
                              branch.state_dict().values()):
            own.lerp_(other, .0004)
    assert torch.equal(branch.text_vectors, before)
    assert torch.equal(teacher.text_vectors, before)
    assert not torch.equal(branch.visual.weight, teacher.visual.weight)


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_checkpoint_of_other_texts_is_refused(load):
    branch = make_branch()
    load(branch, make_branch().state_dict())
    other = make_branch(texts=make_texts(CLASSES[::-1]))
    with pytest.raises(ValueError, match='another order'):
        load(branch, other.state_dict())
    # What is left without the key is what fine-tuning starts from.
    state = other.state_dict()
    del state['text_vectors']
    assert branch.load_state_dict(
        state, strict=False).missing_keys == ['text_vectors']


def test_texts_may_come_with_the_checkpoint():
    trained = make_branch()
    branch = SemanticBranch(None, 4, 8, text_channels=6)
    x, visual = features(2), torch.zeros(2, 5)
    with pytest.raises(RuntimeError, match='none has been loaded'):
        branch(x, visual)
    branch.load_state_dict(trained.state_dict())
    assert torch.equal(branch(x, visual), trained(x, visual))
    # Averages of models copy tensors.
    copied = SemanticBranch(None, 4, 8, text_channels=6)
    for own, other in zip(copied.state_dict().values(),
                          trained.state_dict().values()):
        own.copy_(other)
    assert torch.equal(copied(x, visual), trained(x, visual))


# Initialisation ------------------------------------------------------------


@pytest.mark.parametrize('mode', MODES)
def test_heads_override_does_not_reach_the_branch(mode):
    """mmdet draws all below fc_cls anew; see mmengine's override."""
    head = BaseModule(
        init_cfg=dict(type='Normal', std=.01, override=dict(name='fc_cls')))
    head.fc_cls = make_predictor(mode, gate=.7)
    before = head.fc_cls.branch.text_vectors.clone()
    head.init_weights()
    branch = head.fc_cls.branch
    assert branch.gate.item() == pytest.approx(.7)
    assert torch.equal(branch.text_vectors, before)
    assert head.fc_cls.weight.std() < .02
    assert 0 < branch.background.std() < .04
    for name, module in branch.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert bound / 2 < module.weight.abs().max() <= bound, name
            assert module.bias is None or not module.bias.any(), name
    assert not any('Norm' in type(m).__name__ for m in branch.modules())


def test_wide_features_meet_texts_in_a_narrow_space():
    """mmdet builds a classifier of 12,544 channels only to drop it."""
    branch = make_branch(in_channels=2000)
    assert branch.visual.weight.shape == (1024, 2000)
    branch = make_branch('feature', in_channels=1500, embed_channels=4)
    assert branch.condition(torch.zeros(2, 1500)).shape == (2, 1500)
    assert branch.query.weight.shape == (4, 1500)


# Recording -----------------------------------------------------------------


def test_logits_are_recorded_in_training_alone():
    branch = make_branch().train()
    call = (features(2), torch.zeros(2, 5))
    branch(*call)
    with branch.recording() as recorded:
        branch(*call)
        with branch.recording() as inner:
            branch(*call)
        branch(*call)
        with torch.no_grad():
            branch(*call)
        branch.eval()
        branch(*call)
    assert (len(recorded), len(inner)) == (2, 1)
    branch.train()
    branch(*call)
    assert len(recorded) == 2
    silent = make_branch(aux_weight=0).train()
    with silent.recording() as recorded:
        silent(*call)
    assert recorded == []


def test_model_can_be_copied_after_training():
    predictor = make_predictor().train()
    with predictor.branch.recording():
        predictor(features(2)).sum().backward()
    copy.deepcopy(predictor)


# Arguments -----------------------------------------------------------------


def test_feature_mode_needs_the_classifier():
    with pytest.raises(TypeError, match='needs the classifier'):
        make_branch('feature')(features(2), torch.zeros(2, 5))


@pytest.mark.parametrize('options', [
    dict(mode='sum'),
    dict(tau=0),
    dict(tau=3., mode='concat'),
    dict(concat_channels=8),
    dict(aux_weight=-1),
    dict(in_channels=0),
    dict(num_classes=4.),
    dict(embed_channels=0),
    dict(text_channels=6),
])
def test_wrong_arguments_are_refused(options):
    with pytest.raises(ValueError, match=r'SemanticBranch\.'):
        make_branch(**options)
    with pytest.raises(ValueError, match='text_channels=None'):
        SemanticBranch(None, 4, 8)


def test_registered_and_built_from_spelling():
    branch = MODELS.build(
        dict(
            type='mmsemi.SemanticBranch',
            text_embeddings=dict(model='char-ngrams', classes=CLASSES),
            num_classes=4,
            in_channels=8))
    assert branch.classes == CLASSES
    assert branch.text_vectors.shape == (4, 256)
    # A copy, because builders change what they are given.
    predictor = MODELS.build(
        dict(
            type='mmsemi.SemanticClsPredictor',
            in_features=8,
            out_features=5,
            text_embeddings=dict(model='char-ngrams', classes=CLASSES)))
    assert predictor(features(3)).shape == (3, 5)
