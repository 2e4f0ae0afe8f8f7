# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The configs for digits with few labels of every class."""
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmsemi.datasets import make_digits
from mmsemi.methods import load_segmentor_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(ROOT.glob('configs/*/*_digits-*shot.py'))
SPLIT = 'instances_train.seed0-fold0@2shot'
NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven',
         'eight', 'nine')
# Of what is trained here, the others are parts.
WHOLE = [
    path for path in CONFIGS if '-5shot' in path.name and (
        path.stem.startswith('seminst') and '_1xb16' in path.stem
        and 'two-stage' not in path.stem
        or path.parent.name in ('fixmatch', 'uda'))
]


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """Scenes with two labelled instances of every class, and others."""
    return make_digits(
        tmp_path_factory.mktemp('digits') / 'digits',
        num_train=40,
        num_val=4,
        image_size=48,
        digits_per_scene=(1, 2),
        percents=(),
        shots=(2, ))


@lru_cache(maxsize=None)
def loaded(path: Path) -> dict:
    return Config.fromfile(path).to_dict()


def replaced(node, words: dict):
    """Return a part of a config with other words in its strings."""
    if isinstance(node, dict):
        return {key: replaced(value, words) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(replaced(value, words) for value in node)
    if isinstance(node, str):
        for old, new in words.items():
            node = node.replace(old, new)
    return node


def small(path: Path, root: Path, work_dir: Path) -> Config:
    """Return a config on the scenes of the test, for a step per stage."""
    words = {'data/digits/': f'{root}/'}
    for shots in (5, 10):
        words[f'instances_train.seed0-fold0@{shots}shot'] = SPLIT
    config = Config(replaced(loaded(path), words))
    for loader in (config.train_dataloader, config.val_dataloader,
                   config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    if 'stage1_iters' in config.train_cfg:
        config.train_cfg.update(
            stage1_iters=1, stage2_iters=1, val_interval=1)
    else:
        config.train_cfg.update(max_iters=2, val_interval=2)
    # Their warm-up is longer.
    config.param_scheduler = []
    config.default_hooks.logger.interval = 1
    config.work_dir = str(work_dir)
    config.randomness = dict(seed=0)
    return config


def favour_objects(model) -> None:
    """Let queries of an untrained model never see nothing."""
    head = model.panoptic_head
    layers = [head.cls_embed] if hasattr(
        head, 'cls_embed') else [mlp.layers[-1] for mlp in head.cls_embeds]
    for layer in layers:
        # Further than the cosines of texts reach.
        torch.nn.init.constant_(layer.bias[-1:], -50.)


def trained(config: Config) -> tuple:
    """Train and return the runner and what it has logged."""
    runner = Runner.from_cfg(config)
    if hasattr(runner.model.student, 'panoptic_head'):
        favour_objects(runner.model.student)
    runner.train()
    history = {
        key: buffer.data[0]
        for key, buffer in runner.message_hub.log_scalars.items()
    }
    assert np.isfinite(history['train/loss']).all()
    return runner, history


def test_five_and_ten_labels_differ_in_their_files():
    pairs = [(path, path.with_name(path.name.replace('-5shot', '-10shot')))
             for path in CONFIGS if '-5shot' in path.name]
    assert len(pairs) == 12 == len(CONFIGS) // 2
    for five, ten in pairs:
        assert loaded(five) != loaded(ten)
        assert replaced(loaded(five), {'@5shot': '@10shot'}) == loaded(ten)


@pytest.mark.parametrize('path', CONFIGS, ids=[p.stem for p in CONFIGS])
def test_model_builds_and_knows_the_names(path):
    model = MODELS.build(Config(loaded(path)).copy().model)
    student = getattr(model, 'student', model)
    texts = [
        module for name, module in student.named_modules()
        if name.endswith(('semantic_branch', 'fc_cls.branch'))
    ]
    with_text = path.parent.name == 'seminst' and 'two-stage' not in path.stem
    assert len(texts) == with_text
    for branch in texts:
        branch.check_classes(NAMES)
        assert branch.classes == NAMES
    # One size for both, so that their steps can be compared.
    count = sum(p.numel() for p in student.parameters()) / 1e6
    assert .4 < count < .65


@pytest.mark.parametrize('path', WHOLE, ids=[p.stem for p in WHOLE])
def test_training_with_pseudo_labels(path, root, tmp_path, monkeypatch):
    # Formatting it would take most of the time.
    monkeypatch.setattr(Config, 'pretty_text', 'config')
    config = small(path, root, tmp_path)
    config.model.pseudo_label_pipeline[0].score_thr = 0.
    if 'fastinst' not in path.stem:
        config.model.segmentor.test_cfg.rcnn.score_thr = 0.
    runner, history = trained(config)
    assert history['train/pseudo/per_image'][-1] > 0
    assert any(key.startswith('train/unsup_loss') for key in history)
    assert 0 <= history['val/student/coco/segm_mAP'][-1] <= 1
    staged = path.parent.name == 'seminst'
    assert ('val/teacher/coco/segm_mAP' in history) is staged
    assert (tmp_path / 'stage1.pth').is_file() is staged
    assert runner.model.soft_labels is (path.parent.name == 'uda')


# Calibration ---------------------------------------------------------------


def mask2former(tiny_segmentor_config) -> dict:
    """Return a small Mask2Former for ten digits that reads their names."""
    config = load_segmentor_config(tiny_segmentor_config('mask2former'))
    config.data_preprocessor.batch_augments = None
    config.panoptic_head.update(
        type='mmsemi.SemanticMask2FormerHead',
        num_things_classes=10,
        semantic_branch=dict(
            text_embeddings=dict(model='char-ngrams', classes=NAMES)))
    config.panoptic_head.loss_cls.class_weight = [1.] * 10 + [.1]
    config.panoptic_fusion_head.update(
        type='mmsemi.QueryFusionHead', num_things_classes=10)
    return config


@pytest.mark.parametrize('segmentor', ['fastinst', 'text', 'mask2former'])
def test_scores_of_query_heads_are_calibrated(segmentor, root, tmp_path,
                                              monkeypatch,
                                              tiny_segmentor_config):
    monkeypatch.setattr(Config, 'pretty_text', 'config')
    row = 'two-stage_' if segmentor == 'fastinst' else ''
    path, = ROOT.glob(f'configs/seminst/seminst_fastinst_r18_{row}1xb16-2k_'
                      'digits-5shot.py')
    config = small(path, root, tmp_path)
    if segmentor == 'mask2former':
        config.model.segmentor = mask2former(tiny_segmentor_config)
    config.model.pseudo_label_pipeline = [
        dict(
            type='mmsemi.CalibrateScores',
            calibrator=dict(num_classes=10, mode='scalar')),
        dict(type='mmsemi.FilterByScore', score_thr=0.)
    ]
    dataset = config.test_dataloader.dataset.copy()
    config.custom_hooks.append(
        dict(
            type='mmsemi.CalibrationHook',
            dataloader=dict(batch_size=2, num_workers=0, dataset=dataset)))
    runner = Runner.from_cfg(config)
    model = runner.model
    favour_objects(model.student)
    calibrator = model.pseudo_label_pipeline.stages[0].calibrator
    seen = []
    label = model.label_unlabeled

    def labelled(*args):
        seen.append((bool(calibrator.active), label(*args)))
        return seen[-1][1]

    monkeypatch.setattr(model, 'label_unlabeled', labelled)
    runner.train()
    # One step with pseudo-labels, and none before the first measurement.
    (active, pseudo_labels), = seen
    assert active
    assert float(calibrator.statistics[..., 0].sum()) > 0
    raw = torch.cat([found.raw_scores for found in pseudo_labels])
    scores = torch.cat([found.scores for found in pseudo_labels])
    # An untrained model is right more seldom than it thinks.
    assert len(raw) > 0 and (scores < raw).any()
    assert (scores <= raw + 1e-6).all()
