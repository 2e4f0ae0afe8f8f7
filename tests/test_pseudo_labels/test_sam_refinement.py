# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from mmsemi.models.mask_generators import SAMPredictor, build_tiny_sam
from mmsemi.pseudo_labels import PseudoLabelPipeline, SAMRefine, stage_samples
from mmsemi.pseudo_labels.mask_prompts import GAP, mask_prompts
from mmsemi.structures.dense_pseudo_label import DensePseudoLabel
from mmsemi.structures.packed_masks import PackedMasks

H, W = 20, 24


class FakeSAM(SAMPredictor):
    """Answers each box with itself, its left half and its right half."""

    scores = (.5, .9, .1)

    def __init__(self):
        super().__init__('tiny-random')
        self.calls = []

    def predict(self, embedding, points=None, point_labels=None, boxes=None,
                masks=None, multimask=True):
        self.calls.append(dict(
            points=points, labels=point_labels, boxes=boxes, masks=masks))
        self.boxes = boxes
        number = len(boxes if boxes is not None else points)
        return (torch.zeros(number, 3, 32, 32),
                torch.tensor([self.scores] * number))

    def to_image(self, logits, embedding):
        best = int(np.argmax(self.scores))
        answers = -torch.ones(len(self.boxes), *embedding.shape)
        for answer, box in zip(answers, self.boxes.int().tolist()):
            x1, y1, x2, y2 = box
            middle = (x1 + x2) // 2
            left, right = ((x1, x2), (x1, middle), (middle, x2))[best]
            answer[y1:y2, left:right] = 1
        return answers


def make(**options):
    stage = SAMRefine(build_tiny_sam(), **dict(dict(iterations=1), **options))
    stage._loaded.append(FakeSAM())
    return stage


def make_sample(shape=(H, W), batch=(H, W)):
    sample = BaseDataElement(metainfo=dict(img_shape=shape))
    return stage_samples([sample], images=torch.rand(1, 3, *batch) * 255)[0]


def dense(label):
    ones = torch.ones(label.shape)
    return DensePseudoLabel(
        label=label, confidence=ones, weight=ones, valid=ones.bool())


