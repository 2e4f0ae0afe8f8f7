# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Run a model over annotated images and judge what it predicts."""
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmengine.utils import ProgressBar
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmsemi.datasets import leaf_datasets, load_coco
from mmsemi.engine.hooks.class_prototype_hook import annotations_first
from mmsemi.methods import MultiViewModel
from mmsemi.methods.instance_views import fit_canvas, view_frame
from mmsemi.methods.soft_label_emission import emitting_soft_labels
from mmsemi.pseudo_labels.outcomes import (PredictionOutcomes,
                                           check_mask_frame, instance_overlaps,
                                           judge_predictions)
from mmsemi.structures.view_geometry import masks_to_boxes
from .class_check import class_problems
from .data_files import broken_file_named, data_sources
from .inference import init_model
from .predictors import default_scope

#: For every image id, the labels that the image certainly has no instance
#: of, and those of which not every instance is annotated.
FederatedLabels = Dict[Union[int, str], Tuple[List[int], List[int]]]


@dataclass
class JudgedImage:
    """The predictions of one image and what became of them.

    Args:
        image_id (int or str): Id of the image.
        judged (PredictionOutcomes): At the IoU that makes a prediction
            right.
        located (PredictionOutcomes): At that of LaECE.
    """

    image_id: Union[int, str]
    judged: PredictionOutcomes
    located: PredictionOutcomes


def judge_image(image_id: Union[int, str],
                predictions: InstanceData,
                truth: InstanceData,
                ignored: Optional[InstanceData] = None,
                iou_thr: float = 0.5,
                la_iou_thr: float = 0.,
                negative_labels: Optional[Sequence[int]] = None,
                not_exhaustive_labels: Sequence[int] = ()) -> JudgedImage:
    """Judge the predictions of one image.

    Args:
        image_id (int or str): Id of the image.
        predictions (InstanceData): ``labels``, ``scores`` and ``masks`` or
            ``bboxes``.
        truth (InstanceData): Ground truth in the same frame.
        ignored (InstanceData, optional): Crowd regions. Defaults to None.
        iou_thr (float): Least IoU of a right prediction. Defaults to 0.5.
        la_iou_thr (float): That of LaECE. Defaults to 0: any overlap.
        negative_labels (Sequence[int], optional): See
            :func:`judge_predictions`. Defaults to None.
        not_exhaustive_labels (Sequence[int]): Likewise. Defaults to ().

    Returns:
        JudgedImage: On the CPU.
    """
    overlaps = shares = None
    if len(predictions) and len(truth):
        overlaps = instance_overlaps(predictions, truth).cpu()
    if len(predictions) and ignored is not None and len(ignored):
        shares = instance_overlaps(predictions, ignored, iscrowd=True).cpu()
    # Masks are big and no longer needed; the rest is judged on the host.
    found = InstanceData(
        labels=predictions.labels.cpu(), scores=predictions.scores.cpu())
    real, crowd = (None if part is None else InstanceData(
        labels=part.labels.cpu()) for part in (truth, ignored))
    judged, located = (
        judge_predictions(
            found,
            real,
            crowd,
            thr,
            negative_labels=negative_labels,
            not_exhaustive_labels=not_exhaustive_labels,
            overlaps=overlaps,
            crowd_shares=shares) for thr in (iou_thr, la_iou_thr))
    return JudgedImage(image_id, judged, located)


