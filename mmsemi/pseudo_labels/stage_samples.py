# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What stages get to see of the teacher's views."""
from typing import List, Optional, Sequence, Tuple

from mmengine.structures import BaseDataElement
from torch import Tensor

#: Field of a data sample: mask proposals in the view, a PackedMasks.
PROPOSALS = 'mask_proposals'
#: Field of a stage's data sample: the view, (3, H, W) float, RGB, 0 to 255.
IMAGE = 'image'


def stage_samples(data_samples: Sequence[BaseDataElement],
                  shape: Optional[Tuple[int, int]] = None,
                  images: Optional[Tensor] = None) -> List[BaseDataElement]:
    """Return data samples without ground truth, for stages.

    Args:
        data_samples (Sequence[BaseDataElement]): N samples of the teacher's
            views.
        shape (tuple[int, int], optional): Height and width that mask
            proposals are padded to, with background, where pseudo-labels
            are padded. Defaults to None: not padded.
        images (Tensor, optional): (N, 3, H, W), RGB from 0 to 255, for
            stages that look at them (``needs_image``). Defaults to None.

    Returns:
        list[BaseDataElement]: Samples with the same meta information and,
        where there are any, ``mask_proposals`` and ``image``.
    """
    bare = []
    for i, sample in enumerate(data_samples):
        seen = type(sample)(metainfo=sample.metainfo)
        if PROPOSALS in sample:
            proposals = sample.get(PROPOSALS)
            if shape is not None:
                proposals = proposals.pad_to(*shape)
            seen.set_data({PROPOSALS: proposals})
        if images is not None:
            seen.set_data({IMAGE: images[i]})
        bare.append(seen)
    return bare
