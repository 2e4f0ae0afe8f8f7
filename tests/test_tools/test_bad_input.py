# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Wrong data and configs end in seconds, in the training and the check."""
import json

import pytest

TRAIN = 'train_dataloader.dataset.datasets[0]'
# A line for the config, what the training says, and the check if it says
# something else.
CASES = dict(
    missing_file=(f"{TRAIN}.ann_file = 'annotations/none.json'",
                  'annotations/none.json does not exist', 'there is no'),
    malformed_json=(f"{TRAIN}.ann_file = {{folder!r}} + '/half.json'",
                    'half.json'),
    no_annotations=(f"{TRAIN}.ann_file = {{folder!r}} + '/empty.json'",
                    'Source 0 of MultiSourceDataset, a '
                    'mmsemi.DigitsInstanceDataset, is empty'),
    empty_folder=("train_dataloader.dataset.datasets[1].img_dir = {folder!r}",
                  'There is no image in the folder'),
    wrong_classes=(f"{TRAIN}.metainfo = dict(classes=('cat', 'dog'))",
                   'have 0 of the 2 classes', 'the dataset has 2 classes'),
    too_few_classes=("model.segmentor.mask_head.num_classes = 3",
                     'num_classes=3'),
    ratio_of_zero=('train_dataloader.sampler.source_ratio = [4, 1]',
                   'gives [2, 0] items of the sources'),
    other_batch_size=('train_dataloader.batch_size = 3',
                      'train_dataloader.batch_size=3'),
    unknown_type=("model.type = 'mmsemi.SemiInstanceSegmenter'",
                  'mmsemi.SemiInstanceSegmenter'),
    unrecorded_geometry=(
        'train_dataloader.dataset.datasets[1].pipeline[1].unsup_student'
        ".insert(0, dict(type='RandomShift'))", 'mmdet.RandomShift'),
)


@pytest.fixture
def bad_config(write_config, tmp_path):
    (tmp_path / 'half.json').write_text('{"images": [')
    (tmp_path / 'empty.json').write_text(
        json.dumps(dict(images=[], annotations=[], categories=[])))

    def write(case: str):
        line = CASES[case][0].replace('{folder!r}', repr(str(tmp_path)))
        field, _, rest = line.partition('.')
        return write_config(f'\n{as_keys(field, rest)}\n', name=case)

    return write


def as_keys(field: str, rest: str) -> str:
    """Configs are dicts while their file is read."""
    target, equals, value = rest.partition(' = ')
    if not equals:
        target, _, value = rest.rpartition('.')
    text = field
    for part in target.split('.'):
        name, *indices = part.split('[')
        text += f'[{name!r}]' + ''.join(f'[{i}' for i in indices)
    return f'{text} = {value}' if equals else f'{text}.{value}'


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
