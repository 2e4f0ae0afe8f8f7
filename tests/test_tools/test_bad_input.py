# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Wrong data and configs end in seconds, in the training and the check."""
import json

import pytest

# A line for the config, what the training says, and what the check says if
# it is something else. {} is a folder with bad files and no image.
CASES = dict(
    missing_file=("labeled_dataset['ann_file'] = 'annotations/none.json'",
                  'annotations/none.json does not exist', 'there is no'),
    malformed_json=("labeled_dataset['ann_file'] = '{}/half.json'",
                    'half.json is not valid JSON'),
    no_annotations=("labeled_dataset['ann_file'] = '{}/empty.json'",
                    'Source 0 of MultiSourceDataset, a '
                    'mmsemi.DigitsInstanceDataset, is empty'),
    empty_folder=("unlabeled_dataset['img_dir'] = '{}'",
                  'There is no image in the folder'),
    wrong_classes=("labeled_dataset['metainfo'] = dict(classes=('cat', ))",
                   'have 0 of the 1 classes', 'the dataset has 1 classes'),
    too_few_classes=("segmentor['mask_head']['num_classes'] = 3",
                     'num_classes=3'),
    ratio_of_zero=("train_dataloader['sampler']['source_ratio'] = [4, 1]",
                   'gives [2, 0] items of the sources'),
    other_batch_size=("train_dataloader['batch_size'] = 3",
                      'train_dataloader.batch_size=3'),
    unknown_type=("model['type'] = 'mmsemi.SemiInstanceSegmenter'",
                  'mmsemi.SemiInstanceSegmenter'),
    unrecorded_geometry=(
        "unlabeled_dataset['pipeline'][1]['unsup_student'].insert("
        "0, dict(type='RandomShift'))", 'mmdet.RandomShift'),
)


@pytest.fixture
def bad_config(write_config, tmp_path):
    folder = tmp_path / 'bad'
    folder.mkdir()
    (folder / 'half.json').write_text('{"images": [')
    (folder / 'empty.json').write_text(
        json.dumps(dict(images=[], annotations=[], categories=[])))

    def write(case: str):
        return write_config(CASES[case][0].replace('{}', str(folder)), case)

    return write


@pytest.mark.parametrize('case', CASES)
def test_training_refuses(case, bad_config, run_tool, tmp_path):
    done = run_tool(
        'train', bad_config(case), '--work-dir', tmp_path / 'w', seconds=30)
    assert done.code != 0
    assert CASES[case][1] in done.err
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize('case', CASES)
def test_check_config_reports(case, bad_config, run_tool):
    done = run_tool('check_config', bad_config(case), seconds=30)
    assert done.code == 1, done.err
    assert done.err == ''
    errors = [line for line in done.out.splitlines() if ' error: ' in line]
    assert CASES[case][-1] in errors[0]
