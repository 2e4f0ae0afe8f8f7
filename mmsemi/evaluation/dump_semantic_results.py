# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Any, Sequence

import torch
from mmengine.evaluator import DumpResults

from mmsemi.registry import METRICS


@METRICS.register_module()
class DumpSemanticResults(DumpResults):
    """Write the predicted classes of all images into a pickle file.

    Unlike mmengine's DumpResults, it leaves out the truth and the logits,
    which would take gigabytes, and stores classes in the smallest integer
    type. An entry holds what else the data sample has: ``img_path``,
    ``ori_shape`` and so on, and ``pred_sem_seg['data']`` (1, H, W).

    Args:
        out_file_path (str): File to write; must end with .pkl or .pickle.
        collect_device (str): 'cpu' or 'gpu': how processes exchange their
            results. Defaults to 'cpu'.
        collect_dir (str, optional): Folder that all processes see, for their
            exchange. Defaults to None: one in the current folder.
    """

    LEFT_OUT = ('gt_sem_seg', 'seg_logits')

    def process(self, data_batch: Any, predictions: Sequence[dict]) -> None:
        """Store the predictions of a batch.

        Args:
            data_batch (Any): Not used.
            predictions (Sequence[dict]): Data samples as dicts; they are
                left as they are.
        """
        kept = []
        for sample in predictions:
            sample = {k: v for k, v in sample.items()
                      if k not in self.LEFT_OUT}
            labels = sample['pred_sem_seg']['data']
            fits = labels.numel() == 0 or 0 <= labels.min() and \
                labels.max() <= 255
            sample['pred_sem_seg'] = dict(
                sample['pred_sem_seg'],
                data=labels.to(torch.uint8 if fits else torch.int32))
            kept.append(sample)
        super().process(data_batch, kept)
