# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The doctor: what it sees, what it advises, and that it always runs."""
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmsemi import compat, doctor
from mmsemi.compat import UncompiledOps

ROOT = Path(compat.__file__).parents[1]


def run_doctor(*python_args: str, path: str = '', **env: str):
    env = dict(os.environ, **env)
    env['PYTHONPATH'] = os.pathsep.join([str(ROOT), path])
    return subprocess.run(
        [sys.executable, *python_args, '-m', 'mmsemi.doctor'],
        env=env,
        capture_output=True,
        text=True,
        timeout=240)


def test_usable_environment_without_compiled_ops() -> None:
    result = run_doctor(MMSEMI_FORCE_UNCOMPILED_OPS='1')
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines]
    assert ['torch', 'torch', metadata.version('torch')] in rows
    mmcv = next(row for row in rows if row[:1] == ['mmcv'])
    assert mmcv == ['mmcv', *doctor.version_of('onedl-mmcv', 'mmcv').split()]
    assert 'Mask R-CNN works, torch in place of compiled ops'.split() in rows
    assert '  mmcv ops: placeholder; nms gives the right boxes' in lines
    assert any(
        line.endswith('build_mmcv_ops.py') and sys.executable in line
        for line in lines)
    assert lines[-1] == 'Usable.'


def test_empty_environment_names_what_to_install() -> None:
    # -S hides site-packages: nothing is installed.
    result = run_doctor('-S')
    assert result.returncode == 1, result.stderr
    assert 'torch             not installed' in result.stdout
    assert ('not installed: torch, numpy, cv2, mmengine, mmcv, pycocotools, '
            'mmdet') in result.stdout
    command = next(line for line in result.stdout.splitlines()
                   if 'onedl-mmcv==2.3.6' in line)
    assert command.strip().startswith(f'{sys.executable} -m pip install -c ')
    assert 'torch==2.13.0 numpy opencv-python onedl-mmengine' in command
    assert result.stdout.endswith('Not usable yet.\n')
    assert result.stderr == ''


def test_mixed_families_are_reported(tmp_path) -> None:
    for name in ('mmcv', 'onedl_mmcv'):
        folder = tmp_path / f'{name}-2.2.0.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: 2.2.0\n')
    result = run_doctor('-S', path=str(tmp_path))
    assert result.returncode == 1, result.stderr
    assert 'family: mixed' in result.stdout
    assert 'pip uninstall -y onedl-mmcv mmcv\n' in result.stdout


def use_ext(monkeypatch, ext) -> None:
    monkeypatch.setitem(sys.modules, 'mmcv._ext', ext)


@pytest.mark.parametrize('ext, state, detail', [
    (UncompiledOps(), 'placeholder', 'nms gives the right boxes'),
    (SimpleNamespace(nms=UncompiledOps().nms), 'compiled', 'right boxes'),
    (SimpleNamespace(nms=lambda *args, **kwargs: torch.tensor([0, 1])),
     'broken', 'nms kept [0, 1]'),
    (UncompiledOps().softnms, 'broken', 'AttributeError'),
    (None, 'broken', 'ModuleNotFoundError'),
])
def test_ops_are_run(ext, state, detail, monkeypatch) -> None:
    use_ext(monkeypatch, ext)
    ops = doctor.check_ops(torch)
    assert ops.state == state
    assert detail in ops.detail


def test_ops_package_is_missing_in_mmcv_lite(monkeypatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, 'find_spec', lambda name: None)
    assert doctor.check_ops(torch).state == 'missing'


def test_models_say_what_they_need() -> None:
    bare = dict(doctor.model_rows(doctor.Ops('placeholder', '', False)))
    assert {
        name
        for name, verdict in bare.items() if verdict == 'needs compiled ops'
    } == {
        'any with deformable convolution (DCN)', 'any with CARAFE',
        'any with soft-NMS'
    }
    full = dict(doctor.model_rows(doctor.Ops('compiled', '', False)))
    semantic = 'DeepLabV3+, PSPNet, UPerNet, SegFormer'
    assert bare[semantic] == full.pop(semantic) == 'works, needs no ops'
    assert set(full.values()) == {'works, compiled ops'}
    assert {'SOLOv2', 'Mask2Former', 'MaskFormer', 'RTMDet-Ins',
            'Mask R-CNN', 'Cascade Mask R-CNN'} < set(full)


