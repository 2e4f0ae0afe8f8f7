# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import random
from typing import Optional

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmsemi.registry import HOOKS
from .training_check_hook import index_sampler

CHECKPOINT_KEY = 'mmsemi_seeds'


@HOOKS.register_module()
class IterSeedHook(Hook):
    """Make the randomness of each iteration a function of its number.

    Before every training iteration Python, NumPy and torch are seeded from
    (seed, rank, iteration). Dropout, sampled points and the like are then
    the same in a resumed training as in one that was never killed, without
    any random state in the checkpoint.

    The seed, and that of the training sampler, are in every checkpoint. A
    resumed training takes both from there, so that it also continues exactly
    if no seed was ever set.

    Args:
        seed (int, optional): Seed, at least 0. Defaults to None: that of the
            runner (``randomness.seed``).
    """

    # First, so that the other hooks' randomness is seeded as well.
    priority = 'HIGHEST'

    def __init__(self, seed: Optional[int] = None) -> None:
        if seed is not None and (isinstance(seed, bool)
                                 or not isinstance(seed, int) or seed < 0):
            raise ValueError(f'IterSeedHook.seed={seed!r}; allowed are whole '
                             'numbers from 0, and None.')
        self.seed = seed
        self._seed: Optional[int] = None
        self._loaded: Optional[dict] = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the seeds of a checkpoint."""
        self._loaded = checkpoint.get(CHECKPOINT_KEY)

    def before_train(self, runner: Runner) -> None:
        """Settle the seeds."""
        # With randomness.diff_rank_seed the runners of the ranks differ.
        shared = [runner.seed if self.seed is None else self.seed]
        broadcast_object_list(shared)
        self._seed = shared[0]
        if runner.iter == 0 or self._loaded is None:
            return
        if self.seed is None:
            self._seed = self._loaded['iteration']
        sampler = index_sampler(runner.train_dataloader)
        seed = self._loaded['sampler']
        # The runner builds its sampler before it reads the checkpoint.
        if seed is not None and getattr(sampler, 'seed', seed) != seed:
            print_log(
                f'The sampler continues with seed {seed} of the checkpoint '
                f'instead of {sampler.seed}.',
                logger='current')
            sampler.seed = seed

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Seed the iteration."""
        words = np.random.SeedSequence(
            self._seed,
            spawn_key=(get_rank(), runner.iter)).generate_state(3).tolist()
        random.seed(words[0])
        np.random.seed(words[1])
        torch.manual_seed(words[2])

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the seeds into the checkpoint."""
        sampler = index_sampler(runner.train_dataloader)
        checkpoint[CHECKPOINT_KEY] = dict(
            iteration=self._seed, sampler=getattr(sampler, 'seed', None))
