# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Find, load and compare configs."""
import difflib
import inspect
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from mmengine.config import Config, ConfigDict

from mmsemi.compat import PACKAGE_DIR

ConfigLike = Union[str, Path, Config]

#: Keys that the runner or the tools read although they are no argument of
#: the runner.
_EXTRA_KEYS = ('activation_checkpointing', 'auto_scale_lr', 'check_classes',
               'compile', 'custom_imports', 'efficient_conv_bn_eval',
               'find_unused_parameters', 'model_wrapper_cfg', 'runner_type',
               'sync_bn', 'tta_model', 'tta_pipeline')


def config_dir() -> Path:
    """Return the folder of mmsemi's own configs.

    Returns:
        Path: In an installed package its ``.mim/configs``, else ``configs``
        of the source tree.
    """
    packaged = PACKAGE_DIR / '.mim' / 'configs'
    return packaged if packaged.is_dir() else PACKAGE_DIR.parent / 'configs'


def list_configs(pattern: str = '*') -> List[str]:
    """List mmsemi's configs.

    Args:
        pattern (str): Shell pattern that the name or its last part matches,
            for instance ``'*solov2*'``. Defaults to ``'*'``.

    Returns:
        list[str]: Sorted names such as ``'mean_teacher/x.py'``; base files
        are no configs.
    """
    root = config_dir()
    names = (path.relative_to(root) for path in root.rglob('*.py'))
    return sorted(
        name.as_posix() for name in names if '_base_' not in name.parts
        and any(
            fnmatch(text, pattern)
            for text in (name.as_posix(), name.name, name.stem)))


def get_config(name: str, cfg_options: Optional[dict] = None) -> Config:
    """Load one of mmsemi's configs by name.

    Args:
        name (str): A name of :func:`list_configs`, with or without folder
            and ``.py``.
        cfg_options (dict, optional): See :func:`load_config`.

    Returns:
        Config: The config.

    Raises:
        FileNotFoundError: If there is none, or several, of this name.
    """
    return load_config(_packaged_path(name), cfg_options)


def find_config(config: Union[str, Path]) -> Path:
    """Return the file of a config.

    Args:
        config (str or Path): A path, or a name of :func:`list_configs`.

    Returns:
        Path: The file.

    Raises:
        FileNotFoundError: If there is none; the message names near ones.
    """
    path = Path(config)
    if path.is_file():
        return path
    if path.is_dir():
        raise FileNotFoundError(f'The config {config} is a folder.')
    return _packaged_path(str(config))


def load_config(config: ConfigLike,
                cfg_options: Optional[Mapping[str, Any]] = None) -> Config:
    """Load a config and change it.

    Args:
        config (str, Path or Config): A path, a name of
            :func:`list_configs`, a name in another package
            (``'mmdet::solov2/solov2_r50_fpn_1x_coco.py'``), or a config,
            which is copied.
        cfg_options (Mapping, optional): Values by dotted key, such as
            ``{'train_cfg.max_iters': 100}``. Defaults to None.

    Returns:
        Config: The config.

    Raises:
        FileNotFoundError: If the config or one of its bases is missing.
        ValueError: If an option would change nothing, because the config
            does not have its first key or nothing reads it any more, or if
            it cannot be merged.
    """
    if isinstance(config, Config):
        cfg = config.copy()
    elif '::' in str(config):
        # A one-line child config is the documented way to reach configs of
        # installed packages by name.
        cfg = Config.fromstring(f'_base_ = [{str(config)!r}]', '.py')
    else:
        cfg = Config.fromfile(find_config(config))
    if cfg_options:
        _check_options(cfg, cfg_options)
        try:
            cfg.merge_from_dict(dict(cfg_options))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f'The options {dict(cfg_options)} do not fit '
                             f'the config: {error}') from error
    return cfg


def config_name(config: ConfigLike) -> str:
    """Return the name of a config: its file name without ``.py``."""
    if isinstance(config, Config):
        config = config.filename or 'config'
    return Path(str(config).replace('::', '/')).stem