@pytest.mark.parametrize('reason', ['', 'AssertionError: MMCV==2.2.0 is'])
def test_mmseg_that_cannot_be_imported_is_named(reason, monkeypatch) -> None:
    monkeypatch.setattr(doctor, 'try_import', lambda name: (None, reason))
    advice = doctor.semantic_advice()
    assert len(advice) == bool(reason)
    for entry in advice:
        assert 'no semantic segmentation' in entry.problem
        assert reason in entry.problem
        assert 'onedl-mmsegmentation' in entry.command
        assert not entry.essential
    monkeypatch.setattr(compat, 'is_installed', lambda name: False)
    assert doctor.semantic_advice() == []


def fake_torch(gpu: bool) -> SimpleNamespace:
    cuda = SimpleNamespace(
        is_available=lambda: gpu,
        device_count=lambda: 2,
        get_device_properties=lambda index: SimpleNamespace(
            name=f'Card {index}', major=9, minor=index,
            total_memory=80 * 2**30),
        nccl=SimpleNamespace(version=lambda: (2, 27, 3)))
    return SimpleNamespace(
        cuda=cuda,
        version=SimpleNamespace(cuda='13.0' if gpu else None, hip=None),
        distributed=SimpleNamespace(
            is_available=lambda: True, is_nccl_available=lambda: True))


@pytest.mark.parametrize('state, gpu, on_gpu, command, essential', [
    ('compiled', False, False, None, None),
    ('compiled', True, True, None, None),
    ('compiled', True, False, 'build_mmcv_ops.py --force', False),
    ('placeholder', False, False, 'build_mmcv_ops.py', False),
    ('broken', False, False, 'build_mmcv_ops.py --force', True),
    ('missing', False, False, 'onedl-mmcv==2.3.6', True),
])
def test_ops_advice(state, gpu, on_gpu, command, essential) -> None:
    advice = doctor.ops_advice(
        doctor.Ops(state, 'why', on_gpu), fake_torch(gpu))
    if command is None:
        assert advice == []
    else:
        assert len(advice) == 1
        assert advice[0].command.endswith(command)
        assert advice[0].command.startswith(sys.executable)
        assert advice[0].essential is essential


def test_gpu_lines() -> None:
    assert doctor.gpu_lines(fake_torch(True)) == [
        '0: Card 0, compute capability 9.0, 80 GiB',
        '1: Card 1, compute capability 9.1, 80 GiB', 'CUDA 13.0, NCCL 2.27.3'
    ]
    assert doctor.gpu_lines(fake_torch(False)) == [
        'none available; torch is built for the CPU only'
    ]


def test_essential_advice(monkeypatch) -> None:
    monkeypatch.setattr(compat, 'is_installed', lambda name: name != 'numpy')
    libgl = 'ImportError: libGL.so.1: cannot open shared object file'
    # What is broken may be broken by what is absent.
    absent = doctor.essential_advice(dict(numpy='x', mmcv='y'))
    assert [entry.problem for entry in absent] == ['not installed: numpy']
    assert absent[0].command.endswith(' numpy')
    monkeypatch.setattr(compat, 'is_installed', lambda name: True)
    # mmcv fails because OpenCV does.
    broken = doctor.essential_advice(dict(cv2=libgl, mmcv=libgl))
    assert len(broken) == 1 and broken[0].essential
    assert broken[0].command.endswith(
        '--force-reinstall --no-deps opencv-python-headless')
    broken = doctor.essential_advice(dict(mmengine='SyntaxError: x'))
    assert broken[0].command.endswith(
        '--force-reinstall onedl-mmengine==0.10.12')
    assert doctor.essential_advice({}) == []


def test_failing_imports_are_one_line(tmp_path, monkeypatch) -> None:
    (tmp_path / 'chatty.py').write_text('print("hello")')
    (tmp_path / 'broken.py').write_text('raise OSError("first\\nsecond")')
    monkeypatch.syspath_prepend(tmp_path)
    module, reason = doctor.try_import('chatty')
    assert module.__name__ == 'chatty' and reason == ''
    assert doctor.try_import('broken') == (None, 'OSError: first')


def test_main_returns_what_is_essential(monkeypatch, capsys) -> None:
    advice = [doctor.Advice('b is slow', 'mend b', False)]
    monkeypatch.setattr(doctor, 'diagnose', lambda echo: advice)
    assert doctor.main([]) == 0
    assert capsys.readouterr().out == (
        '\nOptional\n  - b is slow\n      mend b\n\nUsable.\n')
    advice.append(doctor.Advice('a is missing', 'mend a', True))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert out.startswith('\nTo mend\n  - a is missing\n      mend a\n')
    with pytest.raises(SystemExit):
        doctor.main(['--unknown'])
