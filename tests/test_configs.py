# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Every config loads, is listed, and runs through its own pipelines."""
import ast
import copy
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Iterator, List

import cv2
import numpy as np
import pytest
import yaml
from mmdet.datasets import CocoDataset
from mmengine import Config
from mmengine.runner import Runner

from mmsemi.apis import check_config
from mmsemi.datasets.splits import (load_coco, split_coco, split_stem,
                                    write_split)
from mmsemi.methods import load_segmentor_config
from mmsemi.methods.iterative_self_training import plan_units

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in ROOT.glob('configs/*/*.py')
                 if path.parent.name != '_base_')
COCO_CONFIGS = [path for path in CONFIGS if '_coco-' in path.name]
# tests/test_semantic_configs.py looks into these.
LISTED_CONFIGS = [
    path for path in CONFIGS if re.search('_(voc|cityscapes)-', path.name)
]
ROUND_METHODS = ('self_training', 'st_plusplus', 'gist', 'rist')
METAFILES = sorted(ROOT.glob('configs/*/metafile.yml'))

# {method}_{model parts}_{GPUs}xb{images per GPU}-{steps}k_{data}-{part}
NAME_RULE = re.compile(r'(?P<method>[a-z0-9-]+)(_[a-z0-9-]+)+'
                       r'_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<length>\d+)k'
                       r'_(?P<data>[a-z0-9]+)-(?P<part>[a-z0-9-]+)')
PERCENTS = (1, 2, 5, 10)

CHANNELS = 16
BACKBONE = dict(
    depth=18, base_channels=8, frozen_stages=-1, init_cfg=None)
ATTENTION = dict(embed_dims=CHANNELS, num_heads=2)
FEEDFORWARD = dict(embed_dims=CHANNELS, feedforward_channels=32)
POSITIONS = dict(num_feats=CHANNELS // 2)
SMALL = dict(
    MaskRCNN=dict(
        backbone=BACKBONE,
        neck=dict(in_channels=[8, 16, 32, 64], out_channels=CHANNELS),
        rpn_head=dict(in_channels=CHANNELS, feat_channels=CHANNELS),
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=CHANNELS),
            mask_roi_extractor=dict(out_channels=CHANNELS),
            bbox_head=dict(in_channels=CHANNELS, fc_out_channels=32),
            mask_head=dict(
                in_channels=CHANNELS, conv_out_channels=CHANNELS)),
        # An untrained model scores low.
        test_cfg=dict(
            rpn=dict(max_per_img=20),
            rcnn=dict(score_thr=0., max_per_img=10))),
    Mask2Former=dict(
        data_preprocessor=dict(batch_augments=[
            dict(type='BatchFixedSizePad', size=(64, 64), pad_mask=True)
        ]),
        backbone=BACKBONE,
        panoptic_head=dict(
            in_channels=[8, 16, 32, 64],
            feat_channels=CHANNELS,
            out_channels=CHANNELS,
            num_queries=10,
            positional_encoding=POSITIONS,
            pixel_decoder=dict(
                norm_cfg=dict(num_groups=4),
                positional_encoding=POSITIONS,
                encoder=dict(
                    num_layers=1,
                    layer_cfg=dict(
                        self_attn_cfg=ATTENTION, ffn_cfg=FEEDFORWARD))),
            transformer_decoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=ATTENTION,
                    cross_attn_cfg=ATTENTION,
                    ffn_cfg=FEEDFORWARD))),
        train_cfg=dict(num_points=64),
        test_cfg=dict(max_per_image=10)))


@lru_cache(maxsize=None)
def _load(path: Path) -> Config:
    return Config.fromfile(path)


def load(path: Path) -> Config:
    """Return a config that the test may change."""
    return copy.deepcopy(_load(path))


def named(paths: List[Path]) -> dict:
    return dict(argvalues=paths, ids=[path.stem for path in paths])


def round_lengths(config: Config) -> List[int]:
    """Return the steps of every round of a training; most have one."""
    settings = config.train_cfg
    if 'max_iters' in settings:
        return [settings.max_iters]
    lengths = settings.round_iters
    if 'stages' in settings:
        units = plan_units(settings.schedule, settings.stages,
                           settings.get('beam', 1),
                           ['human'] * settings.stages)
        return [lengths] + [settings.stage_iters] * (len(units) - 1)
    rounds = 3 if settings.get('select_reliable') else 2
    return [lengths] * rounds if isinstance(lengths, int) else lengths


