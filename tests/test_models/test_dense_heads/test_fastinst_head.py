# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""FastInst's head; ``test_fastinst_reference.py`` runs it as a whole."""
import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.utils import point_sample as sampling
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from mmsemi.models.layers import predicted_attn_mask

# Matching ------------------------------------------------------------------


@pytest.mark.parametrize('weight, query', [(1000., 1), (0., 0)])
def test_location_decides_the_matching(fastinst_head_config, weight, query):
    config = fastinst_head_config(num_classes=2, num_queries=2)
    config.train_cfg.assigner.match_costs[1].weight = weight
    head = MODELS.build(config)
    masks = torch.zeros(1, 8, 8, dtype=torch.long)
    masks[0, :4, :4] = 1
    instances = InstanceData(labels=torch.tensor([0]), masks=masks)
    pred = torch.full((2, 8, 8), -10.)
    pred[0, :4, :4] = 10
    scores = torch.tensor([[5., 0, 0], [0, 0, 5]])
    # The better query lies outside.
    inside = torch.tensor([[False], [True]])
    found = head._match_queries(scores, pred, instances,
                                dict(queries_inside=inside))
    assert found.gt_inds.tolist() == [int(query == 0), int(query == 1)]


def two_instances():
    masks = torch.zeros(2, 8, 8, dtype=torch.long)
    masks[0, :3, :3] = 1
    masks[1, 5, 2] = 1
    return InstanceData(labels=torch.tensor([0, 1]), masks=masks)


def cell_logits():
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 0, 0, 0], logits[0, 0, 0, 1], logits[0, 0, 3, 3] = 1, 2, 9
    logits[0, 1, 1, 1], logits[0, 1, 2, 1] = 3, -1
    return logits


def test_proposal_loss(fastinst_head_config):
    head = MODELS.build(fastinst_head_config(num_classes=2))
    found = head.match_cells(cell_logits()[0], two_instances()).gt_inds
    assert found.nonzero()[:, 0].tolist() == [1, 9]
    assert found[[1, 9]].tolist() == [1, 2]
    loss = head.proposal_loss(cell_logits(), [two_instances()])
    assert loss.item() == pytest.approx(34.79112, abs=2e-5)
    nothing = head.proposal_loss(cell_logits(), [two_instances()[:0]])
    background = -cell_logits().log_softmax(1)[:, 2].mean()
    assert nothing.item() == pytest.approx(20 * background.item(), rel=1e-6)


def test_points_of_a_mask(fastinst_head_config, monkeypatch):
    """12,544 points: three quarters the least certain of three times so
    many, the others at random."""
    head = MODELS.build(fastinst_head_config(num_points=12544))
    seen = []
    draw = sampling.point_sample
    monkeypatch.setattr(
        sampling, 'point_sample', lambda masks, points: seen.append(
            points.shape) or draw(masks, points))
    points = sampling.get_uncertain_point_coords_with_randomness(
        torch.rand(2, 1, 4, 4), None, head.num_points, head.oversample_ratio,
        head.importance_sample_ratio)
    assert seen == [(2, 37632, 2)] and points.shape == (2, 12544, 2)
    assert int(head.importance_sample_ratio * head.num_points) == 9408


def test_loss_primitives(fastinst_head_config):
    head = MODELS.build(fastinst_head_config())
    logits = torch.tensor([[0., 2, -1, 3]])
    target = torch.tensor([[1, 1, 0, 0]])
    dice = head.loss_dice(logits, target, avg_factor=1)
    assert dice.item() / 5 == pytest.approx(.3286, abs=5e-5)
    mask = head.loss_mask(logits[0], target[0], avg_factor=4)
    assert mask.item() / 5 == pytest.approx(1.0455, abs=5e-5)


# What the head promises ----------------------------------------------------


@pytest.fixture
def head(fastinst_head_config):
    torch.manual_seed(0)
    head = MODELS.build(fastinst_head_config())
    head.init_weights()
    return head


