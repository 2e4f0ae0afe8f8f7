# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Measure the store of mask proposals beside JSON files.

The masks are ellipses of many sizes. Compared are one JSON of starts and
lengths per image, as SemiRES's released code keeps them (there even one per
expression), and one JSON of COCO's compressed run lengths per mask. Reading
ends in masks that a matching can use.
"""
import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import pycocotools.mask as mask_utils
import torch

from mmsemi.apis.timing import add_timing_options, compare, run_benchmark
from mmsemi.datasets.proposal_store import ProposalStore
from mmsemi.datasets.proposal_writer import ProposalWriter

# Times of the store over those of the JSON files.
LIMITS = dict(read_image=1., read_masks=0.75, write_image=1.5)
# Bytes of the store over those of the JSON files.
SIZE_LIMITS = dict(image=0.25, masks=0.75)


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
        '--masks', type=int, default=150, help='of an image (default: 150)')
    parser.add_argument(
        '--images', type=int, default=4, help='in the store (default: 4)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(480, 640),
        metavar=('HEIGHT', 'WIDTH'),
        help='of the images (default: 480 640)')
    add_timing_options(parser)
    args = parser.parse_args()
    args.parts = args.parts or [*LIMITS]
    unknown = set(args.parts) - {*LIMITS}
    if unknown:
        parser.error(f'unknown parts {sorted(unknown)}; allowed are '
                     f'{[*LIMITS]}')
    if min(args.iters, args.masks, args.images, *args.size) < 1:
        parser.error('--iters, --masks, --images and --size start at 1')
    return args


def make_masks(number: int, height: int, width: int,
               seed: int) -> np.ndarray:
    """Return random ellipses with ragged edges, (N, H, W) bool."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = np.empty((number, height, width), dtype=bool)
    for mask in masks:
        radius = min(height, width) * rng.uniform(.01, .35, 2)
        dy = (y - rng.uniform(0, height)) / radius[0]
        dx = (x - rng.uniform(0, width)) / radius[1]
        # Edges of real masks are not smooth.
        wave = 1 + .1 * np.sin(rng.uniform(3, 12) * np.arctan2(dy, dx))
        mask[:] = dy**2 + dx**2 < wave
    return masks


def to_runs(mask: np.ndarray) -> List[int]:
    """Return starts from 1 and lengths, column by column."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat))
    runs = np.stack([edges[::2] + 1, edges[1::2] - edges[::2]], 1)
    return runs.ravel().tolist()


def from_runs(runs: List[int], size: List[int]) -> np.ndarray:
    """Undo :func:`to_runs`."""
    mask = np.zeros(size[0] * size[1], dtype=bool)
    for start, length in zip(runs[::2], runs[1::2]):
        mask[start - 1:start - 1 + length] = True
    return mask.reshape(size[::-1]).T


class Files:
    """The same masks in the store and in JSON files.

    Args:
        folder (Path): Where to write.
        args (argparse.Namespace): The options.
    """

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder = folder
        self.size = list(args.size)
        self.masks = [
            make_masks(args.masks, *args.size, seed)
            for seed in range(args.images)
        ]
        self.writer = ProposalWriter(folder / 'store', dict(made_by='bench'))
        for i, masks in enumerate(self.masks):
            self.writer.add(f'{i}.jpg', masks)
            self.write_json(i)
            self.write_json_masks(i)
        self.store = ProposalStore(folder / 'store')
        len(self.store)
        self.next = 0

    def turn(self) -> int:
        """Return the next image."""
        self.next = (self.next + 1) % len(self.masks)
        return self.next

    def read_store(self) -> torch.Tensor:
        return self.store.read(f'{self.turn()}.jpg').packed().data

    def read_json(self) -> np.ndarray:
        runs = json.loads((self.folder / f'{self.turn()}.json').read_text())
        return np.stack([from_runs(r['counts'], r['size']) for r in runs])

    def read_json_masks(self) -> np.ndarray:
        files = sorted((self.folder / f'{self.turn()}').iterdir())
        return mask_utils.decode([json.loads(f.read_text()) for f in files])

    def write_store(self) -> None:
        i = self.turn()
        self.writer.add(f'{i}.jpg', self.masks[i])

    def write_json(self, i: int) -> None:
        runs = [dict(counts=to_runs(m), size=self.size) for m in self.masks[i]]
        (self.folder / f'{i}.json').write_text(json.dumps(runs))

    def write_json_masks(self, i: int) -> None:
        (self.folder / f'{i}').mkdir()
        columns = np.asfortranarray(self.masks[i].transpose(1, 2, 0))
        for n, rle in enumerate(mask_utils.encode(columns.view(np.uint8))):
            rle['counts'] = rle['counts'].decode()
            (self.folder / f'{i}' / f'{n:05d}.json').write_text(
                json.dumps(rle))

    def bytes_of(self, pattern: str) -> float:
        """Return the bytes an image of the files that match."""
        files = [*self.folder.glob(pattern)]
        return sum(f.stat().st_size for f in files) / len(self.masks)


def bench_part(name: str, files: Files,
               args: argparse.Namespace) -> List[dict]:
    """Time one part; see :func:`run_benchmark`."""
    pairs: Dict[str, tuple] = dict(
        read_image=(files.read_store, files.read_json,
                    'read: store / JSON an image'),
        read_masks=(files.read_store, files.read_json_masks,
                    'read: store / JSON a mask'),
        write_image=(files.write_store,
                     lambda: files.write_json(files.turn()),
                     'write: store / JSON an image'))
    first, second, what = pairs[name]
    times = compare(first, second, torch.device('cpu'), args.iters, args.clock)
    return [dict(times, part=name, what=what, limit=LIMITS[name])]


def print_sizes(files: Files) -> List[str]:
    """Print bytes an image; return the names of what is over its limit."""
    store = files.bytes_of('store/*')
    over = []
    for name, pattern, what in (('image', '*.json', 'JSON an image'),
                                ('masks', '*/0*.json', 'JSON a mask')):
        size = files.bytes_of(pattern)
        print(f'Bytes an image: store {store / 1e3:.1f} KB, {what} '
              f'{size / 1e3:.1f} KB, ratio {store / size:.2f} (limit '
              f'{SIZE_LIMITS[name]:.2f})')
        if store > SIZE_LIMITS[name] * size:
            over.append(name)
    return over


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f'{args.masks} masks of {args.size[0]} x {args.size[1]} pixels')
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder), args)
        # Before writing is timed, which adds to the store.
        over = print_sizes(files)
        parts: Dict[str, Callable[[], List[dict]]] = {
            part: partial(bench_part, part, files, args)
            for part in args.parts
        }
        over += run_benchmark(parts, args)
        files.writer.close()
    if over and args.check:
        sys.exit(1)


if __name__ == '__main__':
    main()
