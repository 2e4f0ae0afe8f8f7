# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Show the state of this environment and the commands that mend it.

Run it as ``python -m mmsemi.doctor``. The exit code is 0 if instance
segmentation models can be trained here, else 1. It needs nothing installed.
"""
import argparse
import contextlib
import importlib.util
import io
import os
import platform
import sys
import warnings
from importlib import metadata
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import compat
from .version import __version__

#: Packages that every model needs, in the order in which they need another.
ESSENTIAL = ('torch', 'numpy', 'cv2', 'mmengine', 'mmcv', 'pycocotools',
             'mmdet')

#: Import name, pip name and use of packages that some features need.
#: torchvision is only reported: torch does its work where it is missing.
OPTIONAL = (
    ('mmseg', 'onedl-mmsegmentation', 'semantic segmentation'),
    ('sklearn', 'scikit-learn', 'the embedded digits data, make demo'),
    ('torchvision', 'torchvision', ''),
    ('transformers', 'transformers', 'text encoders, SAM and DINO models'),
    ('faster_coco_eval', 'faster-coco-eval', 'fast COCO and LVIS metrics'),
)

#: Models and the mmcv ops they call; the first group was trained and tested
#: without compiled ops.
MODEL_OPS = (
    ('SOLOv2', ('sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward')),
    ('MaskFormer', ('sigmoid_focal_loss_forward',
                    'sigmoid_focal_loss_backward')),
    ('Mask2Former', ('ms_deform_attn_forward', 'ms_deform_attn_backward')),
    ('RTMDet-Ins', ('nms', )),
    ('Mask R-CNN', ('nms', 'roi_align_forward', 'roi_align_backward')),
    ('Cascade Mask R-CNN', ('nms', 'roi_align_forward',
                            'roi_align_backward')),
    ('DeepLabV3+, PSPNet, UPerNet, SegFormer', ()),
    ('any with deformable convolution (DCN)',
     ('deform_conv_forward', 'modulated_deform_conv_forward')),
    ('any with CARAFE', ('carafe_forward', )),
    ('any with soft-NMS', ('softnms', )),
)

FAMILY_MEANING = {
    'onedl': 'the maintained distributions (onedl-*), as tested',
    'openmmlab': 'the original distributions; not tested',
    'mixed': 'both at once, which cannot work',
    'none': 'no distribution installed',
}


class Advice(NamedTuple):
    """Something missing: what it is, what mends it, whether all needs it."""
    problem: str
    command: str
    essential: bool


class Ops(NamedTuple):
    """State of mmcv's ops."""
    state: str  # 'compiled', 'placeholder', 'broken' or 'missing'
    detail: str
    cuda: bool


def first_line(error: BaseException) -> str:
    """Return an exception as one line."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'


def try_import(name: str) -> Tuple[Optional[Any], str]:
    """Import a module that may fail in any way.

    Returns:
        tuple[module or None, str]: The module and, without it, the reason.
    """
    # Some of these packages print or warn when they are imported.
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(
                io.StringIO()):
            warnings.simplefilter('ignore')
            return importlib.import_module(name), ''
    except Exception as error:
        return None, first_line(error)


def version_of(*dist_names: str) -> str:
    """Return 'name version' of the first installed distribution, or ''."""
    for name in dist_names:
        try:
            return f'{name} {metadata.version(name)}'
        except metadata.PackageNotFoundError:
            continue
    return ''


def dist_names(package: str) -> Tuple[str, ...]:
    """Return the pip names that may provide an import name."""
    names = tuple(name for family in compat.FAMILIES.values()
                  for name in family.get(package, ()))
    if package == 'cv2':
        names = ('opencv-python', 'opencv-python-headless')
    optional = {entry[0]: (entry[1], ) for entry in OPTIONAL}
    return names or optional.get(package, (package, ))


def check_ops(torch: Any) -> Ops:
    """Load mmcv's ops and run one."""
    if importlib.util.find_spec('mmcv.ops') is None:
        return Ops('missing', 'this mmcv has no ops package (mmcv-lite?)',
                   False)
    ext, reason = try_import('mmcv._ext')
    if ext is None:
        return Ops('broken', reason, False)
    state = 'placeholder' if hasattr(
        ext, '__mmsemi_placeholder__') else 'compiled'
    boxes = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [5, 5, 9, 9]])
    scores = torch.tensor([.9, .8, .7])

    def run(device: str) -> str:
        try:
            kept = ext.nms(
                boxes.to(device),
                scores.to(device),
                iou_threshold=0.5,
                offset=0)
        except Exception as error:
            return first_line(error)
        return '' if kept.tolist() == [0, 2] else f'nms kept {kept.tolist()}'

    reason = run('cpu')
    if reason:
        return Ops('broken', reason, False)
    cuda = torch.cuda.is_available() and not run('cuda')
    return Ops(state, 'nms gives the right boxes', cuda)


