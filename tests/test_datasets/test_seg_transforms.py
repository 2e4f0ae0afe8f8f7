# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from mmcv.transforms.utils import cache_random_params
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS, init_default_scope

from mmsemi.datasets import MultiSourceDataset
from mmsemi.datasets.transforms import (Cutout, MultiBranch, PackSegInputs,
                                        RandomResizeByLongSide)
from mmsemi.datasets.transforms.seg_geometric import scaled_size

FIELD = ['sup', 'unsup_teacher', 'unsup_student']
PACK = dict(type='mmsemi.PackSegInputs')
COLOR = dict(type='mmsemi.StrongColor')


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


def make_results(size=(32, 48), labelled=True):
    rng = np.random.RandomState(0)
    results = dict(
        img=rng.randint(0, 256, (*size, 3), np.uint8),
        img_path='a.png',
        img_shape=size,
        ori_shape=size,
        seg_fields=[])
    if labelled:
        results['gt_seg_map'] = rng.randint(0, 4, size).astype(np.uint8)
        results['seg_fields'].append('gt_seg_map')
    return results


def student(*transforms, pack=PACK):
    return MultiBranch(
        FIELD, unsup_teacher=[PACK], unsup_student=[*transforms, pack])


# PackSegInputs and MultiBranch --------------------------------------------


def test_pack_seg_inputs_lists_the_matrix():
    results = dict(make_results(), homography_matrix=np.eye(3))
    packed = PackSegInputs()(results)
    assert packed['inputs'].shape == (3, 32, 48)
    sample = packed['data_samples']
    assert set(sample.metainfo_keys()) == {
        'img_path', 'ori_shape', 'img_shape', 'homography_matrix'
    }
    assert sample.gt_sem_seg.data.shape == (1, 32, 48)
    assert sample.gt_sem_seg.data.dtype == torch.int64
    # All of mmseg's own keys are still there.
    plain = TRANSFORMS.build(dict(type='mmseg.PackSegInputs'))
    assert PackSegInputs().meta_keys == (*plain.meta_keys,
                                         'homography_matrix', 'text', 'ref_id',
                                         'sent_id', 'image_id')


def test_two_strong_views_of_an_unlabelled_image():
    multi = MultiBranch(
        [*FIELD, 'unsup_student_2'],
        unsup_teacher=[PACK],
        unsup_student=[COLOR, PACK],
        unsup_student_2=[COLOR, PACK])
    source = make_results(labelled=False)
    np.random.seed(1)
    views = multi(source)
    weak = views['inputs']['unsup_teacher']
    assert torch.equal(weak, torch.from_numpy(source['img']).permute(2, 0, 1))
    assert views['inputs']['sup'] is None
    strong = [views['inputs'][b] for b in ('unsup_student', 'unsup_student_2')]
    assert not torch.equal(*strong)
    for sample in filter(None, views['data_samples'].values()):
        assert 'gt_sem_seg' not in sample
        np.testing.assert_array_equal(sample.homography_matrix, np.eye(3))


def test_messages_name_what_mmseg_has():
    with pytest.raises(ValueError, match="'sup'.*mmsemi.PackSegInputs"):
        MultiBranch(FIELD, sup=[COLOR])
    with pytest.raises(
            ValueError,
            match="mmseg.PackSegInputs must list 'homography_matrix'.*"
            'mmsemi.PackSegInputs lists it'):
        student(pack=dict(type='mmseg.PackSegInputs'))
    for cfg, instead in ((dict(type='mmseg.RandomFlip', prob=.5),
                          'mmseg.RandomFlip'),
                         (dict(type='mmseg.RandomCrop',
                               crop_size=(8, 8)), 'mmseg.RandomCrop'),
                         (dict(type='mmengine.Resize',
                               scale=(8, 8)), 'mmseg.Resize'),
                         (dict(type='mmengine.CenterCrop',
                               crop_size=(8, 8)), 'mmseg.RandomCrop'),
                         (dict(type='mmdet.ShearX'), 'mmsemi.RandomShear')):
        with pytest.raises(
                ValueError, match=f'place {instead} before MultiBranch'):
            student(cfg)