@pytest.fixture
def maps():
    torch.manual_seed(1)
    return [
        torch.randn(2, c, s, s) for c, s in ((16, 16), (24, 8), (32, 4))
    ]


def small_instances(*counts):
    batch = []
    for count in counts:
        masks = torch.zeros(count, 128, 128, dtype=torch.long)
        for i, mask in enumerate(masks):
            mask[40 * i:40 * i + 40, 30:90] = 1
        batch.append(InstanceData(labels=torch.arange(count), masks=masks))
    return batch


def losses_of(head, maps, instances):
    torch.manual_seed(2)
    return head.loss_by_feat(head.decode(maps, True), instances, [{}, {}])


@pytest.mark.parametrize('num_layers, entries', [(1, 10), (2, 16), (3, 22)])
def test_names_and_number_of_losses(fastinst_head_config, maps, num_layers,
                                    entries):
    head = MODELS.build(fastinst_head_config(num_layers=num_layers))
    losses = losses_of(head, maps, small_instances(1, 2))
    kinds = ('loss_cls', 'loss_mask', 'loss_dice')
    prefixes = ['', *(f'd{j}.' for j in range(num_layers)),
                *(f'guided{i}.' for i in range(num_layers))]
    assert list(losses) == [p + k for p in prefixes
                            for k in kinds] + ['loss_proposal']
    assert len(losses) == entries
    head.guided = False
    assert len(losses_of(head, maps, small_instances(1, 2))) == \
        entries - 3 * num_layers


@pytest.mark.parametrize('counts', [(0, 2), (0, 0)])
def test_images_without_instances(head, maps, counts):
    losses = losses_of(head, maps, small_instances(*counts))
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_more_instances_than_queries(fastinst_head_config, maps):
    head = MODELS.build(fastinst_head_config(num_queries=2, num_classes=3))
    losses = losses_of(head, maps, small_instances(3, 1))
    assert all(torch.isfinite(value) for value in losses.values())


def test_what_each_loss_teaches(head, maps):
    losses = losses_of(head, maps, small_instances(1, 3))
    proposal = losses.pop('loss_proposal')
    sum(losses.values()).backward(retain_graph=True)
    for name, parameter in head.named_parameters():
        assert (parameter.grad is None) == name.startswith(
            'query_proposal'), name
    proposal.backward()
    assert all(p.grad is not None for p in head.query_proposal.parameters())


def test_the_mode_changes_no_mask(head, maps):
    head.eval()
    classes, masks = head(maps)
    head.train()
    all_classes, all_masks = head(maps)
    assert [len(x) for x in (classes, masks, all_classes, all_masks)] == [
        1, 3, 3, 3
    ]
    assert torch.equal(classes[-1], all_classes[-1])
    assert all(torch.equal(a, b) for a, b in zip(masks, all_masks))


@torch.no_grad()
def test_true_masks_change_the_second_pass_alone(head, maps):
    decoded = head.decode(maps, True)
    before = [x.clone() for out in decoded.outputs for x in out[:2]]
    first_query = AssignResult(1, torch.eye(9)[0].long(), None, None)
    same, = small_instances(1)
    other = small_instances(3)[0][2:]
    first, second = (
        head.decode_guided(decoded, instances, [first_query] * 2)
        for instances in ([same, same], [same, other]))
    assert torch.equal(first[0].mask_pred[0], second[0].mask_pred[0])
    assert not torch.equal(first[0].mask_pred[1], second[0].mask_pred[1])
    after = [x for out in decoded.outputs for x in out[:2]]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


@torch.no_grad()
def test_images_do_not_see_each_other(head, maps):
    head.eval()
    classes, masks = head(maps)
    flipped, flipped_masks = head([x.flip(0) for x in maps])
    torch.testing.assert_close(flipped[0].flip(0), classes[0])
    torch.testing.assert_close(flipped_masks[-1].flip(0), masks[-1])


