# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmseg.structures import SegDataSample

from mmsemi.pseudo_labels import (PixelWeighting, PseudoLabelPipeline,
                                  RefineByProposals, pixel_weight)
from mmsemi.structures.dense_pseudo_label import DensePseudoLabel, DenseTargets
from mmsemi.structures.packed_masks import PackedMasks

DENSE_FIELDS = ('label', 'confidence', 'weight', 'valid')


def masks_of(*rectangles, size=(6, 6)):
    """Return masks of rows and columns, half open."""
    masks = torch.zeros((len(rectangles), *size), dtype=torch.bool)
    for mask, (y1, y2, x1, x2) in zip(masks, rectangles):
        mask[y1:y2, x1:x2] = True
    return masks


A, B, E = (1, 5, 1, 4), (0, 5, 0, 5), (0, 2, 1, 5)


def sample_of(masks, img_shape=None, kind=SegDataSample):
    shape = tuple(masks.shape[1:])
    sample = kind(
        metainfo=dict(
            img_shape=img_shape or shape, img_path='folder/image.jpg'))
    sample.set_data(dict(mask_proposals=PackedMasks.from_bool(masks)))
    return sample


def dense(label, confidence=.75, **fields):
    label = torch.as_tensor(label)
    if not isinstance(confidence, torch.Tensor):
        confidence = torch.full(label.shape, confidence)
    valid = fields.pop('valid', torch.ones_like(label, dtype=torch.bool))
    return DensePseudoLabel(
        label=label,
        confidence=confidence,
        weight=valid.float(),
        valid=valid,
        **fields)


def referred():
    """Return the object of rows and columns 1 to 4."""
    return masks_of((1, 5, 1, 5))[0].long()


# One object per image ----------------------------------------------------


def test_one_object_is_replaced_or_stays():
    labels = [dense(referred()), dense(referred())]
    samples = [sample_of(masks_of(B, A)), sample_of(masks_of(E))]
    stage = RefineByProposals()
    found = stage(labels, samples)
    assert found[0].label.equal(masks_of(B)[0].long())
    assert found[0].matched.shape == () and bool(found[0].matched)
    assert found[1].label.equal(referred()) and not bool(found[1].matched)
    assert labels[0].label.equal(referred()) and 'matched' not in labels[0]
    # 25 of 16 pixels; the other image counts as unchanged.
    assert {name: value.item()
            for name, value in stage.figures.items()} == dict(
                match_rate=.5, refined_area_ratio=(25 / 16 + 1) / 2)
    targets = DenseTargets.from_pseudo_labels(found)
    assert targets.matched.tolist() == [True, False]
    assert [bool(part.matched) for part in targets.unbind()] == [True, False]


def test_an_object_in_pieces_is_one_mask():
    label = torch.zeros((6, 6), dtype=torch.long)
    label[0, :2] = label[5, :5] = 1
    row = masks_of((5, 6, 0, 5))
    found, = RefineByProposals(coverage_thr=.7)([dense(label)],
                                                [sample_of(row)])
    # 5 of 7 pixels.
    assert bool(found.matched) and found.label.equal(row[0].long())
    found, = RefineByProposals(by_piece=True)([dense(label)], [sample_of(row)])
    assert not bool(found.matched) and found.label.equal(label)


def test_another_class_may_be_the_background():
    label = 1 - referred()
    found, = RefineByProposals(background=1)([dense(label)],
                                             [sample_of(masks_of(B))])
    assert bool(found.matched)
    assert found.label.equal(1 - masks_of(B)[0].long())


def test_nothing_seen_and_nothing_proposed_is_a_miss():
    stage = RefineByProposals('iom')
    empty = torch.zeros((6, 6), dtype=torch.long)
    found = stage([dense(empty), dense(referred())],
                  [sample_of(masks_of(A)), sample_of(masks_of())])
    assert [bool(label.matched) for label in found] == [False, False]
    assert not found[0].label.any() and found[1].label.equal(referred())
    assert stage.figures['match_rate'] == 0
    assert stage.figures['refined_area_ratio'] == 1


