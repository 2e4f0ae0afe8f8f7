# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import os.path as osp
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from mmengine.dataset import ConcatDataset
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmsemi.methods.self_training import (checkpoint_steps, label_by_argmax,
                                          reliability)
from mmsemi.methods.self_training import \
    select_reliable as split_by_reliability
from mmsemi.registry import LOOPS
from .pseudo_mask_loop import PseudoMaskLoop
from .pseudo_mask_writer import write_json
from .round_checks import check_count

SELECT = ('last', 'best')


@LOOPS.register_module()
class SelfTrainingLoop(PseudoMaskLoop):
    """Self-training and ST++ (Yang et al., CVPR 2022) as one training.

    Round 0 trains on the labelled images. Its network labels the unlabelled
    ones, and round 1 trains newly drawn weights on both. With
    ``select_reliable`` (ST++) round 1 gets the more reliable half only, its
    network labels the other half anew, and round 2 trains newly drawn
    weights on everything; reliable images keep their first masks.

    The released code labels with the weights that were best on the
    validation set. That leaks the validation labels into training, so the
    default here is the last weights; ``select='best'`` is as released. It
    also doubles lists of fewer than 200 labelled images, which here is
    without effect: rounds are counted in iterations.

    See :class:`PseudoMaskLoop` for schedules, validation and resume.

    Args:
        runner (Runner): The runner.
        dataloader (dict): ``train_dataloader`` with the labelled images.
        round_iters (int | Sequence[int]): Iterations of every round, or of
            each one.
        unlabeled_dataset (dict): Images to label, with a test pipeline
            without annotations.
        pseudo_pipeline (Sequence[dict]): Pipeline of pseudo-labelled
            images, with ``LoadAnnotations`` and strong augmentation.
        rounds (int, optional): Number of rounds, the labelled one included.
            Defaults to None: 2, or 3 (the only possible) with
            ``select_reliable``.
        source_ratio (Sequence[float], optional): Shares of labelled and
            pseudo-labelled images in every batch. Defaults to None: one
            shuffled list in which the labelled images come ceil(n_u / n_l)
            times, as released.
        labeling (dict, optional): See :class:`LabelingSettings`.
        closing_iters (int): Iterations of a closing round on the labelled
            images alone, from the weights before; not of the papers, see
            :class:`PseudoMaskLoop`. Defaults to 0: there is none.
        select (str): Weights that label: 'last' or 'best' on the validation
            set. Defaults to 'last'.
        best_metric (str): Metric of ``select='best'``, higher is better.
            Defaults to 'mIoU'.
        select_reliable (bool): Whether to run ST++. Defaults to False.
        reliable_fraction (float): Share of reliable images. Defaults to
            0.5.
        val_begin (int): See :class:`PseudoMaskLoop`.
        val_interval (int): See :class:`PseudoMaskLoop`.

    Raises:
        TypeError: If a config is something else already.
        ValueError: If anything in the config cannot work.
    """

    def __init__(self,
                 runner: Runner,
                 dataloader: Dict,
                 round_iters: Union[int, Sequence[int]],
                 unlabeled_dataset: Optional[Dict] = None,
                 pseudo_pipeline: Optional[Sequence] = None,
                 rounds: Optional[int] = None,
                 source_ratio: Optional[Sequence[float]] = None,
                 labeling: Optional[Mapping] = None,
                 closing_iters: int = 0,
                 select: str = 'last',
                 best_metric: str = 'mIoU',
                 select_reliable: bool = False,
                 reliable_fraction: float = 0.5,
                 val_begin: int = 1,
                 val_interval: int = 1000) -> None:
        lengths = _round_lengths(round_iters, rounds, select_reliable)
        if select not in SELECT:
            raise ValueError(f'train_cfg.select={select!r}; allowed are '
                             f'{SELECT}.')
        if select == 'best' and runner._val_loop is None:
            raise ValueError("train_cfg.select='best' needs a validation: "
                             'give val_dataloader, val_evaluator and val_cfg,'
                             " or use select='last'.")
        self.select = select
        self.best_metric = best_metric
        self.select_reliable = select_reliable
        self.reliable_fraction = reliable_fraction
        self.steps_kept = checkpoint_steps(lengths[0]) if select_reliable \
            else ()
        self.source_ratio = source_ratio
        super().__init__(runner, dataloader, lengths, unlabeled_dataset,
                         pseudo_pipeline, labeling, closing_iters, val_begin,
                         val_interval)
        if select_reliable:
            # Refuses a fraction that would leave one part empty.
            split_by_reliability([0.] * len(self.all_unlabeled),
                                 reliable_fraction)
        # Refuses a ratio that no batch could have.
        self._mixed_loader(self.all_unlabeled, {}, seed=0)

    def initial_state(self) -> Dict[str, Any]:
        """Return what checkpoints hold: reliable images, best score."""
        return dict(reliable=None, best=None)

    def title(self, number: int) -> str:
        """Say what a round trains on."""
        if number == 0:
            data = 'labelled images'
        elif self.closes(number):
            data = 'closing, labelled images'
        elif self.select_reliable and number == 1:
            data = 'labelled and reliable images'
        else:
            data = 'labelled and all pseudo-labelled images'
        return f'{super().title(number)} ({data})'

    def round_loader(self, number: int) -> DataLoader:
        """Build the data loader of a round."""
        if number == 0:
            return self._first_loader
        if self.closes(number):
            return self.closing_loader()
        reliable = self.state['reliable']
        if not self.select_reliable:
            source = {number - 1: self.all_unlabeled}
        elif number == 1:
            source = {0: reliable}
        else:
            source = {0: reliable, 1: self._unreliable()}
        masks = {}
        for made_in, indices in source.items():
            self.writer.check(self.folder(made_in), indices)
            masks.update(self.writer.paths(self.folder(made_in), indices))
        return self._mixed_loader(
            sorted(masks), masks, seed=self.stream_seed(number))

    def after_step(self, step: int) -> None:
        """Keep the weights that the reliability is measured with."""
        if self.round == 0 and step in self.steps_kept:
            self.save_weights(self._step_weights(step))

    def after_validation(self, step: int, metrics: Dict[str, float]) -> None:
        """Keep the best weights of the round."""
        if self.select != 'best' or not self.needs_labels(self.round):
            return
        if metrics.get(self.best_metric) is None:
            raise ValueError(
                f'train_cfg.best_metric={self.best_metric!r} is none of the '
                f'metrics of the validation: {sorted(metrics)}.')
        score = float(metrics[self.best_metric])
        best = self.state['best']
        if best is None or best['round'] != self.round or score > best[
                'score']:
            self.state['best'] = dict(
                round=self.round, step=step, score=score)
            self._publish_state()
            self.save_weights(self._best_weights())

    def finish_round(self, number: int) -> None:
        """Label the images of the next round."""
        if not self.needs_labels(number):
            return
        weights = None
        if self.select == 'best':
            weights = self._best_weights()
            best = self.state['best']
            print_log(
                f"Images are labelled by the weights of step {best['step']} "
                f"with {self.best_metric} {best['score']:.2f} on the "
                "validation set (select='best', a leak).",
                logger='current')
        indices = self.all_unlabeled
        if self.select_reliable and number == 1:
            indices = self._unreliable()
        self.writer.write(self.teacher(weights), self.folder(number), indices)
        if self.select_reliable and number == 0:
            self._find_reliable()

    def _find_reliable(self) -> None:
        models = [
            self.teacher(self._step_weights(step)) for step in self.steps_kept
        ]
        num_classes = models[0].out_channels

        def score(data: dict) -> List[float]:
            by_step = [[
                label_by_argmax(prob).cpu()
                for prob in self.writer.predict(model, data)
            ] for model in models]
            return [
                reliability(labels, num_classes) for labels in zip(*by_step)
            ]

        scores = self.writer.map(score, self.all_unlabeled)
        reliable, unreliable = split_by_reliability(scores,
                                                    self.reliable_fraction)
        self.state['reliable'] = reliable
        print_log(
            f'{len(reliable)} images are reliable (from '
            f'{min(scores[i] for i in reliable):.3f}), {len(unreliable)} are '
            f'not (to {max(scores[i] for i in unreliable):.3f}).',
            logger='current')
        if is_main_process():
            write_json(
                osp.join(self.folder(0), 'reliability.json'),
                dict(zip(self.writer.names, scores)))
        barrier()

    def _unreliable(self) -> List[int]:
        reliable = set(self.state['reliable'])
        return [i for i in self.all_unlabeled if i not in reliable]

    def _step_weights(self, step: int) -> str:
        return osp.join(self.folder(0), f'step_{step}.pth')

    def _best_weights(self) -> str:
        return osp.join(self.folder(self.round), 'best.pth')

    def _mixed_loader(self, indices: List[int], masks: Dict[int, str],
                      seed: int) -> DataLoader:
        pseudo = self.pseudo_labeled({i: masks.get(i, '') for i in indices})
        if self.source_ratio is not None:
            return self.build_loader([self.labeled, pseudo],
                                     self.source_ratio, seed)
        times = -(-len(pseudo) // len(self.labeled))
        mixed = ConcatDataset([self.labeled] * times + [pseudo])
        return self.build_loader([mixed], [1], seed)


def _round_lengths(round_iters: Union[int, Sequence[int]],
                   rounds: Optional[int],
                   select_reliable: bool) -> List[int]:
    if not isinstance(select_reliable, bool):
        raise ValueError(f'train_cfg.select_reliable={select_reliable!r}; '
                         'allowed are True and False.')
    if rounds is None:
        rounds = 3 if select_reliable else 2
    check_count(rounds, 'train_cfg.rounds', least=2)
    if select_reliable and rounds != 3:
        raise ValueError(f'train_cfg.rounds={rounds}, but ST++ '
                         '(select_reliable=True) has 3: labelled, reliable, '
                         'all.')
    lengths = round_iters
    if not isinstance(round_iters, (list, tuple)):
        lengths = [round_iters] * rounds
    for length in lengths:
        check_count(length, 'train_cfg.round_iters')
    if len(lengths) != rounds:
        raise ValueError(f'train_cfg.round_iters={round_iters} has '
                         f'{len(lengths)} numbers for {rounds} rounds.')
    return list(lengths)
