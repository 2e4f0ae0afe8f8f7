# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Segment everything with SAM, without torchvision."""
import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from mmsemi.structures.view_geometry import masks_to_boxes
from mmsemi.uncompiled_ops.nms import nms
from .base import GeneratedMasks, MaskGenerator, check_image
from .sam_predictor import DEFAULT_MODELS, ImageEmbedding, SAMPredictor

# Masks that end this close to the edge of a crop, in pixels, are cut off.
_CROP_EDGE = 20


class Candidates(NamedTuple):
    """Masks that passed the filters.

    Attributes:
        masks: bool (N, H, W).
        boxes: float (N, 4), tight, in edge coordinates.
        scores: float (N,), predicted IoU.
        stability: float (N,).
    """
    masks: Tensor
    boxes: Tensor
    scores: Tensor
    stability: Tensor

    def select(self, index: Tensor) -> 'Candidates':
        """Return some of them, by index or bool."""
        return Candidates(*(part[index] for part in self))

    @classmethod
    def cat(cls, parts: List['Candidates']) -> 'Candidates':
        """Concatenate."""
        return cls(*(torch.cat(part) for part in zip(*parts)))


class SAMGenerator(MaskGenerator):
    """Prompts SAM with a grid of points and keeps what is good and new.

    A. Kirillov et al., Segment Anything, ICCV 2023, section 5 and appendix
    B; the defaults are those of the released generator, as SemiRES used it.
    As there, a stability of the threshold itself is enough, duplicates are
    removed by boxes first within a crop and then between crops, where those
    of smaller crops win. Boxes end behind the last pixel here, not on it.

    Args:
        model (str or nn.Module, optional): See :class:`SAMPredictor`.
            Defaults to None: the largest model of the family on the hub.
        family (str): 'sam', 'sam2' or 'sam_hq'. Defaults to 'sam'.
        points_per_side (int): Points along either side of the image, from 1.
            Defaults to 32.
        points_per_batch (int): Points prompted at a time, from 1; decides
            about memory alone. Defaults to 64.
        pred_iou_thr (float): Kept is what the model gives a higher IoU; 0
            or less keeps all. Defaults to 0.88.
        stability_thr (float): Kept is what is at least as stable; 0 or less
            keeps all. Defaults to 0.95.
        stability_offset (float): Stability is the IoU of the masks at this
            much above and below ``mask_thr``, in logits. Defaults to 1.
        mask_thr (float): Logit above which a pixel is in a mask. Defaults
            to 0.
        nms_thr (float): Of masks whose boxes overlap more than this, the
            best stays. Defaults to 0.7.
        crop_layers (int): Layer i also segments 4 ** i crops of the image,
            for small objects. Defaults to 0.
        crop_overlap (float): Overlap of crops as a share of the image's
            short side, in the first layer. Defaults to 512 / 1500.
        crop_points_factor (float): Points along a side are fewer by this
            factor in each layer, from 1. Defaults to 1.
        dtype (str): Of the weights. Defaults to 'float32'.
        device (str): Where the model runs. Defaults to 'cpu'.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 model: Optional[Union[str, nn.Module]] = None,
                 family: str = 'sam',
                 points_per_side: int = 32,
                 points_per_batch: int = 64,
                 pred_iou_thr: float = 0.88,
                 stability_thr: float = 0.95,
                 stability_offset: float = 1.,
                 mask_thr: float = 0.,
                 nms_thr: float = 0.7,
                 crop_layers: int = 0,
                 crop_overlap: float = 512 / 1500,
                 crop_points_factor: float = 1.,
                 dtype: str = 'float32',
                 device: str = 'cpu') -> None:
        for name, value, least in (('points_per_side', points_per_side, 1),
                                   ('points_per_batch', points_per_batch, 1),
                                   ('crop_layers', crop_layers, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or \
                    value < least:
                raise ValueError(f'{name}={value!r}; allowed are whole '
                                 f'numbers from {least}.')
        if not 0 <= nms_thr <= 1 or not 0 <= crop_overlap < 1 or \
                crop_points_factor < 1 or stability_offset < 0:
            raise ValueError(
                f'nms_thr={nms_thr}, crop_overlap={crop_overlap}, '
                f'crop_points_factor={crop_points_factor}, stability_offset='
                f'{stability_offset}; allowed are [0, 1], [0, 1), numbers '
                'from 1 and numbers from 0.')
        if model is None:
            model = DEFAULT_MODELS.get(family, '')
        self.predictor = SAMPredictor(model, family, dtype).to(device)
        self.points_per_side = points_per_side
        self.points_per_batch = points_per_batch
        self.pred_iou_thr = float(pred_iou_thr)
        self.stability_thr = float(stability_thr)
        self.stability_offset = float(stability_offset)
        self.mask_thr = float(mask_thr)
        self.nms_thr = float(nms_thr)
        self.crop_layers = crop_layers
        self.crop_overlap = float(crop_overlap)
        self.crop_points_factor = float(crop_points_factor)

    @property
    def settings(self) -> Dict[str, Any]:
        """dict: Model, checksum of its weights and all that filters."""
        names = ('points_per_side', 'pred_iou_thr', 'stability_thr',
                 'stability_offset', 'mask_thr', 'nms_thr', 'crop_layers',
                 'crop_overlap', 'crop_points_factor')
        return dict({name: getattr(self, name)
                     for name in names},
                    backend=self.predictor.family,
                    model=self.predictor.name,
                    weights=self.predictor.fingerprint(),
                    dtype=self.predictor.dtype)

    @torch.no_grad()
    def generate(self, image: np.ndarray) -> GeneratedMasks:
        """Find the proposals of an image; see :class:`MaskGenerator`.

        They come by falling predicted IoU.
        """
        check_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(image))
        pixels = pixels.permute(2, 0, 1)
        crops = crop_boxes(image.shape[:2], self.crop_layers,
                           self.crop_overlap)
        found, priorities = [], []
        for box, layer in crops:
            part = self._segment_crop(pixels, box, layer)
            kept = nms(part.boxes, part.scores, self.nms_thr, 0)
            found.append(part.select(kept))
            x1, y1, x2, y2 = box
            priorities.append(
                part.scores.new_full((len(kept), ),
                                     1 / ((x2 - x1) * (y2 - y1))))
        masks = Candidates.cat(found)
        if len(crops) > 1:
            masks = masks.select(
                nms(masks.boxes, torch.cat(priorities), self.nms_thr, 0))
        masks = masks.select(
            masks.scores.argsort(descending=True, stable=True))
        return GeneratedMasks(masks.masks.cpu().numpy(),
                              masks.scores.cpu().numpy(),
                              masks.stability.cpu().numpy())

    def _segment_crop(self, image: Tensor, box: Tuple[int, ...],
                      layer: int) -> Candidates:
        """Return the candidates of one crop, before duplicates go."""
        x1, y1, x2, y2 = box
        embedding = self.predictor.encode(image[:, y1:y2, x1:x2])
        points = point_grid(
            max(1, int(self.points_per_side / self.crop_points_factor**layer)),
            (y2 - y1, x2 - x1))
        parts = []
        for batch in points.split(self.points_per_batch):
            logits, scores = self.predictor.predict(
                embedding, batch[:, None], torch.ones((len(batch), 1)))
            part = self._filter(logits.flatten(0, 1), scores.flatten(),
                                embedding)
            parts.append(self._to_whole(part, box, tuple(image.shape[1:])))
        return Candidates.cat(parts)

    def _filter(self, logits: Tensor, scores: Tensor,
                embedding: ImageEmbedding) -> Candidates:
        if self.pred_iou_thr > 0:
            # Before they are enlarged, which costs most.
            good = scores > self.pred_iou_thr
            logits, scores = logits[good], scores[good]
        logits = self.predictor.to_image(logits, embedding)
        inner = (logits > self.mask_thr + self.stability_offset).flatten(1)
        outer = (logits > self.mask_thr - self.stability_offset).flatten(1)
        stability = inner.sum(1) / outer.sum(1).clamp(min=1)
        masks = logits > self.mask_thr
        kept = masks.flatten(1).any(1)
        if self.stability_thr > 0:
            kept &= stability >= self.stability_thr
        masks = masks[kept]
        return Candidates(masks, masks_to_boxes(masks), scores[kept],
                          stability[kept])

    @staticmethod
    def _to_whole(part: Candidates, box: Tuple[int, ...],
                  shape: Tuple[int, int]) -> Candidates:
        """Drop what the crop cuts off, and move the rest into the image."""
        x1, y1, x2, y2 = box
        height, width = shape
        if (x1, y1, x2, y2) == (0, 0, width, height):
            return part
        boxes = part.boxes + part.boxes.new_tensor([x1, y1, x1, y1])
        at_crop = (boxes - boxes.new_tensor(box)).abs() <= _CROP_EDGE
        at_image = (boxes - boxes.new_tensor([0, 0, width, height])
                    ).abs() <= _CROP_EDGE
        part = part._replace(boxes=boxes).select(
            ~(at_crop & ~at_image).any(1))
        masks = part.masks.new_zeros((len(part.masks), *shape))
        masks[:, y1:y2, x1:x2] = part.masks
        return part._replace(masks=masks)


def point_grid(num: int, shape: Tuple[int, int]) -> Tensor:
    """Return points spread evenly over an image.

    Args:
        num (int): Points along either side.
        shape (tuple[int, int]): Height and width in pixels.

    Returns:
        Tensor: (num * num, 2), x and y in pixels, row by row.
    """
    place = (torch.arange(num) + 0.5) / num
    y, x = torch.meshgrid(place * shape[0], place * shape[1], indexing='ij')
    return torch.stack([x, y], -1).view(-1, 2)


def crop_boxes(shape: Tuple[int, int], layers: int,
               overlap: float) -> List[Tuple[Tuple[int, ...], int]]:
    """Return the crops that are segmented on their own.

    Args:
        shape (tuple[int, int]): Height and width of the image in pixels.
        layers (int): Layer i has 2 ** i crops along either side; layer 0,
            the image, always comes first.
        overlap (float): Overlap of two crops of layer 1 as a share of the
            short side; half of that in each further layer.

    Returns:
        list[tuple]: x1, y1, x2, y2 in pixels, and the layer.
    """
    height, width = shape
    boxes: List[Tuple[Tuple[int, ...], int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        num = 2**layer
        shared = int(overlap * min(shape) * 2 / num)
        sizes = [
            math.ceil((shared * (num - 1) + side) / num)
            for side in (width, height)
        ]
        for column in range(num):
            for row in range(num):
                left = column * (sizes[0] - shared)
                top = row * (sizes[1] - shared)
                boxes.append(
                    ((left, top, min(left + sizes[0], width),
                      min(top + sizes[1], height)), layer))
    return boxes
