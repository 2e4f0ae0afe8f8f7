# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Measure what a step on semantic maps costs beyond its bare passes.

A step is everything between data preprocessor and optimizer: losses, backward
pass, update of the teacher. The bare passes are, in turns with it: the
networks' supervised losses, logits and cross entropy on as many unlabelled
images as the step learns from, one backward pass, and the teacher's logits.
"""
import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import mmsemi  # noqa: F401, must come before mmseg is imported

# isort: split
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmsemi.apis.timing import add_timing_options, compare, run_benchmark
from mmsemi.models.dense_forward import dense_logits
from mmsemi.registry import MODELS

MODEL = Path(__file__).resolve().parents[2] / \
    'configs/_base_/models/deeplabv3plus_r50-d16.py'
KEEP_ALL = [dict(type='mmsemi.KeepConfidentPixels', conf_thr=0.)]
METHODS = dict(
    fixmatch=dict(type='mmsemi.FixMatch', pseudo_label_pipeline=KEEP_ALL),
    cps=dict(type='mmsemi.CPS'),
    unimatch=dict(type='mmsemi.UniMatch', pseudo_label_pipeline=KEEP_ALL))
VIEWS = ('unsup_teacher', 'unsup_student', 'unsup_student_2')
LIMIT = 1.10


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='The segmenter is DeepLabV3+ with a ResNet-50.')
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='METHOD',
        help=f'any of {", ".join(METHODS)} (default: all)')
    parser.add_argument(
        '--size', type=int, default=128, help='side of the square images')
    parser.add_argument(
        '--images',
        type=int,
        nargs=2,
        default=(2, 2),
        metavar=('LABELLED', 'UNLABELLED'),
        help='images in a step (default: 2 2)')
    add_timing_options(parser)
    args = parser.parse_args()
    args.parts = args.parts or [*METHODS]
    unknown = set(args.parts) - {*METHODS}
    if unknown:
        parser.error(f'unknown methods {sorted(unknown)}; allowed are '
                     f'{[*METHODS]}')
    if args.iters < 1 or min(args.images) < 1:
        parser.error('--iters and --images start at 1')
    if args.size < 64 or args.size % 16:
        parser.error(f'--size {args.size}: give a multiple of 16 from 64')
    if args.clock == 'cpu' and args.device != 'cpu':
        parser.error('--clock cpu does not see the work of another device')
    return args


def build_model(name: str, device: torch.device) -> nn.Module:
    """Build a method around an untrained segmenter.

    Args:
        name (str): Key of METHODS.
        device (torch.device): Where the model goes.

    Returns:
        nn.Module: In training mode.
    """
    init_default_scope('mmseg')
    segmentor = Config.fromfile(MODEL).model
    segmentor.backbone.init_cfg = None
    # Processes share no statistics here.
    for part in (segmentor.backbone, segmentor.decode_head):
        part.norm_cfg = dict(type='BN', requires_grad=True)
    model = MODELS.build(dict(METHODS[name], segmentor=segmentor))
    model.init_weights()
    return model.to(device).train()


def make_batch(args: argparse.Namespace, num_classes: int,
               device: torch.device) -> Tuple[dict, dict]:
    """Return preprocessed random inputs and data samples by view."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.size, args.size)
    counts = dict(sup=args.images[0], **{v: args.images[1] for v in VIEWS})
    inputs, samples = {}, {}
    for view, count in counts.items():
        inputs[view] = torch.randn((count, 3, *shape),
                                   generator=generator).to(device)
        samples[view] = [
            SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
            for _ in range(count)
        ]
    for sample in samples['sup']:
        label = torch.randint(num_classes, (1, *shape), generator=generator)
        sample.gt_sem_seg = PixelData(data=label.to(device))
    return inputs, samples


def bare_passes(name: str, model: nn.Module, inputs: Dict[str, Tensor],
                samples: dict, label: Tensor) -> None:
    """Run the passes that a step consists of, and nothing else."""
    networks = model.networks if name == 'cps' else [model.student]
    views = dict(
        fixmatch=['unsup_student'], cps=['unsup_teacher'],
        unimatch=VIEWS)[name]
    total = 0.
    for network in networks:
        total = total + model.parse_losses(
            network.loss(inputs['sup'], samples['sup']))[0]
        for view in views:
            logits = dense_logits(network, inputs[view])
            total = total + F.cross_entropy(logits, label)
    if name == 'fixmatch':
        with torch.no_grad():
            dense_logits(model.teacher, inputs['unsup_teacher'])
    total.backward()


def bench_method(name: str, args: argparse.Namespace) -> List[dict]:
    """Compare a step of a method with its bare passes.

    Args:
        name (str): Key of METHODS.
        args (argparse.Namespace): The options.

    Returns:
        list[dict]: One result, see :func:`run_benchmark`.
    """
    device = torch.device(args.device)
    model = build_model(name, device)
    networks = model.networks if name == 'cps' else [model.student]
    num_classes = networks[0].decode_head.num_classes
    inputs, samples = make_batch(args, num_classes, device)
    label = torch.zeros((args.images[1], args.size, args.size),
                        dtype=torch.long,
                        device=device)

    def step() -> None:
        losses = model(inputs, samples, mode='loss')
        model.parse_losses(losses)[0].backward()
        if hasattr(model, 'update_teacher'):
            model.update_teacher()

    def fresh(function: Callable[[], None]) -> Callable[[], None]:

        def run() -> None:
            model.zero_grad()
            function()

        return run

    passes = partial(bare_passes, name, model, inputs, samples, label)
    result = compare(
        fresh(step), fresh(passes), device, args.iters, args.clock)
    return [
        dict(
            result,
            part=name,
            what=f'{name}: step / bare passes',
            limit=LIMIT,
            size=args.size,
            images=list(args.images))
    ]


def main() -> None:
    args = parse_args()
    # Silences a line per parameter from init_weights.
    MMLogger.get_current_instance().setLevel('WARNING')
    if args.threads:
        torch.set_num_threads(args.threads)
    parts = {part: partial(bench_method, part, args) for part in args.parts}
    if run_benchmark(parts, args) and args.check:
        sys.exit(1)


if __name__ == '__main__':
    main()
