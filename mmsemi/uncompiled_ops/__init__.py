# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""mmcv ops in plain torch, for an mmcv without compiled ops.

The functions here take the place of those in ``mmcv._ext``; they are called
by ``mmcv.ops`` and not meant for other code. On a CPU, NMS and RoIAlign equal
the compiled ops and attention and focal loss their definitions (see
``tests/test_uncompiled_ops``). Where torchvision is installed it computes NMS
and RoIAlign; that path was tested with a stand-in, not with torchvision
itself, and nothing here has run on a GPU yet. Ops without a function here
raise when they are called.
"""
from typing import Any, Callable, Dict

from .common import raise_uncompiled
from .deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from .focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from .nms import nms
from .roi_align import roi_align_backward, roi_align_forward


def _no_compiler() -> str:
    """What mmcv itself reports where it has no ops."""
    return 'n/a'


SERVED: Dict[str, Callable] = {
    'nms': nms,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
    'ms_deform_attn_forward': ms_deform_attn_forward,
    'ms_deform_attn_backward': ms_deform_attn_backward,
    'sigmoid_focal_loss_forward': sigmoid_focal_loss_forward,
    'sigmoid_focal_loss_backward': sigmoid_focal_loss_backward,
    'get_compiler_version': _no_compiler,
    'get_compiling_cuda_version': _no_compiler,
}


def get_op(name: str) -> Callable[..., Any]:
    """Return the replacement of an op of ``mmcv._ext``.

    Args:
        name (str): Name of the op.

    Returns:
        Callable: A function of :data:`SERVED`, or one that raises a
        RuntimeError with the way to compiled ops when it is called.
    """
    if name in SERVED:
        return SERVED[name]

    def uncompiled_op(*args, **kwargs) -> None:
        raise_uncompiled(name)

    uncompiled_op.__name__ = uncompiled_op.__qualname__ = name
    return uncompiled_op


__all__ = ['SERVED', 'get_op']
