# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from transformers.models.sam.image_processing_pil_sam import \
    SamImageProcessorPil

from mmsemi.datasets.digit_scenes import DigitSceneComposer
from mmsemi.models.mask_generators import (FelzenszwalbGenerator, SAMGenerator,
                                           SAMPredictor, build_tiny_sam,
                                           sam_predictor)
from mmsemi.models.mask_generators.sam_generator import crop_boxes, point_grid

FAMILIES = ('sam', 'sam2', 'sam_hq')
OPEN = dict(pred_iou_thr=-9., stability_thr=0., stability_offset=1e-6)


def processor():
    """transformers' own processing, for frames of 64 pixels."""
    return SamImageProcessorPil(
        size=dict(longest_edge=64),
        pad_size=dict(height=64, width=64),
        mask_size=dict(longest_edge=32),
        mask_pad_size=dict(height=32, width=32))


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)


def iou(mask, others):
    inter = (mask & others).sum((1, 2))
    return inter / (mask | others).sum((1, 2))


def test_digits_have_a_good_proposal_each():
    composer = DigitSceneComposer('val', 64)
    rng = np.random.default_rng(3)
    generator, best = FelzenszwalbGenerator(), []
    for _ in range(6):
        scene = composer.compose(rng)
        found = generator.generate(scene.image)
        assert found.masks.dtype == bool and len(found.masks) < 120
        assert np.isnan(found.predicted_iou).all()
        assert (np.diff(found.stability) <= 0).all()
        assert found.stability.max() <= 1 and found.masks.any((1, 2)).all()
        best += [iou(mask, found.masks).max() for mask in scene.masks]
        for i, mask in enumerate(found.masks):
            # Regions of one scale are disjoint; near copies are merged.
            assert (iou(mask, found.masks[i + 1:]) < .9).all()
    assert np.mean(best) > .8 and np.mean(np.array(best) > .5) > .9


def test_regions_of_all_scales_are_merged():
    image = np.zeros((20, 30, 3), np.uint8)
    image[4:12, 5:15] = 200, 40, 10
    found = FelzenszwalbGenerator(
        sigma=0, min_size=5, max_share=.5).generate(image)
    assert found.masks.shape == (1, 20, 30) and found.stability == [1]
    assert found.masks[0, 4:12, 5:15].all() and found.masks.sum() == 80
    both = FelzenszwalbGenerator(
        scales=[100], sigma=0, min_size=5, max_share=1.).generate(image)
    assert both.masks.sum((1, 2)).tolist() == [520, 80]


def test_settings_name_all_that_decides():
    settings = FelzenszwalbGenerator(scales=[1, 2], min_size=7).settings
    assert settings == dict(
        backend='felzenszwalb', scales=[1., 2.], sigma=.5, min_size=7,
        max_share=.9, merge_iou=.9)
    a = SAMGenerator('tiny-random', points_per_batch=3)
    b = SAMGenerator(build_tiny_sam(), points_per_batch=9)
    assert a.settings.pop('model') == 'tiny-random'
    assert a.settings['weights'] == b.settings['weights']
    with torch.no_grad():
        b.predictor.model.mask_decoder.iou_token.weight[0, 0] += 1
    assert a.settings['weights'] != b.settings['weights']
    assert 'points_per_batch' not in a.settings
    assert a.settings['backend'] == 'sam'