def rectangles(*boxes, shape=(H, W)):
    masks = torch.zeros(len(boxes), *shape, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    return masks


def test_prompts_of_a_mask():
    masks = rectangles((2, 3, 9, 8), (0, 0, W, H), (5, 5, 6, 6))
    masks[0, 3:6, 6:9] = False
    prompts = mask_prompts(masks)
    assert prompts.boxes.tolist() == [[2, 3, 9, 8], [0, 0, W, H],
                                      [5, 5, 6, 6]]
    inside, outside = prompts.points[0].int().tolist()
    assert masks[0][inside[1], inside[0]]
    assert inside == [3, 4] and outside == [8, 3]
    assert prompts.point_labels.tolist() == [[1, 0], [1, GAP], [1, GAP]]
    assert (prompts.logits[0][~masks[0]] == -30).all()
    assert prompts.logits[0][4, 3] == 30
    assert 0 < prompts.logits[0][7, 2] < 30
    assert prompts.logits[2][5, 5] == 30
    # Beyond the image counts as outside, so the middle is deepest.
    assert prompts.points[1, 0].tolist() == [9, 9]
    weak = mask_prompts(masks, strength=2., gamma=1e-9)
    torch.testing.assert_close(
        weak.logits, torch.where(masks, 2., -2.), atol=1e-6, rtol=0)


def test_distance_of_the_rim_follows_the_formula():
    mask = rectangles((4, 4, 9, 9))
    logits = mask_prompts(mask, 10., 4.).logits[0]
    # 3 pixels to the outside in the middle, 1 at the rim, area 25.
    torch.testing.assert_close(
        logits[4, 6], torch.tensor(10 * np.exp(-4 / (25 / 4))).float())


def test_label_map_takes_the_best_answer():
    label = torch.zeros(H + 4, W + 8, dtype=torch.long)
    label[2:8, 4:12] = 1
    label[10:16, 2:6] = 1
    label[H:] = 1
    before = dense(label.clone())
    refined, = make()([before], [make_sample((H, W), (H + 4, W + 8))])
    expected = torch.zeros_like(label)
    expected[2:8, 4:8] = 1
    expected[10:16, 2:4] = 1
    # Padding is not touched.
    expected[H:] = 1
    assert torch.equal(refined.label, expected)
    assert bool(refined.matched) and refined.matched.shape == ()
    assert torch.equal(before.label, label) and 'matched' not in before
    assert torch.equal(refined.weight, before.weight)


def test_without_background_nothing_is_emptied():
    label = torch.ones(H, W, dtype=torch.long)
    label[2:8, 4:10] = 3
    label[2:8, 14:22] = 3
    stage = make(background=None, prompts=['box'])
    refined, = stage([dense(label)], [make_sample()])
    # The left halves are claimed, of equal claims the last; what nobody
    # claims stays.
    expected = torch.ones(H, W, dtype=torch.long)
    expected[2:8, 4:7] = 3
    expected[2:8, 14:22] = 3
    assert torch.equal(refined.label, expected)
    call, = stage.sam().calls
    assert call['points'] is None and call['masks'] is None


def test_unknown_pixels_stay_and_confidence_follows():
    label = torch.zeros(H, W, dtype=torch.long)
    label[2:8, 4:12] = 1
    label[2, 4] = 255
    before = dense(label)
    before.confidence = torch.rand(H, W)
    refined, = make()([before], [make_sample()])
    assert refined.label[2, 4] == 255
    changed = refined.label != label
    # The right half became background.
    assert changed.sum() == 24 and changed[2:8, 8:12].all()
    mean = before.confidence[label == 1].mean()
    assert (refined.confidence[changed] == mean).all()
    assert torch.equal(refined.confidence[~changed],
                       before.confidence[~changed])


def test_empty_label_map_is_not_matched():
    stage = make()
    refined, = stage([dense(torch.zeros(H, W, dtype=torch.long))],
                     [make_sample()])
    assert not refined.matched and not refined.label.any()
    assert stage.sam().calls == []


def test_instances_and_their_boxes():
    masks = rectangles((2, 2, 10, 8), (0, 0, 4, 4), (3, 3, 3, 3))
    label = InstanceData(
        masks=masks,
        bboxes=torch.rand(3, 4),
        labels=torch.tensor([1, 0, 1]),
        scores=torch.rand(3))
    refined, = make()([label], [make_sample()])
    assert torch.equal(refined.masks, rectangles(
        (2, 2, 6, 8), (0, 0, 2, 4), (3, 3, 3, 3)))
    assert refined.matched.tolist() == [True, True, False]
    assert refined.bboxes[:2].tolist() == [[2, 2, 6, 8], [0, 0, 2, 4]]
    assert torch.equal(refined.bboxes[2], label.bboxes[2])
    assert torch.equal(label.masks, masks)
    nobody, = make()([label[:0]], [make_sample()])
    assert len(nobody) == 0 and nobody.matched.shape == (0, )
    with pytest.raises(ValueError, match='have none'):
        make()([InstanceData(bboxes=torch.rand(1, 4))], [make_sample()])


def test_iterations_prompt_with_the_last_answer():
    stage = make(iterations=3, prompts_per_batch=1)
    masks, changed = stage.refine(
        torch.zeros(3, H, W), rectangles((0, 0, 16, 8), (0, 0, 2, 2)),
        torch.tensor([True, True]))
    # Halved three times; nothing is left of the second after two.
    assert torch.equal(masks, rectangles((0, 0, 2, 8), (0, 0, 2, 2)))
    assert changed.tolist() == [True, False]
    assert [len(call['boxes']) for call in stage.sam().calls] == [1] * 5
    assert stage.sam().calls[1]['boxes'].tolist() == [[0, 0, 8, 8]]
    assert stage.sam().calls[0]['masks'].shape == (1, 32, 32)


@pytest.mark.parametrize('options, changes', [
    (dict(min_iou=.5), True),
    (dict(min_iou=.6), False),
    (dict(min_predicted_iou=.9), True),
    (dict(min_predicted_iou=.95), False),
    (dict(min_area=48), True),
    (dict(min_area=49), False),
])
def test_guards(options, changes):
    mask = rectangles((2, 2, 10, 8))
    label = dense(mask[0].long())
    refined, = make(**options)([label], [make_sample()])
    assert bool(refined.matched) == changes
    assert bool((refined.label.bool() != mask[0]).any()) == changes


def test_only_what_no_proposal_matched():
    masks = rectangles((2, 2, 10, 8), (12, 12, 20, 16))
    label = InstanceData(
        masks=masks,
        bboxes=torch.zeros(2, 4),
        matched=torch.tensor([True, False]))
    refined, = make(only_unmatched=True)([label], [make_sample()])
    assert torch.equal(refined.masks, rectangles(
        (2, 2, 10, 8), (12, 12, 16, 16)))
    assert refined.matched.tolist() == [True, True]
    image = masks[0].long() + 2 * masks[1].long()
    label = dense(image)
    label.matched = torch.tensor([False, True, False])
    refined, = make(only_unmatched=True)([label], [make_sample()])
    assert refined.matched.tolist() == [False, True, True]
    assert refined.label.flatten().bincount().tolist()[1:] == [48, 16]
    label.matched = torch.tensor(True)
    refined, = make(only_unmatched=True)([label], [make_sample()])
    assert torch.equal(refined.label, image) and bool(refined.matched)


def test_the_better_claim_wins():
    answers = rectangles((0, 0, 10, 10), (5, 5, 15, 15)), torch.tensor(
        [.9, .2]), torch.ones(2, dtype=torch.bool)
    label = torch.zeros(H, W, dtype=torch.long)
    label[0:3, 0:3], label[10:13, 10:13] = 1, 2
    for at_a_time in (1, 2):
        stage = make(prompts_per_batch=at_a_time)
        rest = list(zip(*(part.split(at_a_time) for part in answers)))
        seen = []

        def redraw(embedding, masks):
            seen.append(len(masks))
            return rest.pop(0)

        stage._redraw = redraw
        refined, = stage([dense(label)], [make_sample()])
        assert seen == [at_a_time] * (2 // at_a_time)
        assert (refined.label == 1).sum() == 100
        assert (refined.label == 2).sum() == 75


def test_sam_belongs_to_no_checkpoint_and_loads_when_training_begins():
    stage = SAMRefine('tiny-random')
    assert stage._loaded == []
    stage.eval()
    assert stage._loaded == []
    stage.train()
    assert not stage.sam().training
    assert list(stage.parameters()) == [] and stage.state_dict() == {}
    assert copy.deepcopy(stage)._loaded[0] is not stage._loaded[0]
    assert stage.sam(torch.device('cpu')) is stage._loaded[0]
    moved = []
    stage._loaded[0].to = moved.append
    stage.sam(torch.device('meta'))
    assert moved == [torch.device('meta')]
    with pytest.raises(OSError, match='neither a folder'):
        SAMRefine('./no/such/folder').train()


@pytest.mark.parametrize('family', ['sam', 'sam2', 'sam_hq'])
def test_with_a_real_model(family):
    stage = SAMRefine('tiny-random', family, iterations=2)
    pipeline = PseudoLabelPipeline([stage], ('label', 'confidence'))
    with pytest.raises(ValueError, match='needs'):
        PseudoLabelPipeline([stage], ('bboxes', 'scores'))
    assert pipeline.needs_image
    label = rectangles((2, 2, 10, 8))[0].long()
    sample = make_sample()
    state = torch.get_rng_state()
    refined, = pipeline([dense(label)], [sample])
    assert torch.equal(state, torch.get_rng_state())
    assert refined.label.shape == (H, W) and refined.matched.dtype == \
        torch.bool
    again, = pipeline([dense(label)], [sample])
    assert torch.equal(again.label, refined.label)


def test_stages_get_proposals_and_the_image():
    sample = BaseDataElement(metainfo=dict(img_shape=(4, 5)))
    sample.set_data(
        dict(
            gt_sem_seg=torch.ones(1),
            mask_proposals=PackedMasks.from_bool(
                torch.ones(3, 4, 5, dtype=torch.bool))))
    plain, = stage_samples([sample])
    assert plain.mask_proposals.shape == (3, 4, 5)
    assert 'gt_sem_seg' not in plain and 'image' not in plain
    padded, = stage_samples([sample], (6, 8), torch.zeros(1, 3, 6, 8))
    assert padded.mask_proposals.shape == (3, 6, 8)
    assert padded.mask_proposals.area().tolist() == [20] * 3
    assert padded.image.shape == (3, 6, 8)
    assert padded.img_shape == (4, 5)
    with pytest.raises(RuntimeError, match="has no 'image'"):
        make()([dense(torch.zeros(4, 5).long())], [plain])


@pytest.mark.parametrize('options', [
    dict(prompts=['mask']), dict(prompts='box'), dict(prompts=['circle']),
    dict(iterations=0), dict(min_area=.5), dict(prompts_per_batch=0),
    dict(strength=0), dict(gamma=-1), dict(min_iou=2),
    dict(min_predicted_iou=-1)
])
def test_wrong_options(options):
    with pytest.raises(ValueError, match=f'SAMRefine.*{next(iter(options))}'):
        SAMRefine('tiny-random', **options)
