# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A referring segmenter inside the methods of semantic segmentation."""
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmsemi.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ('the red seven', 'the topmost digit')


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture
def make():

    def build(method, **settings):
        config = Config.fromfile(ROOT / 'configs/_base_/models/lavt_digits.py')
        config.merge_from_dict(
            dict(
                model=dict(
                    text_encoder=dict(config=dict(num_hidden_layers=1)),
                    backbone=dict(patch_size=4, strides=(4, 2, 2, 2),
                                  depths=(1, 1, 1, 1), embed_dims=8),
                    decode_head=dict(
                        in_channels=[8, 16, 32, 64], channels=8))))
        torch.manual_seed(0)
        return MODELS.build(
            dict(type=method, segmentor=config.model, **settings))

    return build


@pytest.fixture
def batch():
    """Views of two images each; the last image is 8 pixels shorter."""
    generator = torch.Generator().manual_seed(0)
    inputs, samples = {}, {}
    weak = torch.randn((2, 3, 64, 64), generator=generator)
    for view in ('sup', 'unsup_teacher', 'unsup_student'):
        noise = torch.randn((2, 3, 64, 64), generator=generator)
        inputs[view] = noise if view == 'sup' else weak
        if view == 'unsup_student':
            inputs[view] = weak + .1 * noise
        samples[view] = []
        for i, text in enumerate(TEXTS):
            sample = SegDataSample(
                metainfo=dict(
                    text=text,
                    img_shape=(64 - 8 * i, 64),
                    ori_shape=(64 - 8 * i, 64),
                    padding_size=(0, 0, 0, 8 * i)))
            if view == 'sup':
                truth = torch.randint(
                    0, 2, (1, 64, 64), generator=generator)
                sample.gt_sem_seg = PixelData(data=truth)
            samples[view].append(sample)
    return inputs, samples


KEEP_ALL = [dict(type='mmsemi.KeepConfidentPixels', conf_thr=0.)]


@pytest.mark.parametrize('method, settings', [
    ('mmsemi.FixMatch', dict(mix=None, pseudo_label_pipeline=KEEP_ALL)),
    ('mmsemi.UDA', dict(mix=None, pseudo_label_pipeline=KEEP_ALL)),
    ('mmsemi.MeanTeacher', {}),
    ('mmsemi.MeanTeacher', dict(use_labeled=True)),
    ('mmsemi.FixMatch',
     dict(
         mix=None,
         teacher=dict(mode='student'),
         label_in_train_mode=True,
         pseudo_label_pipeline=KEEP_ALL)),
])
def test_one_step_and_a_prediction(make, batch, method, settings):
    model = make(method, **settings).train()
    losses = model(*batch, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    for name, param in model.student.named_parameters():
        assert (param.grad is not None) == param.requires_grad, name
    assert sum(v for k, v in losses.items()
               if k.startswith('unsup')).item() > 0
    # Sentences of words and texts get their gradient, too.
    embeddings = model.student.text_encoder.bert.embeddings
    assert embeddings.word_embeddings.weight.grad.any()
    torch.optim.SGD(model.student.parameters(), .1).step()
    model.update_teacher()
    with torch.no_grad():
        found = model.eval()(
            batch[0]['sup'], batch[1]['sup'], mode='predict')
    assert [s.pred_sem_seg.data.shape for s in found] == [(1, 64, 64),
                                                          (1, 56, 64)]


def test_what_is_learned_belongs_to_the_sentence(make, batch):
    inputs, samples = batch
    model = make('mmsemi.FixMatch', mix=None, pseudo_label_pipeline=KEEP_ALL)
    labels = model.label_unlabeled(inputs['unsup_teacher'],
                                   samples['unsup_teacher'])
    with torch.no_grad():
        predicted = model.teacher.predict(
            inputs['unsup_teacher'],
            [s.clone() for s in samples['unsup_teacher']])
    assert torch.equal(labels[0].label, predicted[0].pred_sem_seg.data[0])
    assert not labels[1].valid[56:].any() and labels[1].valid[:56].all()
    unfiltered = model.predict_unfiltered(inputs['unsup_teacher'],
                                          samples['unsup_teacher'])
    assert torch.equal(unfiltered[0].confidence, labels[0].confidence)
    samples['unsup_teacher'][0].set_metainfo(dict(text='the blue two'))
    others = model.label_unlabeled(inputs['unsup_teacher'],
                                   samples['unsup_teacher'])
    assert not torch.equal(others[0].confidence, labels[0].confidence)
    assert torch.equal(others[1].confidence, labels[1].confidence)
    # The student would learn this for another sentence.
    with pytest.raises(ValueError, match="'the blue two' and 'the red seven'"):
        model(inputs, samples, mode='loss')


def test_stages_see_the_sentence(make, batch):
    inputs, samples = batch
    model = make('mmsemi.FixMatch', mix=None, pseudo_label_pipeline=KEEP_ALL)
    seen = []
    model.pseudo_label_pipeline.stages[0].register_forward_pre_hook(
        lambda _, args: seen.extend(args[1]))
    model.label_unlabeled(inputs['unsup_teacher'], samples['unsup_teacher'])
    assert [sample.text for sample in seen] == list(TEXTS)
    assert not any('gt_sem_seg' in sample for sample in seen)


def test_missing_sentence(make, batch):
    inputs, samples = batch
    model = make('mmsemi.MeanTeacher')
    for view in ('unsup_teacher', 'unsup_student'):
        samples[view] = [
            SegDataSample(metainfo=dict(img_shape=(64, 64)))
            for _ in range(2)
        ]
    with pytest.raises(ValueError, match='A data sample has no sentence'):
        model(inputs, samples, mode='loss')


@pytest.mark.parametrize('method', ['mmsemi.FixMatch', 'mmsemi.MeanTeacher'])
def test_mixing_is_refused(make, method):
    with pytest.raises(ValueError, match='one sentence per image.*mix=None'):
        make(method, mix=dict(type='mmsemi.CutMix'))


def test_fixmatch_mixes_by_default(make):
    with pytest.raises(ValueError, match='Set mix=None'):
        make('mmsemi.FixMatch')


@pytest.mark.parametrize('method',
                         ['CPS', 'DST', 'UniMatch', 'UniMatchV2'])
def test_methods_that_lose_the_sentence_refuse(make, method):
    settings = {} if method == 'CPS' else dict(mix=None)
    with pytest.raises(ValueError, match=f'mmsemi.{method} does not hand'):
        make(f'mmsemi.{method}', **settings)