PAD = dict(type='mmengine.Pad', size=(64, 64))


@pytest.mark.parametrize('cfg', [
    PAD,
    dict(type='mmdet.Pad', size=(64, 64)),
    dict(type='mmengine.RandomApply', transforms=[PAD]),
])
def test_pad_in_a_view_is_refused(cfg):
    with pytest.raises(ValueError, match='Pad pads.*data_preprocessor.size'):
        student(cfg)
    # A labelled view marks its padding in the mask.
    MultiBranch(FIELD, sup=[cfg, PACK])


def test_pad_before_the_views_is_refused():
    padded = TRANSFORMS.build(PAD)(make_results(labelled=False))
    with pytest.raises(ValueError, match='Pad before it.*unsup_student'):
        student(COLOR)(padded)
    labelled = TRANSFORMS.build(PAD)(make_results())
    views = MultiBranch(FIELD, sup=[PACK])(labelled)
    mask = views['data_samples']['sup'].gt_sem_seg.data
    assert mask.shape == (1, 64, 64) and (mask[:, 32:] == 255).all()


@pytest.mark.parametrize('cfg', [
    dict(type='mmsemi.RandomResizeByLongSide', ratio_range=(2, 2)),
    dict(type='mmdet.RandomFlip', prob=1.),
])
def test_views_that_move_apart_are_refused(cfg):
    with pytest.raises(ValueError, match="'unsup_teacher' and 'unsup_stud"):
        student(cfg)(make_results(labelled=False))


def test_mmseg_colours_are_right(recwarn):
    student(dict(type='mmseg.PhotoMetricDistortion'), COLOR,
            dict(type='mmsemi.Cutout'))
    assert not [w for w in recwarn if 'homography' in str(w.message)]


class Source(BaseDataset):

    def load_data_list(self):
        return [make_results(labelled=False)]


def source(*transforms, **prefix):
    return Source(
        data_prefix=prefix, pipeline=[*transforms, student(COLOR)])


def test_unlabelled_pipelines_must_not_look_at_labels():
    crop = dict(type='mmseg.RandomCrop', crop_size=(16, 16))
    good = MultiSourceDataset([source(crop)])
    assert good[0]['inputs']['unsup_student'].shape == (3, 16, 16)
    crop['cat_max_ratio'] = 0.75
    with pytest.raises(ValueError, match='cat_max_ratio=0.75 .*=1. in the un'):
        MultiSourceDataset([source(crop)])
    with pytest.raises(ValueError, match='Source 0 .*Pad pads the image'):
        MultiSourceDataset([source(PAD)])
    load = dict(type='mmseg.LoadAnnotations')
    with pytest.raises(ValueError, match='Source 0 .*loads segmentation mask'):
        MultiSourceDataset([source(load)])
    # Hidden masks may be loaded.
    MultiSourceDataset([source(load, seg_map_path='masks')])


# RandomResizeByLongSide ---------------------------------------------------


@pytest.mark.parametrize('shape, length, expected', [
    ((375, 500), 321, (241, 321)),
    ((500, 375), 321, (321, 241)),
    ((3, 2), 3, (3, 2)),
    ((2, 4), 1, (1, 1)),
    ((4, 8), 3, (2, 3)),
    ((2, 1000), 10, (1, 10)),
])
def test_scaled_size(shape, length, expected):
    assert scaled_size(shape, length) == expected


def test_long_side_covers_its_range():
    resize = RandomResizeByLongSide()
    np.random.seed(0)
    sizes = [
        resize(make_results((5, 3)))['img_shape'] for _ in range(300)
    ]
    # floor(2.5) to 10, both included.
    assert {size[0] for size in sizes} == set(range(2, 11))
    assert all(size == scaled_size((5, 3), size[0]) for size in sizes)
    resize = RandomResizeByLongSide((0.5, 1), base_size=8)
    sizes = [resize(make_results())['img_shape'][1] for _ in range(100)]
    assert set(sizes) == {4, 5, 6, 7, 8}


