# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Images with instances drawn on them, and panels of images."""
import colorsys
from typing import List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from mmsemi.models.view_images import view_images
from mmsemi.structures.view_geometry import masks_to_boxes

Palette = Sequence[Tuple[int, int, int]]

# Longer side of a view in a panel, in pixels, where no scale is given.
SMALLEST_SIDE, LARGEST_SIDE = 384, 640
TITLE_HEIGHT = 26
GAP = 6


def default_palette(num_classes: int) -> List[Tuple[int, int, int]]:
    """Return colours that differ in hue as much as they can.

    Args:
        num_classes (int): Number of colours.

    Returns:
        list[tuple[int, int, int]]: RGB from 0 to 255.
    """
    # Steps of the golden ratio spread evenly, however many there are.
    return [
        tuple(
            round(255 * c)
            for c in colorsys.hsv_to_rgb(0.618034 * i % 1, 0.75, 1.))
        for i in range(num_classes)
    ]


def fitting_scale(height: int, width: int) -> float:
    """Return the factor that gives a view the size of a panel's column.

    Args:
        height (int): Height of the view in pixels.
        width (int): Width of the view in pixels.

    Returns:
        float: For small views a whole number, so that pixels stay square;
        below 1 for large ones.
    """
    side = max(height, width)
    if side > LARGEST_SIDE:
        return LARGEST_SIDE / side
    return float(max(SMALLEST_SIDE // side, 1))


def resize_image(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image so that every pixel stays visible.

    Args:
        image (np.ndarray): Image (H, W, 3) or mask (H, W), uint8.
        scale (float): Factor on both sides, above 0.

    Returns:
        np.ndarray: The image, resized.
    """
    if scale == 1:
        return image
    height, width = image.shape[:2]
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(
        image,
        size,
        interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)


def draw_instances(image: np.ndarray,
                   instances: InstanceData,
                   classes: Optional[Sequence[str]] = None,
                   palette: Optional[Palette] = None,
                   score_thr: float = 0.,
                   scale: float = 1.) -> np.ndarray:
    """Draw instances on an image: tinted masks, outlines and names.

    Args:
        image (np.ndarray): Image (H, W, 3), uint8, RGB.
        instances (InstanceData): ``labels`` (N,), ``masks``, a tensor (N,
            H, W) or mask structure, padded or not, or without masks
            ``bboxes`` (N, 4) in pixels, and where present ``scores`` (N,).
            Empty ones are left out.
        classes (Sequence[str], optional): Names of the classes. Defaults to
            None: their numbers.
        palette (Sequence[tuple], optional): RGB colours of the classes.
            Defaults to None: :func:`default_palette`.
        score_thr (float): Instances with a lower score are left out.
            Defaults to 0.
        scale (float): Factor on the size of the image before drawing, for
            names that can be read on small images. Defaults to 1.

    Returns:
        np.ndarray: Image (scale * H, scale * W, 3), uint8, RGB.
    """
    _check_image(image)
    if 'scores' in instances:
        instances = instances[instances.scores >= score_thr]
    height, width = image.shape[:2]
    canvas = resize_image(image, scale).copy()
    labels = instances.labels.tolist()
    masks = _masks(instances, height, width)
    if masks is None:
        boxes = _boxes(instances) * scale
    else:
        # Heads without box branch leave zeros for boxes.
        boxes = masks_to_boxes(torch.from_numpy(masks)).numpy() * scale
    if palette is None or len(palette) == 0:
        palette = default_palette(
            max([len(classes or ()), *[label + 1 for label in labels]]))
    line = max(1, round(min(canvas.shape[:2]) / 200))
    # Large ones first, so that small ones end up on top.
    order = sorted((i for i in range(len(labels)) if _area(boxes[i]) > 0),
                   key=lambda i: -_area(boxes[i]))
    for i in order:
        color = tuple(int(c) for c in palette[labels[i] % len(palette)])
        if masks is None:
            x1, y1, x2, y2 = (int(round(v)) for v in boxes[i])
            cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, line)
            continue
        mask = resize_image(masks[i], scale) > 0
        canvas[mask] = 0.6 * canvas[mask] + 0.4 * np.array(color)
        contours, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(canvas, contours, -1, color, line)
    names = [_name(label, classes) for label in labels]
    if 'scores' in instances:
        names = [
            f'{name} {score:.2f}'
            for name, score in zip(names, instances.scores.tolist())
        ]
    return _write_names(canvas,
                        [(names[i], boxes[i][0], boxes[i][1]) for i in order])


def draw_label_map(image: np.ndarray,
                   label: Tensor,
                   palette: Palette,
                   weight: Optional[Tensor] = None,
                   scale: float = 1.,
                   opacity: float = 0.6) -> np.ndarray:
    """Tint an image by the classes of its pixels.

    Args:
        image (np.ndarray): Image (H, W, 3), uint8, RGB.
        label (Tensor): (H, W) int64. Labels without a colour are black.
        palette (Sequence[tuple]): RGB colours of the classes.
        weight (Tensor, optional): (H, W); pixels with weight 0 get a quarter
            of their brightness. Defaults to None.
        scale (float): Factor on the size. Defaults to 1.
        opacity (float): Of the colours, from 0 to 1. Defaults to 0.6.

    Returns:
        np.ndarray: The picture, uint8, RGB.
    """
    _check_image(image)
    colours = np.zeros((max(len(palette), 256), 3), dtype=np.float32)
    colours[:len(palette)] = palette
    tint = colours[label.detach().cpu().numpy()]
    drawn = (1 - opacity) * image + opacity * tint
    if weight is not None:
        drawn = drawn * np.where(weight.cpu().numpy() > 0, 1., 0.25)[..., None]
    return resize_image(drawn.round().astype(np.uint8), scale)


def pseudo_label_panel(
        columns: Sequence[Tuple[str, np.ndarray]]) -> np.ndarray:
    """Put images side by side, each under its title.

    Args:
        columns (Sequence[tuple[str, np.ndarray]]): Title and image (H, W,
            3), uint8, RGB; sizes may differ.

    Returns:
        np.ndarray: The panel, uint8, RGB.
    """
    if not columns:
        raise ValueError('pseudo_label_panel needs at least one column.')
    for _, image in columns:
        _check_image(image)
    height = max(image.shape[0] for _, image in columns) + TITLE_HEIGHT + GAP
    width = sum(image.shape[1] + GAP for _, image in columns) + GAP
    panel = Image.new('RGB', (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(panel)
    left = GAP
    for title, image in columns:
        draw.text((left, TITLE_HEIGHT // 2),
                  title,
                  fill=(0, 0, 0),
                  font=_font_that_fits(title, image.shape[1]),
                  anchor='lm')
        panel.paste(Image.fromarray(image), (left, TITLE_HEIGHT))
        left += image.shape[1] + GAP
    return np.array(panel)


def view_to_image(view: Tensor, data_preprocessor: nn.Module) -> np.ndarray:
    """Turn a preprocessed view back into a picture.

    Args:
        view (Tensor): View (3, H, W) or (1, H, W) as the model gets it.
        data_preprocessor (nn.Module): The preprocessor that made it, or the
            :class:`mmsemi.MultiBranchDataPreprocessor` around it. Images are
            taken to be loaded in mmcv's order, BGR.

    Returns:
        np.ndarray: Image (H, W, 3), uint8, RGB.
    """
    image = view_images(view[None], data_preprocessor)[0].to(torch.uint8)
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError('Drawing needs an image of shape (H, W, 3), uint8, '
                         f'got {image.shape}, {image.dtype}.')


def _boxes(instances: InstanceData) -> np.ndarray:
    boxes = instances.bboxes
    boxes = getattr(boxes, 'tensor', boxes).detach().cpu().float()
    return boxes.numpy().reshape(-1, 4)


def _masks(instances: InstanceData, height: int,
           width: int) -> Optional[np.ndarray]:
    if 'masks' not in instances:
        return None
    masks = instances.masks
    if isinstance(masks, Tensor):
        masks = masks.detach().cpu().numpy()
    elif hasattr(masks, 'to_ndarray'):
        masks = masks.to_ndarray()
    return np.asarray(masks)[:, :height, :width].astype(np.uint8)


def _area(box: np.ndarray) -> float:
    return float((box[2:] - box[:2]).clip(min=0).prod())


def _name(label: int, classes: Optional[Sequence[str]]) -> str:
    if classes is not None and 0 <= label < len(classes):
        return str(classes[label])
    return str(label)


def _font(size: Union[int, float]) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _font_that_fits(text: str, width: int) -> ImageFont.FreeTypeFont:
    size = 16
    while size > 6 and _font(size).getlength(text) > width:
        size -= 1
    return _font(size)


def _write_names(canvas: np.ndarray,
                 names: Sequence[Tuple[str, float, float]]) -> np.ndarray:
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    size = min(max(min(canvas.shape[:2]) / 20, 11), 24)
    font = _font(size)
    for name, x, y in names:
        # Above the box where there is room, and never outside the image.
        x = min(max(x, 1), max(image.width - font.getlength(name) - 2, 1))
        y = min(max(y - size - 2, 1), max(image.height - size - 2, 1))
        draw.text((x, y),
                  name,
                  fill=(255, 255, 255),
                  font=font,
                  stroke_width=max(round(size / 8), 1),
                  stroke_fill=(0, 0, 0))
    return np.array(image)
