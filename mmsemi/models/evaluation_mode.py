# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Predict with a model in the middle of its training."""
from contextlib import contextmanager
from typing import Iterator

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into evaluation mode and give it back as it was.

    Args:
        model (nn.Module): The model.

    Yields:
        nn.Module: The model.
    """
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)
