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
import torch
import yaml
from mmdet.datasets import CityscapesDataset, CocoDataset, LVISV1Dataset
from mmengine import Config
from mmengine.runner import Runner

from mmsemi.apis import check_config
from mmsemi.datasets.proposal_writer import ProposalWriter
from mmsemi.datasets.splits import (load_coco, split_coco, split_coco_k_shot,
                                    split_stem, write_split)
from mmsemi.datasets.trashcan import TRASHCAN_CLASSES, TrashCanDataset
from mmsemi.methods import load_segmentor_config
from mmsemi.methods.iterative_self_training import plan_units
from mmsemi.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in ROOT.glob('configs/*/*.py')
                 if path.parent.name != '_base_')
# FastInst and SemInst, with and without text, two stages and labels.
SEMINST_CONFIGS = [
    path for path in CONFIGS if path.parent.name in ('fastinst', 'seminst')
    or re.match('supervised_.*_1xb4-', path.name)
]
COCO_CONFIGS = [
    path for path in CONFIGS
    if '_coco-' in path.name and path not in SEMINST_CONFIGS
]
CITY_CONFIGS = [
    path for path in CONFIGS if re.search(r'_cityscapes-\d+p', path.name)
]
LVIS_CONFIGS = [path for path in CONFIGS if '_lvis-' in path.name]
# Plain models on labelled images, with smoothed labels.
SMOOTHED_TEACHERS = [path for path in CONFIGS if '_teacher_' in path.name]
INSTANCE_CONFIGS = (
    COCO_CONFIGS + CITY_CONFIGS + LVIS_CONFIGS + SEMINST_CONFIGS)
# tests/test_semantic_configs.py and tests/test_semires_configs.py look into
# these.
LISTED_CONFIGS = [
    path for path in CONFIGS
    if re.search('_(voc|cityscapes)-', path.name) and path not in CITY_CONFIGS
    or path.parent.name in ('lavt', 'semires')
]
ROUND_METHODS = ('self_training', 'st_plusplus', 'gist', 'rist')
METAFILES = sorted(ROOT.glob('configs/*/metafile.yml'))

# {method}_{model parts}_{GPUs}xb{images per GPU}-{steps}k_{data}-{part}
NAME_RULE = re.compile(r'(?P<method>[a-z0-9-]+)(_[a-z0-9-]+)+'
                       r'_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<length>\d+)k'
                       r'_(?P<data>[a-z0-9]+)-(?P<part>[a-z0-9-]+)')
PERCENTS = (1, 2, 5, 10)
# Heads for all 1,203 classes would take most of a training's time.
LVIS_CLASSES = LVISV1Dataset.METAINFO['classes'][:6]
# What SemInst is measured on, and what its labelled files are called there.
SEMINST_DATA = {
    'trashcan-10p': 'semi_anns/instances_train_trashcan.seed0-fold0@10',
    'coco-10p': 'semi_anns/instances_train2017.1@10',
    'coco-10shot': 'semi_anns/instances_train2017.seed0-fold0@10shot',
    'micrographs-own': 'annotations/instances_train',
    'digits-5shot': 'annotations/instances_train.seed0-fold0@5shot',
    'digits-10shot': 'annotations/instances_train.seed0-fold0@10shot'
}
# Images with labels and without, as far as they are known: passes over them
# are 200 in the first stage and 10 in the second.
SEMINST_IMAGES = {
    'trashcan-10p': (607, 5458),
    'coco-10p': (11829, 106458),
    'coco-10shot': (500, 117787),
    'micrographs-own': (20, 200)
}
MICROGRAPH_CLASSES = ('grain', )
# What papers call 5, 10, 20 and 30 % are 144, 296, 592 and 888 images.
CITY_PERCENTS = {'5p': 4.84, '10p': 9.95, '20p': 19.9, '30p': 29.85}

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
        test_cfg=dict(max_per_image=10)),
    FastInst=dict(
        backbone=BACKBONE,
        panoptic_head=dict(
            in_channels=[16, 32, 64],
            feat_channels=CHANNELS,
            out_channels=CHANNELS,
            # As many as a picture of 32 pixels has cells.
            num_queries=4,
            num_aux_queries=2,
            pixel_decoder=dict(norm_cfg=dict(num_groups=4)),
            transformer_decoder=dict(
                layer_cfg=dict(
                    self_attn_cfg=ATTENTION,
                    cross_attn_cfg=ATTENTION,
                    ffn_cfg=FEEDFORWARD))),
        train_cfg=dict(num_points=64),
        test_cfg=dict(max_per_image=10)))
