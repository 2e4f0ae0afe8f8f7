# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Calibration on seven images, by one process or by several.

Tests import it; run as a script, under torchrun's variables, it writes what
every process returned into ``{folder}/{rank}.json``.
"""
import json
import sys
from pathlib import Path

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_rank
from mmengine.evaluator import Evaluator

import mmsemi.evaluation  # noqa: F401

CLASSES = ('cat', 'dog', 'cow', 'elk')
NUM_IMAGES = 7


def make_sample(index):
    """Return a data sample as a dict; images differ in size and number."""
    generator = torch.Generator().manual_seed(index)
    size = (24, 20 + index)

    def instances(number):
        corners = torch.randint(0, 12, (number, 2), generator=generator)
        boxes = torch.cat([corners, corners + 8], 1)
        masks = torch.zeros(number, *size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist()):
            mask[y1:y2, x1:x2] = True
        return dict(
            bboxes=boxes.float(),
            labels=torch.randint(0, 3, (number, ), generator=generator),
            masks=masks)

    predictions = instances(3 * index)
    predictions['scores'] = torch.rand(3 * index, generator=generator)
    return dict(
        img_path=f'folder/{index}.jpg',
        pred_instances=predictions,
        gt_instances=instances(4),
        ignored_instances=instances(index % 2))


def evaluate(**settings):
    """Return the metrics of the images that fall to this process."""
    evaluator = Evaluator(
        dict(
            type='mmsemi.CalibrationMetric',
            iou_thr=.3,
            groups=[0, 1, 1, 2],
            **settings))
    evaluator.dataset_meta = dict(classes=CLASSES)
    # Its last batch is filled up with the first images.
    for index in DefaultSampler(range(NUM_IMAGES), shuffle=False):
        evaluator.process([make_sample(index)])
    counts = len(evaluator.metrics[0].results)
    return evaluator.evaluate(NUM_IMAGES), counts


def main(folder):
    torch.distributed.init_process_group('gloo')
    metrics, counts = evaluate(
        diagram_path=str(Path(folder) / 'diagrams.png'))
    try:
        evaluate(group_names=('one', 'two'))
        message = None
    except ValueError as error:
        message = str(error)
    found = dict(metrics=metrics, counts=counts, message=message)
    (Path(folder) / f'{get_rank()}.json').write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(sys.argv[1])
