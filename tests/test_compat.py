# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What makes OpenMMLab usable: checks, config scopes, the placeholder."""
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.utils import install_package

from mmsemi import compat

ROOT = Path(compat.__file__).parents[1]


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter that imports this source tree."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), **env)
    return subprocess.run([sys.executable, '-c', code],
                          env=env,
                          capture_output=True,
                          text=True,
                          timeout=240)


def fake_distributions(monkeypatch, **versions: str) -> None:
    """Let pip's metadata hold only these (underscores for hyphens)."""
    versions = {name.replace('_', '-'): v for name, v in versions.items()}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(compat.metadata, 'version', version)


def test_is_installed(tmp_path, monkeypatch) -> None:
    (tmp_path / 'bare_folder').mkdir()
    (tmp_path / 'module_in_a_file.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert compat.is_installed('mmengine')
    assert compat.is_installed('module_in_a_file')
    assert 'module_in_a_file' not in sys.modules
    assert not compat.is_installed('bare_folder')
    assert not compat.is_installed('no_such_package')
    monkeypatch.setitem(sys.modules, 'module_in_a_file', None)
    assert not compat.is_installed('module_in_a_file')


@pytest.mark.parametrize('versions, family', [
    (dict(), 'none'),
    (dict(onedl_mmcv='2.3.6', onedl_mmengine='0.10.12'), 'onedl'),
    (dict(mmcv_lite='2.1.0', mmsegmentation='1.2.2'), 'openmmlab'),
    (dict(onedl_mmengine='0.10.12', mmdet='3.3.0'), 'mixed'),
])
def test_openmmlab_family(versions, family, monkeypatch) -> None:
    fake_distributions(monkeypatch, **versions)
    assert compat.openmmlab_family() == family


def test_mixed_families_are_refused(monkeypatch) -> None:
    fake_distributions(
        monkeypatch, onedl_mmengine='0.10.12', mmdet='3.3.0', mmcv='2.1.0')
    with pytest.raises(ImportError) as error:
        compat.check_openmmlab()
    message = str(error.value)
    assert 'onedl-mmengine 0.10.12, mmcv 2.1.0, mmdet 3.3.0' in message
    assert (f'{sys.executable} -m pip uninstall -y onedl-mmengine mmcv mmdet'
            in message)


def test_missing_packages_are_named_with_their_command(monkeypatch) -> None:
    fake_distributions(monkeypatch, onedl_mmengine='0.10.12')
    monkeypatch.setattr(compat, 'is_installed', lambda name: name !=
                        'mmcv' and name != 'torch')
    with pytest.raises(ImportError) as error:
        compat.check_openmmlab()
    message = str(error.value)
    assert 'not installed here: torch, mmcv.' in message
    assert f'{sys.executable} -m pip install ' in message
    assert ' torch==2.13.0 onedl-mmcv==2.3.6\n' in message
    assert 'mmsemi.doctor' in message


TESTED = dict(
    onedl_mmengine='0.10.12',
    onedl_mmcv='2.3.6',
    onedl_mmdetection='3.5.1',
    onedl_mmsegmentation='1.4.2')


@pytest.mark.parametrize('changed, named', [
    (dict(), None),
    (dict(onedl_mmcv='2.3.9'), None),
    (dict(onedl_mmcv='2.4.0'), 'not with onedl-mmcv 2.4.0.'),
    (dict(onedl_mmengine='0.11.0', onedl_mmdetection='4.0.0'),
     'not with onedl-mmengine 0.11.0, onedl-mmdetection 4.0.0.'),
])
def test_untested_versions_warn(changed, named, monkeypatch) -> None:
    monkeypatch.delenv('MMSEMI_SKIP_VERSION_CHECK', raising=False)
    fake_distributions(monkeypatch, **{**TESTED, **changed})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        compat.check_openmmlab()
    assert len(caught) == (named is not None)
    if named:
        assert caught[0].category is UserWarning
        assert named in str(caught[0].message)
    monkeypatch.setenv('MMSEMI_SKIP_VERSION_CHECK', '1')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compat.check_openmmlab()


def test_original_family_is_untested(monkeypatch) -> None:
    monkeypatch.delenv('MMSEMI_SKIP_VERSION_CHECK', raising=False)
    fake_distributions(monkeypatch, mmengine='0.10.7', mmcv='2.1.0')
    with pytest.warns(UserWarning, match='mmengine 0.10.7, mmcv 2.1.0'):
        compat.check_openmmlab()


def test_constraints_pin_the_tested_versions() -> None:
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pins = dict(line.split('==') for line in lines if '==' in line)
    for name, version in compat.TESTED_VERSIONS.items():
        assert pins[name] == version
    for file in (ROOT / 'requirements').glob('*.txt'):
        for line in file.read_text().splitlines():
            if line and not line.startswith('#'):
                assert re.match(r'[\w-]+', line)[0] in pins


def test_import_is_light_and_prepares_once() -> None:
    result = run_python('''
import sys, mmsemi
from mmsemi import compat
from mmengine.config.utils import MODULE2PACKAGE
assert MODULE2PACKAGE['mmsemi'] == 'mmsemi' and MODULE2PACKAGE['mmseg'] == \
    'mmseg'
placeholder = sys.modules['mmcv._ext']
compat.setup()
assert sys.modules['mmcv._ext'] is placeholder
heavy = {'torch', 'torchvision', 'cv2', 'mmcv', 'mmdet', 'mmseg'}
print(sorted(heavy & set(sys.modules)))
''', MMSEMI_FORCE_UNCOMPILED_OPS='1')
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '[]'


@pytest.mark.parametrize('base, key', [
    ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'model'),
    ('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', 'model'),
    ('mmsemi::_base_/default_runtime.py', 'default_scope'),
])
def test_base_configs_of_three_packages_resolve(base, key, tmp_path) -> None:
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {base!r}\n')
    assert key in Config.fromfile(path)