def flatten_config(config: Mapping) -> Dict[str, Any]:
    """Return a config's values by dotted key.

    Args:
        config (Mapping): A config or a part of one.

    Returns:
        dict[str, Any]: ``{'a.b[0].c': value}``. Empty dicts and lists, and
        lists without dicts, are values.
    """
    flat: Dict[str, Any] = {}

    def visit(value: Any, key: str) -> None:
        if isinstance(value, Mapping) and value:
            for name, child in value.items():
                visit(child, f'{key}.{name}' if key else str(name))
        elif isinstance(value, (list, tuple)) and any(
                isinstance(child, (Mapping, list, tuple)) for child in value):
            for i, child in enumerate(value):
                visit(child, f'{key}[{i}]')
        else:
            flat[key] = value

    visit(_as_dict(config), '')
    return flat


def diff_configs(base: Mapping, config: Mapping) -> List[str]:
    """Compare two configs.

    Args:
        base (Mapping): The first config.
        config (Mapping): The second config.

    Returns:
        list[str]: Sorted by key; ``'- key = value'`` for what only the first
        has, ``'+ key = value'`` for what only the second has.
    """
    before, after = flatten_config(base), flatten_config(config)
    lines: List[Tuple[str, int, str]] = []
    for key in before.keys() | after.keys():
        if key in before and key in after and before[key] == after[key]:
            continue
        sides = (('-', before), ('+', after))
        for order, (sign, values) in enumerate(sides):
            if key in values:
                lines.append((key, order, f'{sign} {key} = {values[key]!r}'))
    return [line for *_, line in sorted(lines)]


def _as_dict(config: Mapping) -> Mapping:
    if isinstance(config, Config):
        return config.to_dict()
    return config.to_dict() if isinstance(config, ConfigDict) else config


def _packaged_path(name: str) -> Path:
    wanted = name[:-3] if name.endswith('.py') else name
    known = list_configs()
    found = [
        other for other in known
        if wanted in (other[:-3], Path(other).stem)
    ]
    if len(found) == 1:
        return config_dir() / found[0]
    if found:
        raise FileNotFoundError(
            f'The config name {name} fits {", ".join(found)}: name one of '
            'them with its folder.')
    stems = {Path(other).stem: other for other in known}
    near = difflib.get_close_matches(Path(wanted).name, stems, 3)
    hint = f' Did you mean {", ".join(stems[n] for n in near)}?' if near \
        else ''
    raise FileNotFoundError(
        f'There is no config {name}: neither a file nor one of the '
        f'{len(known)} configs of mmsemi.{hint}')


def _check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse options that would change nothing."""
    from mmengine.runner import Runner
    read = {*_EXTRA_KEYS, *inspect.signature(Runner.__init__).parameters}
    known = {*cfg.keys(), *read} - {'self', 'cfg'}
    for key in options:
        first = key.split('.')[0]
        if first in read:
            continue
        if first in cfg:
            raise ValueError(
                f'The option {key} changes nothing: {first} is a variable '
                'that the config file has already used.' +
                _users_of(cfg, cfg[first], read))
        near = difflib.get_close_matches(first, known, 3)
        hint = f' Did you mean {" or ".join(near)}?' if near else ''
        raise ValueError(
            f'The option {key} changes nothing: the config has no '
            f'{first!r}.{hint}')


def _users_of(cfg: Config, value: Any, read: set) -> str:
    """Say where the value of a variable ended up."""
    if value is None or isinstance(value, (bool, dict, list, tuple)):
        return ' Set the keys where it was used.'
    # Options address the n-th entry of a list as `.n`.
    users = [
        re.sub(r'\[(\d+)\]', r'.\1', key)
        for key, other in flatten_config(
            {k: v for k, v in cfg.to_dict().items() if k in read}).items()
        if other == value
    ]
    if not users:
        return ' Set the keys where it was used.'
    more = ' ...' if len(users) > 6 else ''
    return f' Set the keys where it was used: {" ".join(users[:6])}{more}'
