# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Resolve every ``type`` of a config as the runner would."""
import difflib
import inspect
from contextlib import ExitStack
from typing import (Any, Dict, List, Mapping, NamedTuple, Optional, Sequence,
                    Tuple)

from mmengine.registry import (DATA_SAMPLERS, DATASETS, EVALUATOR, FUNCTIONS,
                               HOOKS, LOG_PROCESSORS, LOOPS, METRICS,
                               MODEL_WRAPPERS, MODELS,
                               OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS,
                               OPTIMIZERS, PARAM_SCHEDULERS, RUNNERS,
                               TASK_UTILS, TRANSFORMS, VISBACKENDS,
                               VISUALIZERS, WEIGHT_INITIALIZERS, DefaultScope,
                               Registry)

from mmsemi.compat import is_installed

Registries = Tuple[Registry, ...]

#: Where the values of the config's own keys are looked up.
_ROOM_OF_KEY: Dict[str, Registries] = {
    'model': (MODELS, TASK_UTILS),
    'data_preprocessor': (MODELS, ),
    'train_dataloader': (DATASETS, ),
    'val_dataloader': (DATASETS, ),
    'test_dataloader': (DATASETS, ),
    'train_cfg': (LOOPS, ),
    'val_cfg': (LOOPS, ),
    'test_cfg': (LOOPS, ),
    'val_evaluator': (METRICS, EVALUATOR, TASK_UTILS),
    'test_evaluator': (METRICS, EVALUATOR, TASK_UTILS),
    'optim_wrapper': (OPTIM_WRAPPERS, ),
    'param_scheduler': (PARAM_SCHEDULERS, ),
    'default_hooks': (HOOKS, ),
    'custom_hooks': (HOOKS, ),
    'visualizer': (VISUALIZERS, ),
    'log_processor': (LOG_PROCESSORS, ),
    'model_wrapper_cfg': (MODEL_WRAPPERS, ),
    'runner_type': (RUNNERS, ),
}
#: Keys anywhere below that lead to another registry.
_ROOM_OF_INNER_KEY: Dict[str, Registries] = {
    'init_cfg': (WEIGHT_INITIALIZERS, ),
    'datasets': (DATASETS, ),
    'unlabeled_dataset': (DATASETS, ),
    'mix': (TRANSFORMS, ),
    'batch_sampler': (DATA_SAMPLERS, ),
    'collate_fn': (FUNCTIONS, ),
    'worker_init_fn': (FUNCTIONS, ),
    'optimizer': (OPTIMIZERS, ),
    'stage2_param_scheduler': (PARAM_SCHEDULERS, ),
    'constructor': (OPTIM_WRAPPER_CONSTRUCTORS, ),
    'ema_type': (MODELS, ),
    'vis_backends': (VISBACKENDS, ),
}
#: Names of functions and layers that no registry holds.
_FREE_KEYS = ('nms', 'roi_layer')
#: Keys whose string value is the name of a class.
_TYPE_KEYS = ('type', 'constructor', 'ema_type', 'runner_type')
#: Libraries whose classes have the same names as some of mmcv's.
_LIBRARIES = ('mmdet', 'mmseg')
#: Wrappers whose nested types belong to another library.
_FOREIGN = ('Albu', )


class Finding(NamedTuple):
    """Something that the check has to say.

    Args:
        level (str): 'error', 'warning' or 'note'.
        where (str): Dotted key of the config.
        message (str): What it is, what is allowed.
    """
    level: str
    where: str
    message: str