def test_padding_and_unknown_pixels_stay():
    valid = torch.ones((6, 6), dtype=torch.bool)
    valid[:, 4:] = False
    label = referred()
    label[:, 4:] = 1
    label[0, 0] = 255
    before = dense(label, valid=valid)
    whole = masks_of((0, 6, 0, 4), size=(6, 4))
    found, = RefineByProposals()([before], [sample_of(whole, (6, 4))])
    expected = torch.ones((6, 6), dtype=torch.long)
    expected[0, 0] = 255
    assert found.label.equal(expected)
    assert found.weight.equal(before.weight)
    assert found.valid.equal(valid)
    # As the methods hand them over, padded like the batch.
    padded = masks_of((0, 6, 0, 4))
    again, = RefineByProposals()([before], [sample_of(padded, (6, 4))])
    assert again.label.equal(expected)
    # The share is that of the image: 24 pixels of 24.
    guarded = RefineByProposals(max_image_share=.9)
    assert not bool(guarded([before], [sample_of(padded, (6, 4))])[0].matched)


def test_changed_pixels_are_as_sure_as_the_object():
    confidence = torch.full((6, 6), .9)
    confidence[1:5, 1:5] = .6
    confidence[1, 1] = .92
    prob = torch.rand(2, 6, 6)
    before = dense(referred(), confidence, prob=prob)
    found, = RefineByProposals('cpi')([before], [sample_of(masks_of(A))])
    changed = found.label != before.label
    assert changed.sum() == 4
    assert found.confidence[changed].tolist() == pytest.approx([.62] * 4)
    assert found.confidence[~changed].equal(confidence[~changed])
    assert found.prob is before.prob and found.weight.equal(before.weight)


def test_what_is_not_matched_is_weighted():
    prob = torch.full((2, 6, 6), .2)
    prob[1, 1:5, 1:5] = .8
    prob[0] = 1 - prob[1]
    pipeline = PseudoLabelPipeline([
        dict(type='mmsemi.RefineByProposals'),
        dict(type='mmsemi.PixelWeighting'),
        dict(type='mmsemi.KeepConfidentPixels', conf_thr=.5)
    ], DENSE_FIELDS + ('prob', ))
    labels = [dense(referred(), prob=prob) for _ in range(2)]
    found = pipeline(labels, [sample_of(masks_of(B)), sample_of(masks_of(E))])
    assert found[0].weight.tolist() == [[1.] * 6] * 6
    assert found[1].weight.equal(pixel_weight(prob[1]))
    assert [bool(label.matched) for label in found] == [True, False]
    assert set(pipeline.figures) == {'match_rate', 'refined_area_ratio'}


# Maps of several classes -------------------------------------------------


def test_pieces_of_classes_are_matched_one_by_one():
    label = torch.zeros((4, 12), dtype=torch.long)
    label[1:3, 1:3] = 1
    label[0:2, 6:8] = 1
    label[1:4, 9:12] = 2
    proposals = masks_of((0, 3, 1, 3), (1, 4, 9, 11), size=(4, 12))
    stage = RefineByProposals('iom', num_classes=4)
    found, = stage([dense(label)], [sample_of(proposals)])
    expected = label.clone()
    expected[0, 1:3] = 1
    expected[1:4, 11] = 0
    assert found.label.equal(expected)
    # One piece of class 1 was not matched, class 3 is not there.
    assert found.matched.tolist() == [False, False, True, False]
    assert stage.figures['match_rate'].item() == pytest.approx(2 / 3)
    targets = DenseTargets.from_pseudo_labels([found, found])
    assert targets.matched.shape == (2, 4)
    # Weights of pixels follow the flags of their classes.
    weighted, = PixelWeighting(source='confidence')([found], [None])
    assert (weighted.weight == 1).equal(expected == 2)


