# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.

import numpy as np
import pytest
import torch

from mmsemi.methods.self_training import (checkpoint_steps, label_by_argmax,
                                          rank_by_reliability, reliability,
                                          segmentor_logits, select_reliable,
                                          tta_probabilities)
from mmsemi.structures.confusion_matrix import ConfusionMatrix

P1 = np.array([[0, 0, 1], [1, 1, 2]])
P2 = np.array([[0, 0, 1], [1, 2, 2]])
P3 = np.array([[0, 1, 1], [1, 2, 2]])


def iou(prediction, target, num_classes=3):
    return ConfusionMatrix(num_classes).update(prediction, target).mean_iou()


def test_reliability_reference_values():
    assert iou(P1, P3) == pytest.approx(.5)
    assert iou(P2, P3) == pytest.approx(.72222222)
    assert reliability([P1, P2, P3], 3) == pytest.approx(.61111111)
    # A class that nobody predicts changes nothing.
    assert reliability([P1, P2, P3], 7) == pytest.approx(.61111111)


def test_reliability_of_stable_and_of_disjoint_labels():
    assert reliability([P3, P3, P3], 3) == 1
    assert reliability([np.zeros((2, 2), int), np.ones((2, 2), int)], 2) == 0
    with pytest.raises(ValueError, match='at least 2'):
        reliability([P1], 3)


def test_rank_is_descending_and_keeps_the_order_of_equals():
    assert rank_by_reliability([.2, .9, .5, .9]) == [1, 3, 2, 0]
    with pytest.raises(ValueError, match='image 1 is nan'):
        rank_by_reliability([.2, float('nan')])


def test_select_reliable_rounds_down():
    scores = [.1, .9, .5, .7, .3]
    assert select_reliable(scores) == ([1, 3], [0, 2, 4])
    assert select_reliable(scores, .7) == ([1, 2, 3], [0, 4])


@pytest.mark.parametrize('scores, fraction, message', [
    ([.5], .5, 'of 1 unlabelled images are 0'),
    ([.5, .5], 1., 'reliable_fraction=1.0'),
    ([.5, .5], 0, 'reliable_fraction=0'),
    ([.5, .5], True, 'reliable_fraction=True'),
])
def test_select_reliable_refuses(scores, fraction, message):
    with pytest.raises(ValueError, match=message):
        select_reliable(scores, fraction)


def test_checkpoint_steps_are_rounded_down():
    assert checkpoint_steps(80) == (26, 53, 80)
    assert checkpoint_steps(3) == (1, 2, 3)
    with pytest.raises(ValueError, match='at least 3'):
        checkpoint_steps(2)


def logits_by_place(images):
    """Second class on the bright right half, whatever was flipped."""
    width = images.shape[3]
    place = torch.linspace(-1, 1, width).expand_as(images[:, 0])
    return torch.stack([images[:, 0], place], 1)


def test_tta_of_one_size_is_softmax():
    images = torch.randn(2, 3, 4, 6)
    found = tta_probabilities(logits_by_place, images)
    assert torch.equal(found, logits_by_place(images).softmax(1))


def test_tta_averages_mirrored_images():
    images = torch.randn(2, 3, 4, 6)
    mirrored = logits_by_place(images.flip(3)).softmax(1).flip(3)
    expected = (logits_by_place(images).softmax(1) + mirrored) / 2
    assert torch.allclose(
        tta_probabilities(logits_by_place, images, flip=True), expected)


def test_tta_sizes_are_rounded_down_and_probabilities_resized():
    seen = []

    def logits_of(images):
        seen.append(tuple(images.shape[2:]))
        return torch.stack([images[:, 0], -images[:, 0]], 1)

    images = torch.full((1, 3, 5, 7), 2.)
    found = tta_probabilities(logits_of, images, (.5, 1., 1.5), True)
    assert seen == [(2, 3)] * 2 + [(5, 7)] * 2 + [(7, 10)] * 2
    assert found.shape == (1, 2, 5, 7)
    assert torch.allclose(found[:, 0], torch.tensor(4.).sigmoid())
    assert torch.allclose(found.sum(1), torch.ones(1, 5, 7))


def test_label_by_argmax_and_threshold():
    probabilities = torch.tensor([[[.9, .4]], [[.1, .6]]])
    assert label_by_argmax(probabilities).tolist() == [[0, 1]]
    assert label_by_argmax(probabilities, .6).tolist() == [[0, 1]]
    assert label_by_argmax(probabilities, .7).tolist() == [[0, 255]]


class Network:
    """Takes what mmseg's ``inference`` takes, writes into the metas."""

    def inference(self, inputs, metas):
        assert len({id(meta) for meta in metas}) == len(inputs)
        for meta in metas:
            assert meta['img_shape'] == meta['pad_shape'] == (4, 6)
        return 2 * inputs


def test_segmentor_logits_gives_each_image_its_meta():
    images = torch.randn(2, 3, 4, 6)
    assert torch.equal(segmentor_logits(Network(), images), 2 * images)