def walk(node) -> Iterator[dict]:
    """Yield all dicts in a config."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    if not isinstance(node, str) and hasattr(node, '__iter__'):
        for child in node:
            yield from walk(child)


def segmentor_of(config: Config) -> dict:
    """Return mmdet's model config of a supervised or a wrapped model."""
    if 'segmentor' in config.model:
        return load_segmentor_config(config.model.segmentor)
    return load_segmentor_config(config.model)


# Names and lists ----------------------------------------------------------


@pytest.mark.parametrize('path', **named(CONFIGS))
def test_name_tells_what_is_inside(path):
    rule = NAME_RULE.fullmatch(path.stem)
    assert rule, f'{path.stem} does not obey the naming rule'
    assert rule['method'].replace('-', '_') == path.parent.name
    config = load(path)
    # mmdet rounds down. Of several rounds the longest one counts.
    assert abs(max(round_lengths(config)) / 1000 - int(rule['length'])) < 1
    batch = int(rule['batch'])
    assert config.train_dataloader.batch_size == batch
    if rule['data'] != 'digits':
        total = int(rule['gpus']) * batch
        assert config.auto_scale_lr.base_batch_size == total


@pytest.mark.parametrize('path', **named(COCO_CONFIGS))
def test_coco_configs_read_what_the_split_tool_writes(path):
    percent = int(NAME_RULE.fullmatch(path.stem)['part'].rstrip('p'))
    stem = split_stem(
        'instances_train2017', percent=percent, fold=1, scheme='mmdet')
    files = [f'semi_anns/{stem}.json', f'semi_anns/{stem}-unlabeled.json']
    sources = load(path).train_dataloader.dataset.datasets
    assert [source.ann_file for source in sources] == files[:len(sources)]
    assert len(sources) == (1 if path.parent.name == 'supervised' else 2)


def test_every_combination_is_there():
    assert {path.stem for path in COCO_CONFIGS} == {
        f'{name}_coco-{percent}p'
        for percent in PERCENTS
        for name in ('mean-teacher_mask-rcnn_r50-fpn_8xb5-180k',
                     'mean-teacher_mask2former_r50_8xb2-368k',
                     'supervised_mask-rcnn_r50-fpn_8xb1-180k',
                     'supervised_mask2former_r50_8xb1-368k')
    }


def test_inheritance_is_at_most_three_files_deep():

    def bases(path: Path) -> list:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
                names = ast.literal_eval(node.value)
                return [names] if isinstance(names, str) else names
        return []

    @lru_cache(maxsize=None)
    def depth(path: Path) -> int:
        # mmdet's own configs count as one file.
        return 1 + max((1 if '::' in name else depth(path.parent / name)
                        for name in bases(path)), default=0)

    assert {p.name: depth(p) for p in CONFIGS if depth(p) > 3} == {}


def test_model_index_lists_all_metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert sorted(index['Import']) == [
        str(path.relative_to(ROOT)) for path in METAFILES
    ]
    assert {path.parent for path in METAFILES} == {
        path.parent for path in CONFIGS
    }


@pytest.mark.parametrize(
    'metafile', METAFILES, ids=[path.parent.name for path in METAFILES])
def test_file_metafile_and_readme_say_the_same(metafile):
    stems = [path.stem for path in CONFIGS if path.parent == metafile.parent]
    content = yaml.safe_load(metafile.read_text())
    folder = metafile.parent.relative_to(ROOT)
    models = content['Models']
    assert sorted(model['Name'] for model in models) == stems
    for model in models:
        assert model['Config'] == f'{folder}/{model["Name"]}.py'
        assert model['In Collection'] == content['Collections'][0]['Name']
        config = load(ROOT / model['Config'])
        assert model['Metadata']['Iterations'] == sum(round_lengths(config))
    assert content['Collections'][0]['README'] == f'{folder}/README.md'
    readme = (metafile.parent / 'README.md').read_text()
    rows = re.findall(r'^\| `([^`]+)` +\|', readme, re.MULTILINE)
    assert sorted(rows) == stems
    # The numbers in a row are the results in the metafile; published ones are
    # not ours.
    for model in models:
        row = re.search(rf'^\| `{model["Name"]}` +(.*)$', readme,
                        re.MULTILINE)[1]
        results = [
            float(value) for result in model.get('Results', [])
            for value in result['Metrics'].values()
        ]
        row = re.sub(r'published \d+\.\d+', '', row)
        assert [float(x) for x in re.findall(r'\d+\.\d+', row)] == results


