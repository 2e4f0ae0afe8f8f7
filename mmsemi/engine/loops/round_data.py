# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Data of a round: images with the masks that an earlier round wrote."""
import copy
import os.path as osp
from typing import Any, List, Mapping, Optional, Sequence, Union

from mmcv.transforms import LoadAnnotations
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import TRANSFORMS

from mmsemi.datasets.multi_source import MultiSourceDataset


class PseudoLabeledDataset(BaseDataset):
    """Unlabelled images with pseudo-masks.

    The masks hold the classes that are trained, so the label map and
    ``reduce_zero_label`` of the human labels do not apply to them.

    Args:
        images (BaseDataset): The unlabelled images.
        masks (Mapping[int, str]): Mask file by index of the image; images
            without one are left out.
        metainfo (Mapping): Meta information of the labelled images.
        pipeline (Sequence[dict | callable]): What loads and augments.
    """

    def __init__(self, images: BaseDataset, masks: Mapping[int, str],
                 metainfo: Mapping, pipeline: Sequence) -> None:
        self._items = []
        for index in sorted(masks):
            item = images.get_data_info(index)
            item.update(
                seg_map_path=masks[index],
                label_map=None,
                reduce_zero_label=False,
                seg_fields=[])
            self._items.append(item)
        super().__init__(
            data_prefix=dict(img_path='', seg_map_path=''),
            pipeline=pipeline,
            lazy_init=True)
        self._metainfo = copy.deepcopy(dict(metainfo))
        self.full_init()

    def load_data_list(self) -> List[dict]:
        """Return one dict per image."""
        return self._items


def build_unlabeled(config: Union[dict, BaseDataset, None]) -> BaseDataset:
    """Build the unlabelled images and check their pipeline.

    Args:
        config (dict or BaseDataset): ``train_cfg.unlabeled_dataset``, with
            a pipeline that loads and packs an image.

    Returns:
        BaseDataset: With at least one image.

    Raises:
        TypeError: If it is neither a config nor a dataset.
        ValueError: If it is empty, or loads annotations.
        FileNotFoundError: If its list or folder is missing.
    """
    field = 'train_cfg.unlabeled_dataset'
    if not isinstance(config, (Mapping, BaseDataset)):
        raise TypeError(f'{field} must be the config of a dataset of '
                        f'unlabelled images, got {type(config).__name__}.')
    try:
        dataset = MultiSourceDataset([config]).datasets[0]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{field}: {error}') from error
    if not isinstance(dataset, BaseDataset):
        raise TypeError(f'{field}.type={type(dataset).__name__} is a wrapper; '
                        'give a dataset of images itself.')
    if not dataset.pipeline.transforms:
        raise ValueError(f'{field}.pipeline is empty; it must load an image '
                         'and pack it, as a test pipeline does.')
    if annotation_loader(dataset.pipeline) is not None:
        raise ValueError(f'{field}.pipeline loads annotations, which '
                         'unlabelled images have not. Leave LoadAnnotations '
                         'out of it.')
    return dataset


def build_pseudo_pipeline(config: Optional[Sequence]) -> Compose:
    """Build the pipeline of pseudo-labelled images.

    Args:
        config (Sequence[dict | callable]): ``train_cfg.pseudo_pipeline``.

    Returns:
        Compose: The pipeline.

    Raises:
        ValueError: If it is missing, or does not load masks as they are.
    """
    if not config:
        raise ValueError(
            'train_cfg.pseudo_pipeline is missing: give the transforms of '
            'pseudo-labelled images, from LoadImageFromFile and '
            'LoadAnnotations to packing. Strong colours belong here; without '
            'any, repeat the pipeline of the labelled images.')
    pipeline = Compose([
        TRANSFORMS.build(step) if isinstance(step, Mapping) else step
        for step in config
    ])
    loader = annotation_loader(pipeline)
    if loader is None:
        raise ValueError('train_cfg.pseudo_pipeline has no LoadAnnotations: '
                         'the pseudo-masks would never be read.')
    if getattr(loader, 'reduce_zero_label', None):
        raise ValueError(
            'train_cfg.pseudo_pipeline has LoadAnnotations('
            'reduce_zero_label=True), but pseudo-masks hold the classes as '
            'they are trained. Leave reduce_zero_label out there.')
    return pipeline


def annotation_loader(pipeline: Compose) -> Optional[LoadAnnotations]:
    """Return the transform that loads masks, None if there is none."""
    for transform in pipeline.transforms:
        if isinstance(transform, LoadAnnotations):
            return transform
    return None


def load_mask(dataset: BaseDataset, index: int) -> Any:
    """Load a human mask as training sees it.

    Args:
        dataset (BaseDataset): Labelled images, with LoadAnnotations in the
            pipeline.
        index (int): Which image.

    Returns:
        ndarray: Classes (H, W), 255 where unknown.
    """
    loader = annotation_loader(dataset.pipeline)
    return loader(dataset.get_data_info(index))['gt_seg_map']


def mask_names(images: BaseDataset) -> List[str]:
    """Name a mask file for every image.

    Args:
        images (BaseDataset): With ``img_path``.

    Returns:
        list[str]: Relative paths that mirror the images' folders, ending in
        '.png'.

    Raises:
        ValueError: If an image is listed twice.
    """
    paths = [
        osp.abspath(images.get_data_info(i)['img_path'])
        for i in range(len(images))
    ]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError('train_cfg.unlabeled_dataset lists an image twice: '
                         f'{twice}.')
    root = osp.commonpath([osp.dirname(path) for path in paths])
    names = [osp.relpath(path, root) for path in paths]
    stems = [osp.splitext(name)[0] for name in names]
    # x.jpg and x.png beside each other.
    if len(set(stems)) < len(stems):
        stems = names
    return [f'{stem}.png' for stem in stems]
