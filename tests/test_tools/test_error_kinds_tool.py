# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json

import pytest


@pytest.fixture
def run(run_tool, trained, tmp_path):

    def run_on_trained(*args):
        return run_tool('analysis/error_kinds', trained / 'tiny.py',
                        trained / 'work_dir' / 'iter_2.pth', '--work-dir',
                        tmp_path / 'log', *args)

    return run_on_trained


def test_report_of_a_trained_model(run, run_tool, trained, digits, tmp_path):
    out = tmp_path / 'errors.json'
    done = run('--score-thr', 0, 1, '--out', out)
    assert done.code == 0, done.err
    report = json.loads(out.read_text())
    assert report['images'] == 2
    truth = json.loads(
        (digits / 'annotations/instances_val.json').read_text())
    everything, nothing = report['errors']
    # Five of an image, though hardly any is right after two steps.
    assert everything['predictions'] == 10
    for counts in (everything, nothing):
        assert counts['instances'] == len(truth['annotations'])
    assert nothing['predictions'] == 0
    assert nothing['missed'] == nothing['instances']
    assert 'With classes: AP ' in done.out
    assert 'Above 0: 10 predictions: ' in done.out
    # AP is that of the evaluation.
    metrics = tmp_path / 'metrics.json'
    done = run_tool('test', trained / 'tiny.py',
                    trained / 'work_dir' / 'iter_2.pth', '--work-dir',
                    tmp_path / 'log', '--out', metrics)
    assert done.code == 0, done.err
    expected = json.loads(metrics.read_text())['coco/segm_mAP']
    assert report['with_classes']['AP'] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize('args, words', [
    (('--out', 'errors.txt'), 'end with .json'),
    (('--score-thr', '2'), 'score_thr=2.0'),
    (('--background-thr', '0.6'), 'the first below the second'),
    (('--which', 'nobody'), 'nobody'),
    (('--cfg-options', 'test_dataloader.dataset.ann_file=none.json'),
     'none.json'),
])
def test_wrong_input_is_one_line(run, args, words):
    done = run(*args)
    assert done.code == 2
    assert words in done.err
    assert 'Traceback' not in done.err
