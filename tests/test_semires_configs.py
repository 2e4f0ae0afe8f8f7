# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Configs of referring segmentation: lists, lengths, a short training."""
import argparse
import copy
import functools
import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmsemi.apis import check_config, load_config
from mmsemi.apis.cli import add_cfg_options
from mmsemi.datasets.digits import make_digits
from mmsemi.datasets.proposal_writer import ProposalWriter
from mmsemi.pseudo_labels import PseudoLabelPipeline, pixel_weight

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r'(?P<method>lavt|semires)_(?P<model>.+)_(?P<gpus>\d+)xb'
                  r'(?P<batch>\d+)-(?P<length>\d+)k_(?P<data>refcoco\w*)-'
                  r'(?P<part>\w+)')
STEMS = dict(
    refcoco='refcoco-unc',
    refcocoplus='refcoco+-unc',
    refcocog='refcocog-umd')
# References of train, and how many of them have masks at 1 %: what figure 6
# of SemiRES leaves.
REFS = dict(
    refcoco=(42404, 42404 - 41972),
    refcocoplus=(42278, 42278 - 41830),
    refcocog=(42226, 42226 - 41797))
PERCENTS = {'1over200': 0.5, '1over100': 1, '1over50': 2, '1over20': 5}
FOLDERS = [ROOT / 'configs' / name for name in ('lavt', 'semires')]
ALL_CONFIGS = sorted(path for folder in FOLDERS for path in folder.glob('*.py')
                     )
CONFIGS = [path for path in ALL_CONFIGS if NAME.fullmatch(path.stem)]
DIGITS = [path for path in ALL_CONFIGS if path not in CONFIGS]
SEMI = [path for path in CONFIGS if path.parent.name == 'semires']
# Other shares differ in their lists and lengths, which are looked at.
TRAINED = [
    path for path in ALL_CONFIGS
    if re.search('-(1over100|full|2p)$', path.stem)
]
REFINED = sorted(ROOT.glob('configs/*/*_refined_*.py'))
SIZE = (64, 64)


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@functools.lru_cache(maxsize=None)
def _load(path: Path) -> Config:
    return Config.fromfile(path)


def load(path: Path) -> Config:
    """Return a config that the test may change."""
    return copy.deepcopy(_load(path))


def named(paths: list) -> dict:
    return dict(argvalues=paths, ids=[path.stem for path in paths])


