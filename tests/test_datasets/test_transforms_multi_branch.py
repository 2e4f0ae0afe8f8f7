# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms import RandomFlip as MMCVRandomFlip
from mmcv.transforms import Resize as MMCVResize
from mmcv.transforms.utils import cache_random_params
from mmdet.datasets import transforms as mmdet_transforms
from mmdet.datasets.transforms import loading
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS

from mmsemi.datasets.transforms import (MultiBranch, PackDetInputs,
                                        check_view_pipeline)
from mmsemi.datasets.transforms.view_checks import (WatchedTransform,
                                                    iter_transforms)

FIELD = ['sup', 'unsup_teacher', 'unsup_student']
PACK = dict(type='mmsemi.PackDetInputs')


def make_results(size=(32, 48)):
    masks = np.zeros((1, *size), np.uint8)
    masks[0, 4:12, 6:20] = 1
    return dict(
        img=np.random.RandomState(0).randint(0, 256, (*size, 3), np.uint8),
        img_id=5,
        img_path='a.png',
        img_shape=size,
        ori_shape=size,
        gt_bboxes=HorizontalBoxes(np.array([[6., 4, 20, 12]])),
        gt_bboxes_labels=np.array([2]),
        gt_ignore_flags=np.array([False]),
        gt_masks=BitmapMasks(masks, *size))


def student(*transforms, pack=PACK):
    """MultiBranch whose student branch holds these transforms."""
    return MultiBranch(
        FIELD, unsup_teacher=[PACK], unsup_student=[*transforms, pack])


class Plain(BaseTransform):
    """A transform mmsemi has never heard of: ``change`` does its work."""

    def __init__(self, change):
        self.change = change

    def transform(self, results):
        return self.change(results)


def brighten(results):
    results['img'] = results['img'] // 2
    return results


def crop(results):
    results['img'] = results['img'][2:]
    results['img_shape'] = results['img'].shape[:2]
    return results


def crop_and_record(results):
    matrix = np.eye(3, dtype=np.float32)
    matrix[1, 2] = -2
    results['homography_matrix'] = matrix @ results['homography_matrix']
    return crop(results)


def flip(results):
    results['img'] = results['img'][:, ::-1]
    results['flip'] = True
    return results


def move_boxes(results):
    results['img'] = np.roll(results['img'], 3, 1)
    results['gt_bboxes'].translate_([3, 0])
    return results


def drop_boxes(results):
    results['gt_bboxes'] = results['gt_bboxes'][:0]
    results['gt_bboxes_labels'] = results['gt_bboxes_labels'][:0]
    results['gt_masks'] = results['gt_masks'][:0]
    results['gt_ignore_flags'] = results['gt_ignore_flags'][:0]
    return results


def test_views_share_nothing_and_absent_branches_are_none():
    multi = MultiBranch(
        FIELD,
        unsup_teacher=[PACK],
        unsup_student=[dict(type='mmdet.RandomFlip', prob=1.), PACK])
    source = make_results()
    views = multi(source)
    assert set(views) == {'inputs', 'data_samples'}
    assert views['inputs']['sup'] is None
    assert views['data_samples']['sup'] is None
    weak, strong = (views['inputs'][branch] for branch in FIELD[1:])
    assert torch.equal(weak, torch.from_numpy(source['img']).permute(2, 0, 1))
    assert torch.equal(strong, weak.flip(2))
    samples = views['data_samples']
    assert samples['unsup_teacher'].gt_instances.bboxes.tensor.tolist() == [[
        6, 4, 20, 12
    ]]
    assert samples['unsup_student'].gt_instances.bboxes.tensor.tolist() == [[
        28, 4, 42, 12
    ]]


def test_the_matrix_is_always_there():
    views = student(dict(type='mmsemi.StrongColor'))(make_results())
    for branch in FIELD[1:]:
        matrix = views['data_samples'][branch].homography_matrix
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, np.eye(3))
    # What was recorded before MultiBranch is kept by both.
    results = TRANSFORMS.build(dict(type='mmdet.Resize', scale_factor=2.))(
        make_results())
    views = student(dict(type='mmdet.RandomFlip', prob=1.))(results)
    samples = views['data_samples']
    np.testing.assert_array_equal(samples['unsup_teacher'].homography_matrix,
                                  np.diag([2, 2, 1]))
    np.testing.assert_array_equal(samples['unsup_student'].homography_matrix,
                                  [[-2, 0, 96], [0, 2, 0], [0, 0, 1]])


