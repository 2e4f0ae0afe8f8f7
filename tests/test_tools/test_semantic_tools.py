# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The tools on models that label every pixel."""
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model
from mmseg.apis import init_model as init_mmseg_model
from PIL import Image

from mmsemi.apis import export_model, init_model

IMAGE = np.random.RandomState(1).randint(0, 256, (64, 80, 3), np.uint8)
PARTS = dict(
    fixmatch=('teacher', 'student'),
    student=('student', ),
    cps=('network_0', 'network_1', 'mean'))
MODELS_AND_PARTS = [(model, which) for model, parts in PARTS.items()
                    for which in parts]


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


def checkpoint_of(folder):
    return folder / 'work_dir' / 'iter_2.pth'


def logits(model, image=IMAGE) -> torch.Tensor:
    return inference_model(model, image).seg_logits.data


# test.py ------------------------------------------------------------------


@pytest.mark.parametrize('model', PARTS)
def test_every_part_is_evaluated(semantic_trained, run_tool, tmp_path, model):
    folder = semantic_trained(model)
    for which in PARTS[model]:
        out = tmp_path / f'{which}.json'
        done = run_tool('test', folder / 'tiny.py', checkpoint_of(folder),
                        '--model', which, '--work-dir', tmp_path / which,
                        '--out', out)
        assert done.code == 0, done.err
        metrics = json.loads(out.read_text())
        assert 0 <= metrics['mIoU'] <= 100
        # A class that occurs in none of the two scenes has no IoU.
        assert None in metrics.values()
        assert 'NaN' not in out.read_text()


@pytest.mark.parametrize('folder', ['pictures', '{tmp_path}/pictures'])
def test_pictures(semantic_trained, run_tool, tmp_path, folder):
    trained = semantic_trained('fixmatch')
    done = run_tool('test', trained / 'tiny.py', checkpoint_of(trained),
                    '--work-dir', tmp_path / 'w', '--show-dir',
                    folder.format(tmp_path=tmp_path))
    assert done.code == 0, done.err
    names = sorted(tmp_path.glob('**/pictures/*'))
    assert len(names) == 2
    in_log_folder = tmp_path / 'w' in names[0].parents
    assert in_log_folder == (folder == 'pictures')
    # Truth and prediction side by side.
    assert Image.open(names[0]).size == (2 * 64, 64)


def test_plain_segmenter(semantic_trained, run_tool, tmp_path):
    folder = semantic_trained('plain')
    done = run_tool('test', folder / 'tiny.py', checkpoint_of(folder),
                    '--work-dir', tmp_path / 'w', '--out',
                    tmp_path / 'all.pkl')
    assert done.code == 0, done.err
    assert (tmp_path / 'all.pkl').is_file()


@pytest.mark.parametrize('config, checkpoint, args, message', [
    ('fixmatch', 'fixmatch', ['--model', 'mean'],
     "model='mean'; allowed with FixMatch and this config: 'teacher', "
     "'student'."),
    ('student', 'student', ['--model', 'teacher'],
     "model='teacher'; allowed with FixMatch and this config: 'student'."),
    ('cps', 'cps', ['--model', 'network_2'],
     "model='network_2'; allowed with CPS and this config: 'network_0', "
     "'network_1', 'mean'."),
    ('plain', 'plain', ['--model', 'student'],
     'model is a plain EncoderDecoder, which has no student'),
    ('plain', 'cps', [], 'The checkpoint holds networks, but the config\'s '
     'model is a plain EncoderDecoder'),
    ('fixmatch', 'student', [],
     "The checkpoint holds a student, but nothing of 'teacher'"),
    ('fixmatch', 'cps', [],
     "The checkpoint holds networks, but nothing of 'teacher'"),
    ('cps', 'fixmatch', [], 'The checkpoint holds a teacher and a student, '
     "but nothing of 'network_0'"),
    ('cps', 'plain', ['--model', 'mean'],
     "fills network_0 of CPS, but 'mean' predicts"),
    ('cps', 'cps', ['--model', 'mean', '--cfg-options',
                    'model.num_networks=3'],
     "none of its weights starts with 'networks.2.'"),
])
def test_wrong_part_or_checkpoint(semantic_trained, run_tool, config,
                                  checkpoint, args, message):
    done = run_tool('test',
                    semantic_trained(config) / 'tiny.py',
                    checkpoint_of(semantic_trained(checkpoint)), *args)
    assert done.code == 2, done.err
    assert message in done.err
    assert done.err.startswith('test.py: error: ')


# Prediction and export ----------------------------------------------------


