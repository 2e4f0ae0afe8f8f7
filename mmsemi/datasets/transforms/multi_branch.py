# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
from typing import Dict, List, Optional, Sequence, Union

import numpy as np
from mmcv.transforms import BaseTransform, Compose

from mmsemi.registry import TRANSFORMS
from .view_checks import (check_view_pipeline, is_unlabeled, packs_semantic,
                          watch_unknown)
from .view_rules import PADDING_TEXT


@TRANSFORMS.register_module()
class MultiBranch(BaseTransform):
    """Several views of one image, each through its own pipeline.

    As mmdet's transform of this name, for mmdet's and mmseg's pipelines, and
    in addition

    - every view starts with a ``homography_matrix`` (the identity, if no
      transform before this one recorded any), so it is never missing;
    - an unlabelled view (its name starts with 'unsup') that moves pixels
      without recording it is refused when the config is built: see
      :mod:`mmsemi.datasets.transforms.view_checks` for the rule;
    - a view that is not packed, or does not pack the matrix, is refused too;
    - unlabelled views of mmseg's pipelines must share their geometry, and
      ``Pad`` is refused in them and before them: the model could not tell
      the padding from the image.

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

        With mmseg's datasets it is ``mmsemi.PackSegInputs``.
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
        self.branch_field = list(branch_field)
        self.branch_pipelines = {
            branch: Compose(pipeline)
            for branch, pipeline in branch_pipelines.items()
        }
        for branch, pipeline in self.branch_pipelines.items():
            check_view_pipeline(pipeline, branch)
            if is_unlabeled(branch):
                watch_unknown(pipeline, branch)
        self.semantic = [
            branch for branch, pipeline in self.branch_pipelines.items()
            if is_unlabeled(branch) and packs_semantic(pipeline)
        ]

    def transform(self, results: dict) -> Optional[Dict[str, dict]]:
        """Make the views.

        Args:
            results (dict): Result dict from the transforms before.

        Returns:
            dict | None: ``{'inputs': {branch: Tensor or None},
            'data_samples': {branch: DetDataSample, SegDataSample or
            None}}``; None if a view's pipeline returned None, so that
            another image is drawn.

        Raises:
            ValueError: If a view comes out without ``homography_matrix``,
                or moved something without recording it, or if semantic
                views were padded or differ in their geometry.
        """
        # Only Pad leaves this key.
        if self.semantic and 'pad_fixed_size' in results:
            raise ValueError(
                f'MultiBranch: a Pad before it {PADDING_TEXT}. Unlabelled '
                f'views here: {", ".join(self.semantic)}')
        if results.get('homography_matrix') is None:
            results['homography_matrix'] = np.eye(3, dtype=np.float32)
        packed = {}
        for branch, pipeline in self.branch_pipelines.items():
            packed[branch] = pipeline(copy.deepcopy(results))
            if packed[branch] is None:
                return None
        views = {
            key:
            {b: packed.get(b, {}).get(key)
             for b in self.branch_field}
            for key in ('inputs', 'data_samples')
        }
        for branch in filter(is_unlabeled, self.branch_pipelines):
            sample = views['data_samples'][branch]
            if getattr(sample, 'homography_matrix', None) is None:
                raise ValueError(
                    f'MultiBranch, branch {branch!r}: a transform dropped '
                    "results['homography_matrix']; keep it, or multiply the "
                    "transform's own matrix from the left")
        self._check_shared_geometry(views)
        return views

    def _check_shared_geometry(self, views: Dict[str, dict]) -> None:
        for branch in self.semantic[1:]:
            first, here = (views['data_samples'][b].homography_matrix
                           for b in (self.semantic[0], branch))
            sizes = [
                tuple(views['inputs'][b].shape[-2:])
                for b in (self.semantic[0], branch)
            ]
            if sizes[0] != sizes[1] or not np.array_equal(first, here):
                raise ValueError(
                    f'MultiBranch: the semantic views {self.semantic[0]!r} '
                    f'and {branch!r} differ in their geometry (sizes '
                    f'{sizes[0]} and {sizes[1]}), and pseudo-labels are not '
                    'moved between them. Place transforms that move pixels '
                    'before MultiBranch, where every view shares them')

    def __repr__(self) -> str:
        return (f'{type(self).__name__}('
                f'branch_pipelines={list(self.branch_pipelines)})')