def test_a_view_that_gives_up_asks_for_another_image():
    nothing = Plain(lambda results: None)
    nothing.records_homography = True
    assert student(nothing)(make_results()) is None


def test_labelled_branches_may_do_anything():
    multi = MultiBranch(
        FIELD,
        sup=[
            dict(type='mmdet.RandomShift', prob=1.),
            dict(type='mmdet.Expand'),
            dict(type='mmdet.PackDetInputs')
        ])
    results = make_results()
    del results['gt_masks']
    views = multi(results)
    assert views['inputs']['sup'].ndim == 3
    assert views['data_samples']['unsup_student'] is None


def test_pack_det_inputs_lists_the_matrix():
    results = make_results()
    results['homography_matrix'] = np.eye(3)
    sample = PackDetInputs()(results)['data_samples']
    assert set(sample.metainfo_keys()) == {
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'homography_matrix'
    }
    assert PackDetInputs(('img_id', )).meta_keys == ('img_id', )


def test_an_image_without_labels_runs_through_every_transform():
    pipeline = Compose([
        dict(type='mmdet.LoadEmptyAnnotations', with_mask=True, with_seg=True),
        dict(type='mmdet.RandomFlip', prob=0.5),
        dict(
            type='mmsemi.MultiBranch',
            branch_field=FIELD,
            unsup_teacher=[dict(type='mmdet.Resize', scale=(64, 40)), PACK],
            unsup_student=[
                dict(type='mmsemi.RandomAffine'),
                dict(type='mmsemi.RandomRotate', prob=1.),
                dict(type='mmsemi.RandomShear', prob=1.),
                dict(type='mmsemi.RandomTranslate', prob=1.),
                dict(
                    type='mmdet.RandomCrop',
                    crop_size=(20, 16),
                    allow_negative_crop=True),
                dict(type='mmsemi.StrongColor', cutout=dict()), PACK
            ])
    ])
    results = make_results()
    source = {key: results[key] for key in ('img', 'img_id', 'img_shape')}
    views = pipeline(source)
    assert views['inputs']['unsup_teacher'].shape == (3, 40, 64)
    assert views['inputs']['unsup_student'].shape == (3, 16, 20)
    sample = views['data_samples']['unsup_student']
    assert len(sample.gt_instances) == 0
    masks = sample.gt_instances.masks
    assert (masks.height, masks.width) == (16, 20)
    assert sample.gt_sem_seg.sem_seg.shape == (1, 16, 20)
    assert np.isfinite(sample.homography_matrix).all()


UNRECORDED = dict(
    RandomAffine='mmsemi.RandomAffine',
    Mosaic='before MultiBranch',
    CachedMosaic='before MultiBranch',
    MixUp='before MultiBranch',
    CachedMixUp='before MultiBranch',
    CopyPaste='before MultiBranch',
    RandomShift='mmsemi.RandomTranslate',
    Expand='mmsemi.RandomAffine',
    MinIoURandomCrop='mmdet.RandomCrop',
    RandomCenterCropPad='mmdet.RandomCrop',
    Albu='mmsemi.StrongColor',
    InstaBoost='before MultiBranch',
    CutHeight='mmdet.RandomCrop')


@pytest.mark.parametrize('name', UNRECORDED)
def test_unrecorded_mmdet_transforms_are_refused(name):
    cls = getattr(mmdet_transforms, name, None) or getattr(loading, name)
    # Some need packages that are not installed: the class is enough.
    transform = cls.__new__(cls)
    with pytest.raises(ValueError) as error:
        student(transform)
    message = str(error.value)
    assert f'mmdet.{name}' in message and 'unsup_student' in message
    assert UNRECORDED[name] in message
    # Before MultiBranch all views share it.
    check_view_pipeline(
        [transform, MultiBranch(FIELD, unsup_student=[PACK])], 'unsup_student')


@pytest.mark.parametrize('name, instead', [('Rotate', 'RandomRotate'),
                                           ('ShearX', 'RandomShear'),
                                           ('ShearY', 'RandomShear')])
def test_pixel_index_matrices_are_refused(name, instead):
    with pytest.raises(ValueError, match=f'mmdet.{name}.*mmsemi.{instead}'):
        student(dict(type=f'mmdet.{name}'))


