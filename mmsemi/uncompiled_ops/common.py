# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What the torch versions of mmcv's ops share."""
from functools import lru_cache
from types import ModuleType
from typing import Optional

import torch
from torch import Tensor

from ..compat import build_ops_command


@lru_cache(maxsize=None)
def torchvision_ops() -> Optional[ModuleType]:
    """Return ``torchvision.ops``, or None where it cannot be used.

    A torchvision built for another torch fails at import with a
    RuntimeError, so that counts as none.
    """
    try:
        from torchvision import ops
    except (ImportError, RuntimeError, OSError):
        return None
    return ops


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return a type to compute in: half is too coarse for coordinates."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def raise_uncompiled(name: str) -> None:
    raise RuntimeError(
        f'The mmcv op {name} was called, but this mmcv has no compiled ops '
        'and mmsemi does not replace this one. Compile them once (a C++ '
        'compiler is needed) with `make ops` in the source tree of mmsemi, '
        f'or with:\n  {build_ops_command()}\n"python -m mmsemi.doctor" '
        'lists the models that need no compiled op.')
