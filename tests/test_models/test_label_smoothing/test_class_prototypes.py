# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch

from mmsemi.models.label_smoothing import (ClassPrototypes, choose_instances,
                                           instance_embeddings)


def full_masks(number, size=4):
    return torch.ones(number, size, size, dtype=torch.bool)


def features(*vectors, size=2):
    """Feature maps that are the same everywhere."""
    return [
        torch.tensor(vector)[:, None, None].expand(-1, size, size)
        for vector in vectors
    ]


def test_prototype_of_normalised_embeddings():
    prototypes = ClassPrototypes(2, 2)
    for feature_map in features([3., 0.], [0., 4.]):
        prototypes.update(feature_map, full_masks(1), torch.tensor([0]))
    prototypes.update(
        features([5., 5.])[0], full_masks(1), torch.tensor([1]))
    found = prototypes.prototypes()
    assert found[0].tolist() == pytest.approx([.707107, .707107], abs=1e-6)
    assert prototypes.similarity()[0, 1].item() == pytest.approx(1)
    assert prototypes.count.tolist() == [2, 1]


def test_reference_similarity():
    prototypes = ClassPrototypes(3, 2)
    for label, feature_map in enumerate(
            features([1., 0.], [8., 6.], [0., .2])):
        prototypes.update(feature_map, full_masks(1), torch.tensor([label]))
    expected = torch.tensor([[1, .8, 0], [.8, 1, .6], [0, .6, 1]])
    torch.testing.assert_close(
        prototypes.similarity().float(), expected, atol=1e-6, rtol=0)


def test_masks_count_by_area():
    """A cell counts by the share of it that the mask covers."""
    feature_map = torch.tensor([[[1., 0.], [0., 0.]], [[0., 1.], [0., 0.]]])
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0:2, 0:2] = True
    mask[0, 0, 2] = True
    found = instance_embeddings(feature_map, mask)
    # 4 pixels of the first cell and one of the second.
    assert found[0].tolist() == pytest.approx([4 / 17**.5, 1 / 17**.5])
    # One pixel is enough.
    mask[:] = False
    mask[0, 1, 3] = True
    assert instance_embeddings(feature_map, mask)[0].tolist() == [0., 1.]


def test_centre_of_the_box_where_the_mask_is_empty():
    feature_map = torch.zeros(2, 2, 3)
    feature_map[0] = 1
    feature_map[:, 1, 2] = torch.tensor([0., 1.])
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[1, 0, 0] = True
    boxes = torch.tensor([[4., 2., 5., 3.], [4., 2., 5., 3.],
                          [90., 90., 99., 99.]])
    found = instance_embeddings(feature_map, masks, boxes)
    # A mask goes before its box, and a box beyond the image is its edge.
    assert found.tolist() == [[0., 1.], [1., 0.], [0., 1.]]
    assert not instance_embeddings(feature_map, masks)[[0, 2]].any()


def test_instances_without_any_feature_do_not_count():
    prototypes = ClassPrototypes(2, 2)
    prototypes.update(
        features([1., 0.])[0], torch.zeros(1, 4, 4), torch.tensor([0]))
    prototypes.update(
        features([0., 0.])[0], full_masks(1), torch.tensor([1]))
    assert prototypes.count.tolist() == [0, 0]
    assert not prototypes.similarity().any()
    # Nor is there anything to do without instances.
    prototypes.update(
        features([1., 1.])[0], full_masks(0), torch.zeros(0).long())
    assert instance_embeddings(features([1., 1.])[0],
                               full_masks(0)).shape == (0, 2)


def random_images(number):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn((5, 3, 4), generator=generator),
             torch.rand((6, 12, 16), generator=generator) > .5,
             torch.randint(3, (6, ), generator=generator))
            for _ in range(number)]