@pytest.mark.parametrize('options', [
    dict(scales=[]), dict(scales=[-1.]), dict(sigma=-1), dict(min_size=0),
    dict(max_share=0), dict(merge_iou=2)
])
def test_wrong_options_of_felzenszwalb(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FelzenszwalbGenerator(**options)


@pytest.mark.parametrize('options', [
    dict(points_per_side=0), dict(points_per_batch=1.5),
    dict(crop_layers=-1), dict(nms_thr=2), dict(crop_points_factor=.5),
    dict(family='sam9'), dict(dtype='int8')
])
def test_wrong_options_of_sam(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SAMGenerator('tiny-random', **options)


def test_wrong_images(image):
    generator = FelzenszwalbGenerator()
    for wrong in (image[..., 0], image / 255, image[:0], image.tolist()):
        with pytest.raises(ValueError, match=r'\(H, W, 3\), uint8'):
            generator.generate(wrong)


@pytest.mark.parametrize('family', FAMILIES)
def test_sam_segments_everything(family, image):
    generator = SAMGenerator(
        'tiny-random', family, points_per_side=3, points_per_batch=4, **OPEN)
    found = generator.generate(image)
    assert len(found.masks) >= 1 and found.masks.shape[1:] == (40, 56)
    assert found.masks.any((1, 2)).all()
    assert (np.diff(found.predicted_iou) <= 0).all()
    assert ((found.stability >= 0) & (found.stability <= 1)).all()
    # Batches are for the memory alone.
    generator.points_per_batch = 9
    again = generator.generate(image)
    np.testing.assert_array_equal(again.masks, found.masks)
    # Random scores reach no threshold.
    default = SAMGenerator('tiny-random', family, points_per_side=2)
    assert default.generate(image).masks.shape == (0, 40, 56)


def test_filters_and_duplicates(image):
    everything = SAMGenerator(
        'tiny-random', points_per_side=3, nms_thr=1., **OPEN)
    found = everything.generate(image)
    assert len(found.masks) > 3
    fewer = SAMGenerator('tiny-random', points_per_side=3, **OPEN)
    assert 0 < len(fewer.generate(image).masks) < len(found.masks)
    threshold = float(np.median(found.stability))
    stable = SAMGenerator(
        'tiny-random',
        points_per_side=3,
        nms_thr=1.,
        **dict(OPEN, stability_thr=threshold)).generate(image)
    assert stable.stability.min() >= threshold
    assert 0 < len(stable.masks) < len(found.masks)
    threshold = max(float(np.median(found.predicted_iou)), 1e-6)
    good = SAMGenerator(
        'tiny-random',
        points_per_side=3,
        nms_thr=1.,
        **dict(OPEN, pred_iou_thr=threshold)).generate(image)
    assert len(good.masks) == (found.predicted_iou > threshold).sum()


def test_crops_reach_the_whole_image(image):
    whole = SAMGenerator(
        'tiny-random', points_per_side=2, nms_thr=1., **OPEN).generate(image)
    crops = SAMGenerator(
        'tiny-random',
        points_per_side=2,
        nms_thr=1.,
        crop_layers=1,
        crop_points_factor=2,
        **OPEN).generate(image)
    assert crops.masks.shape[1:] == (40, 56)
    assert len(crops.masks) >= len(whole.masks)


@pytest.mark.parametrize('shape', [(48, 64), (101, 67)])
def test_crops_and_points_are_those_of_transformers(shape):
    boxes, points, _, _ = processor().generate_crop_boxes(
        np.zeros((*shape, 3), np.uint8), 64, crop_n_layers=2,
        points_per_crop=2)
    ours = crop_boxes(shape, 2, 512 / 1500)
    assert [list(box) for box, _ in ours] == boxes.int().tolist()
    assert [layer for _, layer in ours] == [0] + [1] * 4 + [2] * 16
    frame = SAMPredictor('tiny-random')._resized(shape)
    scale = torch.tensor([frame[1] / shape[1], frame[0] / shape[0]])
    torch.testing.assert_close(
        point_grid(2, shape) * scale, points[0, :, 0].float())


def test_preprocessing_and_upscaling_are_those_of_transformers(image):
    predictor, seen = SAMPredictor('tiny-random'), []
    predictor.model.vision_encoder.register_forward_pre_hook(
        lambda _, args: seen.append(args[0]))
    embedding = predictor.encode(torch.from_numpy(image).permute(2, 0, 1))
    theirs = processor()(image, return_tensors='pt')
    assert embedding.resized == tuple(theirs['reshaped_input_sizes'][0])
    # Resizing may differ by one of 255 levels.
    torch.testing.assert_close(
        seen[0], theirs['pixel_values'], atol=.0181, rtol=0)
    logits = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, = processor().post_process_masks(
        [logits[None]], theirs['original_sizes'],
        theirs['reshaped_input_sizes'], binarize=False)
    torch.testing.assert_close(
        predictor.to_image(logits, embedding), expected[0])


@pytest.mark.parametrize('family', FAMILIES)
def test_prompts_do_not_influence_each_other(family):
    predictor = SAMPredictor('tiny-random', family)
    assert not any(p.requires_grad for p in predictor.parameters())
    assert not predictor.train().training
    embedding = predictor.encode(torch.full((3, 48, 48), 90.))
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(3, 2, 2, generator=generator) * 48
    labels = torch.tensor([[1, 0], [1, 0], [1, -10]])
    boxes = torch.tensor([[2., 3, 20, 30]] * 3)
    masks = torch.randn(
        3, predictor.mask_size, predictor.mask_size, generator=generator)
    logits, scores = predictor.predict(embedding, points, labels, boxes, masks)
    assert logits.shape == (3, 3, predictor.mask_size, predictor.mask_size)
    alone, score = predictor.predict(embedding, points[1:2], labels[1:2],
                                     boxes[1:2], masks[1:2])
    torch.testing.assert_close(alone[0], logits[1], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(score[0], scores[1], atol=1e-6, rtol=1e-4)
    single, _ = predictor.predict(embedding, boxes=boxes, multimask=False)
    assert single.shape[:2] == (3, 1)


def test_maps_go_into_the_frame():
    predictor = SAMPredictor('tiny-random')
    frame = predictor.to_frame(torch.ones(2, 32, 64), -7.)
    assert frame.shape == (2, 32, 32)
    assert (frame[:, :16] == 1).all() and (frame[:, 16:] == -7).all()
    # SAM 2 does not pad.
    frame = SAMPredictor('tiny-random', 'sam2').to_frame(torch.ones(1, 32, 64))
    torch.testing.assert_close(frame, torch.ones(1, 16, 16))


@pytest.mark.parametrize('family', FAMILIES)
def test_folders_are_loaded(family, tmp_path):
    model = build_tiny_sam(family)
    model.save_pretrained(tmp_path / 'weights')
    loaded = SAMPredictor(str(tmp_path / 'weights'))
    assert (loaded.family, loaded.name) == (family, 'weights')
    assert loaded.fingerprint() == SAMPredictor(model).fingerprint()
    other = 'sam' if family == 'sam2' else 'sam2'
    with pytest.raises(TypeError, match=f'is of type .* needed is {other}'):
        SAMPredictor(str(tmp_path / 'weights'), other)


def test_wrong_models(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match='needed is Sam2Model'):
        SAMPredictor(build_tiny_sam(), 'sam2')
    with pytest.raises(ValueError, match='is a Linear'):
        SAMPredictor(torch.nn.Linear(1, 1))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(OSError, match='neither a folder with config.json'):
        SAMPredictor(str(tmp_path / 'empty'))
    monkeypatch.setattr(sam_predictor, 'is_installed', lambda name: False)
    with pytest.raises(ImportError, match='pip.*install.*transformers'):
        SAMPredictor('tiny-random')


def test_half_precision_keeps_answers_in_float():
    predictor = SAMPredictor('tiny-random', dtype='bfloat16')
    embedding = predictor.encode(torch.full((3, 20, 30), 90.))
    assert embedding.features[0].dtype == torch.bfloat16
    logits, scores = predictor.predict(
        embedding, boxes=torch.tensor([[1., 2, 9, 9]]),
        masks=torch.zeros(1, 32, 32))
    assert logits.dtype == scores.dtype == torch.float32


def test_building_a_tiny_model_draws_no_randomness():
    state = torch.get_rng_state()
    first, second = build_tiny_sam('sam2'), build_tiny_sam('sam2')
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)