# A basic block of ResNet-18 has no deformable convolution.
DEFORMABLE = dict(depth=50, base_channels=4, frozen_stages=-1, init_cfg=None)


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
    if 'stage2_iters' in settings:
        return [settings.stage1_iters, settings.stage2_iters]
    lengths = settings.round_iters
    if 'stages' in settings:
        units = plan_units(settings.schedule, settings.stages,
                           settings.get('beam', 1),
                           ['human'] * settings.stages)
        lengths = [lengths] + [settings.stage_iters] * (len(units) - 1)
    elif isinstance(lengths, int):
        lengths = [lengths] * (3 if settings.get('select_reliable') else 2)
    closing = settings.get('closing_iters', 0)
    return lengths + [closing] * (closing > 0)


def walk(node) -> Iterator[dict]:
    """Yield all dicts in a config."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    if not isinstance(node, str) and hasattr(node, '__iter__'):
        for child in node:
            yield from walk(child)


def plain(node):
    """Return a config without what changes nothing."""
    if isinstance(node, dict):
        # Config names give their dicts a scope, which is the default; mmdet
        # spells out some arguments that are None or False.
        return {
            key: plain(value)
            for key, value in node.items()
            if key != '_scope_' and value not in (None, False)
        }
    if isinstance(node, (list, tuple)):
        return [plain(child) for child in node]
    return node


def segmentor_of(config: Config) -> dict:
    """Return mmdet's model config of a supervised or a wrapped model."""
    if 'segmentor' in config.model:
        return load_segmentor_config(config.model.segmentor)
    return load_segmentor_config(config.model)


