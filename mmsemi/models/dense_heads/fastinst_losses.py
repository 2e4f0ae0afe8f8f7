# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What FastInst's head learns from."""
from contextlib import contextmanager
from typing import TYPE_CHECKING, Dict, Iterator, List, Sequence, Tuple

import torch
from mmcv.ops import point_sample
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsemi.models.layers import cell_locations
from mmsemi.models.task_modules import cells_in_masks, points_in_masks
from mmsemi.registry import MODELS, TASK_UTILS

if TYPE_CHECKING:
    from .fastinst_head import DecoderOutput, LayerOutput

#: Where meta information carries what all layers share: which instances the
#: queries lie in, and a matching that is to be used instead of a new one.
INSIDE_KEY = 'queries_inside'
MATCHED_KEY = 'queries_matched'


class FastInstLossMixin:
    """The losses of :class:`FastInstHead`, on those of ``Mask2FormerHead``.

    To be used before that base class.
    """

    def _build_losses(self, loss_cls: dict, loss_mask: dict, loss_dice: dict,
                      loss_proposal: dict) -> None:
        self.class_weight = loss_cls.get('class_weight')
        weights = 0 if self.class_weight is None else len(self.class_weight)
        if weights != self.num_classes + 1:
            raise ValueError(
                f'panoptic_head.loss_cls.class_weight has {weights} entries; '
                f'it needs {self.num_classes + 1}: one for every class and '
                'one for no object.')
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)
        self.loss_proposal = MODELS.build(loss_proposal)

    def _build_training(self, train_cfg: dict) -> None:
        for name in ('assigner', 'proposal_assigner', 'sampler'):
            if name not in train_cfg:
                raise ValueError(
                    f'train_cfg.{name} is missing; FastInst needs an '
                    'assigner for queries, a proposal_assigner for cells, '
                    'and a sampler.')
        self.assigner = TASK_UTILS.build(train_cfg['assigner'])
        self.proposal_assigner = TASK_UTILS.build(
            train_cfg['proposal_assigner'])
        self.sampler = TASK_UTILS.build(
            train_cfg['sampler'], default_args=dict(context=self))
        self.num_points = train_cfg.get('num_points', 12544)
        self.oversample_ratio = train_cfg.get('oversample_ratio', 3.0)
        self.importance_sample_ratio = train_cfg.get(
            'importance_sample_ratio', 0.75)

    def loss(self, x: Sequence[Tensor],
             batch_data_samples: SampleList) -> Dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            x (Sequence[Tensor]): The backbone's maps (N, C, h, w).
            batch_data_samples (list[DetDataSample]): With ``gt_instances``,
                whose masks are as large as the padded images.

        Returns:
            dict[str, Tensor]: See :meth:`loss_by_feat`.
        """
        instances = self.preprocess_gt(
            [sample.gt_instances for sample in batch_data_samples],
            [sample.get('gt_sem_seg') for sample in batch_data_samples])
        return self.loss_by_feat(
            self.decode(x, all_classes=True), instances,
            [sample.metainfo for sample in batch_data_samples])

    def loss_by_feat(self, decoded: 'DecoderOutput',
                     batch_gt_instances: List[InstanceData],
                     batch_img_metas: List[dict]) -> Dict[str, Tensor]:
        """Compute the losses of all predictions, and run the second pass.

        Args:
            decoded (DecoderOutput): Of the first pass, all classified.
            batch_gt_instances (list[InstanceData]): From
                ``preprocess_gt``: ``labels`` and ``masks``.
            batch_img_metas (list[dict]): Meta information.

        Returns:
            dict[str, Tensor]: ``loss_cls``, ``loss_mask`` and ``loss_dice``
            of the last layer; the same after ``d0.``, ``d1.``, ... of the
            heads before it and after ``guided0.``, ``guided1.``, ... of the
            second pass; and ``loss_proposal``. With a semantic branch that
            learns also alone, each has a ``loss_cls_semantic``.
        """
        proposals = decoded.proposals
        locations = cell_locations(proposals.indices,
                                   proposals.logits.shape[-2:])
        metas = [{
            **meta, INSIDE_KEY: points_in_masks(points, instances.masks)
        } for meta, points, instances in zip(batch_img_metas, locations,
                                             batch_gt_instances)]
        *others, last = decoded.outputs
        matched = [
            self._match_queries(*prediction) for prediction in zip(
                last.cls_score, last.mask_pred, batch_gt_instances, metas)
        ]
        fixed = [{
            **meta, MATCHED_KEY: match
        } for meta, match in zip(metas, matched)]

        sets = [('', last, fixed)]
        sets += [(f'd{j}.', output, metas) for j, output in enumerate(others)]
        if self.guided:
            sets += [(f'guided{i}.', output, fixed)
                     for i, output in enumerate(
                         self.decode_guided(decoded, batch_gt_instances,
                                            matched))]
        losses = {}
        for prefix, output, output_metas in sets:
            losses.update((prefix + name, value)
                          for name, value in self._layer_losses(
                              output, batch_gt_instances,
                              output_metas).items())
        losses['loss_proposal'] = self.proposal_loss(proposals.logits,
                                                     batch_gt_instances)
        return losses

    def _layer_losses(self, output: 'LayerOutput',
                      batch_gt_instances: List[InstanceData],
                      batch_img_metas: List[dict]) -> Dict[str, Tensor]:
        with _noted_calls(self.loss_cls) as calls:
            loss_cls, loss_mask, loss_dice = self._loss_by_feat_single(
                output.cls_score, output.mask_pred, batch_gt_instances,
                batch_img_metas)
        losses = dict(
            loss_cls=loss_cls, loss_mask=loss_mask, loss_dice=loss_dice)
        if output.semantic is not None:
            (_, *args), kwargs = calls[-1]
            losses['loss_cls_semantic'] = self.semantic_branch.aux_weight * \
                self.loss_cls(output.semantic.flatten(0, 1), *args, **kwargs)
        return losses

    def _get_targets_single(self, cls_score: Tensor, mask_pred: Tensor,
                            gt_instances: InstanceData,
                            img_meta: dict) -> tuple:
        """Return the targets of an image's queries; see the base class."""
        matched = img_meta.get(MATCHED_KEY)
        if matched is None:
            matched = self._match_queries(cls_score, mask_pred, gt_instances,
                                          img_meta)
        sampled = self.sampler.sample(
            assign_result=matched,
            pred_instances=InstanceData(scores=cls_score, masks=mask_pred),
            gt_instances=gt_instances)
        queries, found = sampled.pos_inds, sampled.pos_assigned_gt_inds
        labels = gt_instances.labels.new_full((self.num_queries, ),
                                              self.num_classes)
        labels[queries] = gt_instances.labels[found]
        mask_weights = mask_pred.new_zeros(self.num_queries)
        mask_weights[queries] = 1
        return (labels, torch.ones_like(labels), gt_instances.masks[found],
                mask_weights, queries, sampled.neg_inds, sampled)

    @torch.no_grad()
    def _match_queries(self, cls_score: Tensor, mask_pred: Tensor,
                       gt_instances: InstanceData,
                       img_meta: dict) -> AssignResult:
        points = torch.rand(1, self.num_points, 2, device=mask_pred.device)

        def sample(masks: Tensor) -> Tensor:
            return point_sample(masks[:, None].float(),
                                points.expand(len(masks), -1, -1))[:, 0]

        predictions = InstanceData(
            scores=cls_score.float(),
            masks=sample(mask_pred),
            inside=img_meta[INSIDE_KEY])
        return _assign(self.assigner, predictions, gt_instances,
                       sample(gt_instances.masks))

    @torch.no_grad()
    def match_cells(self, logits: Tensor,
                    gt_instances: InstanceData) -> AssignResult:
        """Match the cells of a map to instances that they overlap.

        Args:
            logits (Tensor): Of the dense classifier, (C + 1, h, w).
            gt_instances (InstanceData): ``labels`` and ``masks`` (M, H, W).

        Returns:
            AssignResult: Of h * w cells, row by row; each instance has one,
            where there are enough.
        """
        predictions = InstanceData(
            scores=logits.flatten(1).t().float(),
            inside=cells_in_masks(logits.shape[1:], gt_instances.masks))
        return _assign(self.proposal_assigner, predictions, gt_instances,
                       gt_instances.masks)

    def proposal_loss(self, logits: Tensor,
                      batch_gt_instances: List[InstanceData]) -> Tensor:
        """Compute the loss of the dense classifier, a mean over all cells.

        Args:
            logits (Tensor): (N, C + 1, h, w).
            batch_gt_instances (list[InstanceData]): As for
                :meth:`match_cells`. Cells learn their ``soft_labels``, where
                there are any.

        Returns:
            Tensor: The loss.
        """
        labels, soft_targets = [], []
        for image_logits, instances in zip(logits, batch_gt_instances):
            matched = self.match_cells(image_logits, instances).gt_inds
            cells = (matched > 0).nonzero()[:, 0]
            found = matched[cells] - 1
            label = torch.full_like(matched, self.num_classes)
            label[cells] = instances.labels[found]
            labels.append(label)
            if 'soft_labels' in instances:
                target = self.loss_proposal.expand(label, len(image_logits))
                target[cells] = instances.soft_labels[found].to(target)
                soft_targets.append(target)
        soft = dict(
            soft_target=torch.cat(soft_targets)) if soft_targets else {}
        return self.loss_proposal(
            logits.flatten(2).transpose(1, 2).flatten(0, 1), torch.cat(labels),
            **soft)


@contextmanager
def _noted_calls(module: nn.Module) -> Iterator[List[Tuple[tuple, dict]]]:
    """Note the arguments that a module is called with."""
    calls = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)),
        with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _assign(assigner, predictions: InstanceData, gt_instances: InstanceData,
            masks: Tensor) -> AssignResult:
    """Match, also by soft labels, and without half precision."""
    instances = InstanceData(labels=gt_instances.labels, masks=masks)
    if 'soft_labels' in gt_instances:
        instances.soft_labels = gt_instances.soft_labels
    with torch.autocast(masks.device.type, enabled=False):
        return assigner.assign(predictions, instances)
