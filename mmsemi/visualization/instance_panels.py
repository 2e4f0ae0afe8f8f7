# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What teacher and student see in a training batch, side by side."""
import random
from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsemi.methods import SemiInstanceSegmentor
from mmsemi.methods.semi_instance_segmentor import fit_canvas, view_frame
from .drawing import (Palette, draw_instances, fitting_scale,
                      pseudo_label_panel, resize_image, view_to_image)

WEAK, STRONG = 'unsup_teacher', 'unsup_student'


@torch.no_grad()
def collect_panels(model: SemiInstanceSegmentor,
                   data_batch: dict,
                   classes: Optional[Sequence[str]] = None,
                   max_images: int = 4,
                   palette: Optional[Palette] = None,
                   scale: Optional[float] = None,
                   score_thr: float = 0.3) -> List[np.ndarray]:
    """Draw what teacher and student see in a training batch.

    Neither the model nor any random state is changed.

    Args:
        model (SemiInstanceSegmentor): The model.
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
        view, pseudo-labels, strong view, student's prediction.

    Raises:
        ValueError: If the batch has no unlabelled image.
    """
    batch = _first_unlabeled(data_batch, max_images)
    with _left_as_it_is(model):
        model.eval()
        batch = model.data_preprocessor(batch, False)
        inputs, samples = batch['inputs'], batch['data_samples']
        pseudo_labels = model.label_unlabeled(inputs[WEAK], samples[WEAK])
        predictions = _student_instances(model, inputs[STRONG],
                                         samples[STRONG])
    panels = []
    for i, (label, prediction) in enumerate(zip(pseudo_labels, predictions)):
        weak, strong = (
            _unpadded(inputs[view][i], samples[view][i],
                      model.data_preprocessor) for view in (WEAK, STRONG))
        factors = [
            scale or fitting_scale(*image.shape[:2])
            for image in (weak, strong)
        ]
        panels.append(
            pseudo_label_panel([
                ('weak view', resize_image(weak, factors[0])),
                (f"teacher's pseudo-labels ({len(label)})"
                 if label.get('usable', True) else
                 f"teacher's ({len(label)}), image left out",
                 draw_instances(
                     weak, label, classes, palette, scale=factors[0])),
                ('strong view', resize_image(strong, factors[1])),
                ("student's prediction",
                 draw_instances(
                     strong,
                     prediction,
                     classes,
                     palette,
                     score_thr=score_thr,
                     scale=factors[1])),
            ]))
    return panels


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
            v: [samples[v][i] for i in chosen]
            for v in (WEAK, STRONG)
        })


def _student_instances(model: SemiInstanceSegmentor, inputs: Tensor,
                       samples: list) -> List[InstanceData]:
    results = model.student.predict(
        inputs, [view_frame(sample) for sample in samples], rescale=False)
    found = []
    for result, sample in zip(results, samples):
        instances = result.pred_instances
        if 'masks' in instances:
            instances.masks = fit_canvas(instances.masks, sample.img_shape[:2])
        found.append(instances)
    return found


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
