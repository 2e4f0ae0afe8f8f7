# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import os
import os.path as osp
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
from mmengine.dist import (all_gather_object, barrier, get_dist_info,
                           is_main_process)
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmsemi.methods.iterative_self_training import (HUMAN, MIXED, PSEUDO,
                                                    SCHEDULES, Candidate,
                                                    held_out_size,
                                                    held_out_slice, keep_best,
                                                    plan_units, random_choices)
from mmsemi.methods.self_training import check_fraction, label_by_argmax
from mmsemi.registry import LOOPS
from mmsemi.structures.confusion_matrix import ConfusionMatrix
from .pseudo_mask_loop import PseudoMaskLoop
from .round_checks import check_count
from .round_data import annotation_loader, load_mask

RELABEL = ('pseudo', 'every')


@LOOPS.register_module()
class IterativeSelfTrainingLoop(PseudoMaskLoop):
    """GIST, RIST and FIST (arXiv 2103.17105) as one training.

    A first training on human labels makes the first pseudo-labels. Every
    stage then goes on from the weights before it, with a fresh optimizer
    and schedule:

    - 'random' (RIST): on human labels or on pseudo-labels, by a coin;
    - 'greedy' (GIST): on both in turn, from each of the ``beam`` best
      solutions so far. The best by mean IoU on a held-out slice of the
      labelled images, which nothing trains on, go on; at the end the best
      one is what the last checkpoint holds. With few labels the slice is
      missed: with ``closing_iters`` the best one learns from all labelled
      images in the end, as no choice is left to make;
    - 'fixed' (FIST): on a mix with the share ``human_ratio``.

    No code was released: see ``mmsemi.methods.iterative_self_training`` for
    what is known. One training from one beam entry is a round here; see
    :class:`PseudoMaskLoop` for schedules, validation and resume.

    Args:
        runner (Runner): The runner.
        dataloader (dict): ``train_dataloader`` with the labelled images.
        schedule (str): 'fixed', 'greedy' or 'random'.
        round_iters (int): Iterations of the first training.
        stage_iters (int): Iterations of every training in a stage.
        stages (int): Number of stages. Defaults to 10.
        unlabeled_dataset (dict): Images to label, with a test pipeline
            without annotations.
        pseudo_pipeline (Sequence[dict]): Pipeline of pseudo-labelled
            images, with ``LoadAnnotations``.
        beam (int): Solutions that 'greedy' keeps. Defaults to 1.
        held_out_fraction (float): Share of the labelled images that
            'greedy' chooses by. Defaults to 0.2.
        closing_iters (int): Iterations of a closing stage on all labelled
            images, from the weights that the stages end with; not of the
            paper, see :class:`PseudoMaskLoop`. Defaults to 0: there is none.
        human_prob (float): Probability of human labels in a stage of
            'random'. Defaults to 0.5.
        human_ratio (float): Share of human labels in a batch of 'fixed'.
            Defaults to 0.5.
        relabel (str): After which stages pseudo-labels are made anew:
            'pseudo', those that learned from them, or 'every'. Defaults to
            'pseudo'.
        reset_weights (bool): Whether every stage starts from newly drawn
            weights. Defaults to False.
        seed (int, optional): Seed of choices and slice. Defaults to None:
            that of the training's data.
        labeling (dict, optional): See :class:`LabelingSettings`.
        val_begin (int): See :class:`PseudoMaskLoop`.
        val_interval (int): See :class:`PseudoMaskLoop`.

    Raises:
        TypeError: If a config is something else already.
        ValueError: If anything in the config cannot work.
    """

    def __init__(self,
                 runner: Runner,
                 dataloader: Dict,
                 schedule: str,
                 round_iters: int,
                 stage_iters: int,
                 stages: int = 10,
                 unlabeled_dataset: Optional[Dict] = None,
                 pseudo_pipeline: Optional[Sequence] = None,
                 beam: int = 1,
                 held_out_fraction: float = 0.2,
                 closing_iters: int = 0,
                 human_prob: float = 0.5,
                 human_ratio: float = 0.5,
                 relabel: str = 'pseudo',
                 reset_weights: bool = False,
                 seed: Optional[int] = None,
                 labeling: Optional[Mapping] = None,
                 val_begin: int = 1,
                 val_interval: int = 1000) -> None:
        for name, value in (('round_iters', round_iters),
                            ('stage_iters', stage_iters), ('stages', stages),
                            ('beam', beam)):
            check_count(value, f'train_cfg.{name}')
        if seed is not None:
            check_count(seed, 'train_cfg.seed', least=0)
            if seed >= 2**32:
                raise ValueError(f'train_cfg.seed={seed}; allowed are '
                                 'numbers below 2**32.')
        for name, value, allowed in (('schedule', schedule, SCHEDULES),
                                     ('relabel', relabel, RELABEL),
                                     ('reset_weights', reset_weights,
                                      (True, False))):
            if value not in allowed:
                raise ValueError(f'train_cfg.{name}={value!r}; allowed are '
                                 f'{allowed}.')
        if schedule != 'greedy' and beam != 1:
            raise ValueError(f'train_cfg.beam={beam} with schedule='
                             f'{schedule!r}; only "greedy" has a beam.')
        check_fraction(human_prob, 'train_cfg.human_prob')
        check_fraction(human_ratio, 'train_cfg.human_ratio')
        self.schedule = schedule
        self.stages = stages
        self.beam = beam
        self.held_out_fraction = held_out_fraction
        self.human_prob = human_prob
        self.human_ratio = human_ratio
        self.relabel = relabel
        self.reset_weights = reset_weights
        self.choice_seed = seed
        # How many units there are does not depend on the choices.
        number = len(plan_units(schedule, stages, beam, [HUMAN] * stages))
        lengths = [round_iters] + [stage_iters] * (number - 1)
        super().__init__(runner, dataloader, lengths, unlabeled_dataset,
                         pseudo_pipeline, labeling, closing_iters, val_begin,
                         val_interval)
        if schedule == 'greedy':
            held_out_size(len(self.labeled), held_out_fraction)
            if annotation_loader(self.labeled.pipeline) is None:
                raise ValueError(
                    'The pipeline of the labelled images has no '
                    'LoadAnnotations, by which the masks of the held-out '
                    "images of schedule='greedy' could be read.")
        # Refuses a ratio that no batch could have.
        self._loader(MIXED if schedule == 'fixed' else PSEUDO,
                     {i: ''
                      for i in self.all_unlabeled}, self.labeled, 0)

    def initial_state(self) -> Dict[str, Any]:
        """Return choices, held-out images, beam and candidates."""
        seed = self.choice_seed
        if seed is None:
            seed = self._first_loader.sampler.seed
        state = dict(choices=[], held_out=[], beam=[], candidates=[])
        if self.schedule == 'random':
            state['choices'] = random_choices(self.stages, seed,
                                              self.human_prob)
            print_log(
                f'Stages learn from (seed {seed}): '
                f'{", ".join(state["choices"])}.',
                logger='current')
        if self.schedule == 'greedy':
            state['held_out'] = held_out_slice(
                self._classes(), self.held_out_fraction, seed)
            print_log(
                f'{len(state["held_out"])} of {len(self.labeled)} labelled '
                'images are held out to choose by (seed '
                f'{seed}): {state["held_out"]}.',
                logger='current')
        return state

    def title(self, number: int) -> str:
        """Say what a round trains on."""
        if self.closes(number):
            return f'{super().title(number)} (closing stage, human labels)'
        unit = self.units[number]
        where = 'first training' if number == 0 else (
            f'stage {unit.stage} of {self.stages}')
        if self.schedule == 'greedy' and number:
            where += f' from beam entry {unit.entry}'
        return f'{super().title(number)} ({where}, {unit.source} labels)'

    @property
    def units(self) -> List:
        """list[Unit]: The trainings in their order."""
        return plan_units(self.schedule, self.stages, self.beam,
                          self.state['choices'])

    def round_loader(self, number: int) -> DataLoader:
        """Build the data loader of a round."""
        if self.closes(number):
            return self.closing_loader()
        labeled = self.labeled
        if self.state['held_out']:
            held_out = set(self.state['held_out'])
            labeled = labeled.get_subset(
                [i for i in range(len(labeled)) if i not in held_out])
        elif number == 0:
            return self._first_loader
        source = self.units[number].source
        masks = {}
        if source != HUMAN:
            folder = self.folder(self._start(number).labels)
            self.writer.check(folder, self.all_unlabeled)
            masks = self.writer.paths(folder, self.all_unlabeled)
        return self._loader(source, masks, labeled, self.stream_seed(number))

    def restore_weights(self, number: int) -> None:
        """Go on from the solution that the round starts from."""
        if self.closes(number):
            if self.schedule == 'greedy':
                self._load(self._stored('beam')[0])
        elif self.reset_weights:
            super().restore_weights(number)
        elif self.schedule == 'greedy':
            self._load(self._start(number))

    def finish_round(self, number: int) -> None:
        """Score the solution, choose after a stage, label."""
        if self.closes(number):
            return
        unit = self.units[number]
        found = Candidate(number, number)
        if number:
            start = self._start(number)
            found = Candidate(number, start.labels,
                              (*start.history, unit.source))
        if self.schedule == 'greedy':
            self.save_weights(self._weights(number))
            found = replace(found, score=self._held_out_score())
            print_log(
                f'{self.title(number)}: held-out mIoU '
                f'{100 * found.score:.2f}.',
                logger='current')
        candidates = [*self._stored('candidates'), found]
        last = not self.needs_labels(number)
        if not last and self.units[number + 1].stage == unit.stage:
            self._store(candidates=candidates)
            return
        kept = candidates
        if self.schedule == 'greedy':
            kept = keep_best(candidates, self.beam)
            self._report(unit.stage, kept)
        if last:
            self._store(candidates=[], beam=kept)
            if number + 1 == len(self.round_lengths):
                self._adopt_best(kept[0])
        else:
            self._store(
                candidates=[],
                beam=[self._label(candidate) for candidate in kept])
        self._drop_weights(candidates, kept)

    def _label(self, candidate: Candidate) -> Candidate:
        """Make the pseudo-labels of a solution that goes on."""
        source = candidate.history[-1] if candidate.history else None
        if source == HUMAN and self.relabel == 'pseudo':
            return candidate
        weights = self._weights(candidate.unit) \
            if self.schedule == 'greedy' else None
        self.writer.write(
            self.teacher(weights), self.folder(candidate.unit),
            self.all_unlabeled)
        return replace(candidate, labels=candidate.unit)

    def _adopt_best(self, best: Candidate) -> None:
        """Let the training end with the best solution."""
        if self.schedule != 'greedy':
            return
        self._load(best)
        print_log(
            f'The training ends with the weights of round {best.unit + 1} '
            f'({" ".join(best.history)}).',
            logger='current')
        if self.runner.val_loop is not None:
            self.runner.val_loop.run()

    def _load(self, candidate: Candidate) -> None:
        self.model.load_state_dict(
            self.load_weights(self._weights(candidate.unit)))

    def _report(self, stage: int, kept: List[Candidate]) -> None:
        listed = '; '.join(
            f'round {c.unit + 1} ({" ".join(c.history) or "first"}) '
            f'{100 * c.score:.2f}' for c in kept)
        print_log(
            f'Kept after stage {stage}: {listed}.', logger='current')

    def _drop_weights(self, candidates: List[Candidate],
                      kept: List[Candidate]) -> None:
        if is_main_process():
            for candidate in candidates:
                path = self._weights(candidate.unit)
                if candidate not in kept and osp.isfile(path):
                    os.remove(path)
        barrier()

    def _held_out_score(self) -> float:
        model = self.teacher()
        indices = self.state['held_out']
        rank, world_size = get_dist_info()
        own = indices[rank::world_size]
        matrix = ConfusionMatrix(model.out_channels)
        for index in own:
            packed = self.writer.images.pipeline(
                self.labeled.get_data_info(index))
            data = {key: [value] for key, value in packed.items()}
            label = label_by_argmax(self.writer.predict(model, data)[0])
            matrix.update(label, load_mask(self.labeled, index))
        matrix.counts = sum(all_gather_object(matrix.counts))
        return matrix.mean_iou()

    def _classes(self) -> List[set]:
        masks = (load_mask(self.labeled, i) for i in range(len(self.labeled)))
        return [set(np.unique(mask).tolist()) - {255} for mask in masks]

    def _loader(self, source: str, masks: Dict[int, str], labeled: Any,
                seed: int) -> DataLoader:
        if source == HUMAN:
            return self.build_loader([labeled], [1], seed)
        pseudo = self.pseudo_labeled(masks)
        if source == PSEUDO:
            return self.build_loader([pseudo], [1], seed)
        return self.build_loader([labeled, pseudo],
                                 [self.human_ratio, 1 - self.human_ratio],
                                 seed)

    def _start(self, number: int) -> Candidate:
        """Return the solution that a round starts from."""
        return self._stored('beam')[self.units[number].entry]

    def _stored(self, key: str) -> List[Candidate]:
        return [Candidate.from_dict(values) for values in self.state[key]]

    def _store(self, **lists: List[Candidate]) -> None:
        for key, candidates in lists.items():
            self.state[key] = [c.to_dict() for c in candidates]

    def _weights(self, unit: int) -> str:
        return osp.join(self.folder(unit), 'weights.pth')
