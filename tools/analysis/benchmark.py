# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Measure what teacher-student training costs beyond its bare passes.

And what a training step of FastInst costs beside Mask2Former's.
"""
import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Callable, List, Tuple

# Before mmdet, which cannot be imported where mmcv has no ops.
import mmsemi  # noqa: F401

# isort: split
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, mask_target
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmsemi.apis.timing import add_timing_options, compare, run_benchmark
from mmsemi.methods import SemiInstanceSegmentor, load_segmentor_config
from mmsemi.methods.semi_instance_segmentor import pseudo_sample, view_frame
from mmsemi.structures.tensor_masks import TensorMasks

CONFIG_ROOT = Path(__file__).resolve().parents[2] / 'configs'
CONFIG_DIR = CONFIG_ROOT / 'mean_teacher'
CONFIGS = dict(
    mask_rcnn='mean-teacher_mask-rcnn_r50-fpn_8xb5-180k_coco-10p.py',
    mask2former='mean-teacher_mask2former_r50_8xb2-368k_coco-10p.py')
# Both 256 channels wide, with 100 queries.
SUPERVISED = dict(
    fastinst='fastinst/fastinst_r50_d3_4xb4-368k_coco-full.py',
    mask2former='supervised/supervised_mask2former_r50_8xb2-368k_coco-10p.py')
PARTS = (*CONFIGS, 'fastinst', 'masks')
# Thresholds with which a stage does its work and drops nothing.
NEUTRAL = {
    'mmsemi.FilterByScore': dict(score_thr=0.),
    'mmsemi.FilterByArea': dict(min_area=0),
}
STEP_LIMIT = 1.10
FASTINST_LIMIT = 1.0
MASK_LIMIT = 1.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='PART',
        help=f'any of {", ".join(PARTS)} (default: all)')
    parser.add_argument(
        '--size', type=int, default=256, help='side of the square images')
    parser.add_argument(
        '--images',
        type=int,
        nargs=2,
        default=(1, 1),
        metavar=('LABELLED', 'UNLABELLED'),
        help='images in a step (default: 1 1)')
    parser.add_argument(
        '--instances',
        type=int,
        default=20,
        help='instances, true or pseudo, per image (default: 20)')
    parser.add_argument(
        '--views',
        choices=('shared', 'moved'),
        default='shared',
        help='whether the views share their geometry, or the student sees '
        'its view flipped and smaller, so that masks are warped')
    add_timing_options(parser)
    args = parser.parse_args()
    args.parts = args.parts or [*PARTS]
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f'unknown parts {sorted(unknown)}; allowed are '
                     f'{[*PARTS]}')
    if args.iters < 1 or args.instances < 1 or min(args.images) < 1:
        parser.error('--iters, --instances and --images start at 1')
    if args.size < 64 or args.size % 32:
        parser.error(f'--size {args.size}: give a multiple of 32 from 64')
    if args.size < 160 and 'fastinst' in args.parts:
        parser.error(f'--size {args.size}: the 100 queries of fastinst need '
                     'as many cells of 16 pixels, a multiple of 32 from 160')
    if args.clock == 'cpu' and args.device != 'cpu':
        parser.error('--clock cpu does not see the work of another device')
    return args


# One step -----------------------------------------------------------------


def build_model(name: str, instances: int,
                device: torch.device) -> SemiInstanceSegmentor:
    """Build a COCO config's model, so that untrained it finds instances.

    Args:
        name (str): Key of CONFIGS.
        instances (int): Pseudo-instances that the pipeline lets through.
        device (torch.device): Where the model goes.

    Returns:
        SemiInstanceSegmentor: Model in training mode, teacher = student.
    """
    # How many instances an untrained model finds depends on its weights.
    torch.manual_seed(0)
    config = Config.fromfile(CONFIG_DIR / CONFIGS[name])
    init_default_scope(config.default_scope)
    segmentor = load_segmentor_config(config.model.segmentor)
    segmentor.backbone.init_cfg = None
    # The config's stages at work, but none of them decides how many stay.
    stages: List[dict] = [
        dict(type='mmsemi.KeepTopScores', max_per_image=instances)
    ]
    for stage in config.model.pseudo_label_pipeline:
        stages.append(ConfigDict(stage, **NEUTRAL.get(stage.type, {})))
    model = SemiInstanceSegmentor(
        segmentor,
        teacher=dict(config.model.teacher, burn_in_steps=0),
        pseudo_label_pipeline=stages,
        unsup_weight=config.model.unsup_weight)
    model.init_weights()
    for part in (model.student, model.teacher):
        if name == 'mask_rcnn':
            # One class gets nearly all boxes: enough of them pass the score
            # threshold, and suppression is as cheap as it can be.
            torch.nn.init.constant_(part.roi_head.bbox_head.fc_cls.bias, 0)
            part.roi_head.bbox_head.fc_cls.bias.data[0] = 6.
    return model.to(device).train()


def make_instances(num: int, size: int, device: torch.device,
                   generator: torch.Generator) -> InstanceData:
    """Return random rectangles as ground truth of a data loader."""
    corner = torch.rand((num, 2), generator=generator) * size * 0.7
    side = torch.rand((num, 2), generator=generator) * size * 0.2 + 8
    boxes = torch.cat([corner, corner + side], 1).floor()
    masks = np.zeros((num, size, size), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    return InstanceData(
        bboxes=boxes.to(device),
        labels=torch.zeros((num, ), dtype=torch.long, device=device),
        masks=BitmapMasks(masks, size, size))


def make_sample(size: int, matrix: np.ndarray) -> DetDataSample:
    """Return an unpadded view without annotations."""
    shape = (size, size)
    return DetDataSample(
        metainfo=dict(
            img_shape=shape,
            ori_shape=shape,
            pad_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1., 1.),
            homography_matrix=matrix))


def make_batch(args: argparse.Namespace,
               device: torch.device) -> Tuple[dict, dict]:
    """Return preprocessed inputs and data samples by view."""
    generator = torch.Generator().manual_seed(0)
    size = args.size
    num = dict(
        zip(('sup', 'unsup_teacher', 'unsup_student'),
            (*args.images, args.images[1])))
    still = np.eye(3, dtype=np.float32)
    moved = np.array([[-0.8, 0, 0.9 * size], [0, 0.8, 0], [0, 0, 1]],
                     dtype=np.float32)
    matrix = dict(unsup_student=moved) if args.views == 'moved' else {}
    inputs = {
        view: torch.randn((n, 3, size, size), generator=generator).to(device)
        for view, n in num.items()
    }
    samples = {
        view: [make_sample(size, matrix.get(view, still)) for _ in range(n)]
        for view, n in num.items()
    }
    for sample in samples['sup']:
        sample.gt_instances = make_instances(args.instances, size, device,
                                             generator)
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros((0, 4), device=device),
            labels=torch.zeros((0, ), dtype=torch.long, device=device))
    return inputs, samples


def bench_step(name: str, args: argparse.Namespace,
               device: torch.device) -> dict:
    """Compare a semi-supervised step with the passes that it consists of.

    The step is everything between data preprocessor and optimizer: losses,
    backward pass, update of the teacher. The bare passes are the student's
    losses on both batches, with pseudo ground truth at hand, one backward
    pass, and the teacher's prediction.
    """
    model = build_model(name, args.instances, device)
    inputs, samples = make_batch(args, device)
    frames = [view_frame(sample) for sample in samples['unsup_teacher']]
    projected = model.project(
        model.label_unlabeled(inputs['unsup_teacher'],
                              samples['unsup_teacher']),
        samples['unsup_teacher'], samples['unsup_student'])
    given = [
        pseudo_sample(sample, label)
        for sample, label in zip(samples['unsup_student'], projected)
    ]

    def step() -> None:
        losses = model(inputs, samples, mode='loss')
        model.parse_losses(losses)[0].backward()
        model.update_teacher()

    def bare_passes() -> None:
        loss = model.parse_losses(
            model.student.loss(inputs['sup'], samples['sup']))[0]
        with torch.no_grad():
            model.teacher.predict(
                inputs['unsup_teacher'], frames, rescale=False)
        loss = loss + model.parse_losses(
            model.student.loss(inputs['unsup_student'], given))[0]
        loss.backward()

    def fresh(function: Callable[[], None]) -> Callable[[], None]:

        def run() -> None:
            model.zero_grad()
            torch.manual_seed(0)
            function()

        return run

    result = compare(fresh(step), fresh(bare_passes), device, args.iters,
                     args.clock)
    return dict(
        result,
        part=name,
        what=f'{name}: step / bare passes',
        limit=STEP_LIMIT,
        size=args.size,
        images=list(args.images),
        views=args.views,
        instances=[len(label) for label in projected])


# FastInst beside Mask2Former ----------------------------------------------


def build_supervised(name: str, device: torch.device) -> torch.nn.Module:
    """Build the model of a supervised config, in training mode.

    Args:
        name (str): Key of SUPERVISED.
        device (torch.device): Where the model goes.
    """
    torch.manual_seed(0)
    config = Config.fromfile(CONFIG_ROOT / SUPERVISED[name])
    init_default_scope(config.default_scope)
    config.model.backbone.init_cfg = None
    model = MODELS.build(load_segmentor_config(config.model))
    model.init_weights()
    return model.to(device).train()


def bench_fastinst(args: argparse.Namespace,
                   device: torch.device) -> List[dict]:
    """Compare supervised steps of FastInst-D3 and Mask2Former.

    A step is everything between data preprocessor and optimizer, on the
    labelled images of a batch.
    """
    inputs, samples = make_batch(args, device)

    def step_of(name: str) -> Callable[[], None]:
        model = build_supervised(name, device)

        def step() -> None:
            model.zero_grad()
            torch.manual_seed(0)
            losses = model.loss(inputs['sup'], samples['sup'])
            model.parse_losses(losses)[0].backward()

        return step

    result = compare(
        step_of('fastinst'), step_of('mask2former'), device, args.iters,
        args.clock)
    images = args.images[0]
    return [
        dict(
            result,
            part='fastinst',
            what='training: fastinst / mask2former',
            limit=FASTINST_LIMIT,
            size=args.size,
            images=images,
            images_per_second=[
                images / result['first'], images / result['second']
            ])
    ]


# Pseudo-masks -------------------------------------------------------------


def bench_masks(args: argparse.Namespace, device: torch.device,
                num: int = 100, size: int = 1024,
                num_rois: int = 128) -> List[dict]:
    """Compare containers on the way from the teacher to the student's head.

    Both start from the teacher's bool masks on the device, are padded to
    the batch, and end as what a RoI mask head (28 x 28 targets of sampled
    boxes) or a query-based head (one tensor) computes its loss with.
    """
    generator = torch.Generator().manual_seed(0)
    instances = make_instances(num, size, device, generator)
    found = torch.from_numpy(instances.masks.masks).bool().to(device)
    index = torch.randint(num, (num_rois, ), generator=generator).to(device)
    noise = torch.randn((num_rois, 4), generator=generator).to(device)
    boxes = (instances.bboxes[index] + noise).clamp(0, size)
    padded = (size + 32, size + 32)
    head = ConfigDict(mask_size=28)

    def tensor_masks() -> TensorMasks:
        return TensorMasks(found).pad(padded)

    def bitmap_masks() -> BitmapMasks:
        masks = found.cpu().numpy().view(np.uint8)
        return BitmapMasks(masks, size, size).pad(padded)

    def roi_head(masks) -> torch.Tensor:
        return mask_target([boxes], [index], [masks], head)

    def query_head(masks) -> torch.Tensor:
        return masks.to_tensor(torch.bool, device)

    results = []
    for name, use in (('RoI', roi_head), ('query', query_head)):
        if not torch.equal(use(tensor_masks()), use(bitmap_masks())):
            raise RuntimeError(f'The two containers disagree ({name} head).')
        result = compare(lambda: use(tensor_masks()),
                         lambda: use(bitmap_masks()), device,
                         max(args.iters, 5), args.clock)
        results.append(
            dict(
                result,
                part='masks',
                what=f'{name} head: TensorMasks / BitmapMasks',
                limit=MASK_LIMIT,
                size=size,
                instances=num))
    return results


def main() -> None:
    args = parse_args()
    # Silences a line per parameter from init_weights.
    MMLogger.get_current_instance().setLevel('WARNING')
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    others = dict(masks=bench_masks, fastinst=bench_fastinst)
    parts = {
        part: partial(others[part], args, device) if part in others else
        partial(run_step, part, args, device)
        for part in args.parts
    }
    if run_benchmark(parts, args) and args.check:
        sys.exit(1)


def run_step(name: str, args: argparse.Namespace,
             device: torch.device) -> List[dict]:
    """Run :func:`bench_step` as a part of the benchmark."""
    return [bench_step(name, args, device)]


if __name__ == '__main__':
    main()
