# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Which predictions of an image are right."""
from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from .mask_overlap import mask_iou

OUTCOMES = ('match', 'class', 'iou')


@dataclass
class PredictionOutcomes:
    """What became of the predictions of one image.

    Args:
        labels (Tensor): Predicted classes (N,), int64.
        scores (Tensor): Confidences (N,).
        matches (Tensor): Index of the true instance that each prediction
            found (N,), int64; -1 for none.
        ious (Tensor): IoU with it (N,); 0 without.
        known (Tensor): Predictions that can be judged (N,), bool: False for
            unmatched ones in crowd regions and for unmatched ones of classes
            that the image was not searched for.
        near (Tensor): Predictions that overlap a true instance of any class
            by the threshold (N,), bool.
        near_own (Tensor): Those of them that overlap one of their own class
            (N,), bool.
        true_labels (Tensor): Classes of the true instances (M,), int64.
    """

    labels: Tensor
    scores: Tensor
    matches: Tensor
    ious: Tensor
    known: Tensor
    near: Tensor
    near_own: Tensor
    true_labels: Tensor

    def outcomes(self, kind: str = 'match') -> Tuple[Tensor, Tensor]:
        """Return the outcome of every prediction, and which of them count.

        Args:
            kind (str): 'match': whether the prediction is matched with a
                true instance. 'iou': the IoU with it. 'class': whether a
                prediction that overlaps true instances has the class of one
                of them; others do not count, duplicates are right. Defaults
                to 'match'.

        Returns:
            tuple[Tensor, Tensor]: Outcomes (N,), float32, in [0, 1], and
            what counts (N,), bool.

        Raises:
            ValueError: If ``kind`` is none of the three.
        """
        check_outcome(kind, 'kind')
        if kind == 'class':
            return self.near_own.float(), self.near & self.known
        if kind == 'iou':
            return self.ious.float(), self.known
        return (self.matches >= 0).float(), self.known


def check_outcome(kind: str, field: str) -> str:
    """Return ``kind`` if it is a kind of outcome, else raise ValueError."""
    if kind not in OUTCOMES:
        raise ValueError(f'{field}={kind!r}; allowed are '
                         f'{", ".join(map(repr, OUTCOMES))}.')
    return kind


def check_mask_frame(truth: InstanceData, shape: Sequence[int],
                     name: str) -> None:
    """Refuse annotated masks of another size than the model's image.

    Args:
        truth (InstanceData): Ground truth, with or without ``masks``.
        shape (Sequence[int]): Height and width that the model sees, without
            padding.
        name (str): Name of the image, for the message.

    Raises:
        ValueError: If the sizes differ.
    """
    if 'masks' not in truth or len(truth) == 0:
        return
    size = (truth.masks.height, truth.masks.width)
    if size != tuple(shape[:2]):
        raise ValueError(
            f'The annotated masks of {name} have {size} pixels, the image '
            f'that the model sees {tuple(shape[:2])}: the pipeline must load '
            'annotations before the image changes its size.')


def instance_overlaps(predictions: InstanceData,
                      others: InstanceData,
                      iscrowd: bool = False) -> Tensor:
    """Return the IoU of every prediction with every other instance.

    Args:
        predictions (InstanceData): ``masks`` (N, H, W) bool or, without
            masks, ``bboxes`` (N, 4).
        others (InstanceData): ``masks`` (BitmapMasks, PolygonMasks or
            tensor, padded or not), else ``bboxes``. Boxes serve where
            either has no masks.
        iscrowd (bool): Divide by the area of the prediction instead, as
            COCO does for crowd regions. Defaults to False.

    Returns:
        Tensor: (N, M) in [0, 1].
    """
    device = predictions.labels.device
    if 'masks' in predictions and 'masks' in others:
        masks, shape = others.masks, predictions.masks.shape[1:]
        if not isinstance(masks, Tensor):
            masks = masks.to_tensor(torch.bool, device)
        masks = masks[:, :shape[0], :shape[1]].to(device)
        return mask_iou(predictions.masks, masks, iscrowd)
    from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
    return bbox_overlaps(
        predictions.bboxes.float(),
        get_box_tensor(others.bboxes).to(device).float(),
        mode='iof' if iscrowd else 'iou')


