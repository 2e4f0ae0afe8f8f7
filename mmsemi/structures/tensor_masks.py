# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Instance masks that stay on the device."""
from typing import Iterator, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class TensorMasks:
    """Binary instance masks in one tensor, usable as mmdet ground truth.

    mmdet's ``BitmapMasks`` keeps NumPy arrays, so every pseudo-mask would
    travel device -> host -> device once a step. This class offers the part
    of that interface which mmdet's heads use during training and keeps the
    masks where the teacher made them.

    Args:
        masks (Tensor): Masks of shape (N, H, W), bool or any integer type
            with 0 for background. Stored as bool.

    Raises:
        ValueError: If ``masks`` is no such tensor. Probabilities must be
            thresholded first.
    """

    def __init__(self, masks: Tensor) -> None:
        if not isinstance(masks, Tensor) or masks.dim() != 3:
            got = tuple(masks.shape) if hasattr(masks, 'shape') else masks
            raise ValueError('TensorMasks needs a tensor of shape (N, H, W), '
                             f'got {type(masks).__name__} {got}.')
        if masks.is_floating_point() or masks.is_complex():
            raise ValueError('TensorMasks needs bool or integer masks, got '
                             f'{masks.dtype}; threshold soft masks first.')
        self.masks = masks if masks.dtype == torch.bool else masks != 0

    @property
    def height(self) -> int:
        """int: Height in pixels."""
        return self.masks.shape[1]

    @property
    def width(self) -> int:
        """int: Width in pixels."""
        return self.masks.shape[2]

    @property
    def device(self) -> torch.device:
        """torch.device: Where the masks are."""
        return self.masks.device

    @property
    def areas(self) -> np.ndarray:
        """np.ndarray: Pixels of each mask, shape (N,), int64.

        A NumPy array because mmdet's heads expect one here.
        """
        return self.masks.flatten(1).sum(1).cpu().numpy()

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.masks)

    def __getitem__(
            self, index: Union[int, slice, Tensor, np.ndarray,
                               Sequence[int]]) -> 'TensorMasks':
        if isinstance(index, (np.ndarray, np.integer)):
            index = torch.as_tensor(index)
            if index.dtype != torch.bool:
                # torch takes uint8 for a mask, NumPy for positions.
                index = index.long()
        masks = self.masks[index]
        return TensorMasks(masks if masks.dim() == 3 else masks[None])

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(num_masks={len(self)}, '
                f'height={self.height}, width={self.width}, '
                f'device={self.device})')

    @classmethod
    def cat(cls, masks: Sequence['TensorMasks']) -> 'TensorMasks':
        """Concatenate masks of one size along the instances.

        Args:
            masks (Sequence[TensorMasks]): At least one.

        Returns:
            TensorMasks: All masks in order.
        """
        return cls(torch.cat([m.masks for m in masks]))

    def to(self, *args, **kwargs) -> 'TensorMasks':
        """Move to a device; see ``torch.Tensor.to``. They stay bool."""
        return TensorMasks(self.masks.to(*args, **kwargs).bool())

    def pad(self, out_shape: Tuple[int, int],
            pad_val: int = 0) -> 'TensorMasks':
        """Pad at the right and bottom.

        Args:
            out_shape (tuple[int, int]): New height and width, not smaller
                than the present ones.
            pad_val (int): Value of the new pixels. Defaults to 0.

        Returns:
            TensorMasks: Padded masks.

        Raises:
            ValueError: If ``out_shape`` is smaller than the masks.
        """
        bottom = out_shape[0] - self.height
        right = out_shape[1] - self.width
        if bottom < 0 or right < 0:
            raise ValueError(f'Cannot pad masks of {self.height} x '
                             f'{self.width} pixels to {tuple(out_shape)}.')
        if bottom == 0 and right == 0:
            return self
        return TensorMasks(
            F.pad(self.masks, (0, right, 0, bottom), value=bool(pad_val)))

    def crop(self, bbox: Union[np.ndarray, Tensor]) -> 'TensorMasks':
        """Cut one box out of all masks.

        Args:
            bbox (np.ndarray or Tensor): Box (4, ) as x1, y1, x2, y2, whole
                numbers. It is clipped to the masks and at least one pixel
                wide and high.

        Returns:
            TensorMasks: The part of the masks in the box.
        """
        x1, y1, x2, y2 = (int(edge) for edge in bbox)
        x1, x2 = (min(max(x, 0), self.width) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), self.height) for y in (y1, y2))
        return TensorMasks(self.masks[:, y1:max(y2, y1 + 1),
                                      x1:max(x2, x1 + 1)])

    def resize(self,
               out_shape: Tuple[int, int],
               interpolation: str = 'nearest') -> 'TensorMasks':
        """Resize to a height and width in pixels.

        Both modes read at pixel centres. ``BitmapMasks.resize`` reads the
        nearest pixel at corners, as OpenCV does; the two agree when the size
        grows by whole factors.

        Args:
            out_shape (tuple[int, int]): New height and width.
            interpolation (str): 'nearest' or 'bilinear' (then thresholded
                at one half). Defaults to 'nearest'.

        Returns:
            TensorMasks: Resized masks.

        Raises:
            ValueError: If ``interpolation`` is another one.
        """
        if interpolation not in ('nearest', 'bilinear'):
            raise ValueError(f'interpolation={interpolation!r}; allowed are '
                             "'nearest' and 'bilinear'.")
        mode = 'nearest-exact' if interpolation == 'nearest' else 'bilinear'
        size = tuple(out_shape[:2])
        if len(self) == 0:
            return TensorMasks(self.masks.new_zeros((0, *size)))
        resized = F.interpolate(self.masks[:, None].float(), size, mode=mode)
        return TensorMasks(resized[:, 0] >= 0.5)

    def crop_and_resize(self,
                        bboxes: Union[np.ndarray, Tensor],
                        out_shape: Union[int, Tuple[int, int]],
                        inds: Union[np.ndarray, Tensor],
                        device: Optional[Union[str, torch.device]] = None,
                        interpolation: str = 'bilinear',
                        binarize: bool = True) -> 'CroppedMasks':
        """Crop masks by boxes and resize the crops, as mask heads need.

        The result equals ``BitmapMasks.crop_and_resize`` for float32 boxes.

        Args:
            bboxes (np.ndarray or Tensor): Boxes (K, 4) as x1, y1, x2, y2 in
                pixels.
            out_shape (int or tuple[int, int]): Height and width of a crop.
            inds (np.ndarray or Tensor): Index of the mask to crop by each
                box, shape (K,).
            device (str or torch.device, optional): Ignored; the work is done
                where the masks are. Kept for mmdet's call.
            interpolation (str): Only 'bilinear', as in mmdet.
            binarize (bool): Threshold the crops at one half. Defaults to
                True.

        Returns:
            CroppedMasks: Crops of shape (K, h, w); none if there are no
            masks.
        """
        from mmcv.ops.roi_align import roi_align
        if isinstance(out_shape, int):
            out_shape = (out_shape, out_shape)
        bboxes = torch.as_tensor(bboxes, device=self.device)
        inds = torch.as_tensor(inds, device=self.device, dtype=torch.long)
        if len(bboxes) == 0 or len(self) == 0:
            return CroppedMasks(self.masks.new_zeros((0, *out_shape)))
        with torch.autocast(self.device.type, enabled=False):
            used, inds = inds.unique(return_inverse=True)
            rois = torch.cat([inds[:, None].float(), bboxes.float()], dim=1)
            crops = roi_align(self.masks[used][:, None].float(), rois,
                              tuple(out_shape), 1.0, 0, 'avg', True)[:, 0]
        return CroppedMasks(crops >= 0.5 if binarize else crops)

    def to_ndarray(self) -> np.ndarray:
        """Return the masks as uint8 of shape (N, H, W) on the host."""
        return self.masks.cpu().numpy().astype(np.uint8)

    def to_tensor(self, dtype: torch.dtype,
                  device: Union[str, torch.device]) -> Tensor:
        """Return the masks as a tensor of shape (N, H, W)."""
        return self.masks.to(device=device, dtype=dtype)

    def get_bboxes(self, dst_type: str = 'hbox'):
        """Return the tight boxes of the masks as an mmdet box structure."""
        from mmdet.structures.bbox import get_box_type

        from .view_geometry import masks_to_boxes
        return get_box_type(dst_type)[1](masks_to_boxes(self.masks))


class CroppedMasks:
    """Crops of masks, soft or binary, as ``crop_and_resize`` returns them.

    Args:
        crops (Tensor): Crops of shape (K, h, w), bool or float.
    """

    def __init__(self, crops: Tensor) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def to_ndarray(self) -> np.ndarray:
        """Return the crops on the host; binary ones as uint8."""
        crops = self.crops.cpu().numpy()
        return crops.astype(np.uint8) if crops.dtype == bool else crops
