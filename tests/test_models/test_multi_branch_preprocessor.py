# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import BatchFixedSizePad
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import InstanceData

from mmsemi.models import MultiBranchDataPreprocessor
from mmsemi.registry import MODELS

INNER = dict(
    type='mmdet.DetDataPreprocessor',
    mean=[1., 2., 3.],
    std=[2., 2., 2.],
    pad_size_divisor=4,
    pad_mask=True)


def image(height, width, value):
    return torch.full((3, height, width), value, dtype=torch.uint8)


def sample(name, shape, with_masks=False):
    """A data sample as mmdet packs it."""
    data_sample = DetDataSample(
        metainfo=dict(img_id=name, img_shape=shape, ori_shape=shape))
    data_sample.gt_instances = InstanceData()
    if with_masks:
        data_sample.gt_instances.masks = BitmapMasks(
            np.ones((1, *shape), np.uint8), *shape)
    return data_sample


def mixed_batch():
    """A labelled and two unlabelled images, as pseudo_collate leaves them."""
    return dict(
        inputs=dict(
            sup=[image(6, 9, 5), None, None],
            unsup_teacher=[None, image(8, 8, 7),
                           image(5, 4, 9)],
            unsup_student=[None, image(8, 8, 11),
                           image(5, 4, 13)]),
        data_samples=dict(
            sup=[sample('a', (6, 9), with_masks=True), None, None],
            unsup_teacher=[None,
                           sample('b', (8, 8)),
                           sample('c', (5, 4))],
            unsup_student=[None,
                           sample('b', (8, 8)),
                           sample('c', (5, 4))]))


def test_each_view_is_stacked_normalised_and_padded_on_its_own():
    preprocessor = MultiBranchDataPreprocessor(INNER)
    batch = preprocessor(mixed_batch(), training=True)
    inputs, samples = batch['inputs'], batch['data_samples']
    assert {view: tuple(x.shape) for view, x in inputs.items()} == dict(
        sup=(1, 3, 8, 12),
        unsup_teacher=(2, 3, 8, 8),
        unsup_student=(2, 3, 8, 8))
    names = {view: [s.img_id for s in x] for view, x in samples.items()}
    assert names == dict(
        sup=['a'], unsup_teacher=['b', 'c'], unsup_student=['b', 'c'])
    # (value - mean) / std inside the image, 0 in the padding.
    assert inputs['sup'][0, :, 5, 8].tolist() == [2., 1.5, 1.]
    assert inputs['unsup_teacher'][1, :, 4, 3].tolist() == [4., 3.5, 3.]
    assert inputs['unsup_student'][1, :, 0, 0].tolist() == [6., 5.5, 5.]
    assert inputs['unsup_teacher'][1, :, 5:].abs().max() == 0
    assert samples['sup'][0].batch_input_shape == (8, 12)
    assert samples['sup'][0].gt_instances.masks.masks.shape == (1, 8, 12)
    assert samples['unsup_teacher'][1].batch_input_shape == (8, 8)
    assert samples['unsup_teacher'][1].img_shape == (5, 4)


def test_the_collated_batch_keeps_its_gaps():
    batch = mixed_batch()
    MultiBranchDataPreprocessor(INNER)(batch, training=True)
    assert [x is None for x in batch['inputs']['sup']] == [False, True, True]
    assert batch['inputs']['sup'][0].dtype == torch.uint8


def test_a_view_that_no_sample_has_is_left_out():
    batch = mixed_batch()
    for part in batch.values():
        part['sup'] = [None] * 3
    result = MultiBranchDataPreprocessor(INNER)(batch, training=True)
    views = {'unsup_teacher', 'unsup_student'}
    assert set(result['inputs']) == set(result['data_samples']) == views


@pytest.mark.parametrize('training', [True, False])
def test_plain_batches_pass_to_the_inner_preprocessor(training):
    data = dict(inputs=[image(6, 9, 5)], data_samples=[sample('a', (6, 9))])
    result = MultiBranchDataPreprocessor(INNER)(data, training)
    reference = MODELS.build(INNER)(data, training)
    assert result['inputs'].equal(reference['inputs'])
    assert result['data_samples'][0].batch_input_shape == (8, 12)


