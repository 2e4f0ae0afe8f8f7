# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmsemi.apis import export_model, init_model
from mmsemi.apis.export import ExportedModel, verify_export
from mmsemi.datasets.digits_instance import DIGIT_CLASSES

IMAGE = np.random.RandomState(1).randint(0, 256, (64, 80, 3), np.uint8)


def predict(model) -> dict:
    return dict(inference_detector(model, IMAGE).pred_instances.items())


@pytest.mark.parametrize('which', ['teacher', 'student'])
def test_mmdet_predicts_the_same(trained, run_tool, tmp_path, which):
    checkpoint = trained / 'work_dir' / 'iter_2.pth'
    done = run_tool('export_model', trained / 'tiny.py', checkpoint,
                    tmp_path / 'out', '--model', which)
    assert done.code == 0, done.err
    assert f'{which}, predicts the same' in done.out
    config, weights = (
        tmp_path / 'out' / f'tiny_{which}.{end}' for end in ('py', 'pth'))

    text = config.read_text()
    assert 'mmsemi' not in text
    exported = torch.load(weights, weights_only=True)
    assert not any(key.startswith(('teacher', 'student'))
                   for key in exported['state_dict'])
    meta = exported['meta']
    assert meta['dataset_meta']['classes'] == DIGIT_CLASSES
    assert (meta['exported'], meta['iter']) == (which, 2)

    plain = init_detector(str(config), str(weights), device='cpu')
    assert type(plain).__name__ == 'SOLOv2'
    assert plain.dataset_meta['classes'] == DIGIT_CLASSES
    found = predict(plain)
    expected = predict(init_model(trained / 'tiny.py', checkpoint, which))
    assert len(found['scores']) == 5
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('name', [
    'mask_rcnn', 'cascade_mask_rcnn', 'maskformer', 'mask2former',
    'rtmdet_ins'
])
def test_other_segmenters(tiny_segmentor_config, trained, tmp_path, name):
    cfg = Config.fromfile(trained / 'tiny.py')
    cfg.model.segmentor = tiny_segmentor_config(name)
    data = cfg.test_dataloader.dataset
    data.metainfo = dict(classes=('a', 'b', 'c'))
    data.pipeline.insert(1, dict(type='Resize', scale=(128, 64)))
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'iter_0.pth')
    # It compares the predictions.
    files = export_model(cfg, tmp_path / 'iter_0.pth', tmp_path)
    meta = torch.load(files.checkpoint, weights_only=True)['meta']
    assert meta['dataset_meta']['classes'] == ('a', 'b', 'c')


def test_exported_model_needs_no_mmsemi(trained, tmp_path):
    files = export_model(
        trained / 'tiny.py',
        trained / 'work_dir' / 'iter_2.pth',
        tmp_path,
        verify=False)
    # Only reading is tried: building models takes long to import.
    code = ('import sys; sys.modules["mmsemi"] = None\n'
            'from mmengine.config import Config\n'
            'print(Config.fromfile(sys.argv[1]).model.type)')
    done = subprocess.run(
        [sys.executable, '-c', code,
         str(files.config)],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ, 'OMP_NUM_THREADS': '1'
        })
    assert done.stdout == 'SOLOv2\n', done.stderr
    cfg = Config.fromfile(files.config)
    assert cfg.test_dataloader.dataset.type == 'CocoDataset'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'PackDetInputs'
    assert cfg.model.backbone.init_cfg is None


def test_verification_finds_other_weights(trained, tmp_path):
    checkpoint = trained / 'work_dir' / 'iter_2.pth'
    files = export_model(
        trained / 'tiny.py', checkpoint, tmp_path, 'student', verify=False)
    teacher = init_model(trained / 'tiny.py', checkpoint, 'teacher')
    with pytest.raises(RuntimeError, match='does not predict the same'):
        verify_export(teacher, ExportedModel(*files))


def test_checkpoint_without_teacher_is_refused(trained, run_tool, tmp_path):
    files = export_model(
        trained / 'tiny.py',
        trained / 'work_dir' / 'iter_2.pth',
        tmp_path / 'once',
        verify=False)
    done = run_tool('export_model', trained / 'tiny.py', files.checkpoint,
                    tmp_path / 'twice')
    assert done.code == 2
    assert 'holds no teacher' in done.err
    assert "starts with 'teacher.'" in done.err
    assert not (tmp_path / 'twice').exists()


def test_untrained_teacher_is_refused(trained, run_tool, tmp_path):
    done = run_tool('export_model', trained / 'tiny.py',
                    trained / 'work_dir' / 'iter_2.pth', tmp_path / 'out',
                    '--cfg-options', 'model.teacher.burn_in_steps=3')
    assert done.code == 2
    assert 'The teacher has not learnt anything yet' in done.err


def test_type_of_mmsemi_in_the_test_data_is_refused(trained, write_config,
                                                    run_tool, tmp_path):
    config = write_config("test_dataloader['dataset']['pipeline'].insert("
                          "1, dict(type='mmsemi.StrongColor'))")
    done = run_tool('export_model', config,
                    trained / 'work_dir' / 'iter_2.pth', tmp_path / 'out')
    assert done.code == 2
    assert ("test_pipeline[1].type='mmsemi.StrongColor': mmdet has no such "
            'type') in done.err