@pytest.mark.parametrize('model, which', MODELS_AND_PARTS)
def test_init_model_predicts(semantic_trained, tmp_path, model, which):
    folder = semantic_trained(model)
    built = init_model(folder / 'tiny.py', checkpoint_of(folder), which)
    assert built.predict_on == which and not built.training
    assert built.dataset_meta['classes'][:2] == ('background', 'zero')
    sample = inference_model(built, IMAGE)
    assert sample.pred_sem_seg.data.shape == (1, 64, 80)
    assert sample.seg_logits.data.shape == (11, 64, 80)
    by_default = init_model(folder / 'tiny.py', checkpoint_of(folder))
    assert by_default.predict_on == PARTS[model][0]
    assert torch.equal(logits(by_default), sample.seg_logits.data) == (
        which == PARTS[model][0])
    # From a file, too.
    cv2.imwrite(str(tmp_path / 'x.png'), IMAGE)
    same = inference_model(
        init_model(folder / 'tiny.py', checkpoint_of(folder), which),
        str(tmp_path / 'x.png'))
    assert torch.equal(same.seg_logits.data, sample.seg_logits.data)


def test_init_model_takes_a_plain_segmenter(semantic_trained):
    folder = semantic_trained('plain')
    model = init_model(folder / 'tiny.py', checkpoint_of(folder))
    assert type(model).__name__ == 'EncoderDecoder'
    assert logits(model).shape == (11, 64, 80)


@pytest.mark.parametrize(
    'model, which', [p for p in MODELS_AND_PARTS if p[1] != 'mean'])
def test_mmseg_predicts_the_same(semantic_trained, run_tool, tmp_path, model,
                                 which):
    folder = semantic_trained(model)
    done = run_tool('export_model', folder / 'tiny.py', checkpoint_of(folder),
                    tmp_path, '--model', which)
    assert done.code == 0, done.err
    assert f'{which}, predicts the same' in done.out
    config, weights = (
        str(tmp_path / f'tiny_{which}.{end}') for end in ('py', 'pth'))
    meta = torch.load(weights, weights_only=True)['meta']
    assert (meta['exported'], meta['iter']) == (which, 2)
    assert 'mmseg_version' in meta

    plain = init_mmseg_model(config, weights, device='cpu')
    assert type(plain).__name__ == 'EncoderDecoder'
    assert plain.dataset_meta['classes'][1] == 'zero'
    original = init_model(folder / 'tiny.py', checkpoint_of(folder), which)
    assert torch.equal(
        logits(plain.requires_grad_(False)),
        logits(original.requires_grad_(False)))


def test_exported_config_stands_alone(semantic_trained, run_tool, tmp_path):
    folder = semantic_trained('fixmatch')
    files = export_model(
        folder / 'tiny.py', checkpoint_of(folder), tmp_path, verify=False)
    assert files.which == 'teacher'
    cfg = Config.fromfile(files.config)
    assert 'mmsemi' not in cfg.pretty_text
    assert cfg.default_scope == 'mmseg'
    data = cfg.test_dataloader.dataset
    assert (data.type, data.img_suffix, data.seg_map_suffix) == (
        'BaseSegDataset', '.png', '.png')
    assert data.metainfo.classes[0] == 'background'
    assert data.pipeline[-1].type == 'PackSegInputs'
    assert cfg.test_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])
    # mmseg's own metric on the exported files gives what ours gave.
    values = []
    for config, checkpoint in ((folder / 'tiny.py', checkpoint_of(folder)),
                               (files.config, files.checkpoint)):
        out = tmp_path / 'metrics.json'
        done = run_tool('test', config, checkpoint, '--work-dir',
                        tmp_path / 'w', '--out', out)
        assert done.code == 0, done.err
        values.append(json.loads(out.read_text())['mIoU'])
    assert values[0] == pytest.approx(values[1], abs=0.0051)


@pytest.mark.parametrize('model, args, message', [
    ('cps', ['--model', 'mean'], "model='mean' is several networks, and a "
     'plain model is one. Choose one of network_0, network_1.'),
    ('plain', [], 'model is a plain EncoderDecoder, which needs no export'),
    ('fixmatch',
     ['--cfg-options', 'model.segmentor.test_cfg.border=truncate'],
     "test_cfg.border='truncate': mmseg ignores this field, so that the "
     "exported model would predict with 'shift'"),
    ('fixmatch',
     ['--cfg-options', 'model.segmentor.test_cfg.average=softmax'],
     'model.segmentor.test_cfg.average=logits, and measure'),
])
def test_what_cannot_be_exported(semantic_trained, run_tool, tmp_path, model,
                                 args, message):
    folder = semantic_trained(model)
    done = run_tool('export_model', folder / 'tiny.py', checkpoint_of(folder),
                    tmp_path / 'out', *args)
    assert done.code == 2, done.out
    assert message in done.err
    assert not (tmp_path / 'out').exists()


