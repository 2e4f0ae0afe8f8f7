# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What makes the installed OpenMMLab usable for mmsemi.

``import mmsemi`` calls :func:`setup`. It refuses an OpenMMLab that cannot
work, makes ``_base_ = 'mmsemi::...'`` and ``_base_ = 'mmseg::...'`` resolve,
keeps ``mmengine.hub`` from running pip, and puts a placeholder where mmcv
has no compiled ops. Nothing here imports torch, mmcv or mmdet.
"""
import importlib.util
import os
import shlex
import sys
import warnings
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, NamedTuple, Optional

from .version import __version__

#: The distributions of each family, by the package that they install.
FAMILIES: Dict[str, Dict[str, tuple]] = {
    'onedl': {
        'mmengine': ('onedl-mmengine', ),
        'mmcv': ('onedl-mmcv', ),
        'mmdet': ('onedl-mmdetection', ),
        'mmseg': ('onedl-mmsegmentation', ),
    },
    'openmmlab': {
        'mmengine': ('mmengine', 'mmengine-lite'),
        'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full'),
        'mmdet': ('mmdet', ),
        'mmseg': ('mmsegmentation', ),
    },
}

#: What the tests of this release ran with; ``constraints.txt`` says the same.
TESTED_VERSIONS: Dict[str, str] = {
    'torch': '2.13.0',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
}

#: Packages without which no module of mmsemi can be used.
REQUIRED = ('torch', 'mmengine', 'mmcv')

PACKAGE_DIR = Path(__file__).resolve().parent

_is_set_up = False


class Distribution(NamedTuple):
    """An installed OpenMMLab distribution."""
    family: str
    package: str
    name: str
    version: str


def is_installed(name: str) -> bool:
    """Tell whether a top-level package can be imported, without importing it.

    Args:
        name (str): Import name, for instance ``'mmdet'``.

    Returns:
        bool: False also for a bare folder of that name on the path.
    """
    if name in sys.modules:
        return sys.modules[name] is not None
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def installed_distributions() -> List[Distribution]:
    """List the OpenMMLab distributions of both families.

    Returns:
        list[Distribution]: From the metadata that pip wrote; a package that
        only lies on ``PYTHONPATH`` is not in it.
    """
    found = []
    for family, packages in FAMILIES.items():
        for package, names in packages.items():
            for name in names:
                try:
                    version = metadata.version(name)
                except metadata.PackageNotFoundError:
                    continue
                found.append(Distribution(family, package, name, version))
    return found


def openmmlab_family() -> str:
    """Name the installed family of OpenMMLab distributions.

    Returns:
        str: ``'onedl'`` (the maintained ``onedl-*`` distributions),
        ``'openmmlab'`` (the original ones), ``'mixed'`` or ``'none'``.
    """
    families = {dist.family for dist in installed_distributions()}
    if len(families) > 1:
        return 'mixed'
    return families.pop() if families else 'none'


def pip_command(*args: str) -> str:
    """Return a pip command line for the running Python, ready to paste."""
    return shlex.join([sys.executable, '-m', 'pip', *args])


def install_command(packages: Optional[List[str]] = None) -> str:
    """Return the command that installs tested versions.

    Args:
        packages (list[str], optional): Import names of OpenMMLab packages,
            pip names or options of others. Defaults to the four of
            OpenMMLab.
    """
    onedl = FAMILIES['onedl']
    names = [
        onedl.get(package, (package, ))[0]
        for package in (packages if packages is not None else onedl)
    ]
    tested = [
        f'{name}=={TESTED_VERSIONS[name]}'
        if name in TESTED_VERSIONS else name for name in names
    ]
    constraints = (PACKAGE_DIR / '.mim' / 'constraints.txt').resolve()
    if constraints.is_file():
        tested = ['-c', str(constraints), *tested]
    return pip_command('install', *tested)


def build_ops_command(*args: str) -> str:
    """Return the command that compiles mmcv's ops, ready to paste."""
    script = PACKAGE_DIR / '.mim' / 'tools' / 'build_mmcv_ops.py'
    script = script.resolve()
    return shlex.join([sys.executable, str(script), *args])


def check_openmmlab() -> None:
    """Refuse an OpenMMLab that cannot work, warn about an untested one.

    ``MMSEMI_SKIP_VERSION_CHECK=1`` in the environment silences the warning.

    Raises:
        ImportError: If torch, mmengine or mmcv is missing, or if both
            families are installed: they write the same packages.
    """
    hint = (f'"{sys.executable} -m mmsemi.doctor" shows the state of this '
            'environment.')
    dists = installed_distributions()
    if openmmlab_family() == 'mixed':
        names = ', '.join(f'{dist.name} {dist.version}' for dist in dists)
        raise ImportError(
            'The original OpenMMLab distributions and the onedl ones are '
            f'installed together ({names}). They write the same packages '
            '(mmengine, mmcv, mmdet, mmseg), so one has overwritten files '
            'of the other. Remove all, then install one family:\n  '
            f'{pip_command("uninstall", "-y", *(d.name for d in dists))}\n  '
            f'{install_command()}\n{hint}')
    missing = [name for name in REQUIRED if not is_installed(name)]
    if missing:
        raise ImportError(
            f'mmsemi needs {", ".join(REQUIRED)}; not installed here: '
            f'{", ".join(missing)}. Install what was tested:\n  '
            f'{install_command(missing)}\n{hint}')
    if os.environ.get('MMSEMI_SKIP_VERSION_CHECK') == '1':
        return
    untested = untested_distributions(dists)
    if untested:
        tested = ', '.join(f'{name} {version}'
                           for name, version in TESTED_VERSIONS.items()
                           if name != 'torch')
        warnings.warn(
            f'mmsemi {__version__} was tested with {tested}, not with '
            f'{", ".join(untested)}. It may work; '
            'MMSEMI_SKIP_VERSION_CHECK=1 silences this message.',
            UserWarning,
            stacklevel=4)