def unwrapped(dataset: Config) -> dict:
    """Return the config of the data set that reads files itself."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


# Names and lists ----------------------------------------------------------


@pytest.mark.parametrize('path', **named(CONFIGS))
def test_name_tells_what_is_inside(path):
    rule = NAME_RULE.fullmatch(path.stem)
    assert rule, f'{path.stem} does not obey the naming rule'
    assert rule['method'].replace('-', '_') == path.parent.name
    config = load(path)
    # mmdet rounds down. Of several rounds the longest one counts, but for a
    # closing one.
    config.train_cfg.pop('closing_iters', None)
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
    if path.parent.name == 'guided_distillation':
        # As in the released code, all images are unlabelled, too.
        files[1] = 'annotations/instances_train2017.json'
    assert files_of(path) == files[:1 if 'supervised' in path.name else 2]


@pytest.mark.parametrize('path', **named(CITY_CONFIGS))
def test_cityscapes_configs_read_what_the_split_tool_writes(path):
    source = 'instancesonly_filtered_gtFine_train'
    percent = CITY_PERCENTS[NAME_RULE.fullmatch(path.stem)['part']]
    files = [
        f'semi_anns/{split_stem(source, percent=percent)}.json',
        f'annotations/{source}.json'
    ]
    assert files_of(path) == files[:1 if 'supervised' in path.name else 2]


def files_of(path: Path) -> List[str]:
    """Return the annotation files that a config trains on."""
    sources = load(path).train_dataloader.dataset.datasets
    return [unwrapped(source).ann_file for source in sources]


def test_shares_of_cityscapes_are_those_of_the_papers():
    counts = [
        int(percent / 100 * 2975 + 0.5) for percent in CITY_PERCENTS.values()
    ]
    assert counts == [144, 296, 592, 888]


@pytest.mark.parametrize(
    'path', **named([p for p in CONFIGS if p.stem.startswith('guided')]))
def test_guides_are_trained_by_the_supervised_counterparts(path):
    teacher = load(path).model.teacher
    baseline = baseline_of(path)
    last = load(baseline).train_cfg.max_iters
    assert teacher.checkpoint == (
        f'work_dirs/{baseline.stem}/iter_{last}.pth')
    assert 0 < teacher.guided_steps < last


def seminst_rows() -> dict:
    """Return what SemInst is compared with, by segmenter and data.

    Rows are 'base', 'text', 'two-stage' and 'both'.
    """
    rule = re.compile(
        r'(?P<kind>supervised|seminst)_(?P<net>mask-rcnn_r(50|18)-fpn|'
        r'fastinst_r(50_d3|18))(_(?P<row>text|two-stage))?_1xb(4|8|16)-\d+k_'
        r'(?P<data>[a-z]+-[a-z0-9]+)')
    found = {}
    for path in CONFIGS:
        name = rule.fullmatch(path.stem)
        if name and name['data'] in SEMINST_DATA:
            row = name['row'] or ('base' if name['kind'] == 'supervised' else
                                  'both')
            found.setdefault((name['net'], name['data']), {})[row] = path
    return found


def test_seminst_has_every_combination():
    rows = seminst_rows()
    nets = dict(
        digits=('mask-rcnn_r18-fpn', 'fastinst_r18'),
        others=('mask-rcnn_r50-fpn', 'fastinst_r50_d3'))
    assert rows.keys() == {
        (net, data)
        for data in SEMINST_DATA
        for net in nets['digits' if 'digits' in data else 'others']
    }
    for found in rows.values():
        assert found.keys() == {'base', 'text', 'two-stage', 'both'}
    listed = {path for found in rows.values() for path in found.values()}
    # The published variants of FastInst, and the paper's optimizer.
    assert {
        path.stem
        for path in SEMINST_CONFIGS if path not in listed
    } == {
        'seminst_mask-rcnn_r50-fpn_adamw_1xb4-30k_trashcan-10p',
        *(f'fastinst_{net}_4xb4-368k_coco-full'
          for net in ('r50_d1', 'r50_d3', 'r101_d3', 'r50-d-dcn_d1',
                      'r50-d-dcn_d3'))
    }
    # What the student labels for itself has the same labels and steps.
    for method in ('fixmatch', 'uda'):
        assert {
            path.stem
            for path in CONFIGS
            if path.parent.name == method and 'shot' in path.stem
        } == {
            f'{method}_{net}_1xb16-2k_{data}'
            for net in nets['digits'] for data in SEMINST_DATA
            if 'digits' in data
        }


@pytest.mark.parametrize(
    'net, data', seminst_rows(), ids='-'.join)
def test_rows_of_seminst_differ_in_what_they_are_named_for(net, data):
    rows = {
        row: load(path)
        for row, path in seminst_rows()[net, data].items()
    }
    base = rows['base']
    fields = [semantic_part(rows[row]) for row in rows]
    assert {row: part is not None
            for row, part in zip(rows, fields)} == {
                'base': False,
                'text': True,
                'two-stage': False,
                'both': True
            }
    assert fields[list(rows).index('text')] == fields[list(rows).index('both')]
    for row, config in rows.items():
        staged = row in ('two-stage', 'both')
        assert (config.model.type == 'mmsemi.SemInst') is staged
        assert config.optim_wrapper == base.optim_wrapper
        assert config.val_evaluator == base.val_evaluator
        assert config.test_dataloader.dataset == base.test_dataloader.dataset
        # Without the names of the classes it is the same model.
        assert plain(without_text(segmentor_of(config))) == plain(
            segmentor_of(base))
        sources = config.train_dataloader.dataset.datasets
        stem = SEMINST_DATA[data]
        assert sources[0].ann_file == f'{stem}.json'
        assert len(sources) == 1 + staged
        if not staged:
            assert config.train_cfg == base.train_cfg
            assert config.param_scheduler == base.param_scheduler
            assert config.train_dataloader == base.train_dataloader
            continue
        if 'micrographs' in data:
            assert sources[1].img_dir == 'unlabeled/'
        else:
            assert sources[1].ann_file == f'{stem}-unlabeled.json'
        # Stage 1 sees what the base sees.
        batch = base.train_dataloader.batch_size
        assert config.train_cfg.stage1_batch_size == batch
        branches = sources[0].pipeline.pop()
        labeled, = base.train_dataloader.dataset.datasets
        assert plain(labeled.pipeline) == plain(sources[0].pipeline +
                                                branches.sup)
        first, *others = config.model.pseudo_label_pipeline
        assert (first.type,
                first.score_thr) == ('mmsemi.FilterByScore',
                                     .9 if 'digits' in data else .7)
        assert [stage.type for stage in others
                ] == ['mmsemi.FilterByMaskCells'] * ('digits' not in data)


@pytest.mark.parametrize(
    'net, data', [key for key in seminst_rows() if 'digits' not in key[1]],
    ids='-'.join)
def test_lengths_of_both_stages(net, data):
    labeled, unlabeled = SEMINST_IMAGES[data]
    rows = seminst_rows()[net, data]
    config = load(rows['both'])
    steps = config.train_cfg
    assert steps.stage1_iters == 200 * -(-labeled // 4)
    assert steps.stage2_iters == 10 * -(-unlabeled // 2)
    base = load(rows['base'])
    assert base.train_cfg.max_iters == steps.stage1_iters
    # The same rates in stage 1; in stage 2 a warm-up and a drop at 80 %.
    assert config.param_scheduler == base.param_scheduler
    warm_up, drop = steps.stage2_param_scheduler
    assert (warm_up.type, drop.type) == ('LinearLR', 'MultiStepLR')
    assert drop.milestones == [steps.stage2_iters * 8 // 10]
    assert drop.end == steps.stage2_iters


def test_both_stages_on_digits_are_as_long_as_supervised_training():
    for (_, data), rows in seminst_rows().items():
        if 'digits' not in data:
            continue
        lengths = [sum(round_lengths(load(path))) for path in rows.values()]
        assert lengths == [2000] * 4
        assert round_lengths(load(rows['both'])) == [1500, 500]
        for schedule in load(rows['both']).param_scheduler:
            # Else the schedules would not fit other lengths.
            assert schedule.get('end', 0) <= 50


@pytest.mark.parametrize(
    'path', **named([p for p in CONFIGS if 'fastinst' in p.stem]))
def test_optimizer_of_fastinst(path):
    config = load(path).optim_wrapper
    small = 'digits' in path.stem
    assert config.optimizer.lr == (.002 if small else .0001)
    assert (config.optimizer.type, config.optimizer.weight_decay) == ('AdamW',
                                                                      .05)
    assert config.get('clip_grad') is None
    rules = config.paramwise_cfg
    assert rules.norm_decay_mult == 0
    assert rules.custom_keys.aux_query == dict(decay_mult=0.)
    # What starts from nothing has one rate.
    assert rules.custom_keys.get('backbone') == (None if small else dict(
        lr_mult=.1))


def semantic_part(config: Config):
    """Return the settings of a model's semantic branch, or None."""
    found = [
        dict(text_embeddings=node['text_embeddings'])
        for node in walk(config.model) if 'text_embeddings' in node
    ]
    assert len(found) < 2
    return found[0] if found else None


