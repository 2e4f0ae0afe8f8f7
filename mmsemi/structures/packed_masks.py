# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Many binary masks of one image, eight to a byte."""
from typing import Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BITS = 8
# Pixels unpacked at a time on a device; bounds the memory.
_PIXELS_AT_A_TIME = 1 << 17


class PackedMasks:
    """Binary masks of one size that share bytes: mask proposals, say.

    Bit ``b`` of plane ``k`` is mask ``8 * k + b``. A plane is an image of
    bytes, so whatever picks pixels (a warp with nearest sampling, a crop, a
    flip) moves eight masks at once. As a field of a data sample it follows
    the sample to its device and through a copy.

    Areas and, on the CPU, boxes are found when they are first needed, and
    kept; ``data`` must not be changed in place afterwards.

    Args:
        data (Tensor): Planes (ceil(N / 8), H, W), uint8.
        num_masks (int): N, the number of masks. Bits beyond are not looked
            at.

    Raises:
        ValueError: If ``data`` is no such tensor for so many masks.
    """

    def __init__(self, data: Tensor, num_masks: int) -> None:
        if not isinstance(data, Tensor) or data.dim() != 3 \
                or data.dtype != torch.uint8:
            got = tuple(data.shape) if hasattr(data, 'shape') else data
            raise ValueError(
                'PackedMasks needs a uint8 tensor of shape (planes, H, W), '
                f'got {getattr(data, "dtype", type(data).__name__)} {got}.')
        if len(data) != -(-num_masks // _BITS):
            raise ValueError(
                f'PackedMasks got {len(data)} planes for {num_masks} masks; '
                f'they take {-(-num_masks // _BITS)}.')
        self.data = data
        self.num_masks = int(num_masks)
        self._area: Optional[Tensor] = None
        self._boxes: Optional[np.ndarray] = None

    @property
    def shape(self) -> Tuple[int, int, int]:
        """tuple[int, int, int]: N, height and width."""
        return (self.num_masks, *self.data.shape[1:])

    @property
    def device(self) -> torch.device:
        """torch.device: Where the masks are."""
        return self.data.device

    def __len__(self) -> int:
        return self.num_masks

    def __repr__(self) -> str:
        _, height, width = self.shape
        return (f'{self.__class__.__name__}(num_masks={len(self)}, '
                f'height={height}, width={width}, device={self.device})')

    @classmethod
    def from_bool(cls, masks: Tensor) -> 'PackedMasks':
        """Pack masks.

        Args:
            masks (Tensor): (N, H, W), bool or any integer type with 0 for
                background; N may be 0.

        Returns:
            PackedMasks: On the same device.

        Raises:
            ValueError: If ``masks`` has another shape or is soft.
        """
        if not isinstance(masks, Tensor) or masks.dim() != 3:
            got = tuple(masks.shape) if hasattr(masks, 'shape') else masks
            raise ValueError('PackedMasks.from_bool needs a tensor of shape '
                             f'(N, H, W), got {type(masks).__name__} {got}.')
        if masks.is_floating_point() or masks.is_complex():
            raise ValueError('PackedMasks.from_bool needs bool or integer '
                             f'masks, got {masks.dtype}; threshold soft '
                             'masks first.')
        if masks.dtype != torch.bool:
            masks = masks != 0
        num = len(masks)
        data = masks.new_zeros((-(-num // _BITS), *masks.shape[1:]),
                               dtype=torch.uint8)
        for bit in range(min(num, _BITS)):
            part = masks[bit::_BITS].view(torch.uint8)
            data[:len(part)].add_(part, alpha=1 << bit)
        return cls(data, num)

    def to_bool(self) -> Tensor:
        """Return the masks as bool, (N, H, W)."""
        planes, height, width = self.data.shape
        masks = self.data.new_empty((planes, _BITS, height, width))
        for bit in range(_BITS):
            torch.bitwise_right_shift(self.data, bit, out=masks[:, bit])
        masks &= 1
        return masks.flatten(0, 1)[:self.num_masks].view(torch.bool)

    def to(self, *args, **kwargs) -> 'PackedMasks':
        """Move to a device; see ``torch.Tensor.to``. They stay bytes."""
        moved = PackedMasks(
            self.data.to(*args, **kwargs).to(torch.uint8), self.num_masks)
        if self._area is not None:
            moved._area = self._area.to(moved.device)
            if _on_host(moved.data):
                moved._boxes = self._boxes
        return moved

    def pad_to(self, height: int, width: int) -> 'PackedMasks':
        """Pad with background at the right and at the bottom.

        Args:
            height (int): New height in pixels, not below the present one.
            width (int): New width in pixels, not below the present one.

        Returns:
            PackedMasks: Padded masks.

        Raises:
            ValueError: If the new size is smaller than the masks.
        """
        bottom = height - self.data.shape[1]
        right = width - self.data.shape[2]
        if bottom < 0 or right < 0:
            raise ValueError(f'Cannot pad masks of {self.shape[1]} x '
                             f'{self.shape[2]} pixels to '
                             f'{(height, width)}.')
        if bottom == 0 and right == 0:
            return self
        padded = PackedMasks(
            F.pad(self.data, (0, right, 0, bottom)), self.num_masks)
        padded._area, padded._boxes = self._area, self._boxes
        return padded

    def measure(self) -> 'PackedMasks':
        """Find areas and boxes now, say in a data loader's process.

        Returns:
            PackedMasks: Itself.
        """
        on_host = _on_host(self.data)
        if self._area is None and not on_host:
            whole = self.data.new_ones((1, *self.data.shape[1:])).bool()
            self._area = self._count_by_product(whole)[0]
        elif on_host and (self._area is None or self._boxes is None):
            data = self.data.numpy()
            self._boxes = _boxes(*(_unpacked(
                np.bitwise_or.reduce(data, axis))[:self.num_masks]
                                   for axis in (1, 2)))
            area = np.zeros(self.num_masks, dtype=np.int64)
            for n, (x1, y1, x2, y2) in enumerate(self._boxes.tolist()):
                area[n] = np.count_nonzero(data[n // _BITS, y1:y2, x1:x2]
                                           & (1 << n % _BITS))
            self._area = torch.from_numpy(area)
        return self

    def area(self) -> Tensor:
        """Return the pixels of each mask, (N,) int64."""
        return self.measure()._area

    def most_shared(self, regions: Tensor) -> Tensor:
        """Bound the pixels that each mask can share with each region.

        Args:
            regions (Tensor): (K, H, W) bool, on the same device.

        Returns:
            Tensor: (K, N) int64: areas or, on the CPU, what boxes share
            where that is less.
        """
        area = self.area().expand(len(regions), -1)
        if not _on_host(self.data):
            return area
        # Of NumPy, because torch takes many times as long.
        own = _boxes(*(regions.numpy().any(axis) for axis in (1, 2)))
        first = np.maximum(own[:, None, :2], self._boxes[:, :2])
        end = np.minimum(own[:, None, 2:], self._boxes[:, 2:])
        size = np.maximum(end - first, 0)
        return torch.from_numpy(
            np.minimum(area.numpy(), size[..., 0] * size[..., 1]))

    def intersection(self,
                     regions: Tensor,
                     pairs: Optional[Tensor] = None) -> Tensor:
        """Count the pixels that each mask shares with each region.

        Args:
            regions (Tensor): (K, H, W) bool, on the same device.
            pairs (Tensor, optional): (K, N) bool: which are of interest. On
                the CPU the work follows their number and the size of the
                masks. Defaults to None: all.

        Returns:
            Tensor: (K, N) int64; 0 for pairs of no interest.
        """
        if not _on_host(self.data):
            counts = self._count_by_product(regions)
            return counts if pairs is None else counts * pairs
        if pairs is None:
            pairs = self.most_shared(regions) > 0
        boxes = self.measure()._boxes.tolist()
        data, inside = self.data.numpy(), regions.view(torch.uint8).numpy()
        counts = np.zeros(tuple(pairs.shape), dtype=np.int64)
        for k, n in np.argwhere(pairs.numpy()).tolist():
            x1, y1, x2, y2 = boxes[n]
            part = inside[k, y1:y2, x1:x2] << n % _BITS
            part &= data[n // _BITS, y1:y2, x1:x2]
            counts[k, n] = np.count_nonzero(part)
        return torch.from_numpy(counts)

    def _count_by_product(self, regions: Tensor) -> Tensor:
        """Count all pairs at once, with as few kernels as possible."""
        bits = torch.arange(_BITS, dtype=torch.uint8, device=self.device)
        counts = self.data.new_zeros((len(regions), _BITS * len(self.data)),
                                     dtype=torch.int64)
        for data, region in zip(
                self.data.flatten(1).split(_PIXELS_AT_A_TIME, 1),
                regions.flatten(1).split(_PIXELS_AT_A_TIME, 1)):
            masks = (data[:, None] >> bits[:, None]) & 1
            # Counts this small are exact in any precision of the factors.
            with torch.autocast(self.device.type, enabled=False):
                part = region.float() @ masks.flatten(0, 1).float().t()
            counts += part.long()
        return counts[:, :self.num_masks]

    def union(self, selected: Tensor) -> Tensor:
        """Unite some masks.

        Args:
            selected (Tensor): (K, N) bool: which masks, K times.

        Returns:
            Tensor: (K, H, W) bool; empty where none is selected.
        """
        united = self.data.new_zeros((len(selected), *self.data.shape[1:]))
        masks, data, boxes = united, self.data, None
        if _on_host(self.data):
            masks, data = united.numpy(), data.numpy()
            boxes = self.measure()._boxes.tolist()
        for k, n in np.argwhere(selected.cpu().numpy()).tolist():
            mask, plane = masks[k], data[n // _BITS]
            if boxes is not None:
                x1, y1, x2, y2 = boxes[n]
                mask, plane = mask[y1:y2, x1:x2], plane[y1:y2, x1:x2]
            mask |= plane & (1 << n % _BITS)
        # Ten times faster than a comparison.
        return united.clamp_(max=1).view(torch.bool)


def count_pixels(masks: Tensor) -> Tensor:
    """Count the pixels of masks; on the CPU much faster than their sum.

    Args:
        masks (Tensor): (K, H, W) bool.

    Returns:
        Tensor: (K,) int64.
    """
    if not _on_host(masks):
        return masks.flatten(1).sum(1)
    counts = [np.count_nonzero(mask) for mask in masks.numpy()]
    return torch.tensor(counts, dtype=torch.int64)


def _on_host(values: Tensor) -> bool:
    """Return whether NumPy can look at a tensor, which it is faster at."""
    return values.device.type == 'cpu'


def _unpacked(planes: np.ndarray) -> np.ndarray:
    """Return the bits of bytes (P, L) as (P * 8, L)."""
    bits = np.unpackbits(planes[:, None], axis=1, bitorder='little')
    return bits.reshape(_BITS * len(planes), planes.shape[1])


def _boxes(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return boxes (N, 4) int64 of occupied columns (N, W) and rows (N, H).

    They are x1, y1, x2, y2, the last two exclusive; all 0 where nothing is.
    """
    boxes = np.zeros((len(rows), 4), dtype=np.int64)
    if columns.size and rows.size:
        for i, line in enumerate((columns != 0, rows != 0)):
            boxes[:, i] = line.argmax(1)
            boxes[:, i + 2] = line.shape[1] - line[:, ::-1].argmax(1)
        boxes *= rows.any(1)[:, None]
    return boxes