# Configs and data ---------------------------------------------------------


@pytest.mark.parametrize('model', ['fixmatch', 'cps'])
def test_good_config_passes(write_semantic, run_tool, model):
    done = run_tool('check_config', write_semantic(model))
    assert done.code == 0, done.out + done.err
    assert f'{model}.py: ok' in done.out
    assert '  note: train_dataloader.dataset: 8 + 8 images' in done.out
    assert 'warning' not in done.out


@pytest.mark.parametrize('lines, message', [
    ("model['type'] = 'mmsemi.UniMatch'",
     "no source makes the views ['unsup_student_2']"),
    ("segmentor['decode_head']['num_classes'] = 10",
     'The model has num_classes=10 in student.decode_head'),
    ("segmentor['test_cfg']['stride'] = (33, 30)",
     'model.segmentor.test_cfg: test_cfg.stride=(33, 30) is larger than'),
    ("labeled_dataset['img_suffix'] = '.jpg'",
     'train_dataloader.dataset: DigitsSemanticDataset'),
    ("labeled_dataset['reduce_zero_label'] = True", 'train_dataloader'),
])
def test_errors_of_semantic_configs(write_semantic, run_tool, lines, message):
    done = run_tool('check_config', write_semantic(extra=f'\n{lines}\n'))
    assert done.code == 1, done.out + done.err
    errors = [line for line in done.out.splitlines() if ' error: ' in line]
    assert any(message in line for line in errors), errors


ROUNDS = """
labeled_dataset['pipeline'] = load + [pack]
train_dataloader['dataset']['datasets'] = [labeled_dataset]
train_dataloader['sampler']['source_ratio'] = [1]
unlabeled_dataset['pipeline'] = [load[0], pack]
model = segmentor
custom_hooks = []
train_cfg = dict(
    type='mmsemi.SelfTrainingLoop',
    round_iters=2,
    unlabeled_dataset=unlabeled_dataset,
    pseudo_pipeline=load + [pack])
"""


@pytest.mark.parametrize('line, code, message', [
    ("unlabeled_dataset['indices'] = 3", 0,
     'note: train_cfg.unlabeled_dataset: 3 images'),
    ("unlabeled_dataset['ann_file'] = 'splits/none.txt'", 1,
     'error: train_cfg.unlabeled_dataset: not loaded, because there is no '),
    ("unlabeled_dataset['data_root'] = 'elsewhere'", 0,
     'note: train_cfg.unlabeled_dataset: not loaded, because there is no '),
    ("unlabeled_dataset['pipeline'] = [dict(type='Resize', size=3)]", 1,
     'error: train_cfg.unlabeled_dataset.pipeline[0]: '),
])
def test_images_that_rounds_label(write_semantic, run_tool, line, code,
                                  message):
    done = run_tool('check_config',
                    write_semantic(extra=f'{ROUNDS}\n{line}\n'))
    assert message in done.out, done.out + done.err
    assert done.code == code


def test_fields_that_mmseg_ignores_are_a_warning(write_semantic, run_tool):
    done = run_tool(
        'check_config',
        write_semantic('plain', "segmentor['test_cfg']['border'] = "
                       "'truncate'\n"), '--no-data')
    assert "warning: model.test_cfg: border='truncate' has no effect" in \
        done.out


def test_config_is_printed(write_semantic, run_tool, tmp_path):
    path = write_semantic('cps')
    done = run_tool('print_config', path, '--diff', write_semantic())
    assert done.code == 0, done.err
    assert "+ model.type = 'mmsemi.CPS'" in done.out


def test_views_are_drawn_with_label_maps(write_semantic, run_tool, tmp_path):
    done = run_tool('browse_dataset', write_semantic(), '--output-dir',
                    tmp_path / 'views', '--number', 4)
    assert done.code == 0, done.err
    pictures = sorted((tmp_path / 'views').iterdir())
    assert [p.name.rsplit('_', 1)[0] for p in pictures] == [
        '0000_sup', '0001_sup', '0002_unsup_teacher', '0003_unsup_teacher'
    ]
    # One view, tinted, and two.
    sizes = [Image.open(p).size for p in pictures]
    assert sizes[0][0] < 2 * 384 < sizes[2][0]