@torch.no_grad()
def test_no_auxiliary_queries(fastinst_head_config, maps):
    head = MODELS.build(fastinst_head_config(num_aux_queries=0))
    head.init_weights()
    assert losses_of(head, maps, small_instances(1, 2))
    assert head(maps)[0][-1].shape == (2, 9, 4)


@torch.no_grad()
def test_positions_are_resized(head):
    head.meta_pos_embed = torch.nn.Parameter(
        torch.tensor([[0., 1], [2, 3]]).expand(1, 32, 2, 2).clone())
    expected = torch.tensor([[0, .25, .75, 1], [1, 1.25, 1.75, 2],
                             [2, 2.25, 2.75, 3]])
    found = head._positions(torch.empty(1, 1, 3, 4))
    torch.testing.assert_close(found[0, 5], expected)


def test_full_size_shapes():
    with torch.device('meta'):
        losses = {
            f'loss_{name}': dict(type='CrossEntropyLoss')
            for name in ('mask', 'dice', 'proposal')
        }
        head = MODELS.build(
            dict(
                type='mmsemi.FastInstHead',
                loss_cls=dict(
                    type='CrossEntropyLoss', class_weight=[1.] * 81),
                **losses))
        decoded = head.decode([
            torch.empty(2, 512, 60, 80),
            torch.empty(2, 1024, 30, 40),
            torch.empty(2, 2048, 15, 20)
        ], True)
    assert sum(p.numel() for p in head.parameters()) == 10721685
    proposals = decoded.proposals
    assert proposals.logits.shape == (2, 81, 30, 40)
    assert proposals.features.shape == (2, 100, 256)
    assert decoded.query_pos.shape == (2, 108, 256)
    assert len(decoded.outputs) == len(decoded.states) == 4
    for state, output in zip(decoded.states, decoded.outputs):
        assert state.pixel.shape == (2, 4800, 256)
        assert state.query.shape == (2, 108, 256)
        assert output.cls_score.shape == (2, 100, 81)
        assert output.mask_pred.shape == (2, 100, 60, 80)
    mask = predicted_attn_mask(decoded.outputs[0].mask_pred, 8, 8)
    assert mask.shape == (16, 108, 4800)


@pytest.mark.parametrize('num_layers, decoder', [(1, 3315955), (2, 5575236),
                                                 (3, 7834517), (6, 14612360)])
def test_number_of_parameters(num_layers, decoder):
    attention = dict(embed_dims=256, num_heads=8)
    with torch.device('meta'):
        head = MODELS.build(
            dict(
                type='mmsemi.FastInstHead',
                transformer_decoder=dict(
                    num_layers=num_layers,
                    layer_cfg=dict(
                        self_attn_cfg=attention,
                        cross_attn_cfg=attention,
                        ffn_cfg=dict(
                            embed_dims=256, feedforward_channels=1024))),
                loss_cls=dict(
                    type='CrossEntropyLoss', class_weight=[1.] * 81),
                loss_mask=dict(type='CrossEntropyLoss'),
                loss_dice=dict(type='DiceLoss'),
                loss_proposal=dict(type='CrossEntropyLoss')))
    pixel = sum(p.numel() for p in head.pixel_decoder.parameters())
    assert pixel == 2887168
    assert sum(p.numel() for p in head.parameters()) == pixel + decoder
    assert decoder == 3253504 + (num_layers - 1) * 2238464 + 257 * 81 * (
        num_layers + 2)
    assert len(head.state_dict()) == 51 + 46 * num_layers


@pytest.mark.parametrize('settings, message', [
    (dict(num_queries=0), 'panoptic_head.num_queries=0'),
    (dict(num_aux_queries=-1), 'panoptic_head.num_aux_queries=-1'),
    (dict(num_layers=0), 'transformer_decoder.num_layers=0'),
    (dict(num_stuff_classes=1), 'class_weight has 4 entries; it needs 5'),
    (dict(train_cfg=dict(assigner=dict())), 'train_cfg.proposal_assigner'),
])
def test_wrong_settings(fastinst_head_config, settings, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(fastinst_head_config(**settings))