def walk(node):
    """Yield all dicts in a config."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    if not isinstance(node, str) and hasattr(node, '__iter__'):
        for child in node:
            yield from walk(child)


def sources_of(config: Config) -> list:
    loaders = (config.val_dataloader, config.test_dataloader)
    return [
        *config.train_dataloader.dataset.datasets,
        *(loader.dataset for loader in loaders)
    ]


# Names, lists and lengths -------------------------------------------------


def test_every_combination_is_there():
    found = {(path.parent.name, name['data'], name['part'])
             for path in CONFIGS for name in [NAME.fullmatch(path.stem)]}
    expected = {(method, data, part)
                for method in ('lavt', 'semires') for data in STEMS
                for part in PERCENTS}
    assert found == expected | {('lavt', data, 'full') for data in STEMS}
    assert {path.stem for path in DIGITS} == {
        'lavt_swin_1xb8-3k_digits-2p',
        *(f'semires_lavt-swin_{row}1xb16-3k_digits-2p'
          for row in ('', 'baseline_', 'iom_', 'cpi-u_', 'sam_'))
    }


@pytest.mark.parametrize('path', **named(CONFIGS))
def test_lists_are_those_of_the_tools(path):
    name, config = NAME.fullmatch(path.stem), load(path)
    stem = STEMS[name['data']]
    assert {s.ann_file for s in sources_of(config)} == {f'refer/{stem}.json'}
    assert {s.data_root for s in sources_of(config)} == {'data/coco/'}
    lists = [s.image_list for s in config.train_dataloader.dataset.datasets]
    if name['part'] == 'full':
        assert lists == [None]
        return
    expected = f'refer/splits/{stem}.semires@{PERCENTS[name["part"]]}'
    ends = ('', '-unlabeled') if path in SEMI else ('', )
    assert lists == [f'{expected}{end}.txt' for end in ends]
    labelled = [
        s.get('labeled', True)
        for s in config.train_dataloader.dataset.datasets
    ]
    assert labelled == [True, False][:len(ends)]


@pytest.mark.parametrize('path', **named(CONFIGS))
def test_lengths_are_40_passes(path):
    name, config = NAME.fullmatch(path.stem), load(path)
    total, labelled = REFS[name['data']]
    steps = config.train_cfg.max_iters
    batch = int(name['gpus']) * config.train_dataloader.batch_size
    assert config.auto_scale_lr.base_batch_size == batch
    assert config.param_scheduler.end == steps + 1
    if name['part'] == 'full':
        assert steps == 40 * (total // batch) and batch == 32
        assert config.train_cfg.val_interval == total // batch
        return
    labelled *= PERCENTS[name['part']]
    if path in SEMI:
        # One length for all shares: what is unlabelled hardly differs.
        assert 39.5 < steps * batch / 2 / (total - labelled) < 42
        assert steps / config.train_cfg.val_interval == 40
        stop = config.default_hooks.early_stopping
        assert (stop.monitor, stop.rule, stop.patience) == ('oIoU', 'greater',
                                                            5)
    else:
        assert steps == 40 * labelled // batch and batch == 8


def burn_in_of(path: Path) -> Path:
    name = NAME.fullmatch(path.stem)
    found, = (ROOT / 'configs/lavt').glob(
        f'lavt_{name["model"].split("_")[1]}_4xb2-*k_{name["data"]}-'
        f'{name["part"]}.py')
    return found


@pytest.mark.parametrize('path', **named(SEMI))
def test_semires_starts_from_its_burn_in(path):
    semi, burn_in = load(path), load(burn_in_of(path))
    steps = burn_in.train_cfg.max_iters
    assert semi.load_from == (
        f'work_dirs/{burn_in_of(path).stem}/iter_{steps}.pth')
    # What differs is what differs in the released code.
    segmentor = semi.model.segmentor
    assert segmentor.text_encoder.train_dropout
    assert segmentor.decode_head.loss_reduction == 'pixels'
    segmentor.text_encoder.train_dropout = False
    segmentor.decode_head.loss_reduction = 'weights'
    assert segmentor == burn_in.model
    assert semi.optim_wrapper == burn_in.optim_wrapper
    labelled, unlabelled = semi.train_dataloader.dataset.datasets
    labelled.pipeline[-1:] = labelled.pipeline[-1].sup
    assert labelled == burn_in.train_dataloader.dataset.datasets[0]
    assert semi.val_dataloader == burn_in.val_dataloader
    assert [stage.type for stage in semi.model.pseudo_label_pipeline
            ] == ['mmsemi.RefineByProposals', 'mmsemi.PixelWeighting']
    teacher = unlabelled.pipeline[-1].unsup_teacher
    assert [t.type for t in teacher
            ] == ['mmsemi.LoadMaskProposals', 'mmsemi.PackSegInputs']
    assert teacher[0].store == 'data/coco/proposals/sam-vit-huge_train2014'


@pytest.mark.parametrize(
    'path', **named([p for p in DIGITS if p.stem.startswith('semires')]))
def test_rows_of_digits_differ_in_the_pipeline_alone(path):
    config = load(path)
    burn_in = load(ROOT / 'configs/lavt/lavt_swin_1xb8-3k_digits-2p.py')
    assert config.model.segmentor == burn_in.model
    for key in ('optim_wrapper', 'param_scheduler', 'val_evaluator',
                'val_dataloader'):
        assert config[key] == burn_in[key]
    assert config.train_cfg == burn_in.train_cfg
    full = load(
        ROOT / 'configs/semires/semires_lavt-swin_1xb16-3k_digits-2p.py')
    for each in (config, full):
        each.model.pop('pseudo_label_pipeline')
        views = each.train_dataloader.dataset.datasets[1].pipeline[-1]
        views.unsup_teacher = views.unsup_teacher[-1:]
        each.pop('unlabeled_dataset')
    assert config.to_dict() == full.to_dict()


def test_options_of_the_readme_fit():
    readme = (ROOT / 'configs/semires/README.md').read_text()
    rows = re.findall(r'^\| table \d, (.+?) \| (?:as \w+, and )?`(.+?)`',
                      readme, re.MULTILINE)
    assert len(rows) == 9, [name for name, _ in rows]
    base, = (p for p in SEMI if p.stem.endswith('_refcoco-1over100'))
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    for name, text in rows:
        options = parser.parse_args(['--cfg-options', *shlex.split(text)
                                     ]).cfg_options
        config = load_config(load(base), options)
        pipeline = PseudoLabelPipeline(
            config.model.pseudo_label_pipeline,
            ('label', 'confidence', 'weight', 'valid', 'prob'))
        assert config.to_dict() != load(base).to_dict(), name
        if 'without weights' in name:
            weight = pipeline.stages[1]
            weight = pixel_weight(
                torch.tensor([0., .5, 1.]), weight.gamma, weight.mu,
                weight.variance)
            assert weight.tolist() == pytest.approx([1.] * 3, abs=1e-6)


# Models, and a short training ---------------------------------------------


@pytest.mark.parametrize(
    'path',
    **named([p for p in CONFIGS if p.stem.endswith('_refcoco-1over100')]))
def test_model_builds_at_its_real_size(path, monkeypatch):
    config = load(path)
    # Swin reads numbers from a tensor while it is built.
    monkeypatch.setattr(torch, 'linspace',
                        functools.partial(torch.linspace, device='cpu'))
    with torch.device('meta'):
        model = MODELS.build(config.model)
    segmentor = getattr(model, 'student', model)
    parts = {
        name: sum(p.numel() for p in child.parameters())
        for name, child in segmentor.named_children()
    }
    bert = parts.pop('text_encoder')
    # LAVT-B as in its released code, and BERT without its pooler.
    assert sum(parts.values()) == 118847866
    assert 108e6 < bert < 109e6


def write_proposals(store: Path, root: Path, names: list, size: tuple) -> None:
    """Write three rectangles for every image."""
    masks = np.zeros((3, *size), bool)
    masks[0, 8:30, 6:30] = True
    masks[1, 10:40, 30:46] = True
    masks[2, :, :40] = True
    with ProposalWriter(store, dict(backend='rectangles')) as writer:
        for name in names:
            writer.add(name, masks)


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Write RefCOCO* as the tools lay it out, and both kinds of digits."""
    root = tmp_path_factory.mktemp('data')
    coco, size = root / 'coco', (48, 64)
    rng = np.random.RandomState(0)
    names = [f'COCO_train2014_{i:012d}.jpg' for i in range(1, 15)]
    (coco / 'train2014').mkdir(parents=True)
    for name in names:
        cv2.imwrite(
            str(coco / 'train2014' / name),
            rng.randint(0, 256, (*size, 3), np.uint8))
    write_proposals(coco / 'proposals/sam-vit-huge_train2014',
                    coco / 'train2014', names, size)
    (coco / 'refer/splits').mkdir(parents=True)
    for stem in STEMS.values():
        images, annotations, refs = [], [], []
        for i, name in enumerate(names, 1):
            images.append(
                dict(image_id=i, file_name=name, height=48, width=64))
            annotations.append(
                dict(
                    ann_id=i,
                    image_id=i,
                    category_id=1,
                    segmentation=[[6, 8, 30, 8, 30, 30, 6, 30]],
                    bbox=[6, 8, 24, 22],
                    area=528))
            refs.append(
                dict(
                    ref_id=i,
                    ann_id=i,
                    image_id=i,
                    split='train' if i < 13 else 'val',
                    sentences=[
                        dict(sent_id=2 * i, raw='The left one.',
                             sent='the left one'),
                        dict(sent_id=2 * i + 1, raw='left', sent='left')
                    ]))
        dataset, partition = stem.rsplit('-', 1)
        (coco / f'refer/{stem}.json').write_text(
            json.dumps(
                dict(
                    version=1,
                    dataset=dataset,
                    partition=partition,
                    images=images,
                    annotations=annotations,
                    refs=refs)))
        for percent in PERCENTS.values():
            for end, part in (('', names[:6]), ('-unlabeled', names[6:12])):
                (coco / f'refer/splits/{stem}.semires@{percent}{end}.txt'
                 ).write_text('\n'.join(part))
    for folder, options in (('digits', dict(
            image_size=48, digits_per_scene=(1, 2))), ('digits_referring',
                                                       dict(referring=True))):
        make_digits(
            root / folder, num_train=60, num_val=3, percents=(20, ), **options)
        side = options.get('image_size', 64)
        write_proposals(root / folder / 'proposals', root / folder / 'train',
                        [f'{i:06d}.png' for i in range(60)], (side, side))
    return root


