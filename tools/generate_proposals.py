# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Make mask proposals of images, once, for mmsemi.LoadMaskProposals.

    python tools/generate_proposals.py data/coco/train2014 --backend sam \\
        --out data/proposals/sam_train2014
    python tools/generate_proposals.py data/digits/train \\
        --backend felzenszwalb --out data/proposals/digits
    torchrun --nproc_per_node 8 tools/generate_proposals.py ...

A run that was killed goes on where it was when the same command is given
again. Under torchrun each process takes its share of the images; several
machines may write into one folder that they share.

Without network, --model names a folder with config.json and the weights.
--model tiny-random is a model of random numbers, to try a pipeline with.
"""
import argparse
import os
import sys
import time
from pathlib import Path
from typing import List, Tuple

from mmsemi.apis.cli import usage_errors

BACKENDS = ('sam', 'sam2', 'sam_hq', 'felzenszwalb')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'images',
        metavar='IMAGES',
        help='folder of images, looked through with all folders in it, or '
        'text file with one path per line')
    parser.add_argument(
        '--backend', required=True, choices=BACKENDS, help='what segments')
    parser.add_argument(
        '--out', required=True, metavar='STORE', help='folder to write to')
    parser.add_argument(
        '--img-root',
        metavar='FOLDER',
        help='what paths in the list, and names in the store, start from '
        '(default: IMAGES, or the folder of the list)')
    parser.add_argument(
        '--skip-broken',
        action='store_true',
        help='record images that cannot be read and go on (default: stop)')
    parser.add_argument(
        '--quiet', action='store_true', help='show no progress bar')
    sam = parser.add_argument_group('sam, sam2, sam_hq')
    sam.add_argument(
        '--model',
        help='name on the Hugging Face hub, a folder, or tiny-random '
        '(default: the largest of the family)')
    sam.add_argument(
        '--device', help='cpu, cuda, cuda:1 (default: a GPU per process)')
    sam.add_argument(
        '--dtype',
        choices=('float32', 'float16', 'bfloat16'),
        help='of the weights (default: float32)')
    for name, kind, text in (
        ('points-per-side', int, 'points along a side of the image (32)'),
        ('points-per-batch', int, 'points at a time, for the memory (64)'),
        ('pred-iou-thr', float, 'least IoU that the model predicts (0.88)'),
        ('stability-thr', float, 'least stability (0.95)'),
        ('stability-offset', float, 'change of the threshold (1)'),
        ('mask-thr', float, 'logit of a pixel in a mask (0)'),
        ('nms-thr', float, 'overlap of boxes that are one (0.7)'),
        ('crop-layers', int, 'layers of crops, for small objects (0)'),
        ('crop-overlap', float, 'of crops, of the short side (0.341)'),
        ('crop-points-factor', float, 'fewer points in each layer (1)')):
        sam.add_argument(f'--{name}', type=kind, help=text)
    regions = parser.add_argument_group('felzenszwalb')
    regions.add_argument(
        '--scales',
        type=float,
        nargs='+',
        help='preference for large regions (40 100 400)')
    regions.add_argument(
        '--sigma', type=float, help='smoothing, in pixels (0.5)')
    regions.add_argument(
        '--min-size', type=int, help='of a region, in pixels (20)')
    regions.add_argument(
        '--max-share', type=float, help='of a region, of the image (0.9)')
    regions.add_argument(
        '--merge-iou', type=float, help='from where regions are one (0.9)')
    return parser


def find_images(images: str, root: str) -> Tuple[List[str], str]:
    """Return the image files and the folder that names start from."""
    from mmsemi.datasets import UnlabeledImageDataset
    path = Path(images)
    if path.is_dir():
        found = UnlabeledImageDataset(img_dir=images)
        root = root or images
    elif path.is_file():
        root = root or str(path.parent)
        found = UnlabeledImageDataset(list_file=images, img_dir=root)
    else:
        raise FileNotFoundError(f'There is no folder or list {images} '
                                '(IMAGES).')
    return [found.get_data_info(i)['img_path']
            for i in range(len(found))], root


def build_generator(args: argparse.Namespace, local_rank: int):
    """Return the generator that the options name."""
    import torch

    from mmsemi.models.mask_generators import (FelzenszwalbGenerator,
                                               SAMGenerator)
    sam = ('model', 'device', 'dtype', 'points_per_side', 'points_per_batch',
           'pred_iou_thr', 'stability_thr', 'stability_offset', 'mask_thr',
           'nms_thr', 'crop_layers', 'crop_overlap', 'crop_points_factor')
    regions = ('scales', 'sigma', 'min_size', 'max_share', 'merge_iou')
    own, others = (regions, sam) if args.backend == 'felzenszwalb' else (
        sam, regions)
    foreign = [name for name in others if getattr(args, name) is not None]
    if foreign:
        raise ValueError(
            f'--backend {args.backend} does not have '
            f'{", ".join("--" + name.replace("_", "-") for name in foreign)}.')
    options = {
        name: getattr(args, name)
        for name in own if getattr(args, name) is not None
    }
    if args.backend == 'felzenszwalb':
        return FelzenszwalbGenerator(**options)
    if 'device' not in options and torch.cuda.is_available():
        options['device'] = f'cuda:{local_rank % torch.cuda.device_count()}'
    return SAMGenerator(family=args.backend, **options)


def read_image(path: str):
    """Read an image as mmcv loads it for training, but RGB."""
    import mmcv
    try:
        image = mmcv.imread(path, channel_order='rgb')
    except Exception as error:
        # Whatever a decoder raises, the file's name is what helps.
        raise ValueError(f'The image {path} cannot be read: {error}. Remove '
                         'or replace it, or pass --skip-broken.') from error
    if image is None:
        raise ValueError(
            f'The image {path} cannot be read: it is no image or damaged. '
            'Remove or replace it, or pass --skip-broken.')
    return image


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    rank, world_size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK',
                                                               0)))
    with usage_errors(parser):
        from mmengine.utils import ProgressBar

        from mmsemi.datasets.proposal_store import ProposalStore, image_key
        from mmsemi.datasets.proposal_writer import ProposalWriter
        files, root = find_images(args.images, args.img_root)
        keys = [image_key(file, root) for file in files]
        generator = build_generator(args, local_rank)
        writer = ProposalWriter(args.out, generator.settings, rank)
    done = set(writer.found.entries)
    if args.skip_broken:
        done |= set(writer.found.broken)
    mine = list(zip(keys, files))[rank::world_size]
    todo = [(key, file) for key, file in mine if key not in done]
    number = broken = 0
    start = time.monotonic()
    with writer:
        # Rank 0 is as fast as any.
        bar = None if args.quiet or rank or not todo else ProgressBar(
            len(todo), file=sys.stdout)
        for key, file in todo:
            try:
                image = read_image(file)
            except ValueError as error:
                if not args.skip_broken:
                    parser.exit(2, f'{parser.prog}: error: {error}\n')
                writer.add_broken(key, ' '.join(str(error.__cause__ or
                                                    'damaged').split()))
                broken += 1
            else:
                found = generator.generate(image)
                writer.add(key, found.masks, found.predicted_iou,
                           found.stability)
                number += len(found.masks)
            if bar is not None:
                bar.update()
    if bar is not None:
        print()
    seconds = time.monotonic() - start
    made = len(todo) - broken
    print(f'Process {rank + 1} of {world_size}: {made} images in '
          f'{seconds:.1f} s ({made / max(seconds, 1e-9):.2f} a second), '
          f'{number / max(made, 1):.1f} masks an image, {broken} images that '
          f'cannot be read, {len(mine) - len(todo)} done before')
    with usage_errors(parser):
        store = ProposalStore(args.out)
        wanted = sum(key in store for key in keys)
        entries = store.index.entries.values()
        empty = sum(not entry.num_masks for entry in entries)
        masks = sum(entry.num_masks for entry in entries)
        size = store.num_bytes()
    print(f'{args.out}: {wanted} of {len(keys)} images, '
          f'{masks / max(len(store), 1):.1f} masks an image ({empty} images '
          f'without any), {len(store.index.broken)} images that cannot be '
          f'read, {size / 1e6:.2f} MB, '
          f'{size / max(len(store), 1) / 1e3:.1f} KB an image')


if __name__ == '__main__':
    main()