def test_hub_never_runs_pip(monkeypatch) -> None:
    monkeypatch.setattr(subprocess, 'check_call',
                        lambda *args, **kwargs: pytest.fail(f'ran {args}'))
    config = get_config(
        'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    assert config.model.type == 'EncoderDecoder'
    with pytest.raises(ModuleNotFoundError) as error:
        install_package('no-such-package')
    assert 'pip install no-such-package' in str(error.value)
    assert 'onedl-mmdetection==3.5.1' in str(error.value)


@pytest.mark.parametrize('file, compiled', [
    (f'_ext{EXTENSION_SUFFIXES[0]}', True),
    ('_ext.txt', False),
])
def test_has_compiled_ops_looks_for_the_file(file, compiled, tmp_path,
                                             monkeypatch) -> None:
    (tmp_path / file).touch()
    spec = ModuleSpec('mmcv', None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
    assert compat.has_compiled_ops() is compiled


@pytest.mark.parametrize('has_ops, forced, placed', [
    (False, '0', True),
    (True, '0', False),
    (True, '1', True),
])
def test_placeholder_is_put_where_needed(has_ops, forced, placed,
                                         monkeypatch) -> None:
    monkeypatch.setattr(compat, 'has_compiled_ops', lambda: has_ops)
    monkeypatch.setenv('MMSEMI_FORCE_UNCOMPILED_OPS', forced)
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    compat.provide_mmcv_ops()
    module = sys.modules.pop('mmcv._ext', None)
    assert isinstance(module, compat.UncompiledOps) is placed
    assert (module is None) is not placed


def test_loaded_ops_are_left_alone(monkeypatch) -> None:
    loaded = object()
    monkeypatch.setitem(sys.modules, 'mmcv._ext', loaded)
    monkeypatch.setenv('MMSEMI_FORCE_UNCOMPILED_OPS', '1')
    compat.provide_mmcv_ops()
    assert sys.modules['mmcv._ext'] is loaded


def test_placeholder_raises_only_when_called() -> None:
    module = compat.UncompiledOps()
    assert module.__mmsemi_placeholder__
    assert not hasattr(module, '__file__')
    assert not hasattr(module, '__path__')
    op = module.softnms
    assert op is module.softnms
    with pytest.raises(RuntimeError) as error:
        op(1, iou_threshold=2)
    message = str(error.value)
    assert 'op softnms' in message and '`make ops`' in message
    assert f'{sys.executable} ' in message
    assert (ROOT / 'tools' / 'build_mmcv_ops.py').is_file()
    assert str(ROOT / 'tools' / 'build_mmcv_ops.py') in message
    assert module.get_compiler_version() == 'n/a'


TRAIN = '''
import json, sys
import mmsemi
from mmcv import _ext
assert _ext.__mmsemi_placeholder__
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData
import numpy as np
register_all_modules()
torch.set_num_threads(1)
report = {}


def make_sample():
    sample = DetDataSample(metainfo=dict(
        img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64),
        batch_input_shape=(64, 64), scale_factor=(1., 1.)))
    masks = np.zeros((2, 64, 64), dtype=np.uint8)
    masks[0, 4:30, 4:30] = masks[1, 20:58, 34:60] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[4., 4, 30, 30], [34, 20, 60, 58]]),
        labels=torch.tensor([0, 2]), masks=BitmapMasks(masks, 64, 64))
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return sample


for name, config in Config.fromfile(sys.argv[1]).items():
    torch.manual_seed(0)
    model = MODELS.build(config)
    image = torch.randn(2, 3, 64, 64)
    losses = model.loss(image, [make_sample(), make_sample()])
    # The mask loss alone: in a two-stage model its gradient reaches the
    # backbone through RoIAlign only.
    loss = sum(torch.as_tensor(value).sum() for key, values in losses.items()
               for value in (values if isinstance(values, list) else [values])
               if 'loss' in key and ('mask' in key or 'dice' in key))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss.backward()
    gradient = sum(float(parameter.grad.abs().sum())
                   for parameter in model.backbone.parameters()
                   if parameter.grad is not None)
    optimizer.step()
    model.eval()
    with torch.no_grad():
        result = model.predict(image[:1], [make_sample()])[0].pred_instances
    report[name] = dict(loss=float(loss), gradient=gradient,
                        masks=list(result.masks.shape[1:]))
print(json.dumps(report))
'''


def test_models_train_and_predict_without_compiled_ops(
        tiny_segmentor_config, tmp_path) -> None:
    from mmsemi.methods import load_segmentor_config
    names = ('mask_rcnn', 'cascade_mask_rcnn', 'rtmdet_ins', 'solov2',
             'maskformer', 'mask2former')
    configs = {}
    for name in names:
        config = load_segmentor_config(tiny_segmentor_config(name))
        configs[name] = config
    path = tmp_path / 'models.py'
    Config(configs).dump(path)
    result = run_python(
        f'import sys; sys.argv = ["x", {str(path)!r}]\n' + TRAIN,
        MMSEMI_FORCE_UNCOMPILED_OPS='1',
        OMP_NUM_THREADS='1')
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert set(report) == set(names)
    for name, row in report.items():
        assert 0 < row['loss'] < 1e4, name
        assert 0 < row['gradient'] < 1e6, name
        assert row['masks'] == [64, 64], name
