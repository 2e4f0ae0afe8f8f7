# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Seven images evaluated by one process or by several.

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
    """Return a data sample as a dict; images differ in size and content."""
    generator = torch.Generator().manual_seed(index)
    size = (1, 12 + index, 17)
    truth = torch.randint(0, 5, size, generator=generator)
    prediction = truth.where(
        torch.rand(size, generator=generator) < 0.1 * index + 0.2,
        torch.randint(0, 4, size, generator=generator))
    prediction = prediction.clamp(max=3)
    truth[truth == 4] = 255
    return dict(
        img_path=f'folder/{index}.jpg',
        pred_sem_seg=dict(data=prediction),
        gt_sem_seg=dict(data=truth))


def evaluate(**settings):
    """Return the metrics of the images that fall to this process."""
    evaluator = Evaluator(
        dict(type='mmsemi.SemanticMetric', boundary_iou=True, **settings))
    evaluator.dataset_meta = dict(classes=CLASSES)
    # Its last batch is filled up with the first images.
    for index in DefaultSampler(range(NUM_IMAGES), shuffle=False):
        evaluator.process([make_sample(index)])
    counts = len(evaluator.metrics[0].results)
    return evaluator.evaluate(NUM_IMAGES), counts


def main(folder):
    torch.distributed.init_process_group('gloo')
    metrics, counts = evaluate(
        confusion_matrix_path=str(Path(folder) / 'matrix.png'))
    empty = Evaluator(dict(type='mmsemi.SemanticMetric'))
    empty.dataset_meta = dict(classes=CLASSES)
    try:
        empty.evaluate(NUM_IMAGES)
        message = None
    except ValueError as error:
        message = str(error)
    found = dict(metrics=metrics, counts=counts, message=message)
    (Path(folder) / f'{get_rank()}.json').write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(sys.argv[1])
