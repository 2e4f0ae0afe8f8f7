# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Compile the ops of onedl-mmcv once and install the wheel from a cache.

PyPI carries onedl-mmcv as source only. Compiling its ops takes 10 to 20
minutes on two cores, so the wheel is kept outside the environment, in a
folder named after everything the binary depends on: the mmcv, torch and
Python versions, the platform and whether CUDA kernels are in it. A second
clone or environment with the same key installs it in seconds.
"""
import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Optional

MMCV_DIST = 'onedl-mmcv'
ROOT = Path(__file__).resolve().parent.parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='Example: python tools/build_mmcv_ops.py')
    parser.add_argument(
        '--mmcv-version',
        help='version of onedl-mmcv (default: the one in constraints.txt)')
    parser.add_argument(
        '--cache-dir',
        type=Path,
        default=default_cache_dir(),
        help='where wheels are kept (default: %(default)s; also set by the '
        'environment variable MMSEMI_CACHE)')
    parser.add_argument(
        '--jobs',
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(
            os, 'sched_getaffinity') else os.cpu_count() or 1,
        help='parallel compilers (default: %(default)s)')
    parser.add_argument(
        '--force', action='store_true', help='compile even if cached')
    parser.add_argument(
        '--no-install',
        action='store_true',
        help='fill the cache, leave this environment as it is')
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    return args


def default_cache_dir() -> Path:
    """Return the folder that holds mmsemi's caches."""
    if 'MMSEMI_CACHE' in os.environ:
        return Path(os.environ['MMSEMI_CACHE'])
    base = os.environ.get('XDG_CACHE_HOME', str(Path.home() / '.cache'))
    return Path(base) / 'mmsemi'


def pinned_version() -> str:
    """Return the mmcv version that ``constraints.txt`` names."""
    text = (ROOT / 'constraints.txt').read_text()
    match = re.search(rf'^{MMCV_DIST}==(\S+)', text, re.MULTILINE)
    if match is None:
        sys.exit(f'constraints.txt does not pin {MMCV_DIST}; name a version '
                 'with --mmcv-version.')
    return match.group(1)


def builds_cuda() -> bool:
    """Return whether mmcv's build would compile CUDA kernels here."""
    try:
        import torch
    except ImportError:
        sys.exit('torch is not installed in this environment, and without '
                 f'it mmcv builds no ops. Run: {sys.executable} -m pip '
                 'install torch')
    return torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'


def check_compilers() -> None:
    """Stop at once, not after minutes, where a compiler is missing."""
    compiler = os.environ.get('CXX', 'c++')
    if os.name == 'posix' and shutil.which(compiler) is None:
        sys.exit(f'The C++ compiler {compiler} was not found. On Debian or '
                 'Ubuntu: apt-get install g++')
    if builds_cuda():
        import torch
        from torch.utils.cpp_extension import CUDA_HOME
        if CUDA_HOME is None:
            sys.exit(
                'torch sees a GPU, but nvcc was not found. Install the CUDA '
                f'{torch.version.cuda} toolkit and set CUDA_HOME. '
                'CUDA_VISIBLE_DEVICES="" compiles ops for the CPU alone.')


def build_key(mmcv_version: str) -> str:
    """Return a folder name for everything the compiled ops depend on."""
    with_cuda = builds_cuda()
    import torch
    device = 'cpu'
    if with_cuda:
        arch = os.environ.get('TORCH_CUDA_ARCH_LIST') or '+'.join(
            sorted({
                '.'.join(map(str, torch.cuda.get_device_capability(i)))
                for i in range(torch.cuda.device_count())
            }))
        device = f'cuda{torch.version.cuda}-sm{arch}'
    libc = '-'.join(filter(None, platform.libc_ver())) or 'nolibc'
    key = (f'mmcv{mmcv_version}_torch{torch.__version__}_{device}_'
           f'{sys.implementation.cache_tag}_{sysconfig.get_platform()}_'
           f'{libc}')
    return re.sub(r'[^\w.+-]', '-', key)