def test_the_transforms_of_mmcv_record_nothing():
    recording = {
        'mmdet.Resize': MMCVResize((64, 64)),
        'mmdet.RandomFlip': MMCVRandomFlip(0.5)
    }
    for instead, transform in recording.items():
        with pytest.raises(ValueError, match=f'use {instead} instead'):
            student(transform)
    # An unprefixed inner name resolves to mmcv's under a foreign scope.
    with pytest.raises(ValueError, match='mmcv.Resize'):
        student(
            dict(
                type='mmengine.RandomResize',
                resize_type='mmengine.Resize',
                scale=(64, 64),
                ratio_range=(0.5, 2.)))
    student(
        dict(
            type='mmengine.RandomResize',
            resize_type='mmdet.Resize',
            scale=(64, 64),
            ratio_range=(0.5, 2.)))


SHIFT = dict(type='mmdet.RandomShift')
WRAPPERS = [
    dict(type='mmengine.Compose', transforms=[SHIFT]),
    dict(type='mmengine.RandomApply', transforms=[SHIFT]),
    dict(type='mmengine.RandomApply', transforms=SHIFT),
    dict(type='mmengine.RandomChoice', transforms=[[PACK], [SHIFT]]),
    dict(type='mmdet.RandomOrder', transforms=[SHIFT]),
    dict(
        type='mmengine.KeyMapper', mapping=dict(img='img'),
        transforms=[SHIFT]),
    dict(
        type='mmengine.TransformBroadcaster',
        mapping=dict(img=['img', 'img2']),
        transforms=[SHIFT]),
    dict(type='mmdet.ProposalBroadcaster', transforms=[SHIFT]),
    dict(type='mmdet.RandAugment', aug_space=[[SHIFT]], aug_num=1),
    dict(type='mmdet.AutoAugment', policies=[[SHIFT]]),
    dict(
        type='mmengine.RandomApply',
        transforms=[dict(type='mmengine.RandomChoice', transforms=[[SHIFT]])])
]


@pytest.mark.parametrize('wrapper', WRAPPERS, ids=lambda cfg: cfg['type'])
def test_wrappers_hide_nothing(wrapper):
    with pytest.raises(ValueError, match='mmdet.RandomShift'):
        student(wrapper)


def test_mmseg_transforms_are_refused():
    for name in ('Resize', 'RandomFlip', 'RandomCrop', 'RandomRotate'):
        cls = TRANSFORMS.get(f'mmseg.{name}')
        with pytest.raises(ValueError, match=f'mmseg.{name}'):
            student(cls.__new__(cls))


@pytest.mark.parametrize(
    'cfg', [
        dict(type='mmdet.Resize', scale_factor=2.),
        dict(
            type='mmdet.FixShapeResize', width=64, height=64, keep_ratio=True),
        dict(
            type='mmdet.ResizeShortestEdge',
            scale=40,
            resize_type='mmdet.Resize'),
        dict(type='mmdet.RandomFlip', prob=0.5),
        dict(type='mmdet.RandomCrop', crop_size=(20, 20)),
        dict(type='mmdet.Pad', size=(64, 64)),
        dict(type='mmdet.TranslateX'),
        dict(type='mmdet.PhotoMetricDistortion'),
        dict(type='mmdet.Brightness'),
        dict(type='mmdet.CutOut', n_holes=1, cutout_shape=(4, 4)),
        dict(type='mmdet.RandomErasing', n_patches=1, ratio=0.2),
        dict(type='mmdet.LoadEmptyAnnotations', with_mask=True),
        dict(type='mmdet.FilterAnnotations'),
        dict(type='mmengine.LoadImageFromFile'),
        dict(type='mmsemi.RandomAffine'),
        dict(type='mmsemi.RandomRotate'),
        dict(type='mmsemi.StrongColor'),
        dict(type='mmsemi.RandomCutout')
    ],
    ids=lambda cfg: cfg['type'])
def test_good_transforms_pass_in_silence(cfg, recwarn):
    multi = student(cfg)
    assert not [w for w in recwarn if 'homography' in str(w.message)]
    held = iter_transforms(multi.branch_pipelines['unsup_student'])
    assert not [t for *_, t in held if isinstance(t, WatchedTransform)]


