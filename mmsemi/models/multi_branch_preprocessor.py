# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Preprocessing of batches that hold several views of an image."""
from contextlib import contextmanager
from typing import Iterator, List, Union

import torch.nn as nn
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import BaseDataElement

from mmsemi.registry import MODELS

# They resize a batch and leave its masks and view matrices as they were.
UNRECORDED_AUGMENTS = ('BatchResize', 'BatchSyncRandomResize')


@MODELS.register_module()
class MultiBranchDataPreprocessor(BaseDataPreprocessor):
    """Run one data preprocessor on every view of a batch.

    Training batches made by :class:`mmsemi.MultiBranch` and
    ``pseudo_collate`` map each view to a list with ``None`` where a sample
    lacks that view. The gaps are dropped and each view is stacked, normalised
    and padded on its own. Other batches pass straight to the inner
    preprocessor.

    Args:
        data_preprocessor (dict or nn.Module): The segmenter's own data
            preprocessor or its config.

    Raises:
        ValueError: If its ``batch_augments`` resize the views unrecorded.
    """

    def __init__(self, data_preprocessor: Union[dict, nn.Module]) -> None:
        super().__init__()
        if isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build(data_preprocessor)
        self.data_preprocessor = data_preprocessor
        for augment in self._batch_augments():
            if type(augment).__name__ in UNRECORDED_AUGMENTS:
                raise ValueError(
                    'data_preprocessor.batch_augments has '
                    f'{type(augment).__name__}, which resizes each view on '
                    'its own, without its masks and its matrix. Set '
                    'segmentor.data_preprocessor.batch_augments=None and '
                    'resize in the pipelines.')

    def forward(self, data: dict, training: bool = False) -> dict:
        """Preprocess a batch.

        Args:
            data (dict): ``inputs`` and ``data_samples``; each a dict from
                view name to a list with one entry or None per sample, or
                what the inner preprocessor takes.
            training (bool): Passed to the inner preprocessor.

        Returns:
            dict: ``inputs``: dict from view to Tensor (N, C, H, W), and
            ``data_samples``: dict from view to list of N samples; or what
            the inner preprocessor returns.
        """
        if not isinstance(data['inputs'], dict):
            return self.data_preprocessor(data, training)
        inputs, data_samples = {}, {}
        for view, images in data['inputs'].items():
            present = [i for i, image in enumerate(images)
                       if image is not None]
            if not present:
                continue
            samples = [data['data_samples'][view][i] for i in present]
            with self._padding_only_what_is_there(samples):
                batch = self.data_preprocessor(
                    dict(
                        inputs=[images[i] for i in present],
                        data_samples=samples), training)
            inputs[view] = batch['inputs']
            data_samples[view] = batch['data_samples']
        return dict(inputs=inputs, data_samples=data_samples)

    def _batch_augments(self) -> List[nn.Module]:
        augments = getattr(self.data_preprocessor, 'batch_augments', None)
        return list(augments or [])

    @contextmanager
    def _padding_only_what_is_there(
            self, data_samples: List[BaseDataElement]) -> Iterator[None]:
        """Let mmdet's batch padding accept samples without annotations."""
        changed = []
        for augment in self._batch_augments():
            if getattr(augment, 'pad_mask', False) and not all(
                    'masks' in sample.get('gt_instances', ())
                    for sample in data_samples):
                changed.append((augment, 'pad_mask'))
            if getattr(augment, 'pad_seg', False) and not all(
                    'gt_sem_seg' in sample for sample in data_samples):
                changed.append((augment, 'pad_seg'))
        for augment, flag in changed:
            setattr(augment, flag, False)
        try:
            yield
        finally:
            for augment, flag in changed:
                setattr(augment, flag, True)

    @property
    def device(self):
        """torch.device: Device of the inner preprocessor."""
        return self.data_preprocessor.device

    # BaseDataPreprocessor notes its device in these calls, which nn.Module
    # does not make on children.
    def to(self, *args, **kwargs) -> nn.Module:
        """Move the inner preprocessor too."""
        self.data_preprocessor.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def cuda(self, *args, **kwargs) -> nn.Module:
        """Move the inner preprocessor too."""
        self.data_preprocessor.cuda(*args, **kwargs)
        return super().cuda(*args, **kwargs)

    def cpu(self, *args, **kwargs) -> nn.Module:
        """Move the inner preprocessor too."""
        self.data_preprocessor.cpu(*args, **kwargs)
        return super().cpu(*args, **kwargs)
