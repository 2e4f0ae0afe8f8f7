# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData

from mmsemi.models import MultiBranchDataPreprocessor
from mmsemi.structures.tensor_masks import TensorMasks
from mmsemi.visualization import (default_palette, draw_instances,
                                  fitting_scale, pseudo_label_panel,
                                  view_to_image)
from mmsemi.visualization.drawing import GAP, TITLE_HEIGHT

RED, BLUE = (200, 0, 0), (0, 0, 200)


def grey(height=64, width=64, value=100):
    return np.full((height, width, 3), value, np.uint8)


def instances(masks=True, **fields):
    """One instance of class 1 in the rows 32-47, columns 8-39."""
    found = InstanceData(
        bboxes=torch.tensor([[8., 32., 40., 48.]]), labels=torch.tensor([1]))
    if masks:
        found.masks = torch.zeros((1, 64, 64), dtype=torch.bool)
        found.masks[0, 32:48, 8:40] = True
    for name, value in fields.items():
        found[name] = value
    return found


def test_mask_is_tinted_inside_and_outlined():
    drawn = draw_instances(grey(), instances(), palette=[BLUE, RED])
    # 0.6 * 100 + 0.4 * colour inside, the colour itself on the border.
    assert drawn[40, 20].tolist() == [140, 60, 60]
    assert drawn[47, 20].tolist() == list(RED)
    assert drawn[40, 8].tolist() == list(RED)
    assert drawn[40, 7].tolist() == [100] * 3
    assert drawn[60, 60].tolist() == [100] * 3


def test_scale_enlarges_before_drawing():
    drawn = draw_instances(grey(), instances(), palette=[BLUE, RED], scale=4)
    assert drawn.shape == (256, 256, 3) and drawn.dtype == np.uint8
    assert drawn[4 * 40, 4 * 20].tolist() == [140, 60, 60]
    assert drawn[4 * 48 - 1, 4 * 20].tolist() == list(RED)
    assert drawn[4 * 48, 4 * 20].tolist() == [100] * 3


def test_input_is_left_alone():
    image, found = grey(), instances()
    draw_instances(image, found)
    assert (image == 100).all()
    assert found.masks.sum() == 16 * 32


def test_boxes_where_there_are_no_masks():
    drawn = draw_instances(grey(), instances(masks=False), palette=[BLUE, RED])
    assert drawn[47, 20].tolist() == list(RED)
    assert drawn[40, 39].tolist() == list(RED)
    assert drawn[44, 20].tolist() == [100] * 3


@pytest.mark.parametrize('wrap', [
    TensorMasks,
    lambda masks: BitmapMasks(masks.numpy().astype(np.uint8), 64, 64),
    lambda masks: TensorMasks(masks).pad((96, 80)),
    lambda masks: PolygonMasks(
        [[np.array([8., 32., 40., 32., 40., 48., 8., 48.])]], 64, 64),
])
def test_all_kinds_of_masks(wrap):
    expected = draw_instances(grey(), instances())
    found = instances(masks=False)
    found.masks = wrap(instances().masks)
    drawn = draw_instances(grey(), found)
    if isinstance(found.masks, PolygonMasks):
        assert drawn[40, 20].tolist() == expected[40, 20].tolist()
    else:
        assert (drawn == expected).all()


def test_scores_below_the_threshold_are_left_out():
    found = instances(scores=torch.tensor([.4]))
    assert (draw_instances(grey(), found, score_thr=.5) == 100).all()
    assert not (draw_instances(grey(), found, score_thr=.4) == 100).all()


def test_no_instance_draws_nothing():
    found = instances(scores=torch.tensor([.4]))[torch.tensor([False])]
    drawn = draw_instances(grey(), found, classes=('a', 'b'), scale=2)
    assert drawn.shape == (128, 128, 3)
    assert (drawn == 100).all()


def test_name_is_written_above_the_box():
    plain = draw_instances(grey(), instances(masks=False), scale=4)
    ink = (plain == 255).all(-1)
    rows, columns = np.nonzero(ink)
    assert len(rows) > 5
    assert rows.max() < 4 * 32 and rows.min() > 4 * 32 - 24
    assert columns.min() >= 4 * 8 - 2
    named = draw_instances(
        grey(), instances(masks=False), classes=('one', 'seven'), scale=4)
    assert (named == 255).all(-1).sum() > ink.sum()


