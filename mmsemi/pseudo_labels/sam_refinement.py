# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A stage that lets SAM redraw pseudo-labels, prompted by themselves."""
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from mmsemi.models.mask_generators import ImageEmbedding, SAMPredictor
from mmsemi.registry import TRANSFORMS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL, DensePseudoLabel
from mmsemi.structures.view_geometry import masks_to_boxes
from .class_pieces import number_pieces, piece_masks
from .instance_filters import check_unit_interval
from .mask_prompts import mask_prompts
from .pipeline import PseudoLabelStage
from .stage_samples import IMAGE

PROMPTS = ('box', 'point', 'mask')


@TRANSFORMS.register_module()
class SAMRefine(PseudoLabelStage):
    """Prompt SAM with pseudo-masks and take what it answers.

    Each mask gives prompts (a point inside and one outside, its box, the
    mask itself, see :func:`mask_prompts`); of SAM's answers the one with the
    highest predicted IoU becomes the mask, and prompts again. It needs no
    proposals and answers where none matches, at the price of one pass of the
    image encoder per image and ``iterations`` of the decoder per mask.

    Y. Lin et al., SAMRefiner, ICLR 2025, section 3. Its box that grows with
    the context is off in the released API, and absent here. Prompts of
    later iterations are made of the binary mask, as those of the first.

    Instances: each mask is redrawn and its box follows. Dense
    pseudo-labels: each connected piece of each class is; where two claim a
    pixel, the higher predicted IoU wins; what the pieces leave becomes
    ``background``. Padding and pixels of no known label (255) stay. Pixels
    whose label changes get the mean confidence of the piece that was there
    or came; ``weight``, ``prob`` and scores stay.

    The field ``matched`` says what was redrawn: (N,) of instances; of a
    dense pseudo-label whether all of its pieces were and there was one, or,
    if a stage before wrote flags (C,) of classes, each class's.

    SAM is loaded when training begins, frozen, in no checkpoint and no
    optimizer, and follows the images to their device.

    Args:
        model (str or nn.Module): See
            :class:`~mmsemi.models.mask_generators.SAMPredictor`.
        family (str, optional): 'sam', 'sam2' or 'sam_hq'. Defaults to None:
            as the model's config says.
        dtype (str): Of SAM's weights. Defaults to 'float32'.
        prompts (Sequence[str]): Of 'box', 'point' and 'mask', the first or
            the second at least. Defaults to all.
        iterations (int): From 1. Defaults to 5, as in the released code.
        strength (float): Largest logit of the mask prompt, positive.
            Defaults to 30, as in the released API.
        gamma (float): How fast it falls towards the rim, positive. Defaults
            to 4.
        min_area (int): Smaller masks and pieces stay as they are, in pixels,
            from 1. Defaults to 1.
        min_iou (float): A mask stays as it is if SAM's has a lower IoU with
            it. Defaults to 0, as in the released code.
        min_predicted_iou (float): It also stays if SAM predicts a lower IoU
            of its own. Defaults to 0, which is no limit.
        background (int, optional): Class of no object in label maps, never
            redrawn. Defaults to 0. None: there is none, and a pixel that
            nothing claims keeps its label.
        only_unmatched (bool): Whether masks that a stage before marked
            ``matched`` stay, so that SAM is asked where no proposal fitted.
            Defaults to False.
        prompts_per_batch (int): Masks prompted at a time, for the memory.
            Defaults to 16.

    Raises:
        ImportError: If transformers is not installed (when training
            begins).
        ValueError: If an argument is out of range.
    """

    needs_image = True
    requires_any = (('label', 'confidence'), ('masks', 'bboxes'))
    writes = ('matched', )

    def __init__(self,
                 model: Union[str, nn.Module],
                 family: Optional[str] = None,
                 dtype: str = 'float32',
                 prompts: Sequence[str] = PROMPTS,
                 iterations: int = 5,
                 strength: float = 30.,
                 gamma: float = 4.,
                 min_area: int = 1,
                 min_iou: float = 0.,
                 min_predicted_iou: float = 0.,
                 background: Optional[int] = 0,
                 only_unmatched: bool = False,
                 prompts_per_batch: int = 16) -> None:
        super().__init__()
        if isinstance(prompts, str) or not set(prompts) <= set(PROMPTS) or \
                not {'box', 'point'} & set(prompts):
            raise ValueError(
                f'SAMRefine.prompts={prompts!r}; allowed are some of '
                f"{list(PROMPTS)}, 'box' or 'point' among them.")
        for name, value in (('iterations', iterations), ('min_area', min_area),
                            ('prompts_per_batch', prompts_per_batch)):
            if isinstance(value, bool) or not isinstance(value,
                                                         int) or value < 1:
                raise ValueError(f'SAMRefine.{name}={value!r}; allowed are '
                                 'whole numbers from 1.')
        if not strength > 0 or not gamma > 0:
            raise ValueError(f'SAMRefine.strength={strength!r}, gamma='
                             f'{gamma!r}; allowed are positive numbers.')
        self.prompts = tuple(prompts)
        self.iterations = iterations
        self.strength = float(strength)
        self.gamma = float(gamma)
        self.min_area = min_area
        self.min_iou = check_unit_interval(min_iou, 'SAMRefine.min_iou')
        self.min_predicted_iou = check_unit_interval(
            min_predicted_iou, 'SAMRefine.min_predicted_iou')
        self.background = background
        self.only_unmatched = only_unmatched
        self.prompts_per_batch = prompts_per_batch
        self._options = dict(family=family, dtype=dtype)
        # In lists, so that SAM is no part of this module: it belongs into
        # no checkpoint, optimizer or gradient reduction.
        self._model = [model]
        self._loaded: List[SAMPredictor] = []

    def sam(self, device: Optional[torch.device] = None) -> SAMPredictor:
        """Return SAM, loaded at the first call.

        Args:
            device (torch.device, optional): Where it is to be. Defaults to
                None: wherever it is.

        Returns:
            SAMPredictor: The frozen model.
        """
        if not self._loaded:
            self._loaded.append(
                SAMPredictor(self._model[0], **self._options))
        if device is not None and self._loaded[0].device != device:
            self._loaded[0].to(device)
        return self._loaded[0]

    def train(self, mode: bool = True) -> 'SAMRefine':
        """Set the mode; load SAM before a training begins, not within."""
        if mode:
            self.sam()
        return super().train(mode)

    @torch.no_grad()
    def forward(
            self, pseudo_labels: List[BaseDataElement],
            data_samples: List[BaseDataElement]) -> List[BaseDataElement]:
        """Redraw the masks of a batch; see :class:`PseudoLabelStage`.

        Raises:
            RuntimeError: If a data sample has no image.
            ValueError: If pseudo-labels are boxes without masks.
        """
        refined = []
        for label, sample in zip(pseudo_labels, data_samples):
            if IMAGE not in sample:
                raise RuntimeError(
                    'SAMRefine looks at the image, but the data sample has '
                    "no 'image'. The method gives it to stages of its "
                    'pseudo_label_pipeline; elsewhere use '
                    'mmsemi.pseudo_labels.stage_samples(samples, '
                    'images=...).')
            image = sample.get(IMAGE)
            if isinstance(label, DensePseudoLabel):
                height, width = sample.img_shape[:2]
                refined.append(self._dense(label, image[:, :height, :width]))
            else:
                refined.append(self._instances(label, image))
        return refined

    def _instances(self, label: InstanceData, image: Tensor) -> InstanceData:
        if 'masks' not in label:
            raise ValueError('SAMRefine redraws masks, but the '
                             'pseudo-labels have none.')
        label = label.new()
        masks = label.masks
        height, width = masks.shape[1:]
        before = label.get('matched')
        todo = self._large_enough(masks)
        if self.only_unmatched and before is not None:
            todo &= ~before
        masks, changed = self.refine(image[:, :height, :width], masks, todo)
        boxes = label.bboxes.clone()
        boxes[changed] = masks_to_boxes(masks[changed]).to(boxes)
        label.masks, label.bboxes = masks, boxes
        if self.only_unmatched and before is not None:
            changed = changed | before
        label.matched = changed
        return label

    def _dense(self, label: DensePseudoLabel,
               image: Tensor) -> DensePseudoLabel:
        height, width = image.shape[1:]
        classes = label.label[:height, :width]
        known = classes != IGNORE_LABEL
        pieces, labels = number_pieces(classes, self.background)
        labels = torch.tensor(labels, dtype=torch.long, device=classes.device)
        before = label.get('matched')
        todo = pieces[pieces >= 0].bincount(
            minlength=len(labels)) >= self.min_area
        matched = torch.zeros_like(todo)
        if self.only_unmatched and before is not None:
            matched = before[labels] if before.dim() else before.expand(
                len(labels)).clone()
            todo &= ~matched
        label = label.new()
        label.label = label.label.clone()
        label.confidence = label.confidence.clone()
        canvas = label.label[:height, :width]
        sure = label.confidence[:height, :width]
        before_sure = sure.clone()
        claim = torch.full_like(sure, -torch.inf)
        for embedding, part in self._parts(image, todo):
            masks = piece_masks(pieces, part)
            drawn, score, good = self._redraw(embedding, masks)
            matched[part] |= good
            for k in good.nonzero()[:, 0].tolist():
                old, new, c = masks[k], drawn[k], labels[part[k]]
                mean = before_sure[old].mean()
                if self.background is not None:
                    # Nobody has claimed these yet, maybe somebody will.
                    free = old & claim.isneginf()
                    canvas[free] = self.background
                    sure[free] = mean
                won = new & known & (claim <= score[k])
                claim[won] = score[k]
                canvas[won] = c
                sure[won] = mean
        kept = canvas == classes
        sure[kept] = before_sure[kept]
        label.matched = self._flags(before, labels, matched)
        return label

    @staticmethod
    def _flags(before: Optional[Tensor], labels: Tensor,
               matched: Tensor) -> Tensor:
        """Return what ``matched`` becomes for a label map."""
        if before is None or not before.dim():
            return matched.all() & (len(matched) > 0)
        flags = before.clone()
        for c in labels.unique().tolist():
            flags[c] = matched[labels == c].all()
        return flags

    def _large_enough(self, masks: Tensor) -> Tensor:
        return masks.flatten(1).sum(1) >= self.min_area

    @torch.no_grad()
    def refine(self, image: Tensor, masks: Tensor,
               todo: Tensor) -> Tuple[Tensor, Tensor]:
        """Redraw masks of one image.

        Args:
            image (Tensor): (3, H, W), RGB from 0 to 255.
            masks (Tensor): (N, H, W) bool.
            todo (Tensor): (N,) bool, which of them.

        Returns:
            tuple[Tensor, Tensor]: Masks (N, H, W), and which were redrawn,
            (N,) bool.
        """
        masks = masks.clone()
        changed = torch.zeros_like(todo)
        for embedding, part in self._parts(image, todo):
            drawn, _, good = self._redraw(embedding, masks[part])
            masks[part[good]] = drawn[good]
            changed[part] = good
        return masks, changed

    def _parts(self, image: Tensor,
               todo: Tensor) -> Iterator[Tuple[ImageEmbedding, Tensor]]:
        """Yield the encoded image with some indices of masks at a time."""
        if not bool(todo.any()):
            return
        embedding = self.sam(image.device).encode(image)
        for part in todo.nonzero()[:, 0].split(self.prompts_per_batch):
            yield embedding, part

    def _redraw(self, embedding: ImageEmbedding,
                masks: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return SAM's masks, the IoU it predicts, which are good enough."""
        drawn, score = self._prompt(self.sam(), embedding, masks)
        inter = (drawn & masks).flatten(1).sum(1)
        union = (drawn | masks).flatten(1).sum(1).clamp(min=1)
        good = drawn.flatten(1).any(1) & (inter / union >= self.min_iou)
        if self.min_predicted_iou > 0:
            good &= score >= self.min_predicted_iou
        return drawn, score, good

    def _prompt(self, sam: SAMPredictor, embedding: ImageEmbedding,
                masks: Tensor) -> Tuple[Tensor, Tensor]:
        """Return SAM's masks (K, H, W) and their predicted IoU (K,)."""
        scores = torch.full((len(masks), ), -torch.inf, device=masks.device)
        for _ in range(self.iterations):
            alive = masks.flatten(1).any(1)
            if not bool(alive.any()):
                break
            prompts = mask_prompts(masks[alive], self.strength, self.gamma)
            inputs = {}
            if 'point' in self.prompts:
                inputs.update(
                    points=prompts.points, point_labels=prompts.point_labels)
            if 'box' in self.prompts:
                inputs['boxes'] = prompts.boxes
            if 'mask' in self.prompts:
                inputs['masks'] = sam.to_frame(prompts.logits, -self.strength)
            logits, score = sam.predict(embedding, **inputs)
            score, best = score.max(1)
            rows = torch.arange(len(best), device=best.device)
            masks = masks.clone()
            masks[alive] = sam.to_image(logits[rows, best], embedding) > 0
            scores[alive] = score
        return masks, scores
