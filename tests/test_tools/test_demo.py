# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The demo compares like with like, and its table says what was measured."""
import importlib.util
import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mmsemi.apis.run_records import read_scalars

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo',
                                                  ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TASKS = pytest.mark.parametrize('name', ['instance', 'semantic'])


@TASKS
def test_all_runs_get_the_same(demo, name):
    configs = demo.TASKS[name].configs
    assert next(iter(configs)) == 'supervised' and len(configs) > 1
    supervised, *others = (Config.fromfile(p) for p in configs.values())
    for semi in others:
        assert supervised.model == semi.model.segmentor
        for key in ('optim_wrapper', 'param_scheduler', 'train_cfg'):
            assert supervised[key] == semi[key]
        labelled = [
            cfg.train_dataloader.dataset.datasets[0]
            for cfg in (supervised, semi)
        ]
        assert labelled[0].ann_file == labelled[1].ann_file
        # The same transforms; only the packing differs.
        assert labelled[0].pipeline[:-1] == labelled[1].pipeline[:-1]
        assert labelled[1].pipeline[-1].type == 'mmsemi.MultiBranch'
        sampler = semi.train_dataloader.sampler
        share = sampler.source_ratio[0] / sum(sampler.source_ratio)
        assert (supervised.train_dataloader.batch_size == share *
                semi.train_dataloader.batch_size)
        # The moving average is evaluated in both.
        ema, = supervised.custom_hooks
        assert ema.momentum == semi.model.teacher.momentum
        assert semi.model.get('predict_on', 'teacher') == 'teacher'


@TASKS
def test_train_command_sets_data_and_seed(demo, name, tmp_path):
    task = demo.TASKS[name]
    stem = dict(
        instance='annotations/instances_train.seed3-fold0@2',
        semantic='splits/train.seed3-fold0@2')[name]
    end = dict(instance='json', semantic='txt')[name]
    for method, config in task.configs.items():
        command = demo.train_command(task, method, tmp_path, tmp_path / 'run',
                                     3)
        options = dict(
            item.split('=', 1)
            for item in command[command.index('--cfg-options') + 1:])
        cfg = Config.fromfile(config)
        cfg.merge_from_dict(options)
        labelled, *unlabelled = cfg.train_dataloader.dataset.datasets
        assert labelled.ann_file == f'{stem}.{end}'
        for source in (labelled, *unlabelled, cfg.val_dataloader.dataset):
            assert source.data_root == str(tmp_path)
        assert [u.ann_file for u in unlabelled
                ] == [f'{stem}-unlabeled.{end}'] * (method != 'supervised')
        assert command[command.index('--seed') + 1] == '3'
        hooks = {hook.type for hook in cfg.custom_hooks if 'interval' in hook}
        assert hooks <= {
            'mmsemi.PseudoLabelMonitorHook',
            'mmsemi.PseudoLabelVisualizationHook'
        }


@pytest.fixture
def write_scalars(tmp_path):
    """Write what a training logs."""

    def write(*lines):
        folder = tmp_path / '20260101_000000' / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
        return tmp_path

    return write


def test_summary_takes_the_last_values(demo, write_scalars):
    folder = write_scalars(
        dict(loss=2., step=50),
        dict(loss=1., step=100, **{'pseudo/precision': .5}), {
            'coco/segm_mAP': .25,
            'coco/segm_mAP_50': .5,
            'step': 100
        })
    task = demo.TASKS['instance']
    row = demo.summarise(task, read_scalars(folder), 1.5)
    assert row == {
        'AP': 25., 'AP50': 50., 'loss': 1., 'minutes': 1.5,
        'pseudo precision': 50.
    }
    table = demo.format_table(task, {'0': {'mean teacher': row}}).splitlines()
    assert table[0] == ('| seed | method | mask AP | mask AP50 | pseudo-label '
                        'precision | recall | loss | minutes |')
    assert table[2] == ('| 0 | mean teacher | 25.0 | 50.0 | 50 % | – | 1.00 '
                        '| 1.5 |')


def test_semantic_summary(demo, write_scalars):
    folder = write_scalars({
        'loss': 0.5,
        'pseudo/kept_share': 0.25
    }, {
        'mIoU': 61.25,
        'PA': 90.,
        'IoU/nine': float('nan')
    })
    task = demo.TASKS['semantic']
    row = demo.summarise(task, read_scalars(folder), 2.)
    assert row == {
        'mIoU': 61.25, 'PA': 90., 'loss': 0.5, 'minutes': 2.,
        'pseudo kept': 25.
    }
    table = demo.format_table(task, {'0': {'fixmatch': row}}).splitlines()
    assert table[0] == ('| seed | method | mIoU | PA | pixels kept | their '
                        'accuracy | loss | minutes |')
    assert table[2] == '| 0 | fixmatch | 61.2 | 90.0 | 25 % | – | 0.50 | 2.0 |'


@TASKS
def test_recorded_results_can_be_shown(demo, name):
    task = demo.TASKS[name]
    if task.recorded.is_file():
        recorded = json.loads(task.recorded.read_text())
        table = demo.format_table(task, recorded['results'])
        assert recorded['note'] and len(table.splitlines()) > 2
