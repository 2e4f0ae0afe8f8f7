# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.runner import Runner

from mmsemi.datasets.digits import make_digits

BASE = Path(__file__).resolve().parents[2] / 'configs/_base_/datasets'
SETS = {
    'refcoco': 'refcoco-unc',
    'refcoco-plus': 'refcoco+-unc',
    'refcocog': 'refcocog-umd'
}


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return make_digits(
        tmp_path_factory.mktemp('data') / 'digits',
        num_train=24,
        num_val=3,
        percents=(50, ),
        referring=True)


def load(name, root=None):
    config = Config.fromfile(BASE / f'{name}.py')
    if root is None:
        return config
    sources = config.train_dataloader.dataset.datasets
    for source in (*sources, config.val_dataloader.dataset):
        source.data_root = str(root)
        source.serialize_data = False
    for source, part in zip(sources, ('', '-unlabeled')):
        source.image_list = f'splits/referring.seed0-fold0@50{part}.txt'
    config.train_dataloader.update(num_workers=0, persistent_workers=False)
    return config


def test_semi_supervised_digits(digits):
    config = load('semi_digits_referring', digits)
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    batch = next(iter(loader))
    for view, labelled in (('sup', True), ('unsup_teacher', False),
                           ('unsup_student', False)):
        samples = [s for s in batch['data_samples'][view] if s is not None]
        assert len(samples) == 8
        for sample in samples:
            assert ('gt_sem_seg' in sample) is labelled
            assert sample.text.startswith('the ')
            if labelled:
                assert sample.gt_sem_seg.data.shape == (1, 64, 64)
                assert sample.gt_sem_seg.data.max() == 1
    changed = []
    for i in range(8, 16):
        teacher, student = (batch['data_samples'][f'unsup_{view}'][i]
                            for view in ('teacher', 'student'))
        assert teacher.text == student.text
        images = [
            batch['inputs'][f'unsup_{view}'][i]
            for view in ('teacher', 'student')
        ]
        assert images[0].shape == (3, 64, 64)
        changed.append(not torch.equal(*images))
    # Colours and blur may both be left out by chance.
    assert sum(changed) >= 4


def test_supervised_digits_and_evaluation(digits):
    config = load('digits_referring', digits)
    assert len(config.train_dataloader.dataset.datasets) == 1
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    batch = next(iter(loader))
    assert len(batch['inputs']) == 8
    assert all('gt_sem_seg' in s for s in batch['data_samples'])

    dataset = DATASETS.build(config.val_dataloader.dataset)
    metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for i in range(4):
        sample = dataset[i]['data_samples'].to_dict()
        sample['pred_sem_seg'] = sample['gt_sem_seg']
        metric.process(None, [sample])
    assert metric.evaluate(4)['oIoU'] == 100


@pytest.mark.parametrize('name, num_sources', [('refcoco', 1),
                                               ('semi_refcoco', 2),
                                               ('semi_refcoco-plus', 2),
                                               ('semi_refcocog', 2)])
def test_refcoco(name, num_sources):
    config, stem = load(name), SETS[name.replace('semi_', '')]
    sources = config.train_dataloader.dataset.datasets
    assert len(sources) == num_sources
    for source, part in zip(sources, ('', '-unlabeled')):
        assert source.ann_file == f'refer/{stem}.json'
        assert source.image_list == f'refer/splits/{stem}.semires@1{part}.txt'
        assert source.get('labeled', True) is (part == '')
    for loader in (config.val_dataloader, config.test_dataloader):
        assert loader.dataset.ann_file == f'refer/{stem}.json'
        assert loader.dataset.sentence == 'all'
    assert config.train_dataloader.batch_size == \
        config.train_dataloader.sampler.batch_size


@pytest.mark.parametrize('name', ['semi_refcoco', 'refcoco'])
def test_refcoco_pipelines_run(name, digits):
    config = load(name)
    for source in config.train_dataloader.dataset.datasets:
        source.update(
            data_root=str(digits),
            data_prefix=dict(img_path=''),
            ann_file='annotations/referring.json',
            image_list=None,
            serialize_data=False)
    dataset = DATASETS.build(config.train_dataloader.dataset)
    for i in (0, len(dataset) - 1):
        inputs = dataset[i]['inputs']
        if not isinstance(inputs, dict):
            inputs = dict(sup=inputs)
        shapes = {
            view: tuple(image.shape)
            for view, image in inputs.items() if image is not None
        }
        assert set(shapes.values()) == {(3, 480, 480)}