def test_resize_records_what_it_does():
    results = make_results((20, 40))
    results['homography_matrix'] = np.array([[1., 0, -4], [0, 1, 0], [0, 0,
                                                                      1]])
    out = RandomResizeByLongSide((0.5, 0.5))(results)
    assert out['img'].shape == (10, 20, 3)
    assert out['gt_seg_map'].shape == (10, 20)
    assert out['scale_factor'] == (0.5, 0.5) and out['scale'] == (20, 10)
    assert out['homography_matrix'].dtype == np.float32
    np.testing.assert_array_equal(out['homography_matrix'],
                                  [[.5, 0, -2], [0, .5, 0], [0, 0, 1]])


def test_masks_stay_where_the_image_is():
    results = make_results((9, 9))
    results['gt_seg_map'] = np.zeros((9, 9), np.uint8)
    results['gt_seg_map'][1::3, 1::3] = 3
    out = RandomResizeByLongSide((1 / 3, 1 / 3))(results)
    # The centres of three times three pixels, not their upper left corners.
    assert (out['gt_seg_map'] == 3).all() and out['img_shape'] == (3, 3)
    grey = dict(img=np.zeros((9, 9, 1), np.uint8))
    assert RandomResizeByLongSide()(grey)['img'].ndim == 3


@pytest.mark.parametrize('options, message', [
    (dict(ratio_range=(0, 1)), 'ratio_range must be'),
    (dict(ratio_range=(2, 1)), 'ratio_range must be'),
    (dict(base_size=1), 'base_size=1'),
])
def test_wrong_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        RandomResizeByLongSide(**options)


# Cutout -------------------------------------------------------------------


def test_cutout_marks_what_it_paints():
    before = make_results((40, 60))
    image, mask = before['img'].copy(), before['gt_seg_map'].copy()
    np.random.seed(3)
    cutout = Cutout(prob=1., fill=300 - 45)
    out = cutout(dict(before))
    painted = out['gt_seg_map'] == 255
    assert 0.01 < painted.mean() < 0.4
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(
        painted.any(0))
    assert painted.sum() == len(rows) * len(columns)
    assert 0.25 < len(rows) / len(columns) < 4
    assert (out['img'][painted] == 255).all()
    np.testing.assert_array_equal(out['img'][~painted], image[~painted])
    np.testing.assert_array_equal(out['gt_seg_map'][~painted], mask[~painted])
    # What came in is as it was.
    np.testing.assert_array_equal(before['img'], image)
    np.testing.assert_array_equal(before['gt_seg_map'], mask)


def test_cutout_probability_and_noise():
    assert Cutout(prob=0.)(make_results())['gt_seg_map'].max() < 4
    np.random.seed(0)
    changed = [
        Cutout()(make_results())['gt_seg_map'].max() == 255
        for _ in range(200)
    ]
    assert 0.4 < np.mean(changed) < 0.6
    noisy = Cutout(prob=1.)(dict(make_results(), img=np.zeros((32, 48, 3))))
    values = noisy['img'][noisy['gt_seg_map'] == 255]
    assert 100 < values.mean() < 155 and values.max() <= 255
    unlabelled = Cutout(prob=1.)(make_results(labelled=False))
    assert 'gt_seg_map' not in unlabelled


def test_cutout_ends_where_nothing_fits():
    long = Cutout((1., 1.), (3., 3.), prob=1.)
    results = make_results()
    image = results['img'].copy()
    np.testing.assert_array_equal(long(results)['img'], image)


def test_cutout_shares_its_draw():
    cutout = Cutout(prob=1.)
    with cache_random_params(cutout):
        outs = [cutout(make_results())['img'] for _ in range(2)]
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize('options, message', [
    (dict(area_range=(0, .5)), 'area_range'),
    (dict(area_range=(.5, 1.5)), 'area_range'),
    (dict(aspect_range=(3, 1)), 'aspect_range'),
    (dict(fill='grey'), "fill must be a value or 'noise'"),
    (dict(prob=2), 'prob'),
])
def test_cutout_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Cutout(**options)
