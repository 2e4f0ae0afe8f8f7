# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest


def test_good_config_passes(write_config, run_tool, tmp_path):
    done = run_tool('check_config', write_config())
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    assert any(line.endswith('s)') and 'tiny.py: ok' in line
               for line in lines)
    assert '  note: train_dataloader.dataset: 8 + 16 images' in lines
    assert '  note: test_dataloader.dataset: 2 images' in lines
    # Nothing is written.
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [
        '.py'
    ]


def test_data_elsewhere_are_no_error(write_config, run_tool):
    done = run_tool(
        'check_config', write_config(), '--cfg-options',
        *(f'train_dataloader.dataset.datasets.{i}.data_root=no_such_folder'
          for i in (0, 1)))
    assert done.code == 0, done.out
    assert 'note: train_dataloader: not loaded, because there is no ' \
        'no_such_folder/annotations/' in done.out


@pytest.mark.parametrize('lines, message', [
    ("default_scope = 'mmsemi'",
     "default_scope: 'mmsemi' is not allowed: types without a prefix would "
     "silently be mmcv's"),
    ("default_scope = 'mmsemi'\n"
     "test_dataloader['dataset']['pipeline'].insert(1, dict(type='Resize', "
     'scale=(64, 64)))',
     "test_dataloader.dataset.pipeline[1].type: 'Resize' resolves to mmcv's "
     "Resize under default_scope='mmsemi', not to mmdet.Resize or "
     "mmseg.Resize. Write 'mmdet.Resize'"),
    ("model['pseudo_label_pipeline'][0]['type'] = 'FilterByScore'",
     "'FilterByScore' is unknown under default_scope='mmdet'. Did you mean "
     'mmsemi.FilterByScore?'),
    ("custom_hooks[0]['type'] = 'mmsemi.TeacherUpdate'",
     'Did you mean mmsemi.TeacherUpdateHook?'),
    ("custom_hooks[0]['type'] = 'mmsemi.StrongColor'",
     'mmsemi.StrongColor is a transform, which does not belong here.'),
    ("train_cfg['max_itres'] = 3",
     "train_cfg.max_itres: IterBasedTrainLoop has no argument 'max_itres'. "
     'Did you mean max_iters'),
    ("model['teacher']['momentum'] = 2",
     'model: teacher.momentum=2; allowed are numbers above 0 up to 1'),
    ("load_from = 'missing.pth'",
     'load_from: There is no file missing.pth.'),
    ("train_dataloader['collate_fn'] = dict(type='default_collate')",
     'train_dataloader.collate_fn: views need collate_fn=dict('
     "type='pseudo_collate')"),
    ("labeled_dataset['pipeline'][-1]['branch_field'] = ['sup']",
     'the sources differ in branch_field of MultiBranch'),
    ("train_dataloader['dataset']['datasets'].pop()\n"
     "train_dataloader['sampler']['source_ratio'] = [1]",
     "no source makes the views ['unsup_teacher', 'unsup_student']"),
    ("labeled_dataset['pipeline'] = load + [pack]",
     'train_dataloader.dataset.datasets[0].pipeline: does not end with '
     'mmsemi.MultiBranch'),
    ("test_dataloader['dataset']['metainfo'] = dict(classes=('nine', ) + "
     "tuple('abcdefghi'))",
     'test_dataloader.dataset: its classes differ from those of '
     'train_dataloader.dataset'),
    ("classes = ('one', 'zero', 'two', 'three', 'four', 'five', 'six', "
     "'seven', 'eight', 'nine')\n"
     "for source in (labeled_dataset, test_dataloader['dataset']):\n"
     "    source['metainfo'] = dict(classes=classes)",
     'which is how mmdet numbers the labels. Use the order of the file.'),
])
def test_errors_name_place_and_remedy(write_config, run_tool, lines, message):
    done = run_tool('check_config', write_config(f'\n{lines}\n'), seconds=40)
    assert done.code == 1, done.out + done.err
    errors = [line for line in done.out.splitlines() if ' error: ' in line]
    assert any(message in line for line in errors), errors


def test_every_config_of_several_is_checked(write_config, run_tool):
    bad = write_config("\nload_from = 'missing.pth'\n", 'bad')
    done = run_tool('check_config', bad, write_config(), '--no-model',
                    '--no-data')
    assert done.code == 1
    assert 'bad.py: 1 error(s)' in done.out
    assert 'tiny.py: ok' in done.out
    assert 'images' not in done.out