@pytest.mark.parametrize('training', [True, False])
def test_training_is_passed_on(training):
    seen = []

    class Spy(BaseDataPreprocessor):

        def forward(self, data, training=False):
            seen.append(training)
            return data

    preprocessor = MultiBranchDataPreprocessor(Spy())
    preprocessor(mixed_batch(), training)
    preprocessor(dict(inputs=[], data_samples=[]), training)
    assert seen == [training] * 4


def test_the_inner_device_follows():
    """Under a model, and when moved alone."""
    preprocessor = MultiBranchDataPreprocessor(INNER)
    inner = preprocessor.data_preprocessor
    assert preprocessor.to('meta') is preprocessor
    assert inner.device == preprocessor.device == torch.device('meta')
    assert inner.mean.device == torch.device('meta')

    class Model(BaseModel):

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return inputs

    model = Model(data_preprocessor=MultiBranchDataPreprocessor(INNER))
    model.to('meta')
    assert model.data_preprocessor.device == torch.device('meta')
    assert model.data_preprocessor.data_preprocessor.device == torch.device(
        'meta')
    moved = MultiBranchDataPreprocessor(INNER).cpu()
    assert moved.device == torch.device('cpu')
    assert moved(
        mixed_batch(), True)['inputs']['sup'].device == torch.device('cpu')


def padding_preprocessor(**kwargs):
    return MultiBranchDataPreprocessor(
        dict(
            **INNER,
            batch_augments=[
                dict(
                    type='mmdet.BatchFixedSizePad', size=(16, 16), **kwargs)
            ]))


@pytest.mark.parametrize('hidden', [False, True])
def test_padding_to_a_fixed_size_without_annotations(hidden):
    """Mask2Former's configs pad the masks, which unlabelled views lack."""
    preprocessor = padding_preprocessor(pad_mask=True)
    batch = mixed_batch()
    if hidden:
        for i in (1, 2):
            shape = batch['data_samples']['unsup_teacher'][i].img_shape
            batch['data_samples']['unsup_teacher'][i] = sample(
                'b', shape, with_masks=True)
    # Without this wrapper, mmdet's padding fails.
    with pytest.raises(AttributeError, match='masks'):
        preprocessor.data_preprocessor(
            dict(
                inputs=[image(8, 8, 1)], data_samples=[sample('b', (8, 8))]),
            True)
    result = preprocessor(batch, training=True)
    for view, images in result['inputs'].items():
        assert images.shape[2:] == (16, 16)
        for data_sample in result['data_samples'][view]:
            assert data_sample.batch_input_shape == (16, 16)
            masks = data_sample.gt_instances.get('masks')
            labelled = view == 'sup' or (hidden and view == 'unsup_teacher')
            assert (masks is not None) == labelled
            if labelled:
                assert masks.masks.shape == (1, 16, 16)
    augment, = preprocessor.data_preprocessor.batch_augments
    assert isinstance(augment, BatchFixedSizePad) and augment.pad_mask


def test_padding_of_label_maps_that_are_not_there():
    preprocessor = padding_preprocessor(pad_mask=True, pad_seg=True)
    result = preprocessor(mixed_batch(), training=True)
    assert result['inputs']['sup'].shape == (1, 3, 16, 16)
    augment, = preprocessor.data_preprocessor.batch_augments
    assert augment.pad_seg and augment.pad_mask


def test_padding_switches_return_after_an_error():
    preprocessor = padding_preprocessor(pad_mask=True)
    batch = mixed_batch()
    batch['inputs']['unsup_teacher'][1] = 'no image'
    with pytest.raises(TypeError):
        preprocessor(batch, training=True)
    assert preprocessor.data_preprocessor.batch_augments[0].pad_mask


def test_resizing_of_batches_is_refused():
    resize = dict(
        type='mmdet.BatchSyncRandomResize', random_size_range=(32, 64))
    with pytest.raises(ValueError, match='BatchSyncRandomResize.*own'):
        MultiBranchDataPreprocessor(dict(**INNER, batch_augments=[resize]))