def shrink_model(config: Config) -> None:
    """Make LAVT small, without touching what it is made of."""
    small = Config(dict(model=config.model.get('segmentor', config.model)))
    small.merge_from_dict(
        dict(
            model=dict(
                data_preprocessor=dict(size=SIZE),
                text_encoder=dict(
                    model=None,
                    vocab=['the', 'left', 'one'],
                    config=dict(
                        vocab_size=8,
                        hidden_size=16,
                        num_hidden_layers=12,
                        num_attention_heads=2,
                        intermediate_size=16)),
                backbone=dict(
                    text_channels=16,
                    embed_dims=8,
                    depths=(1, 1, 1, 1),
                    num_heads=(1, 1, 2, 2),
                    window_size=4,
                    init_cfg=None),
                decode_head=dict(in_channels=[8, 16, 32, 64], channels=8))))
    if 'segmentor' in config.model:
        config.model.segmentor = small.model
    else:
        config.model = small.model


def shrink(config: Config, root: Path, work_dir: Path) -> Config:
    """Make model, data and schedule small."""
    if config.model.get('segmentor', config.model).get('type') == \
            'mmsemi.ReferringSegmentor' and 'refer/' in \
            config.val_dataloader.dataset.ann_file:
        shrink_model(config)
    for node in walk(config._cfg_dict):
        for key in ('data_root', 'store', 'ann_file', 'image_list'):
            value = node.get(key)
            if str(value).startswith('data/'):
                node[key] = f'{root}/{value[len("data/"):]}'
            elif '-fold0@2' in str(value):
                # 2 % of few scenes would not hold all digits.
                node[key] = value.replace('@2', '@20')
        if node.get('type') == 'mmsemi.ResizeTo':
            node.scale = SIZE
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].update(num_workers=0, persistent_workers=False)
    if config.get('load_from'):
        weights = work_dir / 'burn_in.pth'
        student = MODELS.build(config.model.segmentor)
        torch.save(dict(state_dict=student.state_dict()), weights)
        config.load_from = str(weights)
    return config