def without_text(segmentor: dict) -> dict:
    """Return a segmenter's config without its semantic branch."""
    head = segmentor.get('roi_head', {}).get('bbox_head', {})
    if head.pop('cls_predictor_cfg', None):
        assert head.type == 'mmsemi.SemanticShared2FCBBoxHead'
        head.type = 'Shared2FCBBoxHead'
    segmentor.get('panoptic_head', {}).pop('semantic_branch', None)
    return segmentor


def test_every_combination_is_there():
    assert {path.stem for path in COCO_CONFIGS} == {
        f'{name}_coco-{percent}p'
        for percent in PERCENTS
        for name in ('mean-teacher_mask-rcnn_r50-fpn_8xb5-180k',
                     'mean-teacher_mask2former_r50_8xb2-368k',
                     'guided-distillation_mask-rcnn_r50-fpn_8xb5-180k',
                     'guided-distillation_mask2former_r50_8xb4-368k',
                     'supervised_mask-rcnn_r50-fpn_8xb1-180k',
                     'supervised_mask2former_r50_8xb1-368k',
                     'supervised_mask2former_r50_8xb2-368k')
    }
    assert {path.stem for path in CITY_CONFIGS} == {
        f'{name}_cityscapes-{part}'
        for part in CITY_PERCENTS
        for name in ('guided-distillation_mask-rcnn_r50-fpn_8xb2-24k',
                     'guided-distillation_mask2former_r50_8xb4-90k',
                     'supervised_mask-rcnn_r50-fpn_8xb1-24k',
                     'supervised_mask2former_r50_8xb2-90k')
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
def test_types_views_batches_and_classes_fit(path, tmp_path):
    config = load(path)
    for node in walk(config._cfg_dict):
        if node.get('type') == 'mmsemi.LoadMaskProposals':
            # One without an image.
            node.store = str(tmp_path)
            ProposalWriter(tmp_path, {}).close()
    if 'checkpoint' in config.model.get('teacher', {}):
        # Stands in for that of a training not run yet.
        config.model.teacher.checkpoint = __file__
    assert check_config(config, build_model=False, load_data=False) == []


def baseline_of(path: Path) -> Path:
    """Return the supervised config with the labelled half of the batch."""
    loader = load(path).train_dataloader
    ratio = loader.sampler.source_ratio
    labeled = loader.batch_size * ratio[0] / sum(ratio)
    assert labeled == int(labeled)
    name = path.name.replace(f'xb{loader.batch_size}-', f'xb{int(labeled)}-')
    name = re.sub('^[^_]+', 'supervised', name)
    name = re.sub(
        '_(cutmix|adaptive|entropy|refined|soft(-[a-z]+)?)(?=_)', '', name)
    return ROOT / 'configs/supervised' / name


# Rounds of training begin with labelled images alone.
ONLINE_CONFIGS = [
    path for path in CONFIGS
    if path.parent.name not in ('supervised', 'fastinst', 'seminst',
                                *ROUND_METHODS)
    and path not in LISTED_CONFIGS and path not in SMOOTHED_TEACHERS
]
# What gives and learns soft labels has the weights of what does not.
SOFT_TYPES = {
    'mmsemi.QueryFusionHead': 'MaskFormerFusionHead',
    'mmsemi.SoftClassificationCost': 'ClassificationCost',
    'mmsemi.SoftLabelFastInstHead': 'mmsemi.FastInstHead',
    'mmsemi.SoftLabelMask2FormerHead': 'Mask2FormerHead',
    'mmsemi.SoftLabelRoIHead': 'StandardRoIHead',
    'mmsemi.SoftLabelShared2FCBBoxHead': 'Shared2FCBBoxHead',
    'mmsemi.SoftCrossEntropyLoss': 'CrossEntropyLoss'
}


@pytest.mark.parametrize('path', **named(ONLINE_CONFIGS))
def test_supervised_counterpart_differs_in_nothing_else(path):
    semi, baseline = load(path), load(baseline_of(path))

    def same(get):
        assert plain(get(semi)) == plain(get(baseline))

    def trained(config):
        model = segmentor_of(config)
        for node in walk(model):
            if node.get('type') in SOFT_TYPES:
                node['type'] = SOFT_TYPES[node['type']]
        return model

    same(trained)
    same(lambda config: config.optim_wrapper)
    same(lambda config: config.param_scheduler)
    same(lambda config: config.train_cfg.max_iters)
    same(lambda config: config.test_dataloader.dataset.pipeline[1:])
    same(lambda config: config.val_evaluator)
    labeled, = baseline.train_dataloader.dataset.datasets
    wrapped = semi.train_dataloader.dataset.datasets[0]
    pipeline = unwrapped(wrapped).pipeline
    branches = pipeline.pop()
    assert branches.type == 'mmsemi.MultiBranch'
    pipeline += branches.sup
    assert plain(labeled) == plain(wrapped)


@pytest.mark.parametrize('path', **named(SMOOTHED_TEACHERS))
def test_smoothed_teachers_differ_in_their_labels_alone(path):
    teacher = load(path)
    loss, = [
        node for node in walk(teacher.model)
        if node.get('type') == 'mmsemi.SoftCrossEntropyLoss'
    ]
    assert loss.pop('smoothing').num_classes == (
        10 if 'digits' in path.name else 1203)
    loss.type = 'CrossEntropyLoss'
    hook, *others = teacher.pop('custom_hooks')
    assert hook.type == 'mmsemi.ClassPrototypeHook'
    baseline = load(
        ROOT / 'configs/supervised' / path.name.replace(
            'better-pseudo-labels', 'supervised').replace('_teacher', ''))
    assert others == baseline.pop('custom_hooks', [])
    assert teacher.to_dict() == baseline.to_dict()
    # Who learns from it finds it.
    images = teacher.train_dataloader.batch_size
    student = load(
        path.with_name(
            path.name.replace('_teacher', '').replace(f'xb{images}-',
                                                      f'xb{2 * images}-')))
    last = teacher.train_cfg.max_iters
    assert student.model.teacher.checkpoint == (
        f'work_dirs/{path.stem}/iter_{last}.pth')
    assert 0 < student.model.teacher.guided_steps < last


@pytest.mark.parametrize('path', **named(LVIS_CONFIGS))
def test_lvis_is_measured_by_its_rules_and_on_images_of_its_own(path):
    config = load(path)
    labeled, *unlabeled = config.train_dataloader.dataset.datasets
    assert (labeled.type, labeled.oversample_thr) == ('ClassBalancedDataset',
                                                      1e-3)
    used = [unwrapped(labeled).ann_file]
    # Images of LVIS val are of train2017.
    assert [source.img_dir for source in unlabeled
            ] == ['unlabeled2017/'] * len(unlabeled)
    for hook in config.get('custom_hooks', []):
        if 'dataloader' in hook:
            used.append(hook.dataloader.dataset.ann_file)
            pipeline = hook.dataloader.dataset.pipeline
            # Masks in the frame that the teacher sees.
            assert [t.type for t in pipeline[1:3]
                    ] == ['LoadAnnotations', 'Resize']
            assert pipeline[-1] == config.test_dataloader.dataset.pipeline[-1]
    assert used == [
        f'annotations/lvis_v1_train-{part}.json' for part in ('fit', 'calib')
    ][:len(used)]
    assert len(used) == 1 + len(unlabeled)
    assert config.val_evaluator.type == 'mmsemi.LVISMetric'
    assert {'neg_category_ids', 'not_exhaustive_category_ids'
            } < {*config.test_dataloader.dataset.pipeline[-1].meta_keys}


@pytest.mark.parametrize('path', **named(INSTANCE_CONFIGS))
def test_views_share_their_geometry(path):
    """Only then are pseudo-masks never resampled."""
    config = load(path)
    for source in config.train_dataloader.dataset.datasets[1:]:
        views = source.pipeline[-1]
        assert [t.type for t in views.unsup_teacher
                ] == ['mmsemi.PackDetInputs']
        assert [t.type for t in views.unsup_student
                ] == ['mmsemi.StrongColor', 'mmsemi.PackDetInputs']


@pytest.mark.parametrize('path', **named(CITY_CONFIGS))
def test_crops_of_cityscapes_are_as_wide_as_its_images(path):
    """mmdet crops by width and height, and pads to height and width."""
    config = load(path)
    crops = {
        tuple(transform.crop_size)
        for source in config.train_dataloader.dataset.datasets
        for transform in unwrapped(source).pipeline
        if transform.type == 'RandomCrop'
    }
    assert crops == {(1024, 512)}
    for augment in segmentor_of(config).data_preprocessor.get(
            'batch_augments') or ():
        assert tuple(augment['size']) == (512, 1024)


# A short training ---------------------------------------------------------


def write_images(root: Path, folder: str, names: List[str],
                 classes: tuple) -> dict:
    """Write tiny images and return their annotations, every class in turn."""
    rng = np.random.RandomState(0)
    categories = [
        dict(id=i, name=name) for i, name in enumerate(classes, 1)
    ]
    images, annotations = [], []
    for i, name in enumerate(names, 1):
        width, height = (56, 40) if i % 2 else (40, 56)
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(
            str(path), rng.randint(0, 256, (height, width, 3), np.uint8))
        images.append(
            dict(id=i, file_name=name, width=width, height=height))
        for x, y, w, h in ((4, 4, 20, 16), (20, 22, 14, 12)):
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=1 + i % len(classes),
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[outline]))
    return dict(images=images, annotations=annotations, categories=categories)


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory) -> Path:
    """Write 100 tiny images as COCO is laid out and split as documented."""
    root = tmp_path_factory.mktemp('coco')
    for part, num in (('train', 100), ('val', 2)):
        coco = write_images(root, f'{part}2017',
                            [f'{i:012d}.jpg' for i in range(1, num + 1)],
                            CocoDataset.METAINFO['classes'])
        ann_file = root / 'annotations' / f'instances_{part}2017.json'
        ann_file.parent.mkdir(exist_ok=True)
        ann_file.write_text(json.dumps(coco))
    coco = load_coco(root / 'annotations' / 'instances_train2017.json')
    for percent in PERCENTS:
        stem = split_stem(
            'instances_train2017', percent=percent, fold=1, scheme='mmdet')
        write_split(
            *split_coco(coco, percent, fold=1, scheme='mmdet'),
            root / 'semi_anns', stem)
    write_split(*split_coco_k_shot(coco, 2), root / 'semi_anns',
                split_stem('instances_train2017', shots=10))
    return root


