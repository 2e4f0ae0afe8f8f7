# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Ratios of times, measured side by side."""
import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List

import torch

ROW = '{:<34} {:>9} {:>9} {:>7} {:>13} {:>6}'


def add_timing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has.

    Args:
        parser (argparse.ArgumentParser): Gets ``--device``, ``--iters``,
            ``--threads``, ``--clock``, ``--json`` and ``--check``.
    """
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1')
    parser.add_argument(
        '--iters', type=int, default=5, help='pairs measured (default: 5)')
    parser.add_argument('--threads', type=int, help="torch's CPU threads")
    parser.add_argument(
        '--clock',
        choices=('wall', 'cpu'),
        default='wall',
        help='cpu counts the processor time of this process, for a machine '
        'that is busy with other work; best with --threads 1')
    parser.add_argument('--json', type=Path, help='also write results here')
    parser.add_argument(
        '--check',
        action='store_true',
        help='exit with 1 if a ratio exceeds its limit')


def compare(first: Callable[[], None], second: Callable[[], None],
            device: torch.device, iters: int,
            clock: str) -> Dict[str, float]:
    """Time two functions in turn, so that both see the same machine.

    Args:
        first (Callable): The function under test.
        second (Callable): What it is compared with.
        device (torch.device): Waited for before the clock is read.
        iters (int): Number of pairs, after one that is not counted.
        clock (str): 'wall' or 'cpu'.

    Returns:
        dict[str, float]: Median seconds of both, the median of the paired
        ratios first / second and their range.
    """
    now = time.perf_counter if clock == 'wall' else time.process_time

    def seconds(function: Callable[[], None]) -> float:
        wait(device)
        start = now()
        function()
        wait(device)
        return now() - start

    pairs = [(seconds(first), seconds(second)) for _ in range(iters + 1)][1:]
    ratios = [a / b for a, b in pairs]
    return dict(
        first=median(a for a, _ in pairs),
        second=median(b for _, b in pairs),
        ratio=median(ratios),
        lowest=min(ratios),
        highest=max(ratios))


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def describe_machine(device: torch.device) -> Dict[str, object]:
    """Return what the times depend on.

    Args:
        device (torch.device): The device measured on.

    Returns:
        dict: Version of torch, number of threads and name of the device.
    """
    return dict(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device)
        if device.type == 'cuda' else platform.machine())


def run_benchmark(parts: Dict[str, Callable[[], List[dict]]],
                  args: argparse.Namespace) -> List[str]:
    """Run benchmarks and print a table.

    Args:
        parts (dict[str, Callable]): By name what returns results: those of
            :func:`compare` with ``what`` (str) and ``limit`` (float).
        args (argparse.Namespace): See :func:`add_timing_options`.

    Returns:
        list[str]: What exceeded its limit.
    """
    machine = describe_machine(torch.device(args.device))
    print(f'torch {machine["torch"]}, {machine["device"]}, '
          f'{machine["threads"]} threads, {args.clock} clock; medians of '
          f'{args.iters} pairs')
    print(ROW.format('first / second', 'first [s]', 'second', 'ratio',
                     'range', 'limit'))
    results: List[dict] = []
    for run in parts.values():
        for r in run():
            print(
                ROW.format(r['what'], f'{r["first"]:.4f}',
                           f'{r["second"]:.4f}', f'{r["ratio"]:.3f}',
                           f'{r["lowest"]:.2f}-{r["highest"]:.2f}',
                           f'{r["limit"]:.2f}'),
                flush=True)
            results.append(r)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps(dict(machine=machine, results=results), indent=2))
    over = [r['what'] for r in results if r['ratio'] > r['limit']]
    if over:
        print(f'Over the limit: {"; ".join(over)}')
    return over
