# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Whether mask proposals make a referring model's pseudo-masks better."""
import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import Tensor

from mmsemi.methods import SemiSemanticSegmentor
from mmsemi.models.dense_forward import dense_logits, reads_text
from mmsemi.models.view_images import view_images
from mmsemi.pseudo_labels import (PseudoLabelPipeline, RefineByProposals,
                                  RefinementCounts, count_refinements,
                                  stage_samples)
from mmsemi.structures.dense_pseudo_label import DenseTargets, valid_pixels
from .configs import load_config
from .data_files import data_sources
from .inference import init_model

#: Name of the row of the config's own pipeline.
CONFIG_ROW = 'config'
REFERRED = 1
"""Class of the object that a sentence refers to."""


@dataclass
class RefinementRow:
    """How the pseudo-masks of many references fared.

    Args:
        name (str): A strategy, or 'config'.
        counts (RefinementCounts): Better, worse, same and unmatched.
        before (list[Tensor]): Intersection and union with the truth, (N, 2)
            pixels of every batch, of the teacher's masks.
        after (list[Tensor]): The same of the refined ones.
    """
    name: str
    counts: RefinementCounts = field(default_factory=RefinementCounts)
    before: List[Tensor] = field(default_factory=list)
    after: List[Tensor] = field(default_factory=list)

    def add(self, before: Tensor, after: Tensor, truth: Tensor,
            matched: Tensor) -> None:
        """Count a batch.

        Args:
            before (Tensor): (N, H, W) bool, the teacher's masks.
            after (Tensor): (N, H, W) bool, the refined masks.
            truth (Tensor): (N, H, W), 0, 1, and 255 where it does not count.
            matched (Tensor): (N,) bool.
        """
        self.counts += count_refinements(before, after, truth, matched)
        self.before.append(_overlaps(before, truth))
        self.after.append(_overlaps(after, truth))

    def numbers(self) -> Dict[str, Any]:
        """Return plain numbers; IoUs are from 0 to 100.

        Returns:
            dict: ``name``; ``references``, ``better``, ``worse``, ``same``,
            ``unmatched``; ``precision`` (better share of better and worse,
            None without any); ``mean_iou_before``, ``mean_iou_after``;
            ``overall_iou_before``, ``overall_iou_after`` (sum of
            intersections by sum of unions).
        """
        counts = self.counts
        changed = counts.better + counts.worse
        row = dict(
            name=self.name,
            references=counts.total,
            better=counts.better,
            worse=counts.worse,
            same=counts.same,
            unmatched=counts.unmatched,
            precision=counts.precision if changed else None)
        for when in ('before', 'after'):
            inter, union = torch.cat(getattr(self, when)).double().unbind(1)
            iou = inter / union.clamp(min=1)
            row[f'mean_iou_{when}'] = 100 * float(iou.mean())
            row[f'overall_iou_{when}'] = 100 * float(
                inter.sum() / union.sum().clamp(min=1))
        return row