@pytest.fixture(scope='module')
def trashcan_root(tmp_path_factory) -> Path:
    """Write tiny images as TrashCan is laid out, split as documented."""
    root = tmp_path_factory.mktemp('trashcan')
    for part, num in (('train', 20), ('val', 2)):
        coco = write_images(root, part,
                            [f'{part}{i}.jpg' for i in range(num)],
                            TRASHCAN_CLASSES)
        (root / f'instances_{part}_trashcan.json').write_text(
            json.dumps(coco))
    coco = load_coco(root / 'instances_train_trashcan.json')
    write_split(*split_coco(coco, 10, keep_all_classes=False),
                root / 'semi_anns',
                split_stem('instances_train_trashcan', percent=10))
    return root


@pytest.fixture(scope='module')
def micrographs_root(tmp_path_factory) -> Path:
    """Write tiny images of one class, and some without annotations."""
    root = tmp_path_factory.mktemp('micrographs')
    write_images(root, 'unlabeled', ['1.png', '2.png'], MICROGRAPH_CLASSES)
    (root / 'annotations').mkdir()
    for part in ('train', 'val'):
        coco = write_images(root, part, ['1.png', '2.png'],
                            MICROGRAPH_CLASSES)
        (root / f'annotations/instances_{part}.json').write_text(
            json.dumps(coco))
    return root


