# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Long-tailed digits, and the ladder of configs that trains on them."""
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine import Config
from mmengine.dataset import ClassBalancedDataset
from mmengine.runner import Runner

from mmsemi.datasets import LongTailedDigitsDataset, make_digits
from mmsemi.datasets.calibration_split import hold_out_images
from mmsemi.datasets.digit_scenes import DIGIT_CLASSES
from mmsemi.datasets.digits import frequency_letters
from mmsemi.evaluation import LVISMetric

ROOT = Path(__file__).resolve().parents[1]
SPLIT = 'instances_train.seed0-fold0@50'


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """Twenty scenes with labels, a part of them held out, and twenty more."""
    folder = make_digits(
        tmp_path_factory.mktemp('digits') / 'digits_long_tail',
        num_train=40,
        num_val=6,
        image_size=48,
        digits_per_scene=(1, 2),
        long_tail=20,
        percents=(50, ))
    annotations = folder / 'annotations'
    labeled = json.loads((annotations / f'{SPLIT}.json').read_text())
    held_out = hold_out_images(labeled, 0.3, min_images=6)
    for part in ('fit', 'calib'):
        (annotations / f'{SPLIT}-{part}.json').write_text(
            json.dumps(getattr(held_out, part)))
    return folder


def test_a_tenth_is_rare_and_a_half_is_frequent():
    assert ''.join(frequency_letters(20)) == 'fffccccrrr'
    assert ''.join(frequency_letters(1)) == 'f' * 10
    # 100 ** (-1 / 3) is 0.215, 100 ** (-1 / 2) is 0.1.
    assert ''.join(frequency_letters(100)) == 'ffcccrrrrr'


def test_scenes_are_annotated_as_lvis_annotates(root):
    for split in ('train', 'val'):
        coco = json.loads(
            (root / f'annotations/instances_{split}.json').read_text())
        assert [c['frequency'] for c in coco['categories']
                ] == list(frequency_letters(20))
        for image in coco['images']:
            present = {
                a['category_id']
                for a in coco['annotations'] if a['image_id'] == image['id']
            }
            assert present
            assert image['neg_category_ids'] == sorted({*range(1, 11)} -
                                                       present)
            assert image['not_exhaustive_category_ids'] == []
            assert image['coco_url'] == f'{split}/{image["file_name"]}'


def test_balanced_scenes_stay_plain_coco(tmp_path):
    folder = make_digits(
        tmp_path / 'digits', num_train=4, num_val=1, percents=(100, ))
    path = folder / 'annotations/instances_train.json'
    coco = json.loads(path.read_text())
    assert {*coco['images'][0]} == {'id', 'file_name', 'height', 'width'}
    assert {*coco['categories'][0]} == {'id', 'name', 'supercategory'}
    with pytest.raises(ValueError, match='coco_url, neg_category_ids'):
        LongTailedDigitsDataset(
            data_root=str(folder),
            ann_file='annotations/instances_train.json').full_init()


def test_dataset_tells_frequencies_and_finds_its_scenes(root):
    dataset = LongTailedDigitsDataset(
        data_root=str(root),
        ann_file=f'annotations/{SPLIT}-fit.json',
        data_prefix=dict(img=''))
    assert dataset.metainfo['classes'] == DIGIT_CLASSES
    assert ''.join(dataset.metainfo['frequency']) == 'fffccccrrr'
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        assert Path(info['img_path']).is_file()
        present = {instance['bbox_label'] for instance in info['instances']}
        assert {*info['neg_category_ids']} == {*range(10)} - present
    with pytest.raises(FileNotFoundError, match='make_digits.py .*long-tail'):
        LongTailedDigitsDataset(
            data_root=str(root), ann_file='annotations/none.json')


def small(name: str, root: Path, work_dir: Path) -> Config:
    path, = ROOT.glob(f'configs/*/{name}_digits-long-tail-10p.py')
    config = Config.fromfile(path)

    def moved(node):
        if isinstance(node, dict):
            return {key: moved(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(moved(value) for value in node)
        if isinstance(node, str):
            node = node.replace('data/digits_long_tail/', f'{root}/')
            return node.replace('instances_train.seed0-fold0@10', SPLIT)
        return node

    config = Config(moved(config.to_dict()))
    for loader in (config.train_dataloader, config.val_dataloader,
                   config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.default_hooks.logger.interval = 1
    config.work_dir = str(work_dir)
    return config


def test_teacher_and_student_train_in_turn(root, tmp_path, monkeypatch):
    # Formatting it would take most of the time.
    monkeypatch.setattr(Config, 'pretty_text', 'config')
    name = 'better-pseudo-labels_mask-rcnn_r18-fpn'
    config = small(f'{name}_teacher_1xb8-1k', root, tmp_path / 'teacher')
    runner = Runner.from_cfg(config)
    runner.train()
    assert isinstance(runner.train_dataloader.dataset.datasets[0],
                      ClassBalancedDataset)
    assert isinstance(runner.val_evaluator.metrics[0], LVISMetric)

    config = small(f'{name}_1xb16-1k', root, tmp_path / 'student')
    config.model.teacher.update(
        checkpoint=str(tmp_path / 'teacher/iter_2.pth'), guided_steps=1)
    config.model.pseudo_label_pipeline[1].score_thr = 0.
    config.model.segmentor.test_cfg.rcnn.score_thr = 0.
    runner = Runner.from_cfg(config)
    runner.train()
    history = {
        key: buffer.data[0]
        for key, buffer in runner.message_hub.log_scalars.items()
    }
    assert np.isfinite(history['train/loss']).all()
    assert history['train/pseudo/per_image'][-1] > 0
    for name in ('APr', 'APc', 'APf'):
        assert f'val/student/lvis/segm_{name}' in history
    calibrator = runner.model.pseudo_label_pipeline.stages[0].calibrator
    assert calibrator.groups.tolist() == [2, 2, 2, 1, 1, 1, 1, 0, 0, 0]
    assert float(calibrator.statistics[..., 0].sum()) > 0
