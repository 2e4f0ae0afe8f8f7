# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Save pictures of what a training sees: every view with its labels."""
import argparse
import itertools
from pathlib import Path
from typing import Any, Iterable, Tuple

import numpy as np
from PIL import Image

from mmsemi.apis.cli import add_cfg_options, usage_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Save the first samples of the training data, all views '
        'of an image side by side, each with its labels. Annotations of an '
        'unlabelled view are hidden labels, which only measure '
        'pseudo-labels.',
        epilog='Example: browse_dataset.py CONFIG.py --output-dir views '
        '--number 8')
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    parser.add_argument(
        '--output-dir',
        default='work_dirs/browse_dataset',
        help='folder of the pictures (default: %(default)s)')
    parser.add_argument(
        '--number',
        type=int,
        default=16,
        help='how many samples to draw (default: %(default)s)')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='of the order and the transforms (default: %(default)s)')
    add_cfg_options(parser)
    return parser


def build_data(config: Any, seed: int) -> Tuple[Any, Iterable[int]]:
    """Return the training data and the order of its samples."""
    from mmengine.registry import DATA_SAMPLERS, DATASETS, init_default_scope
    from mmengine.runner import set_random_seed
    init_default_scope(config.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(config.train_dataloader.dataset)
    set_random_seed(seed)
    sampler = config.train_dataloader.get('sampler') or dict(
        type='InfiniteSampler')
    return dataset, DATA_SAMPLERS.build({**sampler, 'seed': seed},
                                        default_args=dict(dataset=dataset))


def draw_sample(sample: dict, metainfo: dict) -> Tuple[str, np.ndarray]:
    """Return the image's name and its views side by side (H, W, 3), RGB."""
    from mmsemi.visualization import pseudo_label_panel
    inputs, samples = sample['inputs'], sample['data_samples']
    if not isinstance(inputs, dict):
        inputs, samples = dict(sup=inputs), dict(sup=samples)
    columns, names = [], []
    for view, image in inputs.items():
        if image is None:
            continue
        # mmcv loads BGR.
        picture = np.ascontiguousarray(
            image.flip(0).permute(1, 2, 0).clamp(0, 255).byte().numpy())
        kind = 'hidden labels' if view.startswith('unsup') else 'labels'
        draw = draw_map if 'gt_sem_seg' in samples[view] else draw_boxes
        found, drawn = draw(picture, samples[view], metainfo)
        columns.append((f'{view}: {found.format(kind)}', drawn))
        names.append(f'{view}_{Path(samples[view].get("img_path", "")).stem}')
    return names[0], pseudo_label_panel(columns)


def draw_boxes(picture: np.ndarray, data_sample: Any,
               metainfo: dict) -> Tuple[str, np.ndarray]:
    """Return a title, but for the kind of labels, and a picture."""
    from mmsemi.visualization import draw_instances, fitting_scale
    instances = labels_of(data_sample)
    return f'{len(instances) or "no"} {{}}', draw_instances(
        picture,
        instances,
        metainfo.get('classes'),
        metainfo.get('palette'),
        scale=fitting_scale(*picture.shape[:2]))


def draw_map(picture: np.ndarray, data_sample: Any,
             metainfo: dict) -> Tuple[str, np.ndarray]:
    """Return a title, but for the kind of labels, and a picture.

    What is ignored is drawn black.
    """
    from mmsemi.visualization import (default_palette, draw_label_map,
                                      fitting_scale)
    label = data_sample.gt_sem_seg.data.squeeze(0)
    classes = metainfo.get('classes') or ()
    number = sum(value < len(classes) for value in label.unique().tolist())
    palette = metainfo.get('palette') or default_palette(len(classes))
    return f'{{}} of {number} classes', draw_label_map(
        picture, label, palette, scale=fitting_scale(*picture.shape[:2]))


def labels_of(data_sample: Any) -> 'InstanceData':  # noqa: F821
    """Return the annotations of a view, empty where it has none."""
    import torch
    from mmengine.structures import InstanceData
    if 'gt_instances' in data_sample and len(data_sample.gt_instances):
        return data_sample.gt_instances
    return InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if args.number < 1:
        parser.error(f'--number {args.number}: allowed are numbers from 1.')
    with usage_errors(parser):
        from mmsemi.apis import load_config
        config = load_config(args.config, args.cfg_options)
        if config.get('train_dataloader') is None:
            raise ValueError(f'{args.config} has no train_dataloader.')
        dataset, order = build_data(config, args.seed)
    out_dir = Path(args.output_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    number = 0
    for index in itertools.islice(order, args.number):
        name, panel = draw_sample(dataset[index], dataset.metainfo)
        Image.fromarray(panel).save(out_dir / f'{number:04d}_{name}.png')
        number += 1
    print(f'{number} pictures in {out_dir}')


if __name__ == '__main__':
    main()