def test_overlaps_go_to_the_purest():
    label = torch.zeros((1, 10), dtype=torch.long)
    label[0, :4] = 1
    label[0, 4:9] = 2
    # Results of 1 and 2: 6 pixels, 4 of them own; 6 pixels, 5 own.
    proposals = masks_of((0, 1, 0, 6), (0, 1, 3, 9), size=(1, 10))
    found, = RefineByProposals(num_classes=3)([dense(label)],
                                              [sample_of(proposals)])
    assert found.label.tolist() == [[1, 1, 1, 2, 2, 2, 2, 2, 2, 0]]
    assert found.matched.tolist() == [False, True, True]
    # The teacher's probabilities may say otherwise.
    prob = torch.zeros(3, 1, 10)
    prob[1, 0, :6] = .5
    prob[2, 0, 3:9] = .4
    soft = RefineByProposals(num_classes=3, overlap='soft_purity')
    found, = soft([dense(label, prob=prob)], [sample_of(proposals)])
    assert found.label.tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2, 0]]
    assert PseudoLabelPipeline([soft], DENSE_FIELDS + ('prob', )).needs('prob')


def test_of_two_that_are_as_pure_the_first_takes_all():
    label = torch.tensor([[1, 1, 0, 2, 2]])
    proposals = masks_of((0, 1, 0, 3), (0, 1, 2, 5), size=(1, 5))
    found, = RefineByProposals(num_classes=3)([dense(label)],
                                              [sample_of(proposals)])
    assert found.label.tolist() == [[1, 1, 1, 2, 2]]


def test_a_match_takes_pixels_of_what_did_not_match():
    label = torch.tensor([[2, 1, 1, 1, 3, 3, 1, 1]])
    proposals = masks_of((0, 1, 0, 5), size=(1, 8))
    found, = RefineByProposals(
        'iom', num_classes=4)([dense(label)], [sample_of(proposals)])
    assert found.label.tolist() == [[1, 1, 1, 1, 1, 3, 1, 1]]
    assert found.matched.tolist() == [False, False, False, False]


def test_without_background_left_pixels_are_not_learned_from():
    label = torch.tensor([[0, 0, 0, 0, 1, 1]])
    proposals = masks_of((0, 1, 1, 4), size=(1, 6))
    stage = RefineByProposals('cpi', num_classes=2, background=None)
    before = dense(label)
    found, = stage([before], [sample_of(proposals)])
    assert found.label.tolist() == [[255, 0, 0, 0, 1, 1]]
    assert found.weight.tolist() == [[0, 1, 1, 1, 1, 1]]
    assert found.confidence[0, 0] == 0 and found.valid.all()
    assert found.matched.tolist() == [True, False]
    assert before.weight.all()


def test_small_pieces_stay():
    label = torch.tensor([[1, 0, 1, 1, 0, 2]])
    proposals = masks_of((0, 1, 0, 2), (0, 1, 2, 5), size=(1, 6))
    stage = RefineByProposals(num_classes=3, min_area=2)
    found, = stage([dense(label)], [sample_of(proposals)])
    assert found.label.tolist() == [[1, 0, 1, 1, 1, 2]]
    assert found.matched.tolist() == [False, True, False]
    assert stage.figures['match_rate'] == 1


def test_many_pieces_pass_in_parts():
    label = torch.zeros((7, 80), dtype=torch.long)
    label[::2, ::2] = 1
    label[::2, 40::2] = 2
    proposals = masks_of((0, 1, 0, 2), (6, 7, 78, 80), size=(7, 80))
    stage = RefineByProposals(num_classes=3)
    found, = stage([dense(label)], [sample_of(proposals)])
    expected = label.clone()
    expected[0, 1], expected[6, 79] = 1, 2
    assert found.label.equal(expected)
    assert stage.figures['match_rate'].item() == pytest.approx(2 / 160)


def test_a_map_of_background_has_no_figures():
    stage = RefineByProposals(num_classes=3)
    empty = torch.zeros((6, 6), dtype=torch.long)
    found, = stage([dense(empty)], [sample_of(masks_of(A))])
    assert found.label.equal(empty) and not found.matched.any()
    assert stage.figures == {}


def test_more_classes_than_said_are_refused():
    with pytest.raises(ValueError, match=r'classes \[2, 3\].*num_classes=2'):
        RefineByProposals()([dense(torch.tensor([[0, 2, 3, 255]]))],
                            [sample_of(masks_of(size=(1, 4)))])


