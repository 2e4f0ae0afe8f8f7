# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json

import pytest
import torch

from mmsemi.apis.checkpoints import load_checkpoint_file
from mmsemi.apis.configs import load_config
from mmsemi.apis.export import part_of_checkpoint
from mmsemi.apis.judged_images import PredictionJudge
from mmsemi.datasets import load_coco

TOOL = 'analysis/calibration_report'
MEASURES = ('CCECE', 'signedCCECE', 'excessCCECE', 'LaECE')
METRIC = '''
test_evaluator = dict(
    type='mmsemi.CalibrationMetric',
    group_names=['rare', 'common', 'frequent'],
    groups=data_root + '/annotations/instances_train.seed0-fold0@50.json')
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
def checkpoint(trained):
    return trained / 'work_dir' / 'iter_2.pth'


def test_report_says_what_the_metric_says(write_config, checkpoint, run_tool,
                                          tmp_path):
    config = write_config(METRIC)
    done = run_tool(TOOL, config, checkpoint, '--which', 'student', '--out',
                    tmp_path / 'report')
    assert done.code == 0, done.err
    assert sorted(p.name for p in (tmp_path / 'report').iterdir()) == [
        'correction.png', 'reliability.png', 'report.json', 'report.md'
    ]
    assert done.out.splitlines()[-1].startswith('Written: ')
    report = json.loads((tmp_path / 'report' / 'report.json').read_text())
    assert report['facts']['predicted_by'] == 'student'
    assert report['facts']['class_groups'].endswith(
        'instances_train.seed0-fold0@50.json')
    assert report['images'] == 2 and report['predictions'] == 10
    assert report['correction']['fit_images'] == 1
    assert [mode['mode'] for mode in report['correction']['modes']
            ] == ['none', 'scalar', 'platt']
    done = run_tool('test', config, checkpoint, '--model', 'student',
                    '--work-dir', tmp_path / 'w', '--out',
                    tmp_path / 'metrics.json')
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['calibration/unmeasured'] == len(report['unmeasured'])
    for row in report['groups']:
        suffix = '' if row['name'] == 'all' else f'_{row["name"]}'
        for key in MEASURES:
            expected = metrics[f'calibration/{key}{suffix}']
            assert row[key] == (expected if expected is None else
                                pytest.approx(expected, abs=1e-9))


def test_plain_model_on_resized_images(write_config, trained, checkpoint,
                                       run_tool, tmp_path):
    weights = part_of_checkpoint(
        load_checkpoint_file(checkpoint)['state_dict'], 'student')
    torch.save(dict(state_dict=weights), tmp_path / 'plain.pth')
    config = write_config(PLAIN + RESIZED, 'plain')
    done = run_tool(TOOL, config, tmp_path / 'plain.pth', '--ann-groups',
                    'none', '--score-thr', '0', '0.3', '--correct',
                    '--cfg-options', 'test_dataloader.batch_size=1')
    assert done.code == 0, done.err
    # The tool runs beside the folder of its output.
    out = tmp_path / 'analysis' / 'work_dirs' / 'plain' / 'calibration'
    assert sorted(p.name for p in out.iterdir()) == [
        'reliability.png', 'report.json', 'report.md'
    ]
    report = json.loads((out / 'report.json').read_text())
    assert report['facts']['predicted_by'] == 'SOLOv2'
    assert report['correction'] is None
    assert [row['name'] for row in report['groups']] == ['all']
    assert [row['score_thr'] for row in report['pseudo_labels']] == [0, .3]
    assert report['pseudo_labels'][0]['pseudo_labels'] == 10


def test_annotations_follow_the_resize(write_config, checkpoint):
    cfg = load_config(write_config(RESIZED))
    judge = PredictionJudge(cfg, checkpoint, device='cpu')
    assert judge.part == 'teacher' and len(judge.classes) == 10
    sample = judge.loader.dataset[0]['data_samples']
    masks = sample.gt_instances.masks
    assert (masks.height, masks.width) == sample.img_shape == (96, 96)
    assert sample.ori_shape == (64, 64)
    images = judge.judge()
    assert [image.image_id for image in images] == [
        judge.loader.dataset.get_data_info(i)['img_id'] for i in range(2)
    ]
    assert all(len(image.judged.true_labels) for image in images)


def test_report_on_the_held_out_part(digits, trained, checkpoint, run_tool,
                                     tmp_path):
    source = digits / 'annotations' / 'instances_train.json'
    done = run_tool('dataset_converters/split_coco', '--ann-file', source,
                    '--out-dir', tmp_path / 'parts', '--hold-out', '0.25',
                    '--hold-out-images', '2', '2')
    assert done.code == 0, done.err
    parts = {
        name: load_coco(tmp_path / 'parts' / f'{source.stem}-{name}.json')
        for name in ('fit', 'calib')
    }
    assert [len(part['images']) for part in parts.values()] == [14, 2]
    calib = tmp_path / 'parts' / f'{source.stem}-calib.json'
    done = run_tool(TOOL, trained / 'tiny.py', checkpoint, '--out',
                    tmp_path / 'report', '--cfg-options',
                    f'test_dataloader.dataset.ann_file={calib}',
                    'test_dataloader.dataset.data_prefix.img=train/')
    assert done.code == 0, done.err
    report = json.loads((tmp_path / 'report' / 'report.json').read_text())
    assert report['facts']['predicted_by'] == 'teacher'
    assert report['images'] == 2
    assert report['instances'] == len(parts['calib']['annotations'])


@pytest.mark.parametrize('extra, args, message', [
    ('', ['missing.pth'], 'There is no checkpoint missing.pth'),
    ('', ['{checkpoint}', '--score-thr', '2'], '--score-thr 2.0: allowed'),
    ('', ['{checkpoint}', '--ann-groups', 'no.json'],
     'There is no annotation file no.json (--ann-groups)'),
    ('', ['{checkpoint}', '--correct', 'vector'],
     "argument --correct: invalid choice: 'vector'"),
    ('', ['{checkpoint}', '--cfg-options',
          'model.teacher.burn_in_steps=3'],
     'The teacher has not learnt anything yet'),
    ('', ['{checkpoint}', '--cfg-options',
          'test_dataloader.dataset.ann_file=no.json'], 'no.json'),
    (PLAIN, ['{checkpoint}', '--which', 'student'],
     'model is a plain SOLOv2, which has no student. Leave --which out.'),
    (PLAIN, ['{checkpoint}'], 'The checkpoint holds a teacher and a student'),
    ("default_scope = 'mmseg'", ['{checkpoint}'],
     'gives every pixel a class'),
    ('test_dataloader = test_cfg = test_evaluator = None', ['{checkpoint}'],
     'The config has neither test_dataloader nor val_dataloader'),
    ("test_dataloader['dataset']['pipeline'] = [load[0], pack]",
     ['{checkpoint}'], 'The data has no annotations of'),
    ("test_dataloader['dataset']['indices'] = 1", ['{checkpoint}'],
     'the data has one image'),
])
def test_wrong_input_ends_in_one_line(write_config, checkpoint, run_tool,
                                      extra, args, message):
    args = [arg.format(checkpoint=checkpoint) for arg in args]
    done = run_tool(TOOL, write_config(extra), *args, seconds=30)
    assert done.code == 2
    assert message in done.err
    assert 'Traceback' not in done.err


def test_help_has_an_example(run_tool):
    done = run_tool(TOOL, '--help')
    assert done.code == 0
    assert 'python tools/analysis/calibration_report.py CONFIG.py' in done.out
