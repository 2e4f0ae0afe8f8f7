# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What may stand in the pipeline of an unlabelled view.

Pseudo-labels move from the teacher's to the student's view by the two
views' ``homography_matrix``. A transform that moves pixels without recording
it there shifts every pseudo-label without an error, so it is refused while
the config is built. The rule, for each transform of an unlabelled branch,
also inside mmcv's and mmdet's wrappers:

1. a class attribute ``records_homography`` decides: True says "after me the
   matrix is right" (I record, or I move nothing), False says it is not;
2. else the first of its classes that is listed in
   :mod:`~mmsemi.datasets.transforms.view_rules` decides;
3. else it is unknown: it is let in with a warning and watched while it runs
   (see :class:`WatchedTransform`).

Transforms that stand before ``MultiBranch`` are free: every view shares what
they do, so it cancels out of the matrix between two views.

In a semantic pipeline (packed by a ``PackSegInputs``) the rule is stricter.
Dense pseudo-labels are not warped at all, so geometry belongs before
``MultiBranch`` altogether, and ``Pad`` belongs nowhere: what the data
preprocessor pads is marked, what a transform pads looks like image.
"""
import warnings
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple, Union

import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmengine.dataset import Compose as DatasetCompose
from mmengine.registry import DefaultScope

from .mask_proposals import LoadMaskProposals
from .view_rules import PADDING, PADDING_TEXT, PIXEL_INDEX, RIGHT, UNRECORDED

Transform = Union[dict, Callable]


def is_unlabeled(branch: str) -> bool:
    """Whether a branch holds a view of unlabelled images, by its name.

    Args:
        branch (str): Branch name, such as 'unsup_student'.

    Returns:
        bool: True if the name starts with 'unsup'.
    """
    return branch.startswith('unsup')


def check_view_pipeline(pipeline: Union[Transform, Sequence[Transform]],
                        branch: str) -> None:
    """Check what one view goes through; see the module's rule.

    Args:
        pipeline (dict | Callable | Sequence): Configs or built transforms:
            either the view's own pipeline, or a dataset's whole pipeline
            (``dataset.pipeline`` will do) that ends in a ``MultiBranch``, of
            which then only the part of this branch is checked.
        branch (str): Branch name. For a name that starts with 'unsup' all
            rules hold, for any other only that the view is packed.

    Raises:
        ValueError: If the view is not packed, moves pixels without a right
            record, packs no ``homography_matrix``, or if the whole
            pipeline's ``MultiBranch`` has no such branch.
    """
    if isinstance(pipeline, DatasetCompose):
        pipeline = pipeline.transforms
    if not isinstance(pipeline, Compose):
        pipeline = Compose(pipeline)
    for transform in pipeline:
        if hasattr(transform, 'branch_pipelines'):
            if branch not in transform.branch_pipelines:
                raise ValueError(
                    f'MultiBranch has no pipeline for branch {branch!r}, '
                    f'only for {sorted(transform.branch_pipelines)}')
            pipeline = transform.branch_pipelines[branch]
    transforms = [slot[-1] for slot in iter_transforms(pipeline)]
    _check_packing(transforms, branch)
    if not is_unlabeled(branch):
        return
    semantic = packs_semantic(pipeline)
    for transform in transforms:
        where = f'MultiBranch, branch {branch!r}: {_name(type(transform))}'
        verdict, remedy = _judge(transform, semantic)
        if verdict == 'wrong':
            raise ValueError(f'{where} {remedy}')
        if verdict == 'unknown':
            warnings.warn(
                f'{where} is not known to mmsemi and is watched while it '
                'runs. If it moves no pixel, or records what it moves in '
                "results['homography_matrix'] in edge coordinates, set "
                'records_homography = True on its class')


def check_source_pipeline(pipeline: Any, where: str, has_masks: bool) -> None:
    """Refuse transforms that look for labels of unlabelled images.

    Args:
        pipeline (Compose): A dataset's built pipeline. Without a
            ``MultiBranch`` that makes unlabelled views all is well.
        where (str): Name of the dataset, for the error message.
        has_masks (bool): Whether the dataset names segmentation masks.

    Raises:
        ValueError: If a crop depends on the labels (``cat_max_ratio``), if
            masks are loaded that the dataset does not name, if images of
            semantic views are padded, or if mask proposals are loaded after
            a transform that does not record what it moves.
    """
    transforms = [slot[-1] for slot in iter_transforms(pipeline)]
    _check_before_proposals(pipeline, transforms, where)
    branches = {
        branch
        for transform in transforms
        for branch in getattr(transform, 'branch_pipelines', ())
    }
    if not any(map(is_unlabeled, branches)):
        return
    semantic = packs_semantic(pipeline)
    for transform in transforms:
        name = _name(type(transform))
        if semantic and _pads(transform):
            raise ValueError(f'{where}: {name} {PADDING_TEXT}.')
        ratio = getattr(transform, 'cat_max_ratio', 1.)
        if ratio < 1:
            raise ValueError(
                f'{where}: {name} has cat_max_ratio={ratio} and so looks at '
                'the labels of an image, but an unlabelled image has none. '
                'Set cat_max_ratio=1. in the unlabelled pipeline.')
        if getattr(transform, 'with_seg', False) and not has_masks:
            raise ValueError(
                f'{where}: {name} loads segmentation masks, but the dataset '
                'names none (data_prefix has no seg_map_path). Remove it '
                'from the unlabelled pipeline.')


def _check_before_proposals(pipeline: Any, transforms: Sequence[Callable],
                            where: str) -> None:
    """Refuse unrecorded geometry that mask proposals could not follow."""
    if not any(map(_loads_proposals, transforms)):
        return
    for outer in pipeline.transforms:
        # What is inside MultiBranch is checked there.
        if hasattr(outer, 'branch_pipelines') or _loads_proposals(outer):
            return
        inner = [slot[-1] for slot in iter_transforms(outer)]
        for transform in [outer, *inner]:
            verdict, _ = _judge(transform)
            if verdict == 'wrong':
                name = _name(type(transform))
                instead = {**UNRECORDED, **PIXEL_INDEX}.get(name)
                raise ValueError(
                    f'{where}: {name} stands before LoadMaskProposals and '
                    "does not record what it moves in 'homography_matrix' "
                    'in edge coordinates, so that proposals would land on '
                    'the wrong pixels. ' +
                    (f'Use {instead} instead.' if instead else 'Remove it.'))


def _loads_proposals(transform: Callable) -> bool:
    return isinstance(transform, LoadMaskProposals)


def packs_semantic(pipeline: Any) -> bool:
    """Whether a view's pipeline packs semantic samples.

    Args:
        pipeline (Compose): The view's pipeline.

    Returns:
        bool: True if it holds a ``PackSegInputs``.
    """
    return any(
        cls.__name__ == 'PackSegInputs'
        for *_, transform in iter_transforms(pipeline)
        for cls in type(transform).__mro__)


def watch_unknown(pipeline: Compose, branch: str) -> None:
    """Put every unknown transform of a view under watch, in place.

    Args:
        pipeline (Compose): The view's pipeline.
        branch (str): Branch name, for the error message.
    """
    # A list, because the containers are changed underway.
    for container, key, transform in list(iter_transforms(pipeline)):
        if _judge(transform)[0] == 'unknown':
            container[key] = WatchedTransform(transform, branch)


class WatchedTransform(BaseTransform):
    """Runs a transform and raises if it moved something unrecorded.

    Evidence is an image of another size, another ``flip`` or
    ``flip_direction``, or as many boxes at other places, while
    ``homography_matrix`` stayed the same. Geometry that leaves no such trace
    is not found: declare ``records_homography`` on own transforms.

    Args:
        inner (Callable): The transform.
        branch (str): Branch name, for the error message.
    """

    records_homography = True

    def __init__(self, inner: Callable, branch: str) -> None:
        self.inner = inner
        self.branch = branch

    def __iter__(self) -> Iterator:
        # mmcv's cache_random_params looks for wrapped transforms this way.
        return iter([self.inner])

    def transform(self, results: dict) -> Optional[dict]:
        """Run the transform.

        Args:
            results (dict): Result dict.

        Returns:
            dict | None: What the transform returned.

        Raises:
            ValueError: If it moved something without recording it.
        """
        before = _evidence(results)
        matrix = np.array(results['homography_matrix'])
        results = self.inner(results)
        if results is None or not np.array_equal(
                matrix, results.get('homography_matrix')):
            return results
        after = _evidence(results)
        changed = [
            key for key, value in before.items()
            if key in after and _differs(value, after[key])
        ]
        if changed:
            raise ValueError(
                f'MultiBranch, branch {self.branch!r}: '
                f'{_name(type(self.inner))} changed {", ".join(changed)} but '
                "not results['homography_matrix'], so pseudo-labels would "
                'land on the wrong pixels. Record the matrix in edge '
                'coordinates, or place the transform before MultiBranch. If '
                'this is right as it is (padding at the right or bottom, '
                'say), set records_homography = True on its class')
        return results

    def __repr__(self) -> str:
        return repr(self.inner)


def iter_transforms(transform: Any) -> Iterator[Tuple[Any, Any, Callable]]:
    """All transforms that a transform holds, at any depth.

    Args:
        transform (Any): A transform, such as a ``Compose`` or a wrapper.

    Yields:
        tuple: The container (a list or an instance's attributes), the index
        or key in it, and the transform found there.
    """
    seen = set()
    stack = [getattr(transform, '__dict__', {})]
    while stack:
        container = stack.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        is_list = isinstance(container, list)
        items = enumerate(container) if is_list else container.items()
        nested = []
        for key, value in items:
            # A pipeline may also hold plain functions.
            if isinstance(value, BaseTransform) or (is_list
                                                    and callable(value)):
                yield container, key, value
                nested.append(getattr(value, '__dict__', {}))
            elif isinstance(value, (list, dict)):
                nested.append(value)
        stack.extend(reversed(nested))


def _check_packing(transforms: Sequence[Callable], branch: str) -> None:
    packers = [
        transform for transform in transforms
        if hasattr(transform, 'meta_keys')
        or type(transform).__name__.startswith('Pack')
    ]
    if not packers:
        raise ValueError(
            f'MultiBranch, branch {branch!r}: the pipeline packs nothing; '
            f"end it with dict(type='{_packer(transforms)}')")
    meta_keys = getattr(packers[-1], 'meta_keys', ('homography_matrix', ))
    if is_unlabeled(branch) and 'homography_matrix' not in meta_keys:
        raise ValueError(
            f'MultiBranch, branch {branch!r}: meta_keys of '
            f"{_name(type(packers[-1]))} must list 'homography_matrix', but "
            f'is {tuple(meta_keys)}; {_packer(packers[-1:])} lists it by '
            'default')


def _packer(transforms: Sequence[Callable]) -> str:
    """What the pipeline should be packed with."""
    scope = DefaultScope.get_current_instance()
    names = [_name(type(transform)) for transform in transforms]
    if any(name.startswith('mmdet.') for name in names):
        return 'mmsemi.PackDetInputs'
    if any(name.startswith('mmseg.') for name in names) or (
            scope is not None and scope.scope_name == 'mmseg'):
        return 'mmsemi.PackSegInputs'
    return 'mmsemi.PackDetInputs'


def _judge(transform: Callable, semantic: bool = False) -> Tuple[str, str]:
    """'right', 'unknown' or 'wrong', and for 'wrong' the rest of the line."""
    shared = 'place it before MultiBranch, where every view shares it'
    if semantic and _pads(transform):
        return 'wrong', PADDING_TEXT
    declared = getattr(transform, 'records_homography', None)
    if declared is not None:
        if declared:
            return 'right', ''
        return 'wrong', ('declares records_homography = False: it moves '
                         f'pixels without recording it; {shared}')
    for cls in type(transform).__mro__:
        name = _name(cls)
        if cls.__name__ in RIGHT.get(name.split('.')[0], ()):
            return 'right', ''
        if semantic and name in {**UNRECORDED, **PIXEL_INDEX}:
            return 'wrong', (
                'moves pixels, and pseudo-labels of semantic views are not '
                f'moved along; place {_semantic_instead(cls)} before '
                'MultiBranch, where every view shares it')
        if name in PIXEL_INDEX:
            return 'wrong', (
                'records its matrix in pixel-index coordinates, half a pixel '
                f'off; use {PIXEL_INDEX[name]} instead, or {shared}')
        if name in UNRECORDED:
            instead = UNRECORDED[name]
            remedy = f'use {instead} instead, or {shared}'
            return 'wrong', (
                "moves pixels without recording it in 'homography_matrix', "
                'so pseudo-labels would land on the wrong pixels; ' +
                (remedy if instead else shared))
    return 'unknown', ''


def _pads(transform: Callable) -> bool:
    return any(cls.__name__ in PADDING for cls in type(transform).__mro__)


def _semantic_instead(cls: type) -> str:
    """The transform with which mmseg's pipelines do what ``cls`` does."""
    if f'mmseg.{cls.__name__}' in UNRECORDED:
        return f'mmseg.{cls.__name__}'
    name = _name(cls)
    instead = {**UNRECORDED, **PIXEL_INDEX}[name]
    return instead.replace('mmdet.', 'mmseg.') if instead else 'it'


def _name(cls: type) -> str:
    return f'{cls.__module__.split(".")[0]}.{cls.__name__}'


def _evidence(results: dict) -> dict:
    evidence = {}
    if results.get('img') is not None:
        evidence['the image size'] = results['img'].shape[:2]
        for key in ('flip', 'flip_direction'):
            evidence[key] = results.get(key)
    boxes = results.get('gt_bboxes')
    if boxes is not None:
        boxes = boxes.numpy() if hasattr(boxes, 'numpy') else boxes
        # Transforms move boxes in place.
        evidence['gt_bboxes'] = np.array(boxes)
    return evidence


def _differs(before: Any, after: Any) -> bool:
    if isinstance(before, np.ndarray):
        # A filter may drop boxes; only moved ones tell.
        return before.shape == after.shape and not np.array_equal(
            before, after)
    return before != after