class RefinementJudge:
    """Let a referring model label references whose masks are known.

    They are those that the config's training takes as unlabelled: their
    masks are read here, and nowhere else. Every reference is seen with its
    first sentence, through the transforms of validation images, without
    colours, blur or chance.

    Args:
        cfg (Config or str): Config of a method for maps, such as
            ``mmsemi.SemiRES``, around a referring segmenter.
        checkpoint (str or Path): Its weights.
        which (str, optional): Who labels, 'teacher' or 'student'. Defaults
            to None: ``model.predict_on`` of the config.
        strategies (Sequence[str]): Strategies to try beside the config's
            own pipeline; see :class:`RefineByProposals`. Other arguments are
            those of the config's stage. Defaults to none.
        store (str, optional): Proposals to take. Defaults to None: those
            that the config loads for the teacher.
        max_refs (int, optional): Look at the first so many references.
            Defaults to None: all.
        device (str, optional): Defaults to None: a GPU if there is one.
        cfg_options (Mapping, optional): See :func:`load_config`. Defaults to
            None.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the config is of another kind of model, has no
            unlabelled references or no proposals, or there is nothing to
            try.
        RuntimeError: If the weights are those of another model.
    """

    def __init__(self,
                 cfg: Union[Config, str],
                 checkpoint: Union[str, Path],
                 which: Optional[str] = None,
                 strategies: Sequence[str] = (),
                 store: Optional[str] = None,
                 max_refs: Optional[int] = None,
                 device: Optional[str] = None,
                 cfg_options: Optional[Mapping[str, Any]] = None) -> None:
        if max_refs is not None and max_refs < 1:
            raise ValueError(f'max_refs={max_refs}; allowed are whole numbers '
                             'from 1.')
        cfg = load_config(cfg, cfg_options)
        # Before the model is built: it takes longer than to read a file.
        loader = _loader(cfg, store, max_refs)
        self.device = device or get_device()
        self.model = init_model(cfg, checkpoint, which, self.device)
        _check_model(self.model)
        self.part = self.model.predict_on
        self.pipelines = self._variants(strategies)
        self.loader = Runner.build_dataloader(loader)

    def _variants(
            self,
            strategies: Sequence[str]) -> Dict[str, PseudoLabelPipeline]:
        """Return the pipelines to try, by the names of their rows."""
        found = {}
        stage_config = dict(type='mmsemi.RefineByProposals')
        own = self.model.cfg.model.get('pseudo_label_pipeline')
        pipeline = self.model.pseudo_label_pipeline
        if any(isinstance(s, RefineByProposals) for s in pipeline.stages):
            found[CONFIG_ROW] = pipeline
            stage_config = next(
                (stage
                 for stage in own or () if stage.type == stage_config['type']),
                stage_config)
        for strategy in strategies:
            found[strategy] = PseudoLabelPipeline(
                [dict(stage_config, strategy=strategy)],
                ('label', 'confidence', 'weight', 'valid', 'prob'))
        if not found:
            raise ValueError(
                'model.pseudo_label_pipeline has no mmsemi.RefineByProposals,'
                ' and no strategy is given; there is nothing to report.')
        return found

    @torch.no_grad()
    def judge(self, progress: bool = True) -> List[RefinementRow]:
        """Label all references.

        Args:
            progress (bool): Whether to show a bar. Defaults to True.

        Returns:
            list[RefinementRow]: First that of the config's own pipeline, if
            it refines; then the strategies.
        """
        rows = [RefinementRow(name) for name in self.pipelines]
        bar = ProgressBar(len(self.loader.dataset)) if progress else None
        for batch in self.loader:
            batch = self.model.data_preprocessor(batch, False)
            inputs, samples = batch['inputs'], batch['data_samples']
            labels = self._labels(inputs, samples)
            truth = torch.stack([s.gt_sem_seg.data[0] for s in samples])
            before = _masks(labels)
            images = None
            if any(p.needs_image for p in self.pipelines.values()):
                images = view_images(inputs, self.model.data_preprocessor)
            bare = stage_samples(samples, inputs.shape[2:], images)
            for row in rows:
                refined = self.pipelines[row.name](labels, bare)
                matched = torch.stack([label.matched for label in refined])
                row.add(before, _masks(refined), truth, matched)
            if bar is not None:
                bar.update(len(samples))
        if bar is not None:
            print()
        return rows

    def _labels(self, inputs: Tensor, samples: list) -> list:
        logits = dense_logits(self.model.predictor, inputs, samples)
        valid = valid_pixels(samples, logits.shape[2:], logits.device)
        return DenseTargets.from_logits(logits, valid, True).unbind()


def _check_model(model: Any) -> None:
    if not isinstance(model, SemiSemanticSegmentor) or not reads_text(
            model.student):
        raise ValueError(
            f'model of type {type(model).__name__} does not label the '
            'objects of sentences; allowed are methods for maps, such as '
            'mmsemi.SemiRES, around mmsemi.ReferringSegmentor.')


def _loader(cfg: Config, store: Optional[str],
            max_refs: Optional[int]) -> dict:
    """Return the config of a loader of unlabelled references with masks."""
    sources = [
        source for _, source in data_sources(cfg.train_dataloader.dataset,
                                             'train_dataloader.dataset')
        if source.get('labeled', True) is False
    ]
    if not sources:
        raise ValueError(
            'train_dataloader.dataset has no mmsemi.ReferringDataset with '
            'labeled=False, whose references would be looked at.')
    source = copy.deepcopy(sources[0])
    if store is None:
        loading = [
            transform for step in source.pipeline
            for transform in (step, *step.get('unsup_teacher', ()))
            if transform.type == 'mmsemi.LoadMaskProposals'
        ]
        if not loading:
            raise ValueError(
                'The unlabelled data load no proposals: there is no '
                "mmsemi.LoadMaskProposals in 'unsup_teacher'. Name a store.")
        proposals = loading[0]
    else:
        proposals = dict(type='mmsemi.LoadMaskProposals', store=store)
    load, *others, pack = cfg.val_dataloader.dataset.pipeline
    # The mask goes through the geometry, as the proposals do.
    mask = dict(type='mmsemi.LoadReferringMask')
    others = [t for t in others if t.type != mask['type']]
    source.update(
        pipeline=[load, mask, *others, proposals, pack],
        labeled=True,
        sentence='first',
        test_mode=True)
    if max_refs is not None:
        source.indices = max_refs
    loader = copy.deepcopy(cfg.val_dataloader)
    # update() would merge the two data sets.
    loader.dataset = source
    loader.collate_fn = dict(type='pseudo_collate')
    return loader


def _masks(labels: list) -> Tensor:
    return torch.stack([label.label for label in labels]) == REFERRED


def _overlaps(masks: Tensor, truth: Tensor) -> Tensor:
    """Return intersections and unions, (N, 2)."""
    known = truth != 255
    truth = (truth == REFERRED) & known
    masks = masks & known
    return torch.stack([(masks & truth).flatten(1).sum(1),
                        (masks | truth).flatten(1).sum(1)], 1).cpu()
