# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A run of the whole FastInst head, with the values of the official code."""
import importlib.util
from pathlib import Path

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from mmsemi.models.layers import guided_attn_mask, predicted_attn_mask

CONVERTER = Path(__file__).resolve().parents[3] / (
    'tools/model_converters/fastinst_to_mmsemi.py')
# Of the reference run: instances of the queries, by image.
MATCHES = ({0: 1, 4: 0}, {2: 2, 3: 0, 8: 1})


@pytest.fixture(scope='module')
def converter():
    spec = importlib.util.spec_from_file_location('converter', CONVERTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reference(official, converter, fastinst_head_config):
    """The head of the reference run, float64, through the converter."""
    head = MODELS.build(fastinst_head_config(num_points=12544)).double()
    weights = {
        f'sem_seg_head.{key}': official.reference_weight(key, shape)
        for key, shape in official.head_shapes(
            2, 3, (16, 24, 32), 32, 3, 2, 64).items()
    }
    assert len(weights) == 51 + 46 * 2
    prefix = 'panoptic_head.'
    converted = converter.convert_weights(
        weights, {prefix + k: v
                  for k, v in head.state_dict().items()})
    head.load_state_dict({k[len(prefix):]: v for k, v in converted.items()})
    return head.eval()


def true_instances():
    boxes = (((0, 10, 60, 20, 80), (2, 70, 120, 100, 150)),
             ((1, 0, 40, 0, 40), (1, 50, 100, 60, 140), (0, 126, 128, 158,
                                                         160)))
    batch = []
    for image in boxes:
        masks = torch.zeros(len(image), 128, 160, dtype=torch.long)
        for mask, (_, y1, y2, x1, x2) in zip(masks, image):
            mask[y1:y2, x1:x2] = 1
        batch.append(
            InstanceData(
                labels=torch.tensor([box[0] for box in image]), masks=masks))
    return batch


def matched(num_queries=9):
    results = []
    for pairs, instances in zip(MATCHES, true_instances()):
        gt_inds = torch.zeros(num_queries, dtype=torch.long)
        for query, instance in pairs.items():
            gt_inds[query] = instance + 1
        results.append(AssignResult(len(instances), gt_inds, None, None))
    return results


def sums(tensor):
    return tensor.sum().item(), tensor.abs().sum().item()


def assert_sums(tensor, *expected):
    for value, right in zip(sums(tensor), expected):
        assert value == pytest.approx(right, rel=1e-8, abs=1e-7)


@torch.no_grad()
def test_reference_maps_and_predictions(reference, official):
    maps = official.reference_maps()
    coarse, middle, fine = reference.pixel_decoder(maps)
    assert_sums(coarse, 520.12780432, 520.12780432)
    assert_sums(middle, 2267.78107207, 2267.78107207)
    assert_sums(fine, 8488.78079050, 8488.78079050)
    proposals = reference.decode(maps, False).proposals
    assert proposals.logits.shape == (2, 4, 8, 10)
    assert_sums(proposals.logits, -163.35074939, 174.34340019)
    assert proposals.indices.tolist() == [[56, 21, 70, 79, 43, 36, 63, 1, 62],
                                          [57, 22, 9, 70, 0, 46, 11, 38, 66]]

    classes, masks = reference(maps)
    assert len(classes) == 1 and len(masks) == 3
    assert classes[0].shape == (2, 9, 4)
    assert_sums(classes[0], 16.55435273, 19.77983121)
    for mask, expected in zip(masks, ((-10666.59648504, 56417.59090266),
                                      (-25809.76860792, 44879.57004784),
                                      (-30268.99711999, 38273.27537776))):
        assert mask.shape == (2, 9, 16, 20)
        assert_sums(mask, *expected)
    assert classes[0][0, 0].tolist() == pytest.approx(
        [.37281099, .41564167, .22731347, -.08474964], abs=1e-8)
    assert classes[0][1, 8].tolist() == pytest.approx(
        [.37982212, .42222828, .23015050, -.08709438], abs=1e-8)
    assert masks[2][0, 0, 5, 7].item() == pytest.approx(7.041418055, abs=1e-8)
    assert masks[2][1, 3, 10, 12].item() == pytest.approx(
        -7.766645472, abs=1e-8)


@torch.no_grad()
def test_reference_second_pass(reference, official):
    maps = official.reference_maps()
    _, expected = reference(maps)
    reference.train()
    decoded = reference.decode(maps, True)
    for output, mask in zip(decoded.outputs, expected):
        assert torch.equal(output.mask_pred, mask)
    for output, blocked in zip(decoded.outputs, (27704, 34144)):
        mask = predicted_attn_mask(output.mask_pred, 2, 8)
        assert mask.shape == (16, 11, 320) and mask.sum() == blocked
    for output, total in zip(decoded.outputs, (4.86344471, 11.78629598)):
        assert_sums(output.cls_score, total)

    instances = true_instances()
    queries = [(m.gt_inds > 0).nonzero()[:, 0] for m in matched()]
    blocked = guided_attn_mask([
        gt.masks[m.gt_inds[q] - 1]
        for gt, m, q in zip(instances, matched(), queries)
    ], queries, 11, (16, 20), 8)
    rows = torch.zeros(2, 11).long()
    rows[0, 0], rows[0, 4], rows[1, 3], rows[1, 8] = 284, 278, 295, 260
    assert torch.equal(blocked.sum(-1), rows.repeat_interleave(8, 0))
    assert blocked.sum() == 8936

    guided = reference.decode_guided(decoded, instances, matched())
    for output, (classes, masks) in zip(guided,
                                        ((11.57291079, -19136.37690461),
                                         (18.37014300, -23749.91878673))):
        assert_sums(output.cls_score, classes)
        assert_sums(output.mask_pred, masks)


def test_reference_losses(reference, official, monkeypatch):
    reference.float()
    maps = [x.float() for x in official.reference_maps()]
    instances = true_instances()
    with torch.no_grad():
        decoded = reference.decode(maps, True)
    cells = [
        reference.match_cells(logits, gt).gt_inds
        for logits, gt in zip(decoded.proposals.logits, instances)
    ]
    assert [{
        i: int(found[i]) - 1
        for i in found.nonzero()[:, 0].tolist()
    } for found in cells] == [{
        21: 0,
        77: 1
    }, {
        21: 0,
        56: 1,
        79: 2
    }]
    # All predictions in the order of images.
    answers = iter(matched() * 3)
    monkeypatch.setattr(reference, '_match_queries',
                        lambda *args: next(answers))
    torch.manual_seed(0)
    with torch.no_grad():
        losses = reference.loss_by_feat(decoded, instances, [{}, {}])
    assert next(answers, None) is None
    assert losses['loss_proposal'].item() / 20 == pytest.approx(
        1.379368, abs=1e-5)
    # Classes exactly, points but for what a seed changes.
    for prefix, cls, mask, dice in (('', 1.356679, .968, .847),
                                    ('guided0.', 1.351973, .867, .839),
                                    ('guided1.', 1.367638, .656, .840),
                                    ('d0.', 1.303643, 1.686, .863),
                                    ('d1.', 1.309325, 1.283, .856)):
        assert losses[f'{prefix}loss_cls'].item() / 2 == pytest.approx(
            cls, abs=1e-5)
        assert losses[f'{prefix}loss_mask'].item() / 5 == pytest.approx(
            mask, rel=.04)
        assert losses[f'{prefix}loss_dice'].item() / 5 == pytest.approx(
            dice, abs=.009)
    assert len(losses) == 16


@torch.no_grad()
def test_reference_results(reference, official, sample_factory):
    sample = sample_factory((128, 160))
    classes, masks = reference.predict(official.reference_maps(), [sample] * 2)
    assert masks.shape == (2, 9, 128, 160)
    fusion = MODELS.build(
        dict(
            type='mmsemi.QueryFusionHead',
            num_things_classes=3,
            num_stuff_classes=0,
            test_cfg=dict(
                panoptic_on=False, instance_on=True, max_per_image=3)))
    found = fusion.predict(classes, masks, [sample] * 2)[0]['ins_results']
    assert found.labels.tolist() == [1, 1, 1]
    areas = found.masks.flatten(1).sum(1).tolist()
    assert sorted(areas) == [3207, 3244, 3246]
    scores = dict(zip(areas, found.scores.tolist()))
    for area, score in ((3246, .25457412), (3244, .25458781), (3207,
                                                               .24914055)):
        assert scores[area] == pytest.approx(score, abs=1e-7)
