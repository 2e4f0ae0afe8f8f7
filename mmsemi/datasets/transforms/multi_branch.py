# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Dict, List, Optional, Sequence, Union

import numpy as np
from mmdet.datasets.transforms import MultiBranch as DetMultiBranch

from mmsemi.registry import TRANSFORMS
from .view_checks import check_view_pipeline, is_unlabeled, watch_unknown


@TRANSFORMS.register_module()
class MultiBranch(DetMultiBranch):
    """Several views of one image, each through its own pipeline.

    As mmdet's transform of this name, and in addition

    - every view starts with a ``homography_matrix`` (the identity, if no
      transform before this one recorded any), so it is never missing;
    - an unlabelled view (its name starts with 'unsup') that moves pixels
      without recording it is refused when the config is built: see
      :mod:`mmsemi.datasets.transforms.view_checks` for the rule;
    - a view that is not packed, or does not pack the matrix, is refused too.

    Geometry placed before this transform is shared by all views, may be of
    any kind, and costs no warping. Weak and strong views that differ only in
    colour are the usual way.

    Args:
        branch_field (list[str]): Names of the branches of all sources; a
            branch without a pipeline here becomes None.
        **branch_pipelines (dict | list[dict]): Pipeline of each branch that
            this source has.

    Raises:
        ValueError: If the branches are empty, repeated or not in
            ``branch_field``, or if a pipeline breaks the rule.

    Examples:
        >>> dict(
        >>>     type='mmsemi.MultiBranch',
        >>>     branch_field=['sup', 'unsup_teacher', 'unsup_student'],
        >>>     unsup_teacher=[dict(type='mmsemi.PackDetInputs')],
        >>>     unsup_student=[
        >>>         dict(type='mmsemi.StrongColor'),
        >>>         dict(type='mmsemi.PackDetInputs')
        >>>     ])
    """

    def __init__(self, branch_field: Sequence[str],
                 **branch_pipelines: Union[dict, List[dict]]) -> None:
        if isinstance(branch_field, str) or len(
                set(branch_field)) != len(branch_field):
            raise ValueError('MultiBranch: branch_field must be a list of '
                             f'different names, but got {branch_field!r}')
        unlisted = sorted(set(branch_pipelines) - set(branch_field))
        if unlisted or not branch_pipelines:
            raise ValueError(
                'MultiBranch: there must be a pipeline for at least one of '
                f'branch_field={list(branch_field)} and for no other name, '
                f'but got pipelines for {sorted(branch_pipelines)}')
        super().__init__(list(branch_field), **branch_pipelines)
        for branch, pipeline in self.branch_pipelines.items():
            check_view_pipeline(pipeline, branch)
            if is_unlabeled(branch):
                watch_unknown(pipeline, branch)

    def transform(self, results: dict) -> Optional[Dict[str, dict]]:
        """Make the views.

        Args:
            results (dict): Result dict from the transforms before.

        Returns:
            dict | None: ``{'inputs': {branch: Tensor or None},
            'data_samples': {branch: DetDataSample or None}}``; None if a
            view's pipeline returned None, so that another image is drawn.

        Raises:
            ValueError: If a view comes out without ``homography_matrix``,
                or moved something without recording it.
        """
        if results.get('homography_matrix') is None:
            results['homography_matrix'] = np.eye(3, dtype=np.float32)
        views = super().transform(results)
        if views is None:
            return None
        for branch in filter(is_unlabeled, self.branch_pipelines):
            sample = views['data_samples'][branch]
            if getattr(sample, 'homography_matrix', None) is None:
                raise ValueError(
                    f'MultiBranch, branch {branch!r}: a transform dropped '
                    "results['homography_matrix']; keep it, or multiply the "
                    "transform's own matrix from the left")
        return views
