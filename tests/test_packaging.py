# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What is shipped: the wheel, its configs, the make targets."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest

import mmsemi

ROOT = Path(mmsemi.__file__).parents[1]
SHIPPED = ('mmsemi', 'configs', 'tools', 'requirements', 'setup.py',
           'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'LICENSE',
           'README.md', 'model-index.yml', 'constraints.txt', 'Makefile')


def run(*command: str, cwd: Path, **env: str) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        env=dict(os.environ, **env),
        capture_output=True,
        text=True,
        timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of the source tree, as git checks it out."""
    folder = tmp_path_factory.mktemp('source')
    for name in SHIPPED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(
                path,
                folder / name,
                symlinks=True,
                ignore=shutil.ignore_patterns('__pycache__'))
        elif path.exists():
            shutil.copy2(path, folder)
    return folder


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory) -> Path:
    """The wheel, made from the sdist, as PyPI's users would."""
    folder = tmp_path_factory.mktemp('dist')
    run(sys.executable,
        '-c',
        'from setuptools import build_meta; '
        f'build_meta.build_sdist({str(folder)!r})',
        cwd=source)
    sdist, = folder.glob('mmsemi-*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter='data')
    run(sys.executable,
        '-m',
        'pip',
        'wheel',
        '-q',
        '--no-deps',
        '--no-index',
        '--no-build-isolation',
        '-w',
        str(folder),
        str(sdist).removesuffix('.tar.gz'),
        cwd=folder)
    return next(folder.glob('*.whl'))


def files_in(folder: Path) -> set:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_wheel_carries_configs_and_tools(source, wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ('configs', 'tools'):
        shipped = {
            name.split(f'.mim/{folder}/')[1]
            for name in names if f'mmsemi/.mim/{folder}/' in name
        }
        assert shipped == files_in(source / folder)
    assert {'mmsemi/.mim/model-index.yml',
            'mmsemi/.mim/constraints.txt'} <= names
    packages = {
        f'mmsemi/{name}'
        for name in files_in(source / 'mmsemi')
        if name.endswith('.py') and not name.startswith('.mim')
    }
    assert packages == {
        name
        for name in names
        if re.fullmatch(r'mmsemi/(?!\.mim).*\.py', name)
    }
    assert any(name.endswith('licenses/LICENSE') for name in names)


def test_wheel_depends_on_no_family(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith('/METADATA'))
        metadata = archive.read(name).decode()
    assert f'Version: {mmsemi.__version__}\n' in metadata
    assert 'Requires-Python: >=3.10\n' in metadata
    required = re.findall(r'^Requires-Dist: ([\w-]+)(.*)$', metadata, re.M)
    hard = {name for name, rest in required if 'extra ==' not in rest}
    assert hard == {'numpy', 'pycocotools', 'scikit-learn'}
    onedl = {name for name, rest in required if '"onedl"' in rest}
    assert onedl == {
        'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection',
        'onedl-mmsegmentation'
    }
    assert set(re.findall(r'^Provides-Extra: (.*)$', metadata, re.M)) == {
        'onedl', 'openmmlab', 'text', 'optional', 'tests', 'docs'
    }


RESOLVE = '''
import mmsemi
from mmengine.config import Config
config = Config.fromfile('config.py')
print(mmsemi.__file__)
print(config.default_scope)
'''


def test_installed_wheel_resolves_its_configs(wheel, tmp_path) -> None:
    target = tmp_path / 'site'
    run(sys.executable,
        '-m',
        'pip',
        'install',
        '-q',
        '--no-deps',
        '--no-index',
        '--target',
        str(target),
        str(wheel),
        cwd=tmp_path)
    (tmp_path / 'config.py').write_text(
        "_base_ = 'mmsemi::_base_/default_runtime.py'\n")
    lines = run(
        sys.executable, '-c', RESOLVE, cwd=tmp_path,
        PYTHONPATH=str(target)).splitlines()
    assert lines[-2:] == [str(target / 'mmsemi' / '__init__.py'), 'mmdet']


def test_fresh_clone_resolves_its_configs(source, tmp_path) -> None:
    (tmp_path / 'config.py').write_text(
        "_base_ = 'mmsemi::_base_/default_runtime.py'\n")
    lines = run(
        sys.executable, '-c', RESOLVE, cwd=tmp_path,
        PYTHONPATH=str(source)).splitlines()
    assert lines[-2:] == [str(source / 'mmsemi' / '__init__.py'), 'mmdet']


@pytest.mark.parametrize('can_link', [True, False])
def test_setup_mends_links_that_git_could_not_make(can_link, tmp_path,
                                                   monkeypatch) -> None:
    spec = importlib.util.spec_from_file_location('mmsemi_setup',
                                                  ROOT / 'setup.py')
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    monkeypatch.setattr(setup, 'ROOT', tmp_path)
    for name in ('configs', 'tools'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'a.py').write_text(name)
    for name in ('model-index.yml', 'constraints.txt'):
        (tmp_path / name).write_text(name)
    mim = tmp_path / 'mmsemi' / '.mim'
    mim.mkdir(parents=True)
    # On Windows git writes where the link leads.
    (mim / 'configs').write_text('../../configs')
    # A copy of an earlier version.
    (mim / 'tools').mkdir()
    (mim / 'tools' / 'old.py').touch()
    if not can_link:

        def refuse(*args, **kwargs):
            raise OSError('links need a privilege')

        monkeypatch.setattr(Path, 'symlink_to', refuse)
    for _ in range(2):
        setup.provide_mim_files()
        assert (mim / 'tools').is_symlink() is can_link
        assert not (mim / 'tools' / 'old.py').exists()
        assert (mim / 'configs' / 'a.py').read_text() == 'configs'
        assert (mim / 'constraints.txt').read_text() == 'constraints.txt'


def make(*args: str) -> str:
    """The commands that make would run in an empty environment."""
    # Tests may run inside make, which hands its variables down.
    outer = ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL', 'MAKEOVERRIDES', 'VENV',
             'PYTHON', 'TORCH_INDEX', 'PYTEST_ARGS')
    clean = [part for name in outer for part in ('-u', name)]
    return run(
        'env', *clean, 'make', '-n', 'VENV=no-such-venv', *args, cwd=ROOT)


def test_install_and_demo_need_no_compiler() -> None:
    for target in ('install', 'demo'):
        commands = make(target)
        assert '-m venv no-such-venv' in commands
        assert 'build_mmcv_ops' not in commands
    assert 'no-such-venv/bin/python tools/demo.py --work-dir work_dirs/demo' \
        in commands


def test_tests_run_with_compiled_ops_and_take_arguments() -> None:
    commands = make('test', 'PYTEST_ARGS=-k nothing')
    build = commands.index('tools/build_mmcv_ops.py')
    assert commands.index('-m venv') < build
    assert build < commands.index('-m pytest')
    assert '-k nothing' in commands


@pytest.mark.parametrize('choice, reachable, expected', [
    ('auto', True, 'CPU'),
    ('auto', False, ''),
    ('', True, ''),
    ('http://localhost/cu130', True, 'http://localhost/cu130'),
])
def test_torch_index(choice, reachable, expected, tmp_path) -> None:
    server = HTTPServer(('127.0.0.1', 0), SimpleHTTPRequestHandler)
    cpu_index = f'http://127.0.0.1:{server.server_port}'
    expected = expected.replace('CPU', cpu_index)
    # Only its rule for torch, with an echo in place of pip.
    recipe = make('install', f'TORCH_INDEX={choice}', f'CPU_INDEX={cpu_index}')
    rule = recipe[recipe.index("index='"):recipe.index('echo \'Installing Op')]
    rule = re.sub(r'\S+ -m pip \S+ install -q', 'echo pip', rule)
    rule = rule.replace('no-such-venv/bin/python', sys.executable)
    # A machine without an NVIDIA driver.
    rule = rule.replace('command -v nvidia-smi', 'false')
    if reachable:
        Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()
    out = run('sh', '-c', rule, cwd=tmp_path, no_proxy='127.0.0.1')
    if reachable:
        server.shutdown()
        server.server_close()
    option = f'--extra-index-url {expected} ' if expected else ''
    assert out.splitlines() == [
        f'Installing torch from {expected or "the index of pip"} ...',
        f'pip --no-compile -c constraints.txt {option}torch'
    ]


def test_help_is_the_default_target() -> None:
    assert make() == make('help')
    named = set(re.findall(r'make (\w+) ', make('help')))
    assert named >= {
        'install', 'demo', 'ops', 'test', 'lint', 'bench', 'docs', 'clean'
    }


def test_ci_runs_the_tests_and_the_demo() -> None:
    script = ROOT / '.ci' / 'run'
    assert os.access(script, os.X_OK)
    run('bash', '-n', str(script), cwd=ROOT)
    assert re.findall(r'^step make (\w+)$', script.read_text(),
                      re.M) == ['test', 'demo']