def test_packing_is_required_and_lists_the_matrix():
    with pytest.raises(ValueError, match="'sup'.*packs nothing"):
        MultiBranch(FIELD, sup=[dict(type='mmdet.Resize', scale=(8, 8))])
    with pytest.raises(ValueError, match='unsup_teacher.*packs nothing'):
        MultiBranch(FIELD, unsup_teacher=[])
    with pytest.raises(ValueError, match='meta_keys of mmdet.PackDetInputs'):
        student(pack=dict(type='mmdet.PackDetInputs'))
    student(
        pack=dict(
            type='mmdet.PackDetInputs',
            meta_keys=('img_id', 'homography_matrix')))


def test_own_transforms_declare_themselves():
    transform = Plain(crop_and_record)
    transform.records_homography = True
    views = student(transform)(make_results())
    assert views['inputs']['unsup_student'].shape == (3, 30, 48)
    transform.records_homography = False
    with pytest.raises(ValueError, match='records_homography = False'):
        student(transform)


@pytest.mark.parametrize('change', [brighten, crop_and_record, drop_boxes])
def test_unknown_transforms_are_watched_and_may_work(change):
    with pytest.warns(UserWarning, match='Plain is not known to mmsemi'):
        multi = student(Plain(change))
    views = multi(make_results())
    expected = change(dict(make_results(), homography_matrix=np.eye(3)))['img']
    assert torch.equal(views['inputs']['unsup_student'],
                       torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize('change, evidence', [(crop, 'image size'),
                                              (flip, 'flip'),
                                              (move_boxes, 'gt_bboxes')])
@pytest.mark.parametrize('nested', [False, True])
def test_unknown_transforms_are_caught_in_the_act(change, evidence, nested):
    transform = Plain(change)
    if nested:
        transform = dict(
            type='mmengine.RandomApply', transforms=[transform], prob=1.)
    with pytest.warns(UserWarning, match='watched'):
        multi = student(dict(type='mmdet.RandomFlip', prob=0.), transform)
    with pytest.raises(ValueError) as error:
        multi(make_results())
    message = str(error.value)
    assert evidence in message and 'Plain' in message
    assert 'unsup_student' in message
    # The same in a labelled branch is nobody's business.
    MultiBranch(FIELD, sup=[Plain(change), PACK])(make_results())


def test_plain_functions_are_watched_too():
    with pytest.warns(UserWarning, match='function'):
        multi = student(crop)
    with pytest.raises(ValueError, match='image size'):
        multi(make_results())


def test_a_dropped_matrix_is_noticed():

    def forget(results):
        del results['homography_matrix']
        return results

    with pytest.warns(UserWarning):
        multi = student(Plain(forget))
    with pytest.raises(ValueError, match='unsup_student.*dropped'):
        multi(make_results())


def test_watched_transforms_can_share_their_draws():
    watched = WatchedTransform(
        TRANSFORMS.build(dict(type='mmsemi.RandomRotate', prob=1.)), 'unsup')
    with cache_random_params(watched):
        outs = [
            watched(dict(make_results(), homography_matrix=np.eye(3)))['img']
            for _ in range(2)
        ]
    np.testing.assert_array_equal(*outs)


def test_check_view_pipeline_reads_a_whole_dataset_pipeline():
    cfg = [
        dict(type='mmdet.LoadEmptyAnnotations', with_mask=True),
        dict(type='mmdet.Rotate'),
        dict(
            type='mmsemi.MultiBranch',
            branch_field=FIELD,
            unsup_teacher=[PACK],
            unsup_student=[dict(type='mmsemi.StrongColor'), PACK])
    ]
    for branch in FIELD[1:]:
        check_view_pipeline(cfg, branch)
    with pytest.raises(ValueError, match="no pipeline for branch 'sup'"):
        check_view_pipeline(cfg, 'sup')
    # mmdet's own MultiBranch checks nothing when it is built.
    cfg[-1] = dict(
        type='mmdet.MultiBranch',
        branch_field=FIELD,
        unsup_student=[SHIFT, PACK])
    with pytest.raises(ValueError, match='mmdet.RandomShift'):
        check_view_pipeline(Compose(cfg), 'unsup_student')
    with pytest.raises(ValueError, match='mmdet.RandomShift'):
        check_view_pipeline([SHIFT, PACK], 'unsup_student')


@pytest.mark.parametrize('args, kwargs, message', [
    (['sup'], {}, 'at least one'),
    (['sup'], dict(unsup_student=[PACK]), 'unsup_student'),
    ('sup', dict(sup=[PACK]), 'branch_field must be a list'),
    (['sup', 'sup'], dict(sup=[PACK]), 'different names'),
])
def test_wrong_branches(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiBranch(args, **kwargs)
