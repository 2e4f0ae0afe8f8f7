# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What the command line tools share."""
import argparse
import os
from contextlib import contextmanager
from typing import Iterator

from mmengine.config import DictAction

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``.

    Args:
        parser (ArgumentParser): The tool's parser.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change values of the config: train_cfg.max_iters=100 '
        'optim_wrapper.optimizer.lr=0.01; lists as key="[a,b]", the n-th '
        'entry of a list as key.n')


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher`` and the rank that launchers pass.

    Args:
        parser (ArgumentParser): The tool's parser.
    """
    parser.add_argument(
        '--launcher',
        choices=LAUNCHERS,
        default='none',
        help='what started this process; dist_train.sh and slurm_train.sh '
        'set it (default: none, one process)')
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help=argparse.SUPPRESS)


def export_local_rank(args: argparse.Namespace) -> None:
    """Put the rank of old launchers where torch looks for it.

    Args:
        args (Namespace): With ``local_rank``.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


@contextmanager
def usage_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Report wrong input in one line instead of a traceback.

    To be put around what only reads and checks; an error inside a training
    keeps its traceback.

    Args:
        parser (ArgumentParser): The tool's parser.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError,
            ImportError, SyntaxError) as error:
        # The text of a KeyError would come in quotes.
        text = error.args[0] if isinstance(error, KeyError) else error
        parser.exit(2, f'{parser.prog}: error: {text}\n')
