# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Save pictures of what a training sees: every view with its labels."""
import argparse
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np

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


def draw_samples(config: Any, number: int,
                 seed: int) -> Iterator[Tuple[str, np.ndarray]]:
    """Yield the name and the picture of each sample."""
    from mmengine.registry import (DATA_SAMPLERS, DATASETS,
                                   init_default_scope)
    from mmengine.runner import set_random_seed
    init_default_scope(config.get('default_scope', 'mmdet'))
    loader = config.train_dataloader
    dataset = DATASETS.build(loader.dataset)
    set_random_seed(seed)
    sampler = loader.get('sampler') or dict(type='InfiniteSampler')
    sampler = DATA_SAMPLERS.build({**sampler, 'seed': seed},
                                  default_args=dict(dataset=dataset))
    for position, index in zip(range(number), sampler):
        name, panel = draw_sample(dataset[index], dataset.metainfo)
        yield f'{position:04d}_{name}.png', panel


def draw_sample(sample: dict, metainfo: dict) -> Tuple[str, np.ndarray]:
    """Return the image's name and its views side by side (H, W, 3), RGB."""
    from mmsemi.visualization import (draw_instances, fitting_scale,
                                      pseudo_label_panel)
    inputs, samples = sample['inputs'], sample['data_samples']
    if not isinstance(inputs, dict):
        inputs, samples = dict(sup=inputs), dict(sup=samples)
    columns, stem = [], ''
    for view, image in inputs.items():
        if image is None:
            continue
        data_sample = samples[view]
        stem = Path(data_sample.get('img_path', view)).stem
        # mmcv loads BGR.
        picture = np.ascontiguousarray(
            image.flip(0).permute(1, 2, 0).clamp(0, 255).byte().numpy())
        scale = fitting_scale(*picture.shape[:2])
        instances = shown_instances(data_sample)
        title = f'{view}: no labels'
        if instances is not None:
            hidden = ' hidden' if view.startswith('unsup') else ''
            title = f'{view}: {len(instances)}{hidden} labels'
            picture = draw_instances(
                picture,
                instances,
                metainfo.get('classes'),
                metainfo.get('palette'),
                scale=scale)
        else:
            picture = draw_instances(
                picture, no_instances(), scale=scale)
        columns.append((title, picture))
    return f'{columns[0][0].split(":")[0]}_{stem}', pseudo_label_panel(columns)


def shown_instances(data_sample: Any) -> Optional[Any]:
    """Return the annotations of a view, if it has any."""
    instances = data_sample.get('gt_instances')
    if instances is None or not len(instances):
        return None
    return instances


def no_instances() -> Any:
    """Return an empty annotation."""
    import torch
    from mmengine.structures import InstanceData
    return InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))


def save(pictures: Iterator[Tuple[str, np.ndarray]],
         out_dir: Path) -> List[Path]:
    """Write the pictures and return their paths."""
    from PIL import Image
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in pictures:
        paths.append(out_dir / name)
        Image.fromarray(picture).save(paths[-1])
    return paths


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
        paths = save(
            draw_samples(config, args.number, args.seed),
            Path(args.output_dir))
    print(f'{len(paths)} pictures in {args.output_dir}')


if __name__ == '__main__':
    main()