def test_links_in_readmes_lead_somewhere():
    for readme in ROOT.glob('configs/*/README.md'):
        text = readme.read_text()
        for link in re.findall(r'\]\((?!http)([^)#]+)', text):
            assert (readme.parent / link).exists(), (readme, link)
        for command in re.findall(r'(?:python|bash) (\S+\.(?:py|sh))', text):
            assert (ROOT / command).is_file(), (readme, command)
        for config in re.findall(r'configs/\S+\.py', text):
            assert (ROOT / config).is_file(), (readme, config)


# Contents -----------------------------------------------------------------


@pytest.mark.parametrize(
    'path', **named(sorted({*CONFIGS} - {*LISTED_CONFIGS})))
def test_types_views_batches_and_classes_fit(path):
    assert check_config(load(path), build_model=False, load_data=False) == []


def baseline_of(path: Path) -> Path:
    """Return the supervised config with the labelled half of the batch."""
    loader = load(path).train_dataloader
    ratio = loader.sampler.source_ratio
    labeled = loader.batch_size * ratio[0] / sum(ratio)
    assert labeled == int(labeled)
    name = path.name.replace(f'xb{loader.batch_size}-', f'xb{int(labeled)}-')
    name = re.sub('^[^_]+', 'supervised', name)
    name = re.sub('_(cutmix|adaptive|entropy)(?=_)', '', name)
    return ROOT / 'configs/supervised' / name


# Rounds of training begin with labelled images alone.
ONLINE_CONFIGS = [
    path for path in CONFIGS
    if path.parent.name not in ('supervised', *ROUND_METHODS)
    and path not in LISTED_CONFIGS
]


@pytest.mark.parametrize('path', **named(ONLINE_CONFIGS))
def test_supervised_counterpart_differs_in_nothing_else(path):
    semi, baseline = load(path), load(baseline_of(path))

    def plain(node):
        if isinstance(node, dict):
            # Config names give their dicts a scope, which is the default;
            # mmdet spells out some arguments that are None or False.
            return {
                key: plain(value)
                for key, value in node.items() if key != '_scope_'
                and value not in (None, False)
            }
        if isinstance(node, (list, tuple)):
            return [plain(child) for child in node]
        return node

    def same(get):
        assert plain(get(semi)) == plain(get(baseline))

    same(segmentor_of)
    same(lambda config: config.optim_wrapper)
    same(lambda config: config.param_scheduler)
    same(lambda config: config.train_cfg.max_iters)
    same(lambda config: config.test_dataloader.dataset.pipeline[1:])
    same(lambda config: config.val_evaluator)
    labeled, = baseline.train_dataloader.dataset.datasets
    wrapped = semi.train_dataloader.dataset.datasets[0]
    branches = wrapped.pipeline.pop()
    assert branches.type == 'mmsemi.MultiBranch'
    wrapped.pipeline += branches.sup
    assert plain(labeled) == plain(wrapped)


@pytest.mark.parametrize('path', **named(COCO_CONFIGS))
def test_views_share_their_geometry(path):
    """Only then are pseudo-masks never resampled."""
    config = load(path)
    for source in config.train_dataloader.dataset.datasets[1:]:
        views = source.pipeline[-1]
        assert [t.type for t in views.unsup_teacher
                ] == ['mmsemi.PackDetInputs']
        assert [t.type for t in views.unsup_student
                ] == ['mmsemi.StrongColor', 'mmsemi.PackDetInputs']


