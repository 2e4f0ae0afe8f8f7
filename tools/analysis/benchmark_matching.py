# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Measure the matching of a pseudo-mask with proposals against a loop.

Both do the same to the same masks, and their results must be equal. Mask
proposals come from the data loader packed and measured, as here; what it
takes if they are not is shown, too.
"""
import argparse
import sys
from functools import partial
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor

from mmsemi.apis.timing import add_timing_options, compare, run_benchmark
from mmsemi.pseudo_labels import match_proposals
from mmsemi.structures.packed_masks import PackedMasks

# Of the loop's time.
LIMITS = dict(packed=1 / 20, unmeasured=1 / 4, bool=1 / 2)
WHAT = dict(packed='packed', unmeasured='packed, not measured', bool='bool')
STRATEGIES = ('iom', 'cpi')
THRESHOLDS = dict(iou_thr=.5, coverage_thr=.7, purity_thr=.7)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='The limits hold for the default sizes.')
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='PART',
        help=f'any of {", ".join(LIMITS)} (default: all)')
    parser.add_argument(
        '--proposals', type=int, default=150, help='(default: 150)')
    parser.add_argument(
        '--size',
        type=int,
        default=480,
        help='side of the image in pixels (default: 480)')
    add_timing_options(parser)
    parser.set_defaults(iters=20, threads=2)
    args = parser.parse_args()
    args.parts = args.parts or [*LIMITS]
    unknown = set(args.parts) - {*LIMITS}
    if unknown:
        parser.error(f'unknown parts {sorted(unknown)}; allowed are '
                     f'{[*LIMITS]}')
    if args.iters < 1 or args.proposals < 1 or args.size < 16:
        parser.error('--iters and --proposals start at 1, --size at 16')
    if args.clock == 'cpu' and args.device != 'cpu':
        parser.error('--clock cpu does not see the work of another device')
    return args


def make_masks(num: int, size: int,
               device: torch.device) -> Tuple[Tensor, Tensor]:
    """Return an ellipse (H, W) and ellipses (N, H, W) of many sizes."""
    generator = torch.Generator().manual_seed(0)
    axis = (torch.arange(size) + .5) / size
    draw = torch.rand((num + 1, 4), generator=generator)
    y, x = draw[:, :1], draw[:, 1:2]
    # Half axes from 1/50 to 1/4 of the image; the pseudo-mask's are 1/5.
    half = .02 + .23 * draw[:, 2:]**2
    y[0], x[0], half[0] = .5, .45, .2
    # One proposal is the object, as an object has one.
    y[-1], x[-1], half[-1] = .49, .46, .19
    rows = ((axis - y) / half[:, :1]).square()
    columns = ((axis - x) / half[:, 1:]).square()
    masks = (rows[:, :, None] + columns[:, None] <= 1).to(device)
    return masks[0], masks[1:]


def match_in_loop(pseudo: Tensor, proposals: Tensor,
                  strategy: str) -> Tuple[Tensor, bool]:
    """Match one proposal after the other, as it is written down.

    Args:
        pseudo (Tensor): (H, W) bool.
        proposals (Tensor): (N, H, W) bool.
        strategy (str): 'iom' or 'cpi'.

    Returns:
        tuple[Tensor, bool]: See :func:`match_proposals`.
    """
    best, matched = THRESHOLDS['iou_thr'], False
    refined = torch.zeros_like(pseudo)
    for mask in proposals:
        shared = int((pseudo & mask).sum())
        if strategy == 'iom':
            iou = shared / max(int((pseudo | mask).sum()), 1)
            if iou > best:
                best, matched, refined = iou, True, mask
            continue
        coverage = shared / max(int(pseudo.sum()), 1)
        purity = shared / max(int(mask.sum()), 1)
        if (coverage > THRESHOLDS['coverage_thr']
                or purity > THRESHOLDS['purity_thr']):
            matched, refined = True, refined | mask
    return refined if matched else pseudo, matched


def bench_part(name: str, args: argparse.Namespace) -> List[dict]:
    """Compare one way to hand over proposals with the loop.

    Args:
        name (str): Key of LIMITS.
        args (argparse.Namespace): The options.

    Returns:
        list[dict]: A result of each strategy, see :func:`run_benchmark`.

    Raises:
        RuntimeError: If the masks differ.
    """
    device = torch.device(args.device)
    pseudo, masks = make_masks(args.proposals, args.size, device)
    packed = PackedMasks.from_bool(masks).measure()
    given: Dict[str, Callable[[], object]] = dict(
        packed=lambda: packed,
        unmeasured=lambda: PackedMasks(packed.data, packed.num_masks),
        bool=lambda: masks)
    results = []
    for strategy in STRATEGIES:
        match = partial(_match, pseudo, given[name], strategy)
        loop = partial(match_in_loop, pseudo, masks, strategy)
        (mask, matched), (expected, hit) = match(), loop()
        if not mask.equal(expected) or bool(matched) != hit:
            raise RuntimeError(f'{strategy} of {WHAT[name]} masks differs '
                               'from the loop.')
        results.append(
            dict(
                compare(match, loop, device, args.iters, args.clock),
                part=name,
                what=f'{strategy}, {WHAT[name]} / loop',
                limit=LIMITS[name],
                proposals=args.proposals,
                size=args.size))
    return results


def _match(pseudo: Tensor, given: Callable[[], object],
           strategy: str) -> Tuple[Tensor, Tensor]:
    return match_proposals(pseudo, given(), strategy, **THRESHOLDS)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(f'{args.proposals} proposals, {args.size} x {args.size} pixels; '
          'equal masks')
    parts = {part: partial(bench_part, part, args) for part in args.parts}
    if run_benchmark(parts, args) and args.check:
        sys.exit(1)


if __name__ == '__main__':
    main()