@pytest.fixture(scope='module')
def city_root(tmp_path_factory) -> Path:
    """Write images as mmdet's converter lays Cityscapes out, and split."""
    root = tmp_path_factory.mktemp('cityscapes')
    source = 'instancesonly_filtered_gtFine'
    for part, city, num in (('train', 'aachen', 180), ('val', 'lindau', 2)):
        coco = write_images(root, f'leftImg8bit/{part}', [
            f'{city}/{city}_{i:06d}_000019_leftImg8bit.png'
            for i in range(num)
        ], CityscapesDataset.METAINFO['classes'])
        ann_file = root / 'annotations' / f'{source}_{part}.json'
        ann_file.parent.mkdir(exist_ok=True)
        ann_file.write_text(json.dumps(coco))
    coco = load_coco(root / 'annotations' / f'{source}_train.json')
    for percent in CITY_PERCENTS.values():
        write_split(
            *split_coco(coco, percent), root / 'semi_anns',
            split_stem(f'{source}_train', percent=percent))
    return root


@pytest.fixture(scope='module')
def lvis_root(tmp_path_factory) -> Path:
    """Write tiny images with classes of LVIS, divided as documented."""
    root = tmp_path_factory.mktemp('lvis')
    write_images(root, 'unlabeled2017', ['1.jpg', '2.jpg', '3.jpg'],
                 LVIS_CLASSES)
    (root / 'annotations').mkdir()
    for name, num in (('train-fit', 4), ('train-calib', 2), ('val', 2)):
        names = [f'train2017/{name}-{i}.jpg' for i in range(num)]
        lvis = write_images(root, '.', names, LVIS_CLASSES)
        for image in lvis['images']:
            image.update(
                coco_url='http://images.cocodataset.org/' +
                image.pop('file_name'),
                neg_category_ids=[1, 2, 3, 4, 5, 6],
                not_exhaustive_category_ids=[])
        for category in lvis['categories']:
            category['frequency'] = 'rcf'[category['id'] % 3]
        (root / 'annotations' / f'lvis_v1_{name}.json').write_text(
            json.dumps(lvis))
    return root


