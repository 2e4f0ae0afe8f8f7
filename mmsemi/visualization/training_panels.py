# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What teacher and student see in a training batch, side by side."""
import random
from contextlib import contextmanager
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from mmsemi.compat import is_installed
from mmsemi.methods import TeacherStudent
from mmsemi.pseudo_labels import stage_samples
from .drawing import (Palette, fitting_scale, pseudo_label_panel, resize_image,
                      view_to_image)

WEAK, STRONG = 'unsup_teacher', 'unsup_student'


@torch.no_grad()
def collect_panels(model: TeacherStudent,
                   data_batch: dict,
                   classes: Optional[Sequence[str]] = None,
                   max_images: int = 4,
                   palette: Optional[Palette] = None,
                   scale: Optional[float] = None,
                   score_thr: float = 0.3) -> List[np.ndarray]:
    """Draw what teacher and student see in a training batch.

    Neither the model nor any random state is changed.

    Args:
        model (TeacherStudent): The model, of instances or of every pixel.
        data_batch (dict): A batch as the training data loader gives it, with
            the views 'unsup_teacher' and 'unsup_student'.
        classes (Sequence[str], optional): Names of the classes. Defaults to
            None: their numbers.
        max_images (int): Images to draw at most. Defaults to 4.
        palette (Sequence[tuple], optional): RGB colours of the classes.
            Defaults to None: :func:`default_palette`.
        scale (float, optional): Factor on the size of the views. Defaults to
            None: :func:`fitting_scale`.
        score_thr (float): The student's instances are drawn from this score
            on. Defaults to 0.3.

    Returns:
        list[np.ndarray]: One panel (H, W, 3), uint8, RGB, per image: weak
        view (under its sentence, if it has one), pseudo-labels, strong view,
        student's prediction. Of referring models the pseudo-labels are
        several columns; see :func:`referring_columns`.

    Raises:
        TypeError: If it is not known how to draw the model's pseudo-labels.
        ValueError: If the batch has no unlabelled image.
    """
    draw, pads_in_training = _columns_of(model)
    batch = _first_unlabeled(data_batch, max_images)
    with _left_as_it_is(model):
        model.eval()
        batch = model.data_preprocessor(batch, pads_in_training)
        inputs, samples = batch['inputs'], batch['data_samples']
        images = [
            tuple(
                _unpadded(inputs[view][i], samples[view][i],
                          model.data_preprocessor) for view in (WEAK, STRONG))
            for i in range(len(inputs[WEAK]))
        ]
        scales = [
            tuple(scale or fitting_scale(*image.shape[:2]) for image in pair)
            for pair in images
        ]
        columns = draw(model, inputs[WEAK], inputs[STRONG], samples[WEAK],
                       samples[STRONG], images, scales, classes, palette,
                       score_thr)
    return [
        pseudo_label_panel([(sample.get('text', 'weak view'),
                             resize_image(weak, factors[0])), *taught,
                            ('strong view', resize_image(strong, factors[1])),
                            predicted])
        for (weak, strong), factors, sample, (
            *taught, predicted) in zip(images, scales, samples[WEAK], columns)
    ]


def _columns_of(model: TeacherStudent) -> Tuple[Callable, bool]:
    """Return what draws, and whether views are padded in training only."""
    if is_installed('mmdet'):
        from mmsemi.methods import SemiInstanceSegmentor
        if isinstance(model, SemiInstanceSegmentor):
            from .instance_panels import instance_columns
            return instance_columns, False
    if is_installed('mmseg'):
        from mmsemi.methods import SemiSemanticSegmentor
        if isinstance(model, SemiSemanticSegmentor):
            from mmsemi.models.dense_forward import reads_text
            if reads_text(model.student):
                from .referring_panels import referring_columns as columns
            else:
                from .semantic_panels import semantic_columns as columns

            # mmseg's preprocessor stacks equal sizes only, unless it trains.
            return columns, True
    raise TypeError(f'Pseudo-labels of {type(model).__name__} cannot be '
                    'drawn; allowed are models derived from '
                    'SemiInstanceSegmentor and SemiSemanticSegmentor.')


def _first_unlabeled(data_batch: dict, max_images: int) -> dict:
    inputs, samples = data_batch['inputs'], data_batch['data_samples']
    chosen = []
    if isinstance(inputs, dict) and WEAK in inputs and STRONG in inputs:
        chosen = [
            i for i, image in enumerate(inputs[WEAK]) if image is not None
        ][:max_images]
    if not chosen:
        raise ValueError(
            f'The batch holds no unlabelled image with the views {WEAK!r} '
            f'and {STRONG!r}.')
    return dict(
        inputs={v: [inputs[v][i] for i in chosen]
                for v in (WEAK, STRONG)},
        data_samples={
            # Without hidden labels, which the padding would change.
            v: stage_samples([samples[v][i] for i in chosen])
            for v in (WEAK, STRONG)
        })


@contextmanager
def _left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Restore the modes of all modules and all random states."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, training in modes:
            module.training = training


def _unpadded(view: Tensor, sample, data_preprocessor) -> np.ndarray:
    height, width = sample.img_shape[:2]
    return view_to_image(view[:, :height, :width], data_preprocessor)
