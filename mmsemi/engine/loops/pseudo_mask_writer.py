# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Label images with a network and keep the masks in files."""
import hashlib
import json
import os
import os.path as osp
import shutil
from dataclasses import asdict, dataclass
from typing import Callable, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.dist import (all_gather_object, barrier, get_dist_info,
                           is_main_process)
from mmengine.logging import print_log
from mmengine.utils import ProgressBar
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmsemi.methods.self_training import (label_by_argmax, segmentor_logits,
                                          tta_probabilities)
from .round_data import mask_names

ST_SCALES = (0.5, 0.75, 1., 1.5, 2.)
MANIFEST = 'manifest.json'


@dataclass(frozen=True)
class LabelingSettings:
    """How unlabelled images are labelled between rounds.

    Args:
        scales (tuple[float, ...]): Sizes, as factors, over which
            probabilities are averaged. Defaults to those of ST.
        flip (bool): Whether mirrored images are averaged too. Defaults to
            True.
        confidence_thr (float, optional): Pixels below become 255. Defaults
            to None: no threshold, as in ST.
        batch_size (int): Images at once; more than 1 needs images of one
            size. Defaults to 1.
        num_workers (int): Processes that load images. Defaults to 0.
    """

    scales: Tuple[float, ...] = ST_SCALES
    flip: bool = True
    confidence_thr: Optional[float] = None
    batch_size: int = 1
    num_workers: int = 0

    def __post_init__(self) -> None:
        field = 'train_cfg.labeling'
        if not isinstance(self.scales, (list, tuple)) or not self.scales:
            raise ValueError(f'{field}.scales={self.scales!r}; allowed are '
                             'lists of positive numbers.')
        object.__setattr__(self, 'scales', tuple(self.scales))
        for scale in self.scales:
            if not isinstance(scale, (int, float)) or not 0 < scale < 100:
                raise ValueError(f'{field}.scales={self.scales}; allowed are '
                                 'positive numbers below 100.')
        if not isinstance(self.flip, bool):
            raise ValueError(f'{field}.flip={self.flip!r}; allowed are True '
                             'and False.')
        thr = self.confidence_thr
        if thr is not None and (isinstance(thr, bool) or not isinstance(
                thr, (int, float)) or not 0 < thr <= 1):
            raise ValueError(f'{field}.confidence_thr={thr!r}; allowed are '
                             'None and numbers in (0, 1].')
        for name, least in (('batch_size', 1), ('num_workers', 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(
                    value, int) or value < least:
                raise ValueError(f'{field}.{name}={value!r}; allowed are '
                                 f'whole numbers from {least}.')

    @classmethod
    def from_config(cls, config: Optional[Mapping]) -> 'LabelingSettings':
        """Build from ``train_cfg.labeling``."""
        config = dict(config or {})
        unknown = set(config) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f'train_cfg.labeling has unknown keys {sorted(unknown)}; '
                f'allowed are {sorted(cls.__dataclass_fields__)}.')
        return cls(**config)


class PseudoMaskWriter:
    """Write pseudo-masks of images, shared among all processes.

    A mask is written under another name first, so that a file is there as a
    whole or not at all. Masks that are there already are kept if the
    manifest beside them says that they came from the same weights, images
    and settings; else all are removed. Batches are the same for any number
    of processes and after a kill.

    Args:
        images (BaseDataset): Unlabelled images; the pipeline packs an image
            without annotations.
        settings (LabelingSettings): How to label.
    """

    def __init__(self, images: BaseDataset,
                 settings: LabelingSettings) -> None:
        self.images = images
        self.settings = settings
        self.names = mask_names(images)

    def paths(self, folder: str, indices: Sequence[int]) -> dict:
        """Return the mask file of each image.

        Args:
            folder (str): Folder of a round.
            indices (Sequence[int]): Which images.

        Returns:
            dict[int, str]: Absolute path by index.
        """
        masks = osp.join(osp.abspath(folder), 'masks')
        return {i: osp.join(masks, self.names[i]) for i in indices}

    def check(self, folder: str, indices: Sequence[int]) -> None:
        """Raise FileNotFoundError if a mask is missing."""
        for path in self.paths(folder, indices).values():
            if not osp.isfile(path):
                raise FileNotFoundError(
                    f'The pseudo-mask {path} is missing. A training is '
                    'resumed with the masks that earlier rounds wrote into '
                    'its work_dir; resume from a checkpoint of an earlier '
                    'round, or start anew.')

    def write(self, model: nn.Module, folder: str,
              indices: Sequence[int]) -> None:
        """Label images and write the masks; every process must call it.

        Args:
            model (nn.Module): Segmenter with the same weights in every
                process. It is put into eval mode.
            folder (str): Folder of the round.
            indices (Sequence[int]): Which images.
        """
        if is_main_process():
            self._prepare(folder, self._manifest(model, indices))
        barrier()
        model.eval()
        paths = self.paths(folder, indices)
        rank, world_size = get_dist_info()
        batches = [
            batch for batch in self._batches(indices)[rank::world_size]
            if not all(osp.isfile(paths[i]) for i in batch)
        ]
        if is_main_process():
            print_log(
                f'{len(indices)} images are labelled into {folder}, '
                f'{sum(map(len, batches))} of them now by this process.',
                logger='current')
        bar = ProgressBar(len(batches)) if batches and rank == 0 else None
        for batch, data in self._load(batches):
            for index, prob in zip(
                    batch, self.predict(model, data, self.settings.scales,
                                        self.settings.flip)):
                label = label_by_argmax(prob, self.settings.confidence_thr)
                _save_mask(label, paths[index])
            if bar is not None:
                bar.update()
        if bar is not None:
            bar.file.write('\n')
        barrier()

    def map(self, function: Callable[[dict], List[float]],
            indices: Sequence[int]) -> List[float]:
        """Compute a number per image; every process must call it.

        Args:
            function (Callable): From a batch to a number per image.
            indices (Sequence[int]): Which images.

        Returns:
            list[float]: In the order of ``indices``, in every process.
        """
        rank, world_size = get_dist_info()
        found = {}
        for batch, data in self._load(
                self._batches(indices)[rank::world_size]):
            found.update(zip(batch, function(data)))
        merged = {}
        for part in all_gather_object(found):
            merged.update(part)
        return [merged[index] for index in indices]

    @staticmethod
    @torch.no_grad()
    def predict(model: nn.Module,
                data: dict,
                scales: Sequence[float] = (1., ),
                flip: bool = False) -> List[Tensor]:
        """Return class probabilities of a batch, at the original sizes.

        Args:
            model (nn.Module): mmseg's EncoderDecoder in eval mode.
            data (dict): Collated ``inputs`` and ``data_samples``.
            scales (Sequence[float]): See :func:`tta_probabilities`.
            flip (bool): See :func:`tta_probabilities`.

        Returns:
            list[Tensor]: (C, H, W) per image.
        """
        data = model.data_preprocessor(data, False)
        probabilities = tta_probabilities(
            lambda images: segmentor_logits(model, images), data['inputs'],
            scales, flip)
        results = []
        for prob, sample in zip(probabilities, data['data_samples']):
            height, width = sample.img_shape[:2]
            prob = prob[:, :height, :width]
            size = tuple(sample.metainfo.get('ori_shape', prob.shape[1:]))[:2]
            if size != tuple(prob.shape[1:]):
                prob = nn.functional.interpolate(
                    prob[None], size, mode='bilinear')[0]
            results.append(prob)
        return results

    def _batches(self, indices: Sequence[int]) -> List[List[int]]:
        size = self.settings.batch_size
        return [
            list(indices[i:i + size]) for i in range(0, len(indices), size)
        ]

    def _load(self, batches: List[List[int]]) -> Iterator[tuple]:
        loader = DataLoader(
            self.images,
            batch_sampler=batches,
            num_workers=self.settings.num_workers,
            # The main process's random state stays as it is.
            generator=torch.Generator().manual_seed(0),
            collate_fn=pseudo_collate)
        return zip(batches, loader)

    def _manifest(self, model: nn.Module, indices: Sequence[int]) -> dict:
        images = hashlib.sha256()
        for index in indices:
            images.update(self.names[index].encode() + b'\0')
        settings = asdict(self.settings)
        settings.pop('num_workers')
        return dict(
            weights=weights_digest(model),
            images=images.hexdigest(),
            num_images=len(indices),
            settings={
                **settings, 'scales': list(self.settings.scales)
            })

    @staticmethod
    def _prepare(folder: str, manifest: dict) -> None:
        path = osp.join(folder, MANIFEST)
        masks = osp.join(folder, 'masks')
        if osp.isdir(masks) and read_json(path) != manifest:
            print_log(
                f'The masks in {masks} came from other weights, images or '
                'settings; they are made anew.',
                logger='current')
            shutil.rmtree(masks)
        # The manifest is there before the first mask.
        write_json(path, manifest)
        os.makedirs(masks, exist_ok=True)


def weights_digest(model: nn.Module) -> str:
    """Return a checksum of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        value = value.detach().cpu().contiguous()
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_json(path: str, content: dict) -> None:
    """Write a JSON file as a whole or not at all."""
    os.makedirs(osp.dirname(path), exist_ok=True)
    with open(path + '.tmp', 'w') as file:
        json.dump(content, file, indent=1)
    os.replace(path + '.tmp', path)


def read_json(path: str) -> Optional[dict]:
    """Return the content of a JSON file, None if it cannot be read."""
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _save_mask(label: Tensor, path: str) -> None:
    os.makedirs(osp.dirname(path), exist_ok=True)
    mask = Image.fromarray(label.to(torch.uint8).cpu().numpy())
    mask.save(path + '.tmp', format='PNG')
    os.replace(path + '.tmp', path)