@pytest.mark.parametrize('path', **named(ALL_CONFIGS + REFINED))
def test_types_views_batches_and_classes_fit(path, data_root, tmp_path):
    config = shrink(load(path), data_root, tmp_path)
    assert check_config(config, build_model=False, load_data=False) == []


@pytest.mark.parametrize('path', **named(TRAINED + REFINED))
def test_config_trains_and_validates(path, data_root, tmp_path, monkeypatch):
    # Formatting it for the log and the checkpoints would take most of the
    # time.
    monkeypatch.setattr(Config, 'pretty_text', path.stem)
    config = shrink(load(path), data_root, tmp_path)
    burns_in = 'burn_in_steps' in config.model.get('teacher', {})
    steps = 1 + burns_in
    config.train_cfg.update(max_iters=steps, val_interval=steps)
    if burns_in:
        config.model.teacher.burn_in_steps = 1
    config.default_hooks.logger.interval = 1
    for hook in config.get('custom_hooks', []):
        if 'interval' in hook:
            hook.interval = steps
        if hook.type == 'mmsemi.PseudoLabelVisualizationHook':
            hook.max_images = 1
    config.randomness = dict(seed=0)
    config.work_dir = str(tmp_path)
    runner = Runner.from_cfg(config)
    if config.get('load_from'):
        runner.load_or_resume()
        weights = torch.load(
            config.load_from, weights_only=True)['state_dict']
        for part in (runner.model.student, runner.model.teacher):
            for key, value in part.state_dict().items():
                assert torch.equal(value, weights[key]), key
    runner.train()
    history = {
        key: buffer.data[0]
        for key, buffer in runner.message_hub.log_scalars.items()
    }
    assert np.isfinite(history['train/loss']).all()
    assert len(history['train/loss']) == steps
    if path in REFINED:
        assert 'train/pseudo/match_rate' in history or \
            'mean-teacher' in path.stem
    else:
        assert 0 <= history['val/oIoU'][-1] <= 100
        assert list(tmp_path.glob('best_oIoU_iter_*.pth'))
    if path.parent.name == 'semires':
        assert len(history['train/unsup_loss']) == 1
        for name in ('teacher', 'student'):
            assert f'val/{name}/oIoU' in history
        refines = 'baseline' not in path.stem
        assert ('train/pseudo/match_rate' in history) is refines
        assert list(tmp_path.rglob(f'iter_{steps:06d}_0.png'))