def test_boxes_that_a_head_left_empty_are_not_needed():
    found = instances()
    found.bboxes.zero_()
    assert (draw_instances(grey(),
                           found) == draw_instances(grey(),
                                                    instances())).all()
    found.masks[:] = False
    assert (draw_instances(grey(), found) == 100).all()


def test_name_stays_inside_the_image():
    found = InstanceData(
        bboxes=torch.tensor([[60., 0., 64., 3.]]), labels=torch.tensor([0]))
    drawn = draw_instances(grey(), found, classes=('w' * 8, ), scale=4)
    rows, columns = np.nonzero((drawn > 200).all(-1))
    assert columns.min() > 100 and columns.max() <= 255
    assert rows.max() < 40


def test_small_instances_are_drawn_on_large_ones():
    masks = torch.zeros((2, 64, 64), dtype=torch.bool)
    masks[0, 20:30, 20:30] = True
    masks[1] = True
    found = InstanceData(
        bboxes=torch.tensor([[20., 20., 30., 30.], [0., 0., 64., 64.]]),
        labels=torch.tensor([0, 1]),
        masks=masks)
    drawn = draw_instances(grey(), found, palette=[BLUE, RED])
    assert drawn[29, 25].tolist() == list(BLUE)


def test_classes_beyond_names_and_palette_are_drawn():
    found = instances()
    found.labels[0] = 7
    drawn = draw_instances(grey(), found, classes=('a', ), palette=[BLUE, RED])
    assert drawn[40, 20].tolist() == [140, 60, 60]
    draw_instances(grey(), found, classes=('a', ))


@pytest.mark.parametrize('image', [
    np.zeros((4, 4), np.uint8),
    np.zeros((3, 4, 4), np.uint8),
    np.zeros((4, 4, 3), np.float32)
])
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match=r'\(H, W, 3\), uint8'):
        draw_instances(image, instances())
    with pytest.raises(ValueError, match=r'\(H, W, 3\), uint8'):
        pseudo_label_panel([('title', image)])


def test_panel_puts_columns_side_by_side():
    panel = pseudo_label_panel([('a', grey(64, 80, 10)),
                                ('b', grey(30, 40, 20))])
    assert panel.shape == (64 + TITLE_HEIGHT + GAP, 80 + 40 + 3 * GAP, 3)
    below = panel[TITLE_HEIGHT:]
    assert (below[:64, GAP:GAP + 80] == 10).all()
    assert (below[:30, 2 * GAP + 80:-GAP] == 20).all()
    assert (below[30:, 2 * GAP + 80:] == 255).all()
    assert (panel[:TITLE_HEIGHT, GAP:GAP + 80] < 100).any()


def test_long_title_stays_over_its_column():
    panel = pseudo_label_panel([("teacher's pseudo-labels", grey(80, 90)),
                                ('', grey(80, 90))])
    titles = (panel[:TITLE_HEIGHT] < 128).any(-1)
    assert titles[:, GAP:GAP + 90].any()
    assert not titles[:, GAP + 90:].any()


def test_empty_panel_is_refused():
    with pytest.raises(ValueError, match='at least one column'):
        pseudo_label_panel([])


@pytest.mark.parametrize('shape, scale', [((64, 64), 6.), ((100, 200), 1.),
                                          ((500, 600), 1.), ((800, 1280), .5)])
def test_fitting_scale(shape, scale):
    assert fitting_scale(*shape) == scale


def test_palette_has_different_colors():
    palette = default_palette(20)
    assert len(set(palette)) == 20
    assert all(0 <= c <= 255 for color in palette for c in color)


@pytest.mark.parametrize('wrap', [lambda p: p, MultiBranchDataPreprocessor])
@pytest.mark.parametrize('normalise', [
    dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict()
])
@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_view_becomes_the_image_again(wrap, normalise, bgr_to_rgb):
    rng = np.random.RandomState(0)
    rgb = rng.randint(0, 256, (6, 9, 3), dtype=np.uint8)
    loaded = torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)
    preprocessor = DetDataPreprocessor(bgr_to_rgb=bgr_to_rgb, **normalise)
    view = preprocessor(dict(inputs=[loaded]))['inputs'][0]
    assert (view_to_image(view, wrap(preprocessor)) == rgb).all()


def test_grey_view_becomes_an_image():
    image = view_to_image(torch.full((1, 4, 5), 300.), DetDataPreprocessor())
    assert image.shape == (4, 5, 3) and (image == 255).all()