def model_rows(ops: Ops) -> List[Tuple[str, str]]:
    """Say for each kind of model how it gets its ops here."""
    from .uncompiled_ops import SERVED
    rows = []
    for model, needed in MODEL_OPS:
        served = all(op in SERVED for op in needed)
        if not needed:
            verdict = 'works, needs no ops'
        elif ops.state == 'compiled':
            verdict = 'works, compiled ops'
        elif served:
            verdict = 'works, torch in place of compiled ops'
        else:
            verdict = 'needs compiled ops'
        rows.append((model, verdict))
    return rows


def gpu_lines(torch: Any) -> List[str]:
    """Describe the GPUs and what talks to them."""
    if not torch.cuda.is_available():
        build = torch.version.cuda or torch.version.hip
        return [
            'none available; torch is built '
            f'{f"for CUDA {build}" if build else "for the CPU only"}'
        ]
    lines = []
    for index in range(torch.cuda.device_count()):
        props = torch.cuda.get_device_properties(index)
        lines.append(f'{index}: {props.name}, compute capability '
                     f'{props.major}.{props.minor}, '
                     f'{props.total_memory / 2**30:.0f} GiB')
    nccl = 'no'
    if torch.distributed.is_available(
    ) and torch.distributed.is_nccl_available():
        nccl = '.'.join(map(str, torch.cuda.nccl.version()))
    lines.append(f'CUDA {torch.version.cuda}, NCCL {nccl}')
    return lines


def ops_advice(ops: Ops, torch: Any) -> List[Advice]:
    """Say what mends mmcv's ops."""
    if ops.state == 'missing':
        return [
            Advice(f'mmcv: {ops.detail}', compat.install_command(['mmcv']),
                   True)
        ]
    if ops.state == 'broken':
        return [
            Advice(
                f'mmcv\'s compiled ops do not work ({ops.detail}); they were '
                'built for another torch or Python. Compile them anew, or do '
                'without them: MMSEMI_FORCE_UNCOMPILED_OPS=1',
                compat.build_ops_command('--force'), True)
        ]
    if ops.state == 'placeholder':
        return [
            Advice(
                'mmcv has no compiled ops; the table says which models need '
                'them (10-20 minutes on two cores, needs a C++ compiler)',
                compat.build_ops_command(), False)
        ]
    if torch.cuda.is_available() and not ops.cuda:
        return [
            Advice(
                'mmcv\'s ops were compiled without CUDA and fail on the GPU. '
                'Compile them here, or do without them: '
                'MMSEMI_FORCE_UNCOMPILED_OPS=1',
                compat.build_ops_command('--force'), False)
        ]
    return []