def check_types(cfg: Mapping) -> List[Finding]:
    """Resolve every ``type`` of a config.

    A type that is unknown, that does not take an argument it is given, or
    that silently is mmcv's although mmdet or mmseg has its own, is an error.

    Args:
        cfg (Mapping): The config.

    Returns:
        list[Finding]: In the order of the config.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    findings: List[Finding] = []
    with DefaultScope.overwrite_default_scope(scope):
        for key, rooms in _ROOM_OF_KEY.items():
            if cfg.get(key) is not None:
                _visit(cfg[key], key, rooms, scope, findings)
    return findings


def resolve_type(name: str,
                 registries: Sequence[Registry],
                 scope: Optional[str] = None) -> Optional[Any]:
    """Return what a type name stands for.

    Args:
        name (str): Type name, with or without scope.
        registries (Sequence[Registry]): Root registries to look in.
        scope (str, optional): The scope to look from. Defaults to None: the
            current default scope.

    Returns:
        Any: The class or function; None if there is none.
    """
    for registry in registries:
        with registry.switch_scope_and_registry(scope) as current:
            try:
                found = current.get(name)
            except (RuntimeError, ImportError):
                found = None
        if found is not None:
            return found
    return None


def suggest_types(name: str, registries: Sequence[Registry]) -> str:
    """Suggest what an unknown type may have meant.

    Args:
        name (str): The unknown name.
        registries (Sequence[Registry]): Where it should have been.

    Returns:
        str: A sentence, or ''.
    """
    bare = name.rpartition('.')[2]
    known: Dict[str, List[str]] = {}
    for registry in registries:
        for full in _all_names(registry):
            known.setdefault(full.rpartition('.')[2], []).append(full)
    near = [bare] if bare in known else difflib.get_close_matches(
        bare, known, 3)
    near = [full for other in near for full in known[other] if full != name]
    if near:
        return f'Did you mean {" or ".join(near[:4])}?'
    for registry in (DATASETS, DATA_SAMPLERS, TRANSFORMS, MODELS, TASK_UTILS,
                     HOOKS, LOOPS, METRICS, VISUALIZERS):
        if registry not in registries:
            found = [
                full for full in _all_names(registry)
                if full.rpartition('.')[2] == bare
            ]
            if found:
                return (f'{found[0]} is a {registry.name}, which does not '
                        'belong here.')
    return ''


def _visit(node: Any, where: str, rooms: Registries, scope: str,
           findings: List[Finding]) -> None:
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            _visit(child, f'{where}[{i}]', rooms, scope, findings)
        return
    if not isinstance(node, Mapping):
        if where == 'runner_type':
            _check_name(node, where, rooms, scope, findings)
        return
    with ExitStack() as stack:
        if isinstance(node.get('_scope_'), str):
            # It holds for everything built inside, too.
            scope = node['_scope_']
            stack.enter_context(DefaultScope.overwrite_default_scope(scope))
        found = None
        if isinstance(node.get('type'), str):
            found = _check_name(node['type'], f'{where}.type', rooms, scope,
                                findings)
            if found is not None:
                _check_arguments(found, node, where, findings)
        elif inspect.isclass(node.get('type')):
            _check_arguments(node['type'], node, where, findings)
        if getattr(found, '__name__', '') in _FOREIGN:
            return
        for key, child in node.items():
            _visit_child(key, child, where, rooms, scope, findings)


def _visit_child(key: str, child: Any, where: str, rooms: Registries,
                 scope: str, findings: List[Finding]) -> None:
    inner = f'{where}.{key}'
    if key in _FREE_KEYS:
        return
    if str(key).endswith('pipeline'):
        rooms = (TRANSFORMS, )
    elif key == 'sampler' and rooms == (DATASETS, ):
        rooms = (DATA_SAMPLERS, )
    elif str(key).endswith('dataset'):
        rooms = (DATASETS, )
    elif key in _ROOM_OF_INNER_KEY:
        rooms = _ROOM_OF_INNER_KEY[key]
    if isinstance(child, str):
        if key in _TYPE_KEYS and key != 'type':
            _check_name(child, inner, rooms, scope, findings)
        return
    _visit(child, inner, rooms, scope, findings)


def _check_name(name: str, where: str, rooms: Registries, scope: str,
                findings: List[Finding]) -> Optional[Any]:
    found = resolve_type(name, rooms)
    if found is None:
        findings.append(
            Finding(
                'error', where,
                f'{name!r} is unknown under default_scope={scope!r}. ' +
                suggest_types(name, rooms)))
        return None
    better = _shadowed(name, found, rooms, scope)
    if better:
        module = getattr(found, '__module__', '').split('.')[0]
        right = ' or '.join(map(repr, better))
        findings.append(
            Finding(
                'error', where,
                f'{name!r} resolves to {module}\'s {name} under '
                f'default_scope={scope!r}, not to {" or ".join(better)}. '
                f"Write {right}, or {'mmengine.' + name!r} if you mean it."))
    return found


def _shadowed(name: str, found: Any, rooms: Registries,
              scope: str) -> List[str]:
    """Name the classes that a bare name silently does not mean.

    Under mmdet or mmseg it is this library's. Elsewhere it may be either's.
    """
    if '.' in name:
        return []
    libraries = (scope, ) if scope in _LIBRARIES else _LIBRARIES
    for registry in rooms:
        if registry.module_dict.get(name) is not found:
            continue
        better = [
            f'{library}.{name}' for library in libraries
            if _names(registry, library).get(name, found) is not found
        ]
        if better:
            return better
    return []


def _names(registry: Registry, scope: str) -> Dict[str, Any]:
    child = _child(registry, scope)
    return {} if child is None else child.module_dict


def _child(registry: Registry, scope: str) -> Optional[Registry]:
    """Return a library's part of a registry, filled."""
    if not is_installed(scope):
        return None
    # Looking up any name of the scope imports it.
    try:
        registry.get(f'{scope}.{scope}')
    except (RuntimeError, ImportError):
        pass
    return registry.children.get(scope)


def _all_names(registry: Registry) -> List[str]:
    registry.import_from_location()
    names = list(registry.module_dict)
    for scope in ('mmdet', 'mmseg', 'mmsemi'):
        child = _child(registry, scope)
        if child is not None:
            names += [f'{scope}.{name}' for name in child.module_dict]
    return names


def _check_arguments(cls: Any, node: Mapping, where: str,
                     findings: List[Finding]) -> None:
    """Find arguments that a class does not take."""
    room = where.split('.')[0].split('[')[0]
    # What a model takes is found out by building it; layers take arguments
    # that never reach their class.
    if not inspect.isclass(cls) or room == 'model':
        return
    given = [key for key in node if key not in ('type', '_scope_')]
    allowed, certain = _arguments(cls)
    if allowed is None:
        return
    for key in given:
        if key in allowed or key in _BUILDER_ARGUMENTS.get(room, ()):
            continue
        near = difflib.get_close_matches(key, allowed, 3)
        hint = f' Did you mean {" or ".join(near)}?' if near else ''
        findings.append(
            Finding('error' if certain else 'warning', f'{where}.{key}',
                    f'{cls.__name__} has no argument {key!r}.{hint}'))


#: Arguments that the runner takes out before it builds.
_BUILDER_ARGUMENTS = dict(
    param_scheduler=('convert_to_iter_based', ),
    train_cfg=('by_epoch', ),
    optim_wrapper=('optimizer', 'constructor', 'paramwise_cfg'),
    default_hooks=('priority', ),
    custom_hooks=('priority', ))


def _arguments(cls: type) -> Tuple[Optional[set], bool]:
    """Return the names that a class takes, and whether that is certain.

    A class that hands ``**kwargs`` on takes its base's names as well, but
    may take more out of them.
    """
    names: set = set()
    certain = True
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        try:
            parameters = inspect.signature(base.__init__).parameters.values()
        except (TypeError, ValueError):
            return None, False
        names |= {
            p.name
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names - {'self'}, certain
        certain = False
    return None, False