class PredictionJudge:
    """Run a model over the config's test data and judge its predictions.

    The model predicts as it would label unlabelled images, in the frame
    that it sees: annotations are loaded before the images change their size,
    and heads that can give soft labels give them. ``val_dataloader`` serves
    where there is no ``test_dataloader``.

    Federated data such as LVIS is judged by its rules: the annotation file
    says which classes an image was searched for.

    Args:
        cfg (Config): Config of the model, of an instance segmenter.
        checkpoint (str or Path): Its weights.
        which (str, optional): What predicts, 'teacher' or 'student'.
            Defaults to None: ``model.predict_on`` of the config.
        device (str, optional): Defaults to None: a GPU if there is one.

    Attributes:
        classes (list[str]): Names of the classes.
        part (str): What predicts: 'teacher', 'student', or the type of a
            plain segmenter.

    Raises:
        FileNotFoundError: If the checkpoint or an annotation file is
            missing.
        ValueError: If the config is of another kind of model, its data has
            no images, classes or annotations, or the checkpoint does not
            hold what predicts.
        RuntimeError: If the weights are those of another model.
    """

    def __init__(self,
                 cfg: Config,
                 checkpoint: Union[str, Path],
                 which: Optional[str] = None,
                 device: Optional[str] = None) -> None:
        cfg = _checked(cfg, which)
        model = init_model(cfg, checkpoint, which, device or get_device())
        self.model, self.part = model, type(model).__name__
        if isinstance(model, MultiViewModel):
            self.model, self.part = model.predictor, model.predict_on
        self.preprocess = getattr(model.data_preprocessor,
                                  'data_preprocessor',
                                  model.data_preprocessor)
        with broken_file_named(cfg):
            self.loader = Runner.build_dataloader(dict(cfg.test_dataloader))
        dataset = self.loader.dataset
        self.classes = list(dataset.metainfo.get('classes') or ())
        problems = class_problems(dataset, model)
        if problems and cfg.get('check_classes', True):
            raise ValueError(f'test_dataloader: {" ".join(problems[:3])}')
        self.federated: FederatedLabels = {}
        for leaf in leaf_datasets(dataset):
            if isinstance(getattr(leaf, 'pipeline', None), Compose):
                leaf.pipeline = annotations_first(leaf.pipeline)
            self.federated.update(federated_labels(leaf))
        if len(dataset) == 0:
            raise ValueError('test_dataloader has no images.')
        # Before an hour of predictions.
        _check_sample(dataset[0]['data_samples'])

    @torch.no_grad()
    def judge(self,
              iou_thr: float = 0.5,
              la_iou_thr: float = 0.) -> List[JudgedImage]:
        """Predict and judge, with a progress bar.

        Args:
            iou_thr (float): See :func:`judge_image`.
            la_iou_thr (float): See :func:`judge_image`.

        Returns:
            list[JudgedImage]: All images of the data.

        Raises:
            ValueError: If the model predicts no instances, or an image has
                no annotations.
        """
        images = []
        bar = ProgressBar(len(self.loader))
        for data in self.loader:
            batch = self.preprocess(data, False)
            samples = batch['data_samples']
            found = predict_views(self.model, batch['inputs'], samples)
            images += [
                self._judge_one(label, sample, iou_thr, la_iou_thr)
                for label, sample in zip(found, samples)
            ]
            bar.update()
        print()
        return images

    def _judge_one(self, found: InstanceData, sample: DetDataSample,
                   iou_thr: float, la_iou_thr: float) -> JudgedImage:
        _check_sample(sample)
        image_id = sample.get('img_id', sample.get('img_path'))
        ignored = sample.get('ignored_instances')
        if ignored is not None and 'labels' not in ignored:
            ignored = None
        negative, partial = self.federated.get(
            image_id, (sample.get('neg_category_ids'),
                       sample.get('not_exhaustive_category_ids') or ()))
        return judge_image(image_id, found, sample.gt_instances, ignored,
                           iou_thr, la_iou_thr, negative, partial)