def judge_predictions(predictions: InstanceData,
                      truth: InstanceData,
                      ignored: Optional[InstanceData] = None,
                      iou_thr: float = 0.5,
                      crowd_thr: float = 0.5,
                      negative_labels: Optional[Sequence[int]] = None,
                      not_exhaustive_labels: Sequence[int] = (),
                      overlaps: Optional[Tensor] = None,
                      crowd_shares: Optional[Tensor] = None
                      ) -> PredictionOutcomes:
    """Find out which predictions of one image are right.

    Matching is greedy by score, one to one, within a class, as in the COCO
    evaluation at one threshold. So what is matched with a higher score does
    not depend on predictions with a lower one.

    Args:
        predictions (InstanceData): ``labels`` (N,), ``scores`` (N,), and
            ``masks`` (N, H, W) or ``bboxes`` (N, 4).
        truth (InstanceData): Ground truth: ``labels`` (M,), ``masks`` or
            ``bboxes``; see :func:`instance_overlaps`.
        ignored (InstanceData, optional): Crowd regions, fields as in
            ``truth``. Unmatched predictions that lie in one of their class,
            by at least ``crowd_thr`` of their own area, do not count.
            Defaults to None.
        iou_thr (float): Least IoU of a match, in [0, 1]; with 0 any overlap
            is enough. Defaults to 0.5.
        crowd_thr (float): In (0, 1]. Defaults to 0.5.
        negative_labels (Sequence[int], optional): For federated data such as
            LVIS, the classes that the image certainly has no instance of.
            Unmatched predictions count only if their class is one of them,
            or is among the true instances and not in
            ``not_exhaustive_labels``. Defaults to None: images are searched
            for all classes.
        not_exhaustive_labels (Sequence[int]): Classes of which not every
            instance is annotated. Defaults to ().
        overlaps (Tensor, optional): ``instance_overlaps(predictions,
            truth)``, where it is known already. Defaults to None.
        crowd_shares (Tensor, optional): ``instance_overlaps(predictions,
            ignored, iscrowd=True)``, likewise. Defaults to None.

    Returns:
        PredictionOutcomes: On the device of the predictions.

    Raises:
        ValueError: If a threshold is out of range.
    """
    if not 0 <= iou_thr <= 1:
        raise ValueError(f'iou_thr={iou_thr}; allowed are numbers from 0 '
                         'to 1.')
    if not 0 < crowd_thr <= 1:
        raise ValueError(f'crowd_thr={crowd_thr}; allowed are numbers above '
                         '0 up to 1.')
    labels, scores = predictions.labels, predictions.scores
    true_labels = truth.labels.to(labels.device)
    if len(labels) == 0 or len(true_labels) == 0:
        # Empty ground truth may have masks of any size.
        overlaps = scores.new_zeros((len(labels), len(true_labels)))
    elif overlaps is None:
        overlaps = instance_overlaps(predictions, truth)
    same = labels[:, None] == true_labels
    enough = (overlaps >= iou_thr) & (overlaps > 0)
    matches, ious = _match(overlaps, enough & same, scores)
    unmatched = matches < 0
    known = torch.ones_like(unmatched)
    if ignored is not None and len(ignored) > 0 and len(labels) > 0:
        if crowd_shares is None:
            crowd_shares = instance_overlaps(
                predictions, ignored, iscrowd=True)
        own = labels[:, None] == ignored.labels.to(labels.device)
        in_crowd = ((crowd_shares >= crowd_thr) & own).any(1)
        known &= ~(unmatched & in_crowd)
    if negative_labels is not None:
        negative, partial = (
            torch.as_tensor(classes, dtype=torch.long, device=labels.device)
            for classes in (negative_labels, not_exhaustive_labels))
        complete = true_labels[~torch.isin(true_labels, partial)]
        searched = torch.cat([negative, complete])
        known &= ~unmatched | torch.isin(labels, searched)
    return PredictionOutcomes(labels, scores, matches, ious, known,
                              enough.any(1), (enough & same).any(1),
                              true_labels)


def _match(overlaps: Tensor, candidates: Tensor,
           scores: Tensor) -> Tuple[Tensor, Tensor]:
    """Match greedily; only predictions with a candidate take part."""
    matches = torch.full((len(scores), ), -1, dtype=torch.long)
    ious = torch.zeros(len(scores))
    order = scores.argsort(descending=True, stable=True)
    order = order[candidates[order].any(1)]
    # The greedy pass is sequential; on the host it costs one transfer
    # instead of one launch per prediction.
    open_ious = overlaps.where(candidates,
                               torch.full_like(overlaps, -1))[order]
    open_ious = open_ious.cpu().numpy()
    found, values = [], []
    for row in open_ious:
        best = int(np.argmax(row))
        values.append(float(row[best]))
        found.append(best if values[-1] >= 0 else -1)
        if found[-1] >= 0:
            open_ious[:, best] = -1
    place = order.cpu()
    matches[place] = torch.tensor(found, dtype=torch.long)
    ious[place] = torch.tensor(values).clamp(min=0.)
    return matches.to(scores.device), ious.to(scores.device)