def keep_few_classes(config: Config) -> None:
    """Leave few of the classes of LVIS, in data and model."""
    for node in walk(config._cfg_dict):
        if node.get('type') == 'mmsemi.LVISV1FederatedDataset':
            node.metainfo = dict(classes=LVIS_CLASSES)
        for field in ('num_classes', 'num_things_classes'):
            if node.get(field) == 1203:
                node[field] = len(LVIS_CLASSES)
        if len(node.get('class_weight') or ()) == 1204:
            node.class_weight = node.class_weight[-len(LVIS_CLASSES) - 1:]


def classes_of(config: Config) -> tuple:
    """Return the classes of a config's data."""
    dataset = config.test_dataloader.dataset
    if 'metainfo' in dataset:
        return dataset.metainfo.classes
    return dict(
        CocoDataset=CocoDataset, TrashCanDataset=TrashCanDataset)[
            dataset.type.split('.')[-1]].METAINFO['classes']


def shrink(config: Config, root: Path, work_dir: Path) -> Config:
    """Make a config small, without touching what it is made of."""
    keep_few_classes(config)
    segmentor = segmentor_of(config)
    small = Config(dict(model=segmentor))
    small.merge_from_dict(
        dict(model=SMALL[segmentor.type.replace('mmsemi.', '')]))
    times = 1
    if segmentor.backbone.get('dcn'):
        # A deformable kernel must fit into the coarsest map.
        times = 2
        small.model.backbone.update(DEFORMABLE)
        small.model.panoptic_head.in_channels = [32, 64, 128]
    if 'segmentor' in config.model:
        config.model.segmentor = small.model
        # An untrained model scores low, and the pictures are small.
        if config.model.type == 'mmsemi.SemInst':
            by_score, by_cells = config.model.pseudo_label_pipeline
            by_score.score_thr, by_cells.min_cells = 0., 0.
        elif 'guided_steps' in config.model.teacher:
            config.model.teacher.update(
                guided_steps=1, checkpoint=str(root / f'{small.model.type}'))
            torch.save(
                MODELS.build(copy.deepcopy(small.model)).state_dict(),
                config.model.teacher.checkpoint)
            stages = config.model.get('pseudo_label_pipeline', [])
            config.model.pseudo_label_pipeline = [
                *(s for s in stages if 'calibrator' in s),
                dict(type='mmsemi.FilterByScore', score_thr=0.),
                dict(type='mmsemi.FilterByMaskCells', min_cells=0.)
            ]
        else:
            config.model.teacher.burn_in_steps = 1
            by_score, by_area = config.model.pseudo_label_pipeline
            by_score.score_thr, by_area.min_area = 0., 1
    else:
        config.model = small.model
    for node in walk(config._cfg_dict):
        if node.get('data_root', '').startswith('data/'):
            node.data_root = f'{root}/'
        if isinstance(node.get('text_embeddings'), str):
            # Files of a language model.
            assert node.text_embeddings.endswith('/class_names_scibert.pt')
            node.text_embeddings = dict(
                model='char-ngrams', classes=classes_of(config))
        if node.get('type') == 'RandomCrop':
            node.crop_size = (64 * times, 64 * times)
        elif node.get('type') == 'RandomChoiceResize':
            node.scales = [(96 * times, 48 * times), (96 * times, 64 * times)]
        elif node.get('type') == 'Resize':
            node.scale = (96 * times, 64 * times)
        elif node.get('type') == 'RandomResize':
            node.scale = [(96, 48), (96, 64)] if isinstance(
                node.scale, list) else (64, 64)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].update(num_workers=0, persistent_workers=False)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = re.sub('^data/[a-z0-9_]+', str(root),
                                    evaluator.ann_file)
    if 'stage1_iters' in config.train_cfg:
        config.train_cfg.update(
            stage1_iters=1, stage2_iters=1, val_interval=1)
        config.train_cfg.stage2_param_scheduler = []
    else:
        config.train_cfg.update(max_iters=2, val_interval=2)
    config.train_cfg.pop('dynamic_intervals', None)
    config.default_hooks.logger.interval = 1
    for hook in config.get('custom_hooks', []):
        if 'interval' in hook:
            hook.interval = 1
        if 'dataloader' in hook:
            hook.dataloader.num_workers = 0
    config.randomness = dict(seed=0)
    config.work_dir = str(work_dir)
    return config