def untested_distributions(dists: List[Distribution]) -> List[str]:
    """List what differs from the tested release series (major.minor)."""
    untested = []
    for dist in dists:
        tested = TESTED_VERSIONS.get(dist.name)
        series = dist.version.split('.')[:2]
        if tested is None or series != tested.split('.')[:2]:
            untested.append(f'{dist.name} {dist.version}')
    return untested


def register_scopes() -> None:
    """Make ``_base_ = 'mmsemi::...'`` and ``'mmseg::...'`` resolve.

    mmengine takes configs only from packages in its table, and there it
    files mmseg under a distribution name that the onedl family does not use.
    Import names are right for both families.
    """
    from mmengine.config.utils import MODULE2PACKAGE
    MODULE2PACKAGE['mmsemi'] = 'mmsemi'
    MODULE2PACKAGE['mmseg'] = 'mmseg'


def inherit_without_scope() -> None:
    """Let ``_base_ = 'mmsemi::...'`` inherit a config as it stands.

    mmengine writes the package into every typed dict that is inherited by
    name, so that bare types in it resolve there. mmsemi's configs name their
    own types ``mmsemi.X`` and leave bare ones to ``default_scope``, mmdet or
    mmseg, where ``_scope_='mmsemi'`` would not find them.
    """
    from mmengine.config import Config
    find_config = Config._get_cfg_path

    def find_config_and_scope(cfg_path: str, filename: str) -> tuple:
        path, scope = find_config(cfg_path, filename)
        return path, None if scope == 'mmsemi' else scope

    Config._get_cfg_path = staticmethod(find_config_and_scope)


def forbid_pip_install() -> None:
    """Turn mmengine's silent ``pip install`` into an error.

    ``mmengine.hub.get_config('X::...')`` installs what it does not find,
    under names that for the onedl family belong to the other family, or on
    PyPI to a stranger's package.
    """
    from mmengine.utils import package_utils

    def refuse_command(cmd: list) -> None:
        raise ModuleNotFoundError(
            f'mmengine wanted to run "{" ".join(map(str, cmd))}". mmsemi '
            'does not let it change this environment. Install the package '
            'yourself; for OpenMMLab packages:\n  '
            f'{install_command()}')

    package_utils.call_command = refuse_command


class UncompiledOps(ModuleType):
    """Stands in for ``mmcv._ext`` where mmcv has no compiled ops.

    mmcv checks at import only that every op is an attribute. So each
    attribute is a function: one from :mod:`mmsemi.uncompiled_ops` that
    computes the op with torch, or one that raises when it is called.
    """
    __mmsemi_placeholder__ = True

    def __init__(self) -> None:
        super().__init__('mmcv._ext', self.__class__.__doc__)
        self.__spec__ = ModuleSpec('mmcv._ext', None, origin='mmsemi')

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(
                f'module {self.__name__!r} has no attribute {name!r}')
        from . import uncompiled_ops
        op = uncompiled_ops.get_op(name)
        setattr(self, name, op)
        return op


def has_compiled_ops() -> bool:
    """Tell whether mmcv comes with a compiled ``_ext``, without loading it."""
    spec = importlib.util.find_spec('mmcv')
    if spec is None or spec.submodule_search_locations is None:
        return False
    return PathFinder.find_spec('mmcv._ext',
                                spec.submodule_search_locations) is not None


def provide_mmcv_ops() -> None:
    """Put a placeholder where mmcv has no compiled ops.

    Must run before ``mmcv.ops`` or ``mmdet.models`` is imported.
    ``MMSEMI_FORCE_UNCOMPILED_OPS=1`` in the environment hides compiled ops.
    """
    if 'mmcv._ext' in sys.modules:
        return
    forced = os.environ.get('MMSEMI_FORCE_UNCOMPILED_OPS') == '1'
    if forced or not has_compiled_ops():
        sys.modules['mmcv._ext'] = UncompiledOps()


def setup() -> None:
    """Prepare OpenMMLab once; ``import mmsemi`` calls this.

    Raises:
        ImportError: See :func:`check_openmmlab`.
    """
    global _is_set_up
    if _is_set_up:
        return
    check_openmmlab()
    register_scopes()
    inherit_without_scope()
    forbid_pip_install()
    provide_mmcv_ops()
    _is_set_up = True
