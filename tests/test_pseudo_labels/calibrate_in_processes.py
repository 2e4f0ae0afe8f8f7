# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Run by a test, in one of two processes: measure and fit twice."""
import importlib.util
import sys
from pathlib import Path

import torch
from torch import distributed

from mmsemi.pseudo_labels import ClassCalibrator


def main():
    rank, folder = int(sys.argv[1]), sys.argv[2]
    path = Path(__file__).with_name('test_class_calibrator.py')
    spec = importlib.util.spec_from_file_location('predictions', path)
    test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test)
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    calibrator = ClassCalibrator(6, groups=[0, 1, 0, 1, 2, 2])
    states = []
    for seed in range(2):
        predictions = test.random_predictions(number=301, seed=seed)
        calibrator.decay(.5)
        for part in range(3):
            # The parts differ in number between the processes.
            chosen = slice(60 * part, 60 * (part + 1))
            if rank == 1:
                chosen = slice(180 + 41 * part, 180 + 41 * (part + 1))
            calibrator.update(*(value[chosen] for value in predictions))
            if part == 1:
                calibrator.reduce()
        calibrator.fit()
        # Adds nothing a second time.
        calibrator.fit()
        states.append(
            {k: v.clone()
             for k, v in calibrator.state_dict().items()})
    torch.save(states, f'{folder}/{rank}.pth')
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
