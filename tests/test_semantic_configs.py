# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Configs for Pascal VOC and Cityscapes: lists, lengths, a short training."""
import copy
import re
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.optim.scheduler import PolyLR
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmsemi.apis import check_config
from mmsemi.datasets import KNOWN_SPLITS
from mmsemi.methods import load_segmentor_config

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r'(?P<model>.+)_(?P<gpus>\d+)xb(?P<batch>\d+)-\d+k_'
                  r'(?P<data>voc|voc-blended|cityscapes)-(?P<part>[^-]+)')
# Passes over the unlabelled list, and unlabelled images of one step.
UNIMATCH = dict(voc=(80, 8), cityscapes=(240, 8))
LENGTHS = {
    'unimatch': UNIMATCH,
    'dst': UNIMATCH,
    'uda': UNIMATCH,
    'unimatch_v2': dict(voc=(60, 16), cityscapes=(180, 8)),
    'fixmatch': dict(voc=(60, 16), cityscapes=(180, 8)),
    'cafs': UNIMATCH,
}
# All data sets in two sizes at least.
COMPARED = {*LENGTHS, 'cps', 'mean_teacher', 'supervised'} - {'cafs'}
ROUND_METHODS = ('self_training', 'st_plusplus', 'gist', 'rist')
# Shares in percent are of instances: tests/test_configs.py looks into these.
ALL_CONFIGS = sorted(path for path in ROOT.glob('configs/*/*.py')
                     if re.search(r'_(voc|cityscapes)-(?!\d+p)', path.stem))
ROUND_CONFIGS = [
    path for path in ALL_CONFIGS if path.parent.name in ROUND_METHODS
]
CONFIGS = sorted({*ALL_CONFIGS} - {*ROUND_CONFIGS})
PROTOCOLS = {
    'voc': 'original',
    'voc-blended': 'blended-cps',
    'cityscapes': 'city-cps'
}
SPLITS = {split.stem: split for split in KNOWN_SPLITS.values()}
CPS_PASSES = {
    'voc-blended': {
        '1over16': 32,
        '1over8': 34
    },
    'cityscapes': {
        '1over16': 128,
        '1over8': 137
    }
}
ONE_OF_EACH = list({
    (path.parent.name, re.sub('r101|r50|-[sb]_', '', m['model']), m['data']):
    path
    for path in reversed(CONFIGS) for m in [NAME.fullmatch(path.stem)]
}.values())
ONE_OF_EACH_ROUND_METHOD = list(
    {path.parent.name: path
     for path in ROUND_CONFIGS}.values())


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@lru_cache(maxsize=None)
def _load(path: Path) -> Config:
    return Config.fromfile(path)


def load(path: Path) -> Config:
    """Return a config that the test may change."""
    return copy.deepcopy(_load(path))


def named(paths: list) -> dict:
    return dict(argvalues=paths, ids=[path.stem for path in paths])


def segmentor_of(config: Config) -> dict:
    return load_segmentor_config(config.model.get('segmentor', config.model))


def split_of(path: Path):
    name = NAME.fullmatch(path.stem)
    return SPLITS[f'{PROTOCOLS[name["data"]]}-{name["part"]}']


# Lists and lengths --------------------------------------------------------


def test_every_method_has_both_data_sets():
    found = {(path.parent.name, name['data'].split('-')[0], name['part'])
             for path in ALL_CONFIGS for name in [NAME.fullmatch(path.stem)]}
    expected = {(method, data, part)
                for method in COMPARED for data in ('voc', 'cityscapes')
                for part in ('1over16', '1over8')}
    expected |= {(method, data, '1over8')
                 for method in ROUND_METHODS for data in ('voc', 'cityscapes')}
    # What the paper has numbers of.
    expected |= {('cafs', 'voc', 'full'), ('cafs', 'cityscapes', '1over4')}
    assert found >= expected
    assert {method for method, *_ in found} == {*COMPARED, *ROUND_METHODS,
                                                'cafs'}