def setup_advice() -> List[Advice]:
    """Run mmsemi's own set-up and turn what it says into advice."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            compat.setup()
        except ImportError as error:
            if compat.openmmlab_family() != 'mixed':
                return []  # missing packages are listed one by one
            what, *rest = str(error).splitlines()
            command = '\n      '.join(
                line.strip() for line in rest if line.startswith('  '))
            return [Advice(what, command, True)]
    return [
        Advice(
            str(entry.message), compat.install_command(), False)
        for entry in caught if issubclass(entry.category, UserWarning)
    ]


def import_essentials() -> Tuple[Dict[str, Any], Dict[str, str]]:
    """Import what every model needs.

    Returns:
        tuple[dict, dict]: Modules, and reasons for those that failed.
    """
    modules, reasons = {}, {}
    for name in ESSENTIAL:
        # mmdet.models is what breaks without ops; mmdet alone never does.
        module, reason = try_import(
            'mmdet.models' if name == 'mmdet' else name)
        if module is None:
            reasons[name] = reason
        else:
            modules[name] = module
    return modules, reasons


def essential_advice(reasons: Dict[str, str]) -> List[Advice]:
    """Say what mends the essential packages.

    Args:
        reasons (dict): Import name to the reason of its failure.
    """
    absent = [name for name in reasons if not compat.is_installed(name)]
    advice = []
    if absent:
        pip_names = [{'cv2': 'opencv-python'}.get(name, name)
                     for name in absent]
        advice.append(
            Advice(f'not installed: {", ".join(absent)}',
                   compat.install_command(pip_names), True))
    broken = [name for name in reasons if name not in absent]
    for name in broken:
        reason = reasons[name]
        if name == 'cv2' and '.so' in reason:
            # The plain wheel needs libraries of the system, and mmcv demands
            # that wheel; the headless one writes the same files without.
            command = compat.install_command(
                ['--force-reinstall', '--no-deps', 'opencv-python-headless'])
        else:
            command = compat.install_command(['--force-reinstall', name])
        # Of the others only the first is sure to fail by its own fault.
        if name == 'cv2' or (name == broken[0] and not absent):
            advice.append(
                Advice(f'{name} cannot be imported: {reason}', command, True))
    return advice


def semantic_advice() -> List[Advice]:
    """Say what mends an mmseg that is there but cannot be imported."""
    if not compat.is_installed('mmseg'):
        return []  # listed with the other optional packages
    # mmseg alone refuses other versions of mmcv; mmseg.models needs its ops.
    _, reason = try_import('mmseg.models')
    if not reason:
        return []
    return [
        Advice(
            f'mmseg cannot be imported, so there is no semantic segmentation: '
            f'{reason}',
            compat.install_command(['--force-reinstall', '--no-deps',
                                    'mmseg']), False)
    ]


def print_versions(echo: Callable[[str], None],
                   reasons: Dict[str, str]) -> None:
    """Print every package with its version, or why it cannot be used."""
    echo('\nVersions')
    python = f'{platform.python_version()} ({sys.executable})'
    echo(f'  {"python":<18}{python}')
    echo(f'  {"platform":<18}{platform.platform()}')
    for name in (*ESSENTIAL, *(entry[0] for entry in OPTIONAL)):
        dist = version_of(*dist_names(name)) or 'not installed'
        note = f' - {reasons[name]}' if name in reasons else ''
        tested = compat.TESTED_VERSIONS.get(dist.split(' ')[0])
        if tested and dist.split(' ')[1].split('+')[0] != tested:
            note += f' (tested with {tested})'
        echo(f'  {name:<18}{dist}{note}')


def diagnose(echo: Callable[[str], None]) -> List[Advice]:
    """Print the state of this environment.

    Args:
        echo (Callable): Takes each line.

    Returns:
        list[Advice]: What is missing.
    """
    echo(f'mmsemi {__version__} in {compat.PACKAGE_DIR}')
    advice = setup_advice()
    modules, reasons = import_essentials()
    print_versions(echo, reasons)

    echo('\nOpenMMLab')
    family = compat.openmmlab_family()
    echo(f'  family: {family}, {FAMILY_MEANING[family]}')
    torch = modules.get('torch')
    if torch is not None and 'mmcv' in modules:
        ops = check_ops(torch)
        echo(f'  mmcv ops: {ops.state}; {ops.detail}')
        advice += ops_advice(ops, torch)
        if ops.state in ('broken', 'missing'):
            # mmdet fails with them; it needs no cure of its own.
            if compat.is_installed('mmdet'):
                reasons.pop('mmdet', None)
        else:
            echo('\nModels')
            for model, verdict in model_rows(ops):
                echo(f'  {model:<40}{verdict}')
    if torch is not None:
        echo('\nGPU')
        for line in gpu_lines(torch):
            echo(f'  {line}')

    advice += essential_advice(reasons)
    if not reasons:
        advice += semantic_advice()
    advice += [
        Advice(f'{name} is needed for {use}', compat.install_command([dist]),
               False) for name, dist, use in OPTIONAL
        if use and not compat.is_installed(name)
    ]
    return advice


def main(args: Optional[List[str]] = None) -> int:
    """Print the diagnosis.

    Returns:
        int: 0 if usable, 1 if something essential is missing.
    """
    parser = argparse.ArgumentParser(
        prog='python -m mmsemi.doctor',
        description='Show what mmsemi needs, what is here, and the commands '
        'that mend what is missing.')
    parser.parse_args(args)
    # Nothing here draws pictures; a cache folder that cannot be written
    # would only add noise.
    os.environ.setdefault('MPLBACKEND', 'agg')
    advice = diagnose(print)
    broken = [entry for entry in advice if entry.essential]
    optional = [entry for entry in advice if not entry.essential]
    for title, entries in (('To mend', broken), ('Optional', optional)):
        if entries:
            print(f'\n{title}')
        for entry in entries:
            print(f'  - {entry.problem}\n      {entry.command}')
    print(f'\n{"Not usable yet." if broken else "Usable."}')
    return 1 if broken else 0


if __name__ == '__main__':
    sys.exit(main())