# Shares differ in their files alone, and the two supervised Mask2Formers in
# their batch, which the guided one has too.
ONE_SHARE = [
    p for p in COCO_CONFIGS + CITY_CONFIGS if p.stem.endswith('-10p')
    and not p.stem.startswith('supervised_mask2former_r50_8xb2-368k')
]
# Of LVIS supervised trainings are those of the teachers without smoothing.
ONE_LVIS = [
    p for p in LVIS_CONFIGS
    if p.parent.name == 'better_pseudo_labels' and 'swin' not in p.name
]


# With both parts on each data set; each part alone on one, FastInst twice.
ONE_SEMINST = [
    *(rows['both'] for (_, data), rows in seminst_rows().items()
      if data in ('trashcan-10p', 'coco-10shot', 'micrographs-own')),
    *(rows['text'] for (_, data), rows in seminst_rows().items()
      if data == 'trashcan-10p'),
    *(path for path in SEMINST_CONFIGS
      if re.match('fastinst_r50(-d-dcn)?_d1', path.stem))
]


@pytest.mark.parametrize('path',
                         **named(ONE_SHARE + ONE_LVIS + ONE_SEMINST))
def test_config_trains_and_validates(path, request, tmp_path, monkeypatch):
    # Formatting it for the log and the checkpoints would take most of the
    # time.
    monkeypatch.setattr(Config, 'pretty_text', path.stem)
    data = path.stem.rsplit('_', 1)[1].split('-')[0]
    root = dict(cityscapes='city_root').get(data, f'{data}_root')
    score = 'lvis/segm_AP' if data == 'lvis' else 'coco/segm_mAP'
    config = shrink(load(path), request.getfixturevalue(root), tmp_path)
    runner = Runner.from_cfg(config)
    runner.train()
    history = {
        key: buffer.data[0]
        for key, buffer in runner.message_hub.log_scalars.items()
    }
    assert np.isfinite(history['train/loss']).all()
    assert len(history['train/loss']) == 2
    assert 0 <= history[f'val/{score}'][-1] <= 1
    # Both stages may be equally bad.
    best = f'best_{score.replace("/", "_")}_iter_[12].pth'
    assert len([*tmp_path.glob(best)]) == 1
    if path in SMOOTHED_TEACHERS:
        loss, = [m for m in runner.model.modules() if hasattr(m, 'expand')]
        # Two instances in each of the four images.
        assert int(loss.smoothing.counts.sum()) == 8
    if 'segmentor' not in config.model:
        return
    if path.parent.name == 'seminst':
        kept = torch.load(tmp_path / 'stage1.pth', weights_only=True)
        assert kept['meta']['iter'] == 1
    # The second step came after the burn-in: it used pseudo-labels. A guided
    # burn-in uses them, too.
    assert int(runner.model.step) == 2
    unsup = [key for key in history if key.startswith('train/unsup_loss')]
    guided = 'guided_steps' in config.model.get('teacher', {})
    assert len(unsup) >= 3 and len(history[unsup[0]]) == 1 + guided
    assert history['train/pseudo/per_image'][-1] > 0
    for name in ('teacher', 'student'):
        assert f'val/{name}/{score}' in history
    assert list((tmp_path).rglob('iter_000002_0.png'))
    if data == 'lvis':
        calibrator = runner.model.pseudo_label_pipeline.stages[0].calibrator
        assert bool(calibrator.active)
        assert float(calibrator.statistics[..., 0].sum()) > 0