@pytest.mark.parametrize('path', **named(CONFIGS))
def test_lists_are_those_of_the_converter(path):
    stem = split_of(path).stem
    sources = load(path).train_dataloader.dataset.datasets
    expected = [f'splits/{stem}.txt'
                ] + [f'splits/{stem}-unlabeled.txt'] * (len(sources) - 1)
    assert [source.ann_file for source in sources] == expected
    assert (len(sources) > 1) == (path.parent.name != 'supervised')
    # Masks of unlabelled images need not exist.
    assert [source.data_prefix.get('seg_map_path') is not None
            for source in sources] == [True] + [False] * (len(sources) - 1)


@pytest.mark.parametrize('path', **named(CONFIGS))
def test_length_is_as_published(path):
    config, name = load(path), NAME.fullmatch(path.stem)
    folder, gpus = path.parent.name, int(name['gpus'])
    steps, unlabeled = config.train_cfg.max_iters, split_of(path).unlabeled
    per_gpu = config.train_dataloader.batch_size
    assert config.auto_scale_lr.base_batch_size == gpus * per_gpu
    if folder == 'supervised':
        passes = config.train_cfg.max_iters / (3000 // gpus // per_gpu)
        dino = 'dinov2' in path.stem
        assert passes == dict(voc=60 if dino else 80, cityscapes=180
                              if dino else 240)[name['data']]
    elif folder in LENGTHS:
        passes, images = LENGTHS[folder][name['data']]
        # Each process has its share, and the last batch is dropped.
        share = -(-unlabeled // gpus)
        assert steps == share // (images // gpus) * passes
    else:
        assert steps == unlabeled // 8 * CPS_PASSES[name['data']][name['part']]
    assert config.param_scheduler.end - steps == (
        1 if folder in ('cps', 'mean_teacher') else 2)


@pytest.mark.parametrize('path', **named(ROUND_CONFIGS))
def test_lists_of_rounds_are_those_of_the_converter(path):
    stem, config = split_of(path).stem, load(path)
    labeled, = config.train_dataloader.dataset.datasets
    unlabeled = config.train_cfg.unlabeled_dataset
    assert labeled.ann_file == f'splits/{stem}.txt'
    assert unlabeled.ann_file == f'splits/{stem}-unlabeled.txt'
    assert 'seg_map_path' in labeled.data_prefix
    assert 'seg_map_path' not in unlabeled.data_prefix
    assert unlabeled.type == labeled.type
    assert unlabeled.data_root == labeled.data_root


@pytest.mark.parametrize('path', **named(ROUND_CONFIGS))
def test_rounds_are_as_long_as_those_of_st(path):
    """80 or 240 passes over a list with as many images of both kinds."""
    config, split = load(path), split_of(path)
    batch = config.train_dataloader.batch_size * int(
        NAME.fullmatch(path.stem)['gpus'])
    assert batch == config.auto_scale_lr.base_batch_size == 16
    passes = 80 if split.dataset == 'voc' else 240

    def steps(pseudo: int) -> int:
        times = -(-pseudo // split.labeled)
        return (split.labeled * times + pseudo) * passes // batch

    # Short lists are doubled.
    first = split.labeled * (2 if split.labeled < 200 else 1)
    expected = [first * passes // batch, steps(split.unlabeled)]
    settings = config.train_cfg
    if 'stages' in settings:
        trainings = settings.stages * (
            2 if settings.schedule == 'greedy' else 1)
        assert settings.get('beam', 1) == 1
        expected[1] //= trainings
        found = [settings.round_iters, settings.stage_iters]
    else:
        found = list(settings.round_iters)
        if settings.get('select_reliable'):
            expected.insert(1, steps(split.unlabeled // 2))
    assert found == expected
    # The schedule is that of one round, from its begin to its end.
    assert 'end' not in config.param_scheduler


@pytest.mark.parametrize('path', **named(ROUND_CONFIGS))
def test_crops_and_classes_of_rounds_agree(path):
    config = load(path)
    labeled, = config.train_dataloader.dataset.datasets
    crop, = {
        transform.crop_size
        for pipeline in (labeled.pipeline, config.train_cfg.pseudo_pipeline)
        for transform in pipeline if transform.type == 'RandomCrop'
    }
    city = '_cityscapes-' in path.stem
    assert crop == (721 if city else 321)
    assert tuple(config.model.data_preprocessor.size) == (crop, crop)
    assert config.model.decode_head.num_classes == (19 if city else 21)
    types = [transform.type for transform in config.train_cfg.pseudo_pipeline]
    # Strong augmentation is for pseudo-labelled images.
    assert {'mmsemi.StrongColor', 'mmsemi.Cutout'} < {*types}
    assert [t.type for t in labeled.pipeline] == [
        name for name in types
        if name not in ('mmsemi.StrongColor', 'mmsemi.Cutout')
    ]


@pytest.mark.parametrize('path', **named(CONFIGS))
def test_crops_padding_and_classes_agree(path):
    config = load(path)
    segmentor = segmentor_of(config)
    crops = {
        transform.crop_size
        for source in config.train_dataloader.dataset.datasets
        for transform in source.pipeline if transform.type == 'RandomCrop'
    }
    crop, = crops
    assert tuple(segmentor.data_preprocessor.size) == (crop, crop)
    if 'dinov2' in path.stem:
        assert crop % 14 == 0
    city = '_cityscapes-' in path.stem
    assert segmentor.decode_head.num_classes == (19 if city else 21)
    assert segmentor.decode_head.loss_decode.type == (
        'mmsemi.OhemCrossEntropyLoss' if city else 'CrossEntropyLoss')
    if city:
        assert segmentor.test_cfg.mode == 'slide'
        assert tuple(segmentor.test_cfg.crop_size) == (crop, crop)
    # A preprocessor beside the model would take the place of the segmenter's.
    assert 'data_preprocessor' not in config


# Schedules ----------------------------------------------------------------


def rates(schedule: str, steps: int) -> list:
    """Return the learning rates that 100 steps of a schedule really take."""
    config = Config.fromfile(ROOT / f'configs/_base_/schedules/{schedule}.py')
    scheduler = dict(config.param_scheduler)
    assert scheduler.pop('type') == 'PolyLR'
    scheduler['end'] += steps - config.max_iters
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    poly, used = PolyLR(optimizer, **scheduler), []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        poly.step()
    return used


def test_polynomial_rates():
    """T17: UniMatch sets the rate after the step, CPS before it."""
    poly = [1e-3 * (1 - step / 100)**0.9 for step in range(100)]
    assert rates('schedule_poly-sgd-cps', 100) == pytest.approx(poly)
    assert poly[:3] == pytest.approx([1e-3, .000990995, .000981982], abs=1e-9)
    late = [poly[0], *poly[:-1]]
    assert rates('schedule_poly-sgd', 100) == pytest.approx(late)
    assert rates('schedule_poly-adamw', 100) == pytest.approx(late)


@pytest.mark.parametrize('schedule, backbone, head', [
    ('schedule_poly-sgd', 1e-3, 1e-2),
    ('schedule_poly-sgd-cps', 2.5e-3, 2.5e-3),
    ('schedule_poly-adamw', 5e-6, 2e-4),
])
def test_rates_of_backbone_and_heads(schedule, backbone, head):
    config = Config.fromfile(ROOT / f'configs/_base_/schedules/{schedule}.py')
    wrapper = config.optim_wrapper
    rate = wrapper.optimizer.lr
    keys = wrapper.paramwise_cfg.get('custom_keys', {})
    assert rate == pytest.approx(head)
    assert rate * keys.get('backbone', {}).get('lr_mult', 1) == pytest.approx(
        backbone)


# Models, and a short training ---------------------------------------------

CROP = 42
RESNET = dict(depth=18, base_channels=4, stem_channels=4, init_cfg=None)
SMALL = dict(
    ResNetV1c=dict(
        backbone=RESNET,
        decode_head=dict(
            in_channels=32, c1_in_channels=4, c1_channels=4, channels=8)),
    DINOBackbone=dict(
        backbone=dict(
            model_name=None,
            config=dict(hidden_size=8, num_attention_heads=2, image_size=28)),
        decode_head=dict(
            in_channels=[8] * 4,
            channels=4,
            post_process_channels=[4, 4, 8, 8])))


def shrink_model(config: Config) -> None:
    """Make the model small, without touching what it is made of."""
    small = Config(dict(model=segmentor_of(config)))
    kind = small.model.backbone.type.split('.')[-1]
    small.merge_from_dict(dict(model=SMALL[kind]))
    segmentor = small.model
    if 'multi_grid' in segmentor.backbone:
        assert tuple(segmentor.backbone.pop('multi_grid')) == (2, 4, 8)
        segmentor.backbone.multi_grid = (2, 4)
    segmentor.data_preprocessor.size = (CROP, CROP)
    if segmentor.test_cfg.mode == 'slide':
        segmentor.test_cfg.update(crop_size=(CROP, CROP), stride=(28, 28))
    if 'segmentor' in config.model:
        config.model.segmentor = segmentor
    else:
        config.model = segmentor


@pytest.mark.parametrize('path', **named(ALL_CONFIGS))
def test_model_builds_at_its_real_size(path):
    config = load(path)
    with torch.device('meta'):
        model = MODELS.build(config.model)
    segmentor = getattr(model, 'student', model)
    if path.parent.name == 'cps':
        segmentor, other = model.networks
        assert type(segmentor) is type(other)
    count = sum(parameter.numel() for parameter in segmentor.parameters())
    lowest, highest = next(limits for net, limits in {
        'r50': (25e6, 30e6),
        'r101': (44e6, 50e6),
        'dinov2-s': (24e6, 25e6),
        'dinov2-b': (96e6, 98e6)
    }.items() if net in path.stem)
    assert lowest < count < highest


def write(folder: Path, name: str, values: np.ndarray) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / name), values)


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Write tiny data sets as both are laid out, with lists as converted."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.RandomState(0)
    size = (48, 64)

    def image() -> np.ndarray:
        return rng.randint(0, 256, (*size, 3), np.uint8)

    def mask(classes: int) -> np.ndarray:
        values = np.full(size, rng.randint(classes), np.uint8)
        values[10:30, 10:40] = rng.randint(classes)
        values[:2] = 255
        return values

    voc, city = root / 'VOCdevkit/VOC2012', root / 'cityscapes'
    ids = [f'2007_{i:06d}' for i in range(14)]
    for i, name in enumerate(ids):
        write(voc, f'JPEGImages/{name}.jpg', image())
        # Unlabelled images have no masks.
        if i < 8:
            write(voc, f'SegmentationClassAug/{name}.png', mask(21))
        if i >= 12:
            write(voc, f'SegmentationClass/{name}.png', mask(21))
    (voc / 'ImageSets/Segmentation').mkdir(parents=True)
    (voc / 'ImageSets/Segmentation/val.txt').write_text('\n'.join(ids[12:]))
    stems = [f'aachen/aachen_{i:06d}_000019' for i in range(12)]
    for i, name in enumerate(stems):
        write(city, f'leftImg8bit/train/{name}_leftImg8bit.png', image())
        if i < 8:
            write(city, f'gtFine/train/{name}_gtFine_labelTrainIds.png',
                  mask(19))
    for name in ('frankfurt/frankfurt_000000_000294', 'lindau/lindau_000001'):
        write(city, f'leftImg8bit/val/{name}_leftImg8bit.png', image())
        write(city, f'gtFine/val/{name}_gtFine_labelTrainIds.png', mask(19))
    for folder, names in ((voc, ids), (city, stems)):
        (folder / 'splits').mkdir()
        for stem in SPLITS:
            for end, part in (('', names[:8]), ('-unlabeled', names[8:12])):
                (folder / f'splits/{stem}{end}.txt').write_text(
                    '\n'.join(part))
    return root


def shrink(config: Config, root: Path) -> Config:
    """Make crops, data and schedule small."""
    shrink_model(config)
    sources = []
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].update(num_workers=0, persistent_workers=False)
        dataset = config[loader].dataset
        sources += dataset.get('datasets', [dataset])
    pipelines = [source.pipeline for source in sources]
    if 'unlabeled_dataset' in config.train_cfg:
        sources.append(config.train_cfg.unlabeled_dataset)
        pipelines.append(config.train_cfg.pseudo_pipeline)
        config.train_cfg.labeling.num_workers = 0
    for source in sources:
        assert source.data_root in ('data/VOCdevkit/VOC2012/',
                                    'data/cityscapes/')
        source.data_root = str(root / source.data_root[len('data/'):])
    for pipeline in pipelines:
        for transform in pipeline:
            if transform.type == 'RandomCrop':
                transform.crop_size = CROP
            elif 'base_size' in transform:
                transform.base_size = 64
    return config


def run(config: Config, work_dir: Path, monkeypatch) -> tuple:
    """Train; return the runner and what it logged."""
    # Formatting it for the log and the checkpoints would take most of the
    # time.
    monkeypatch.setattr(Config, 'pretty_text', '')
    config.default_hooks.logger.interval = 1
    config.randomness = dict(seed=0)
    config.work_dir = str(work_dir)
    runner = Runner.from_cfg(config)
    runner.train()
    history = {
        key: buffer.data[0]
        for key, buffer in runner.message_hub.log_scalars.items()
    }
    assert np.isfinite(history['train/loss']).all()
    assert 0 <= history['val/mIoU'][-1] <= 100
    assert list(work_dir.glob('best_mIoU_iter_*.pth'))
    return runner, history


@pytest.mark.parametrize('path', **named(ALL_CONFIGS))
def test_types_views_batches_and_classes_fit(path, data_root):
    config = shrink(load(path), data_root)
    assert check_config(config, build_model=False, load_data=False) == []


@pytest.mark.parametrize('path', **named(ONE_OF_EACH))
def test_config_trains_and_validates(path, data_root, tmp_path, monkeypatch):
    config = shrink(load(path), data_root)
    config.train_cfg.update(max_iters=1, val_interval=1)
    if '_8xb' in path.stem:
        # One image of a kind per GPU needs the statistics of the others.
        loader = config.train_dataloader
        loader.batch_size = loader.sampler.batch_size = 2 * loader.batch_size
    for hook in config.get('custom_hooks', []):
        if hook.type == 'mmsemi.ClassThresholdHook':
            hook.interval = 1
    runner, history = run(config, tmp_path, monkeypatch)
    if path.parent.name == 'supervised':
        return
    assert [key for key in history
            if re.match('train/(unsup_.*loss|loss_cps)', key)]
    assert [key for key in history if key.startswith('train/pseudo/')]
    if path.parent.name == 'cafs':
        stage, = runner.model.threshold_stages
        # An untrained model is right nowhere.
        assert stage.thresholds.unique().tolist() == pytest.approx([.95])
        hook = next(hook for hook in runner.hooks
                    if type(hook).__name__ == 'ClassThresholdHook')
        assert len(hook.held_out) == 2


@pytest.mark.parametrize('path', **named(ONE_OF_EACH_ROUND_METHOD))
def test_rounds_train_label_and_validate(path, data_root, tmp_path,
                                         monkeypatch):
    config = shrink(load(path), data_root)
    config.train_cfg.val_interval = 2
    if 'stages' in config.train_cfg:
        config.train_cfg.update(round_iters=2, stage_iters=2, stages=2)
    else:
        config.train_cfg.round_iters = [3] * len(config.train_cfg.round_iters)
    runner, history = run(config, tmp_path, monkeypatch)
    # GIST trains twice per stage.
    assert runner.iter == dict(
        self_training=6, st_plusplus=9, gist=10, rist=6)[path.parent.name]
    assert len(history['train/loss']) == runner.iter
    masks = tmp_path / 'self_training/round_0'
    assert len([*masks.rglob('*.png')]) == 4
