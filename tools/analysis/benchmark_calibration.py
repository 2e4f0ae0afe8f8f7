# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Measure what the calibration of many classes costs.

As many classes as LVIS has, by default: counting the predictions of one
image, fitting the maps of all classes, correcting the probabilities of one
image. Each is compared with the time that it may take.
"""
import argparse
import sys
import time
from functools import partial
from statistics import median
from typing import Callable, Dict, List

import torch

from mmsemi.apis.timing import add_timing_options, run_benchmark, wait
from mmsemi.pseudo_labels import ClassCalibrator, frequency_groups

# Seconds.
LIMITS = dict(update=0.002, fit=0.2, correct=0.02)
MOST_BYTES = 1_000_000
# Predictions counted before anything is measured.
FILLED = 300_000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='The limits hold for the default numbers on two CPU cores.')
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='PART',
        help=f'any of {", ".join(LIMITS)} (default: all)')
    parser.add_argument(
        '--classes', type=int, default=1203, help='(default: 1203)')
    parser.add_argument(
        '--predictions', type=int, default=300, help='in an image '
        '(default: 300)')
    parser.add_argument(
        '--mode',
        default='platt',
        choices=('scalar', 'bin', 'platt', 'temperature'),
        help='the map (default: platt)')
    add_timing_options(parser)
    parser.set_defaults(iters=20, threads=2)
    args = parser.parse_args()
    args.parts = args.parts or [*LIMITS]
    unknown = set(args.parts) - {*LIMITS}
    if unknown:
        parser.error(f'unknown parts {sorted(unknown)}; allowed are '
                     f'{[*LIMITS]}')
    if min(args.iters, args.classes, args.predictions) < 1:
        parser.error('--iters, --classes and --predictions start at 1')
    if args.clock == 'cpu' and args.device != 'cpu':
        parser.error('--clock cpu does not see the work of another device')
    return args


def make_predictions(number: int, num_classes: int,
                     device: torch.device) -> Dict[str, torch.Tensor]:
    """Return random arguments of ``update``; low classes are frequent."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(number, generator=generator)
    labels = num_classes * torch.rand(number, generator=generator)**3
    right = torch.rand(number, generator=generator) < scores
    return dict(
        scores=scores.to(device),
        labels=labels.long().clamp(max=num_classes - 1).to(device),
        outcomes=right.to(device))


def make_calibrator(args: argparse.Namespace) -> ClassCalibrator:
    """Return a calibrator with data of every kind of class."""
    device = torch.device(args.device)
    filled = make_predictions(FILLED, args.classes, device)
    counts = filled['labels'].bincount(minlength=args.classes).cpu()
    calibrator = ClassCalibrator(
        args.classes, groups=frequency_groups(counts),
        mode=args.mode).to(device)
    calibrator.update(**filled)
    calibrator.fit()
    return calibrator


def bench_part(name: str, args: argparse.Namespace) -> List[dict]:
    """Compare a part with the time that it may take.

    Args:
        name (str): Key of LIMITS.
        args (argparse.Namespace): The options.

    Returns:
        list[dict]: One result, see :func:`run_benchmark`; its second time
        is the limit.
    """
    calibrator = make_calibrator(args)
    device = torch.device(args.device)
    image = make_predictions(args.predictions, args.classes, device)
    functions: Dict[str, Callable[[], object]] = dict(
        update=lambda: calibrator.update(**image), fit=calibrator.fit)
    if name == 'correct':
        generator = torch.Generator().manual_seed(0)
        probs = torch.randn((args.predictions, args.classes + 1),
                            generator=generator).softmax(1).to(device)
        functions['correct'] = lambda: calibrator.correct(probs)
    now = time.perf_counter if args.clock == 'wall' else time.process_time
    seconds = []
    for _ in range(args.iters + 1):
        wait(device)
        start = now()
        functions[name]()
        wait(device)
        seconds.append(now() - start)
    # The first call also allocates.
    seconds = seconds[1:]
    limit = LIMITS[name]
    return [
        dict(
            part=name,
            what=f'{name} / what it may take',
            first=median(seconds),
            second=limit,
            ratio=median(seconds) / limit,
            lowest=min(seconds) / limit,
            highest=max(seconds) / limit,
            limit=1.,
            classes=args.classes,
            predictions=args.predictions)
    ]


def print_memory(args: argparse.Namespace) -> bool:
    """Print the memory of the statistics; return whether it is too much."""
    calibrator = make_calibrator(args)
    size = sum(part.numel() * part.element_size()
               for part in (calibrator.statistics, calibrator.pending))
    total = sum(part.numel() * part.element_size()
                for part in calibrator.buffers())
    print(f'Statistics of {args.classes} classes: {size / 1e6:.3f} MB (may '
          f'take {MOST_BYTES / 1e6:.0f}), with all else {total / 1e6:.3f} MB')
    return size > MOST_BYTES


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(f'{args.classes} classes, {args.predictions} predictions an image')
    parts = {part: partial(bench_part, part, args) for part in args.parts}
    over = bool(run_benchmark(parts, args))
    if print_memory(args) | over and args.check:
        sys.exit(1)


if __name__ == '__main__':
    main()