# A short training ---------------------------------------------------------


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory) -> Path:
    """Write 100 tiny images as COCO is laid out and split as documented."""
    root = tmp_path_factory.mktemp('coco')
    rng = np.random.RandomState(0)
    classes = CocoDataset.METAINFO['classes']
    categories = [
        dict(id=i, name=name) for i, name in enumerate(classes, 1)
    ]
    for part, num in (('train', 100), ('val', 2)):
        (root / f'{part}2017').mkdir()
        images, annotations = [], []
        for i in range(1, num + 1):
            width, height = (56, 40) if i % 2 else (40, 56)
            name = f'{i:012d}.jpg'
            cv2.imwrite(
                str(root / f'{part}2017' / name),
                rng.randint(0, 256, (height, width, 3), np.uint8))
            images.append(
                dict(id=i, file_name=name, width=width, height=height))
            for x, y, w, h in ((4, 4, 20, 16), (20, 22, 14, 12)):
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i,
                        category_id=1 + i % 80,
                        bbox=[x, y, w, h],
                        area=w * h,
                        iscrowd=0,
                        segmentation=[outline]))
        ann_file = root / 'annotations' / f'instances_{part}2017.json'
        ann_file.parent.mkdir(exist_ok=True)
        ann_file.write_text(
            json.dumps(
                dict(
                    images=images,
                    annotations=annotations,
                    categories=categories)))
    coco = load_coco(root / 'annotations' / 'instances_train2017.json')
    for percent in PERCENTS:
        stem = split_stem(
            'instances_train2017', percent=percent, fold=1, scheme='mmdet')
        write_split(
            *split_coco(coco, percent, fold=1, scheme='mmdet'),
            root / 'semi_anns', stem)
    return root


def shrink(config: Config, root: Path, work_dir: Path) -> Config:
    """Make a COCO config small, without touching what it is made of."""
    segmentor = segmentor_of(config)
    small = Config(dict(model=segmentor))
    small.merge_from_dict(dict(model=SMALL[segmentor.type]))
    if 'segmentor' in config.model:
        config.model.segmentor = small.model
        config.model.teacher.burn_in_steps = 1
        # An untrained model scores low, and the pictures are small.
        by_score, by_area = config.model.pseudo_label_pipeline
        by_score.score_thr, by_area.min_area = 0., 1
    else:
        config.model = small.model
    for node in walk(config._cfg_dict):
        if node.get('data_root') == 'data/coco/':
            node.data_root = f'{root}/'
        if node.get('type') == 'RandomCrop':
            node.crop_size = (64, 64)
        elif node.get('type') == 'Resize':
            node.scale = (96, 64)
        elif node.get('type') == 'RandomResize':
            node.scale = [(96, 48), (96, 64)] if isinstance(
                node.scale, list) else (64, 64)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].update(num_workers=0, persistent_workers=False)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = str(root / 'annotations/instances_val2017.json')
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.train_cfg.pop('dynamic_intervals', None)
    config.default_hooks.logger.interval = 1
    for hook in config.get('custom_hooks', []):
        if 'interval' in hook:
            hook.interval = 1
    config.randomness = dict(seed=0)
    config.work_dir = str(work_dir)
    return config


@pytest.mark.parametrize(
    'path', **named([p for p in COCO_CONFIGS if p.stem.endswith('-10p')]))
def test_config_trains_and_validates(path, coco_root, tmp_path, monkeypatch):
    # Formatting it for the log and the checkpoints would take most of the
    # time.
    monkeypatch.setattr(Config, 'pretty_text', path.stem)
    config = shrink(load(path), coco_root, tmp_path)
    runner = Runner.from_cfg(config)
    runner.train()
    history = {
        key: buffer.data[0]
        for key, buffer in runner.message_hub.log_scalars.items()
    }
    assert np.isfinite(history['train/loss']).all()
    assert len(history['train/loss']) == 2
    assert 0 <= history['val/coco/segm_mAP'][-1] <= 1
    assert (tmp_path / 'best_coco_segm_mAP_iter_2.pth').is_file()
    if path.parent.name == 'supervised':
        return
    # The second step came after the burn-in: it used pseudo-labels.
    assert int(runner.model.step) == 2
    unsup = [key for key in history if key.startswith('train/unsup_loss')]
    assert len(unsup) >= 3 and len(history[unsup[0]]) == 1
    assert history['train/pseudo/per_image'][-1] > 0
    for name in ('teacher', 'student'):
        assert f'val/{name}/coco/segm_mAP' in history
    assert list((tmp_path).rglob('iter_000002_0.png'))
