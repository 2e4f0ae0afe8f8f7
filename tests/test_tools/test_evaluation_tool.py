# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import pickle

import pytest
import torch


def test_student_and_teacher_differ(trained, run_tool, tmp_path):
    checkpoint = trained / 'work_dir' / 'iter_2.pth'
    scores = {}
    for which in ('teacher', 'student'):
        done = run_tool('test', trained / 'tiny.py', checkpoint, '--model',
                        which, '--work-dir', tmp_path / which, '--out',
                        tmp_path / f'{which}.pkl')
        assert done.code == 0, done.err
        predictions = pickle.loads((tmp_path / f'{which}.pkl').read_bytes())
        assert len(predictions) == 2
        scores[which] = predictions[0]['pred_instances']['scores']
    assert len(scores['teacher']) == len(scores['student']) == 5
    assert not torch.equal(scores['teacher'], scores['student'])


def test_metrics_and_pictures_are_written(trained, run_tool, tmp_path):
    done = run_tool('test', trained / 'tiny.py',
                    trained / 'work_dir' / 'iter_2.pth', '--work-dir',
                    tmp_path / 'w', '--out', tmp_path / 'metrics.json',
                    '--show-dir', tmp_path / 'pictures')
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert 0 <= metrics['coco/segm_mAP'] <= 1
    assert sorted(p.name for p in (tmp_path / 'pictures').iterdir()) == [
        '000000.png', '000001.png'
    ]


@pytest.mark.parametrize('args, message', [
    (['{config}', 'missing.pth'], 'There is no checkpoint missing.pth'),
    (['{config}', '{config}'], 'cannot be read as a checkpoint'),
    (['{config}', '{checkpoint}', '--out', 'metrics.txt'],
     '--out metrics.txt: allowed are names that end with .json or .pkl'),
    (['{config}', '{checkpoint}', '--model', 'teacher', '--cfg-options',
      'model.teacher.burn_in_steps=3'],
     'The teacher has not learnt anything yet: the checkpoint is of '
     'optimizer step 2'),
    (['{plain}', '{checkpoint}'],
     'The checkpoint holds a teacher and a student'),
    (['{plain}', '{checkpoint}', '--model', 'student'],
     'model is a plain SOLOv2, which has no student'),
])
def test_wrong_arguments_end_in_one_line(trained, write_config, run_tool,
                                         args, message):
    names = dict(
        config=trained / 'tiny.py',
        checkpoint=trained / 'work_dir' / 'iter_2.pth',
        plain=write_config('model = segmentor', 'plain'))
    done = run_tool('test', *(a.format(**names) for a in args), seconds=30)
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith('test.py: error: ')