def has_compiled_ops() -> bool:
    """Return whether this environment's mmcv carries the ops it should.

    Ops for the CPU alone do not count where CUDA kernels would be built.
    """
    code = 'import torch, mmcv._ext as ops; assert ops.__file__; '
    if builds_cuda():
        code += 'assert ops.get_compiling_cuda_version() != "not available"'
    return subprocess.run([sys.executable, '-c', code],
                          stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode == 0


def installed_version() -> Optional[str]:
    try:
        return metadata.version(MMCV_DIST)
    except metadata.PackageNotFoundError:
        return None


def check_family() -> None:
    """Refuse to write over the original mmcv: both are one package."""
    for name in ('mmcv', 'mmcv-full', 'mmcv-lite'):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        sys.exit(f'{name} {version} is installed; {MMCV_DIST} would write '
                 'over its files. Remove it first: '
                 f'{sys.executable} -m pip uninstall {name}')


def run_with_progress(command: list, env: dict, log_file: Path) -> None:
    """Run a compiler command, show its [done/all] counter, keep a log."""
    start, shown = time.time(), ''
    live = sys.stdout.isatty()
    with log_file.open('w') as log:
        process = subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace')
        for line in process.stdout:
            log.write(line)
            match = re.match(r'\s*\[(\d+)/(\d+)\]', line)
            if not match:
                continue
            done, total = int(match[1]), int(match[2])
            elapsed = time.time() - start
            left = elapsed / done * (total - done) if done else 0
            text = (f'compiling mmcv ops: {done}/{total} files, '
                    f'{elapsed / 60:.1f} min, about {left / 60:.1f} min left')
            if live:
                print(f'\r{text}   ', end='', flush=True)
            elif done % 10 == 0 or done == total:
                print(text, flush=True)
            shown = text
        code = process.wait()
    if shown and live:
        print()
    if code != 0:
        tail = ''.join(log_file.read_text().splitlines(True)[-40:])
        sys.exit(f'{tail}\nCompiling failed (exit code {code}). The whole '
                 f'log is in {log_file}. A C++17 compiler is needed.')


def build_wheel(version: str, folder: Path, jobs: int) -> Path:
    """Compile the wheel into ``folder`` and return its path."""
    check_compilers()
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    # The build runs without isolation, so that it sees this torch; what it
    # needs besides must be here.
    subprocess.run(
        pip + [
            'install', '-q', '-c',
            str(ROOT / 'constraints.txt'), 'setuptools', 'wheel', 'ninja',
            'psutil', 'packaging', 'numpy'
        ],
        check=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
            prefix='mmcv-build-', dir=folder.parent) as tmp:
        env = dict(
            os.environ,
            MAX_JOBS=str(jobs),
            # Without debug information the objects are a tenth in size.
            CFLAGS=os.environ.get('CFLAGS', '') + ' -g0',
            PATH=os.pathsep.join(
                [str(Path(sys.executable).parent), os.environ['PATH']]))
        log_file = folder.parent / f'{folder.name}.log'
        print(f'Compiling {MMCV_DIST} {version} with {jobs} jobs; log: '
              f'{log_file}', flush=True)
        run_with_progress(
            pip + [
                'wheel', '-v', '--no-deps', '--no-build-isolation',
                '--no-cache-dir', '--no-binary', MMCV_DIST, '--wheel-dir',
                tmp, f'{MMCV_DIST}=={version}'
            ], env, log_file)
        wheels = list(Path(tmp).glob('*.whl'))
        if len(wheels) != 1 or 'none-any' in wheels[0].name:
            sys.exit(f'The build made no binary wheel ({wheels}); see '
                     f'{log_file}')
        staged = Path(tmp) / 'done'
        staged.mkdir()
        shutil.move(str(wheels[0]), staged)
        if folder.exists():
            shutil.rmtree(folder)
        staged.rename(folder)
    return next(folder.glob('*.whl'))


def main() -> None:
    args = parse_args()
    if not args.no_install:
        check_family()
    version = args.mmcv_version or pinned_version()
    folder = args.cache_dir / 'wheels' / build_key(version)
    if (not args.force and not args.no_install
            and installed_version() == version and has_compiled_ops()):
        print(f'{MMCV_DIST} {version} with compiled ops is installed.')
        return
    wheel = next(folder.glob('*.whl'), None)
    if wheel is None or args.force:
        wheel = build_wheel(version, folder, args.jobs)
    else:
        print(f'Found {wheel}')
    if args.no_install:
        return
    subprocess.run([
        sys.executable, '-m', 'pip', '--disable-pip-version-check', 'install',
        '-q', '--force-reinstall', '--no-deps',
        str(wheel)
    ],
                   check=True)
    if not has_compiled_ops():
        sys.exit(f'{wheel} was installed but mmcv._ext does not load; run '
                 f'{sys.executable} -c "import torch, mmcv._ext" to see why, '
                 'or compile anew with --force.')
    print(f'Installed {wheel.name} with compiled ops.')


if __name__ == '__main__':
    main()
