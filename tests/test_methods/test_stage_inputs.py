# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Stages get proposals and, if they ask, the image, in every method."""
import pytest
import torch
from mmengine.registry import init_default_scope

from mmsemi.methods import SemiInstanceSegmentor
from mmsemi.models.view_images import view_images
from mmsemi.pseudo_labels import PseudoLabelStage
from mmsemi.registry import MODELS, TRANSFORMS
from mmsemi.structures.packed_masks import PackedMasks
from mmsemi.visualization.drawing import view_to_image

SAM = dict(type='mmsemi.SAMRefine', model='tiny-random', iterations=1)


@TRANSFORMS.register_module(force=True)
class Look(PseudoLabelStage):
    """Keeps what it is given."""

    def __init__(self, needs_image=True):
        super().__init__()
        self.needs_image = needs_image
        self.seen = []

    def forward(self, pseudo_labels, data_samples):
        self.seen.append(data_samples)
        return pseudo_labels


def give_proposals(samples):
    for sample in samples:
        masks = torch.ones((9, *sample.img_shape[:2]), dtype=torch.bool)
        sample.set_data(dict(mask_proposals=PackedMasks.from_bool(masks)))


def check(stage, inputs, samples, preprocessor, shapes):
    for i, sample in enumerate(stage.seen[0]):
        assert sample.mask_proposals.shape == (9, *shapes[i])
        height, width = samples[i].img_shape[:2]
        assert (sample.mask_proposals.area() == height * width).all()
        assert 'gt_sem_seg' not in sample and 'gt_instances' not in sample
        expected = view_to_image(inputs[i], preprocessor)
        assert sample.image.dtype == torch.float32
        assert (sample.image.permute(1, 2, 0).numpy() == expected).all()


METHODS = {
    'FixMatch': {},
    'UniMatch': dict(teacher=dict(mode='student')),
    'UniMatchV2': {},
    'CPS': {}
}


@pytest.mark.parametrize('name', METHODS)
def test_dense_methods(name, mmdet_scope, dense_segmentor_config,
                       dense_batch_factory):
    init_default_scope('mmseg')
    pipelines = dict(pseudo_label_pipeline=[dict(type='mmsemi.Look')])
    options = dict(METHODS[name])
    model = MODELS.build(
        dict(
            type=f'mmsemi.{name}',
            segmentor=dense_segmentor_config(),
            **pipelines,
            **options))
    views = ('sup', 'unsup_teacher', 'unsup_student', 'unsup_student_2')
    inputs, samples = dense_batch_factory(dict.fromkeys(views, (2, 16, 24)))
    give_proposals(samples['unsup_teacher'])
    model(inputs, samples, mode='loss')
    pipeline = model.pseudo_label_pipelines[0] if name == 'CPS' else \
        model.pseudo_label_pipeline
    # The second image is padded, and so are its masks.
    check(pipeline.stages[0], inputs['unsup_teacher'],
          samples['unsup_teacher'], model.data_preprocessor,
          [(16, 24), (16, 24)])


def test_only_stages_that_ask_get_the_image(mmdet_scope,
                                            dense_segmentor_config,
                                            dense_batch_factory):
    init_default_scope('mmseg')
    model = MODELS.build(
        dict(
            type='mmsemi.FixMatch',
            segmentor=dense_segmentor_config(),
            pseudo_label_pipeline=[
                dict(type='mmsemi.Look', needs_image=False)
            ]))
    inputs, samples = dense_batch_factory()
    model(inputs, samples, mode='loss')
    seen = model.pseudo_label_pipeline.stages[0].seen[0]
    assert all('image' not in s and 'mask_proposals' not in s for s in seen)


def test_instances(tiny_segmentor_config, batch_factory):
    model = SemiInstanceSegmentor(
        tiny_segmentor_config('solov2'),
        pseudo_label_pipeline=[dict(type='mmsemi.Look')])
    inputs, samples = batch_factory()
    views = samples['unsup_teacher']
    give_proposals(views)
    model(inputs, samples, mode='loss')
    # Pseudo-masks of instances are not padded either.
    check(model.pseudo_label_pipeline.stages[0], inputs['unsup_teacher'],
          views, model.data_preprocessor,
          [tuple(s.img_shape[:2]) for s in views])


def test_training_with_sam_online(mmdet_scope, dense_segmentor_config,
                                  dense_batch_factory):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmsemi.FixMatch',
            segmentor=dense_segmentor_config(),
            pseudo_label_pipeline=[SAM]))
    names = set(model.state_dict())
    inputs, samples = dense_batch_factory()
    losses = model.train()(inputs, samples, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert set(model.state_dict()) == names
    assert list(model.pseudo_label_pipeline.parameters()) == []
    stage = model.pseudo_label_pipeline.stages[0]
    assert all(p.grad is None for p in stage.sam().parameters())
    refined = model.label_unlabeled(inputs['unsup_teacher'],
                                    samples['unsup_teacher'])
    assert all(label.matched.dtype == torch.bool for label in refined)


def test_instances_with_sam_online(tiny_segmentor_config, batch_factory,
                                   instances_factory, monkeypatch):
    model = SemiInstanceSegmentor(
        tiny_segmentor_config('solov2'),
        pseudo_label_pipeline=[
            dict(type='mmsemi.FilterByScore', score_thr=0.), SAM
        ]).train()
    found = instances_factory([[5, 6, 31, 29], [8, 36, 28, 62]], [0, 1],
                              (64, 64), [.9, .8])

    def predict(inputs, data_samples, rescale=True):
        for sample in data_samples:
            sample.pred_instances = found
        return data_samples

    monkeypatch.setattr(model.teacher, 'predict', predict)
    inputs, samples = batch_factory()
    for label in model.label_unlabeled(inputs['unsup_teacher'],
                                       samples['unsup_teacher']):
        assert label.matched.shape == (2, )
        assert label.masks.shape[0] == 2
    losses = model(inputs, samples, mode='loss')
    assert torch.isfinite(model.parse_losses(losses)[0])


@pytest.mark.parametrize('options', [
    dict(mean=[1., 2, 3], std=[2., 4, 8], bgr_to_rgb=True),
    dict(mean=[1., 2, 3], std=[2., 4, 8]),
    {},
])
def test_normalisation_is_undone(options):
    from mmengine.model import ImgDataPreprocessor
    preprocessor = ImgDataPreprocessor(**options)
    image = torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8)
    inputs = preprocessor(dict(inputs=[image]))['inputs'].float()
    if isinstance(inputs, list):
        inputs = torch.stack(inputs)
    restored = view_images(inputs, preprocessor)[0]
    assert torch.equal(restored, image.flip(0).float())
    gray = view_images(torch.full((1, 1, 2, 2), 7.), ImgDataPreprocessor())
    assert torch.equal(gray, torch.full((1, 3, 2, 2), 7.))
