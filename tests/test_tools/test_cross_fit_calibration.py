# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch

from mmsemi.apis.checkpoints import load_checkpoint_file
from mmsemi.apis.configs import load_config
from mmsemi.apis.cross_fit import CrossFit
from mmsemi.apis.export import part_of_checkpoint

TOOL = 'analysis/cross_fit_calibration'
STAGE = '''
model['pseudo_label_pipeline'].insert(
    0,
    dict(type='mmsemi.CalibrateScores', calibrator=dict(num_classes=10)))
'''
# The order of mmdet's own test pipelines.
RESIZED = '''
test_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.Resize', scale=(96, 96)), load[1], pack
]
'''
PLAIN = '''
model = segmentor
'''


@pytest.fixture
def halves(digits, run_tool, tmp_path):
    """list[Path]: Annotations of four labelled images and of four others."""
    source = digits / 'annotations' / 'instances_train.seed0-fold0@50.json'
    done = run_tool('dataset_converters/split_coco', '--ann-file', source,
                    '--out-dir', tmp_path / 'halves', '--folds', '2')
    assert done.code == 0, done.err
    return [
        tmp_path / 'halves' / f'{source.stem}-fold{i}.json' for i in (0, 1)
    ]


@pytest.fixture
def teachers(trained, tmp_path):
    """list[Path]: A semi-supervised checkpoint and a plain one."""
    state = load_checkpoint_file(trained / 'work_dir' / 'iter_2.pth')
    weights = part_of_checkpoint(state['state_dict'], 'teacher')
    other = {
        key: value * .9 if value.is_floating_point() else value
        for key, value in weights.items()
    }
    torch.save(dict(state_dict=other), tmp_path / 'plain.pth')
    return [trained / 'work_dir' / 'iter_2.pth', tmp_path / 'plain.pth']


def statistics(config, *pairs):
    stage, = CrossFit(load_config(config), pairs, 'cpu').measure()
    return stage.calibrator.statistics


def test_statistics_of_both_teachers_start_a_training(
        write_config, halves, teachers, run_tool, tmp_path):
    config = write_config(STAGE + RESIZED)
    done = run_tool(TOOL, config, teachers[0], halves[1], teachers[1],
                    halves[0], '--out', tmp_path / 'fit.pth')
    assert done.code == 0, done.err
    assert 'CalibrateScores: ' in done.out
    assert done.out.splitlines()[-1].startswith('Written: ')
    part, = torch.load(
        tmp_path / 'fit.pth', weights_only=True)['calibration']
    first = statistics(config, (teachers[0], halves[1]))
    second = statistics(config, (teachers[1], halves[0]))
    assert 0 < first[..., 0].sum() <= 20 and 0 < second[..., 0].sum() <= 20
    assert not first.equal(second)
    assert part['statistics'].equal(first + second)

    hook = f'''
custom_hooks.append(
    dict(
        type='mmsemi.CalibrationHook',
        statistics={str(tmp_path / 'fit.pth')!r}))
train_cfg['max_iters'] = 2
'''
    config = write_config(STAGE + hook, 'student')
    done = run_tool('train', config, '--work-dir', tmp_path / 'work')
    assert done.code == 0, done.err
    state = load_checkpoint_file(tmp_path / 'work' / 'iter_2.pth')
    name = 'pseudo_label_pipeline.stages.0.calibrator.'
    found = state['state_dict']
    assert found[f'{name}statistics'].equal(part['statistics'])
    assert bool(found[f'{name}active'])


@pytest.mark.parametrize('extra, changes, message', [
    ('', {}, 'The calibration needs mmsemi.CalibrateScores'),
    (STAGE, dict(half_1='gone.json'),
     'There is no annotation file gone.json'),
    (STAGE, dict(half_1='{half_0}'), 'share images, such as'),
    (STAGE, dict(teacher_1='gone.pth'), 'There is no checkpoint gone.pth'),
    (STAGE + "model['segmentor']['mask_head']['num_classes'] = 7", {},
     'parameters of this model, by name and shape'),
    (STAGE.replace('num_classes=10', 'num_classes=9'), {},
     'calibrator.num_classes=9, but the images of the calibration have 10'),
    (STAGE + 'test_dataloader = test_cfg = test_evaluator = None', {},
     'neither val_dataloader nor test_dataloader'),
    (PLAIN, {}, 'Cross-fitting needs the config of a training '
     'with a teacher, but model.type is SOLOv2'),
])
def test_wrong_input_ends_in_one_line(write_config, halves, teachers,
                                      run_tool, tmp_path, extra, changes,
                                      message):
    given = dict(
        teacher_0=teachers[0], half_1=halves[1], teacher_1=teachers[1],
        half_0=halves[0])
    given.update({
        key: value.format(half_0=halves[0])
        for key, value in changes.items()
    })
    done = run_tool(TOOL, write_config(extra), *given.values(), '--out',
                    tmp_path / 'fit.pth')
    assert done.code == 2
    assert message in done.err
    assert 'Traceback' not in done.err
    assert not (tmp_path / 'fit.pth').exists()


def test_help_has_an_example(run_tool):
    done = run_tool(TOOL, '--help')
    assert done.code == 0
    assert 'cross_fit_calibration.py CONFIG.py' in done.out
