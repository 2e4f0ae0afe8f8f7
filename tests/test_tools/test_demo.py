# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The demo compares like with like, and its table says what was measured."""
import importlib.util
import json
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo',
                                                  ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_runs_get_the_same(demo):
    supervised, semi = (Config.fromfile(p) for p in demo.CONFIGS.values())
    assert supervised.model == semi.model.segmentor
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg'):
        assert supervised[key] == semi[key]
    labelled = [
        cfg.train_dataloader.dataset.datasets[0] for cfg in (supervised, semi)
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


def test_train_command_sets_data_and_seed(demo, tmp_path):
    for name, config in demo.CONFIGS.items():
        command = demo.train_command(config, tmp_path, tmp_path / 'run', 3)
        options = dict(
            item.split('=', 1)
            for item in command[command.index('--cfg-options') + 1:])
        cfg = Config.fromfile(config)
        cfg.merge_from_dict(options)
        labelled, *unlabelled = cfg.train_dataloader.dataset.datasets
        stem = f'annotations/instances_train.seed3-fold0@{demo.PERCENT}'
        assert labelled.ann_file == f'{stem}.json'
        assert labelled.data_root == str(tmp_path)
        assert [u.ann_file for u in unlabelled
                ] == [f'{stem}-unlabeled.json'] * (name != 'supervised')
        assert command[command.index('--seed') + 1] == '3'


def test_summary_takes_the_last_values(demo, tmp_path):
    folder = tmp_path / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    lines = [
        dict(loss=2., step=50),
        dict(loss=1., step=100, **{'pseudo/precision': .5}),
        {'coco/segm_mAP': .25, 'coco/segm_mAP_50': .5, 'step': 100}
    ]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    row = demo.summarise(demo.read_scalars(tmp_path), 1.5)
    assert row == {
        'AP': 25., 'AP50': 50., 'loss': 1., 'minutes': 1.5,
        'pseudo precision': 50.
    }
    table = demo.format_table({'0': {'mean teacher': row}}).splitlines()
    assert table[2] == ('| 0 | mean teacher | 25.0 | 50.0 | 50 % | – | 1.00 '
                        '| 1.5 |')


def test_missing_scalars_are_an_error(demo, tmp_path):
    with pytest.raises(SystemExit, match='no scalars'):
        demo.read_scalars(tmp_path)
