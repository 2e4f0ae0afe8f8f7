# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Run by a test, in one of two processes: move the adaptive threshold."""
import sys

import torch
from torch import distributed

from mmsemi.pseudo_labels import KeepAboveAdaptiveThreshold
from mmsemi.structures.dense_pseudo_label import DenseTargets

CLASSES = ((0, .5), (1, .9)), ((0, .7), (2, .6))


def main():
    rank, folder = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    label, confidence = (torch.tensor([[column]])
                         for column in zip(*CLASSES[rank]))
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    stage = KeepAboveAdaptiveThreshold(initial_thr=.8, momentum=.5)
    found = []
    for i in range(2):
        if i == 1 and rank == 1:
            # One process sees nothing but padding.
            valid = ~valid
        stage.keep(
            DenseTargets(label, confidence, valid.float(), valid))
        found.append(stage.threshold.item())
    torch.save(found, f'{folder}/{rank}.pth')
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