def test_parts_add_up():
    """Any order, in parts, on two processes: the same prototypes."""
    images = random_images(5)
    whole, first, second = (ClassPrototypes(4, 5) for _ in range(3))
    for image in images:
        whole.update(*image)
    for image in reversed(images[1::2]):
        first.update(*image)
    for image in images[::2]:
        second.update(*image)
    assert torch.equal(whole.count, first.count + second.count)
    torch.testing.assert_close(
        whole.sum, first.sum + second.sum, atol=1e-14, rtol=0)
    # One image at once equals its instances one by one.
    one, each = ClassPrototypes(4, 5), ClassPrototypes(4, 5)
    feature_map, masks, labels = images[0]
    one.update(feature_map, masks, labels)
    for mask, label in zip(masks, labels):
        each.update(feature_map, mask[None], label[None])
    torch.testing.assert_close(one.sum, each.sum, atol=1e-6, rtol=0)


def test_class_without_instances_is_like_none():
    prototypes = ClassPrototypes(4, 5)
    for image in random_images(3):
        prototypes.update(*image)
    similarity = prototypes.similarity()
    assert similarity.dtype == torch.float64
    assert not similarity[3].any() and not similarity[:, 3].any()
    assert similarity.diagonal()[:3].tolist() == pytest.approx([1.] * 3)
    torch.testing.assert_close(
        similarity, similarity.t(), atol=1e-14, rtol=0)
    # On one process there is nothing to add.
    before = prototypes.sum.clone()
    prototypes.reduce()
    assert torch.equal(prototypes.sum, before)


def test_state_survives_a_checkpoint():
    prototypes, other = ClassPrototypes(4, 5), ClassPrototypes(4, 5)
    prototypes.update(*random_images(1)[0])
    other.load_state_dict(prototypes.state_dict())
    assert torch.equal(prototypes.similarity(), other.similarity())


def test_half_precision_features():
    feature_map, masks, labels = random_images(1)[0]
    full, half = ClassPrototypes(4, 5), ClassPrototypes(4, 5)
    full.update(feature_map, masks, labels)
    half.update(feature_map.bfloat16(), masks, labels)
    torch.testing.assert_close(
        full.similarity(), half.similarity(), atol=2e-2, rtol=0)


@pytest.mark.parametrize('label', [-1, 2])
def test_unknown_class(label):
    prototypes = ClassPrototypes(2, 2)
    with pytest.raises(ValueError, match=f'label {label}'):
        prototypes.update(
            features([1., 0.])[0], full_masks(1), torch.tensor([label]))


@pytest.mark.parametrize('settings', [dict(num_classes=0), dict(channels=0)])
def test_wrong_settings(settings):
    with pytest.raises(ValueError, match=list(settings)[0]):
        ClassPrototypes(**{**dict(num_classes=2, channels=2), **settings})


# Which instances -----------------------------------------------------------

LABELS = [[0, 0, 1], [], [0, 0, 0], [2], [0, 1]]


def test_all_instances():
    assert choose_instances(LABELS) == [(0, {0: 2, 1: 1}), (2, {0: 3}),
                                        (3, {2: 1}), (4, {0: 1, 1: 1})]
    assert choose_instances([]) == []


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('limit', [1, 2, 4])
def test_enough_of_every_class(limit, seed):
    chosen = choose_instances(LABELS, limit, seed)
    assert chosen == choose_instances(LABELS, limit, seed)
    taken = {0: 0, 1: 0, 2: 0}
    for index, quota in chosen:
        assert quota
        for label, number in quota.items():
            assert 0 < number <= LABELS[index].count(label)
            taken[label] += number
    assert taken == {0: min(limit, 6), 1: min(limit, 2), 2: 1}
    assert [index for index, _ in chosen] == sorted(i for i, _ in chosen)


def test_the_seed_chooses_the_images():
    labels = [[0]] * 50
    chosen = {
        tuple(i for i, _ in choose_instances(labels, 3, seed))
        for seed in range(4)
    }
    assert len(chosen) > 1