# Instances ---------------------------------------------------------------


def answer_of_queries():
    """Return what a teacher with a query head says of an image of 6 x 8."""
    masks = masks_of((1, 5, 1, 5), (0, 2, 6, 8), (0, 0, 0, 0), size=(6, 8))
    return InstanceData(
        bboxes=torch.tensor([[1., 1, 5, 5], [6, 0, 8, 2], [0, 0, 0, 0]]),
        labels=torch.tensor([3, 0, 1]),
        scores=torch.tensor([.9, .8, .7]),
        mask_scores=torch.tensor([.6, .5, 0.]),
        soft_labels=torch.rand(3, 5),
        masks=masks)


def test_instances_are_refined_one_by_one():
    proposals = masks_of((0, 5, 0, 5), (4, 6, 6, 8), size=(6, 8))
    sample = sample_of(proposals, kind=DetDataSample)
    before = answer_of_queries()
    stage = RefineByProposals()
    found, = stage([before], [sample])
    assert found.matched.tolist() == [True, False, False]
    assert found.masks[0].equal(proposals[0])
    assert found.masks[1:].equal(before.masks[1:])
    assert found.bboxes.tolist() == [[0, 0, 5, 5], [6, 0, 8, 2], [0] * 4]
    assert found.bboxes.dtype == before.bboxes.dtype
    for field in ('labels', 'scores', 'mask_scores', 'soft_labels'):
        assert found.get(field) is before.get(field)
    assert before.masks.equal(answer_of_queries().masks)
    assert 'matched' not in before
    assert stage.figures['match_rate'].item() == pytest.approx(1 / 3)
    # The fields can be filtered together.
    assert len(found[found.matched]) == 1


def test_images_without_instances_pass():
    sample = sample_of(masks_of(A, size=(6, 8)), kind=DetDataSample)
    stage = RefineByProposals(max_image_share=.9, min_coverage=.5)
    found, = stage([answer_of_queries()[:0]], [sample])
    assert found.masks.shape == (0, 6, 8) and found.matched.shape == (0, )
    assert found.bboxes.shape == (0, 4) and stage.figures == {}


# What it needs -----------------------------------------------------------


def test_missing_proposals_are_explained():
    bare = SegDataSample(metainfo=dict(img_shape=(6, 6), img_path='a/b.jpg'))
    with pytest.raises(
            ValueError,
            match='b.jpg carries none.*mmsemi.LoadMaskProposals.*'
            'unsup_teacher'):
        RefineByProposals()([dense(referred())], [bare])


def test_proposals_of_another_size_are_refused():
    sample = sample_of(masks_of(A, size=(6, 7)), (6, 6))
    with pytest.raises(ValueError, match=r'\(6, 7\).*pseudo-labels \(6, 6\)'):
        RefineByProposals()([dense(referred())], [sample])


def test_a_pipeline_checks_for_either_kind():
    stage = dict(type='mmsemi.RefineByProposals')
    PseudoLabelPipeline([stage], DENSE_FIELDS)
    PseudoLabelPipeline([stage], ('bboxes', 'labels', 'scores', 'masks'))
    with pytest.raises(ValueError, match=r"needs \['masks'\]"):
        PseudoLabelPipeline([stage], ('bboxes', 'labels', 'scores'))
    with pytest.raises(ValueError, match=r"needs \['prob'\]"):
        PseudoLabelPipeline([dict(stage, overlap='soft_purity')],
                            ('bboxes', 'labels', 'scores', 'masks'))


@pytest.mark.parametrize('arguments, message', [
    (dict(strategy='sam'), "RefineByProposals.strategy='sam'"),
    (dict(purity_thr=2), 'RefineByProposals.purity_thr=2'),
    (dict(num_classes=1), 'num_classes=1'),
    (dict(background=2), 'background=2; allowed are None and.*0 to 1'),
    (dict(min_area=0), 'min_area=0'),
    (dict(overlap='none'), "overlap='none'"),
])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RefineByProposals(**arguments)