def predict_views(model: nn.Module, inputs: Tensor,
                  data_samples: List[DetDataSample]) -> List[InstanceData]:
    """Predict instances in pixels of the images that the model sees.

    Args:
        model (nn.Module): mmdet's instance segmenter in evaluation mode.
        inputs (Tensor): Images (N, C, H, W), preprocessed.
        data_samples (list[DetDataSample]): Their data samples.

    Returns:
        list[InstanceData]: ``labels`` (M,), ``scores`` (M,), ``bboxes``
        (M, 4) and, where the model predicts them, ``masks`` (M, h, w) bool
        of the unpadded image.

    Raises:
        ValueError: If the model predicts no instances.
    """
    with emitting_soft_labels(model):
        results = model.predict(
            inputs, [view_frame(s) for s in data_samples], rescale=False)
    predicted = []
    for result, sample in zip(results, data_samples):
        if 'pred_instances' not in result:
            raise ValueError(
                f'{type(model).__name__} predicts no instances; set its '
                'test_cfg so that it does (instance_on=True).')
        found = result.pred_instances
        label = InstanceData(
            labels=found.labels.long(),
            scores=found.scores.float(),
            bboxes=found.bboxes.float())
        if 'masks' in found:
            masks = fit_canvas(found.masks, sample.img_shape[:2]).bool()
            label.masks = masks
            # Box-free heads leave zeros for boxes.
            missing = (label.bboxes[:, 2:] <= label.bboxes[:, :2]).any(1)
            label.bboxes[missing] = masks_to_boxes(
                masks[missing]).to(label.bboxes)
        predicted.append(label)
    return predicted


def federated_labels(dataset: Dataset) -> FederatedLabels:
    """Read which classes images were searched for.

    Args:
        dataset (Dataset): mmdet's data set of one annotation file.

    Returns:
        dict: By image id the absent and the partly annotated labels; empty
        if the data is not federated.
    """
    labels = getattr(dataset, 'cat2label', None)
    path = getattr(dataset, 'ann_file', None)
    if not labels or not path or not osp.isfile(path):
        return {}
    fields = ('neg_category_ids', 'not_exhaustive_category_ids')
    return {
        image['id']: tuple([labels[c] for c in image.get(field) or ()
                            if c in labels] for field in fields)
        for image in load_coco(path).get('images', ())
        if fields[0] in image
    }


def labeled_annotations(cfg: Config) -> Optional[str]:
    """Find the annotation file of the labelled training data.

    Args:
        cfg (Config): The config.

    Returns:
        str or None: That of the first data set of ``train_dataloader``; None
        if there is no such file here.
    """
    loader = cfg.get('train_dataloader') or {}
    for _, source in data_sources(loader.get('dataset') or {}, ''):
        name = source.get('ann_file')
        if isinstance(name, str) and name:
            path = osp.join(source.get('data_root') or '', name)
            return path if osp.isfile(path) else None
        break
    return None


def _checked(cfg: Config, which: Optional[str]) -> Config:
    cfg = cfg.copy()
    if cfg.get('model') is None:
        raise ValueError('The config has no model.')
    if default_scope(cfg) == 'mmseg':
        raise ValueError(
            "default_scope='mmseg': the report is about instances, and the "
            'config is of a model that gives every pixel a class.')
    if which is not None and 'segmentor' not in cfg.model:
        raise ValueError(
            f"The config's model is a plain {cfg.model.get('type')}, which "
            f'has no {which}. Leave --which out.')
    if cfg.get('test_dataloader') is None:
        cfg.test_dataloader = cfg.get('val_dataloader')
    if cfg.test_dataloader is None:
        raise ValueError('The config has neither test_dataloader nor '
                         'val_dataloader: there are no images to measure on.')
    return cfg


def _check_sample(sample: DetDataSample) -> None:
    """Raise ValueError if a sample cannot be judged."""
    name = sample.get('img_path', 'an image')
    truth = sample.get('gt_instances')
    if truth is None or 'labels' not in truth:
        raise ValueError(
            f'The data has no annotations of {name}; its pipeline needs '
            "dict(type='LoadAnnotations', with_bbox=True, with_mask=True).")
    if 'img_id' not in sample and 'img_path' not in sample:
        raise ValueError("The data samples have no img_id; list 'img_id' in "
                         'meta_keys of PackDetInputs.')
    check_mask_frame(truth, sample.img_shape, name)
