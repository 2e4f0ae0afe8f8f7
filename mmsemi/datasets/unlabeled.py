# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Images without labels: a folder or a list file, no JSON."""
import os
import os.path as osp
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

import mmcv
from mmengine.dataset import BaseDataset
from PIL import Image

from mmsemi.registry import DATASETS

IMG_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
EXIF_ORIENTATION = 0x0112


@DATASETS.register_module()
class UnlabeledImageDataset(BaseDataset):
    """A folder of images or a list of image paths, without labels.

    Every item has ``img_path``, ``img_id`` (place in the sorted folder or
    in the list), no ``instances`` and no ``seg_fields``, so that the
    pipelines of mmdet and mmseg accept it.

    Args:
        img_dir (str, optional): Folder of images. Without ``list_file`` all
            images in it are taken, sorted by path; hidden files and folders
            are left out and links are followed. With ``list_file`` it is
            what relative paths of the list start from.
        list_file (str, optional): Text file with one image path per line,
            in the order wanted. Empty lines and lines that start with ``#``
            are left out. Relative paths start from ``img_dir`` or, without
            it, from ``data_root``.
        data_root (str): Where relative ``img_dir`` and ``list_file`` start
            from. Defaults to ''.
        metainfo (dict, optional): Meta information, the same as that of
            the labelled source. Left out, ``mmsemi.MultiSourceDataset``
            hands the labelled source's down. Defaults to None.
        pipeline (Sequence[dict | callable]): Data pipeline.
        recursive (bool): Whether to look into sub-folders of ``img_dir``.
            Defaults to True.
        suffixes (Sequence[str]): File endings that count as images, in
            either case; not used with ``list_file``.
        indices (int | Sequence[int], optional): Use these items only.
        serialize_data (bool): Whether loader workers share one copy of the
            list. Defaults to True.
        test_mode (bool): Whether a pipeline that returns None is an error
            at once. Defaults to False.
        lazy_init (bool): Whether to list the images only when they are
            needed. Defaults to False.
        max_refetch (int): How many other images are tried when the
            pipeline returns None. Defaults to 100.

    Raises:
        ValueError: If neither ``img_dir`` nor ``list_file`` is given, if no
            image is found, or if an image cannot be read.
        FileNotFoundError: If the folder, the list or a listed image is
            missing.
    """

    def __init__(self,
                 img_dir: Optional[str] = None,
                 list_file: Optional[str] = None,
                 data_root: str = '',
                 metainfo: Optional[dict] = None,
                 pipeline: Sequence[Union[dict, Callable]] = (),
                 recursive: bool = True,
                 suffixes: Sequence[str] = IMG_SUFFIXES,
                 indices: Optional[Union[int, Sequence[int]]] = None,
                 serialize_data: bool = True,
                 test_mode: bool = False,
                 lazy_init: bool = False,
                 max_refetch: int = 100) -> None:
        if not img_dir and not list_file:
            raise ValueError(
                'UnlabeledImageDataset needs img_dir, a folder of images, or '
                f'list_file, a text file with one path per line; got img_dir='
                f'{img_dir!r} and list_file={list_file!r}.')
        if isinstance(suffixes, str):
            suffixes = (suffixes, )
        self.recursive = recursive
        self.suffixes = tuple(suffix.lower() for suffix in suffixes)
        super().__init__(
            ann_file=str(list_file or ''),
            metainfo=metainfo,
            data_root=data_root or '',
            data_prefix=dict(img=str(img_dir or '')),
            indices=indices,
            serialize_data=serialize_data,
            pipeline=list(pipeline),
            test_mode=test_mode,
            lazy_init=lazy_init,
            max_refetch=max_refetch)

    def load_data_list(self) -> List[dict]:
        """List the images.

        Returns:
            list[dict]: One dict per image.
        """
        root = self.data_prefix['img']
        if root and not osp.isdir(root):
            raise FileNotFoundError(f'There is no image folder {root} '
                                    '(img_dir, joined to data_root).')
        if self.ann_file:
            paths = self._read_list(root)
        else:
            paths = self._scan(root)
        return [
            dict(img_path=path, img_id=i, instances=[], seg_fields=[])
            for i, path in enumerate(paths)
        ]

    def get_data_info(self, idx: int) -> dict:
        """Get what is known of an image.

        Args:
            idx (int): Index of the image.

        Returns:
            dict: ``img_path``, ``img_id``, ``instances`` and
            ``seg_fields`` (both empty), ``sample_idx`` and, where the meta
            information has them, mmseg's ``label_map`` and
            ``reduce_zero_label``.
        """
        data_info = super().get_data_info(idx)
        # mmseg's transforms read these two per sample. They are added here
        # because the meta information may be handed down after loading.
        for key in ('label_map', 'reduce_zero_label'):
            if key in self._metainfo:
                data_info[key] = self._metainfo[key]
        return data_info

    def get_size(self, idx: int) -> Tuple[int, int]:
        """Read the size of an image from its header, not its pixels.

        Args:
            idx (int): Index of the image.

        Returns:
            tuple[int, int]: Width and height in pixels, turned as the
            image's EXIF orientation says, as mmcv loads it.
        """
        return image_size(self.get_data_info(idx)['img_path'])

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on an image.

        Args:
            idx (int): Index of the image.

        Returns:
            Any: What the pipeline returns.

        Raises:
            ValueError: If the image cannot be read.
        """
        try:
            return super().prepare_data(idx)
        except Exception as error:
            # Loaders report a broken file in many ways, some without its
            # path; an error of another transform must stay what it is.
            path = self.get_data_info(idx)['img_path']
            reason = _why_unreadable(path)
            if reason is None:
                raise
            raise ValueError(
                f'The image {path} cannot be read: {reason}. Remove it from '
                f'{self.ann_file or self.data_prefix["img"]} or replace it.'
            ) from error

    def _scan(self, root: str) -> List[str]:
        found, seen = [], set()
        for folder, subfolders, files in os.walk(
                root, onerror=_reraise, followlinks=True):
            # A link to a parent folder would otherwise be walked until the
            # system refuses the path.
            real = osp.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(
                name for name in subfolders
                if self.recursive and not name.startswith('.'))
            found += [
                osp.join(folder, name) for name in files
                if name.lower().endswith(self.suffixes)
                and not name.startswith('.')
            ]
        if not found:
            where = 'or below it' if self.recursive else '(recursive=False)'
            raise ValueError(
                f'There is no image in the folder {root} {where}; looked '
                f'for files that end with {", ".join(self.suffixes)} '
                '(suffixes).')
        return sorted(found)

    def _read_list(self, root: str) -> List[str]:
        if not osp.isfile(self.ann_file):
            raise FileNotFoundError(
                f'There is no list file {self.ann_file} (list_file, joined '
                'to data_root).')
        with open(self.ann_file, encoding='utf-8-sig') as file:
            lines = [line.strip() for line in file]
        paths = [
            osp.join(root or self.data_root, line) for line in lines
            if line and not line.startswith('#')
        ]
        if not paths:
            raise ValueError(f'The list file {self.ann_file} names no image.')
        missing = [path for path in paths if not osp.isfile(path)]
        if missing:
            raise FileNotFoundError(
                f'{len(missing)} of {len(paths)} images in {self.ann_file} '
                f'do not exist, among them {", ".join(missing[:3])}. '
                'Relative paths start from img_dir or else data_root.')
        return paths


def image_size(path: str) -> Tuple[int, int]:
    """Read the size of an image from its header, not its pixels.

    Args:
        path (str): The image file.

    Returns:
        tuple[int, int]: Width and height in pixels, turned as the image's
        EXIF orientation says, as mmcv loads it.

    Raises:
        ValueError: If the image cannot be read.
    """
    try:
        with Image.open(path) as img:
            width, height = img.size
            exif = Image.Exif()
            # img.getexif() would read the pixels of a PNG file.
            exif.load(img.info.get('exif', b''))
    except Exception as error:
        raise ValueError(
            f'The image {path} cannot be read: {error}') from error
    turned = exif.get(EXIF_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def _reraise(error: OSError) -> None:
    raise error


def _why_unreadable(path: str) -> Optional[str]:
    """Return why mmcv cannot read an image, or None if it can."""
    try:
        img = mmcv.imread(path)
    except Exception as error:
        return ' '.join(f'{type(error).__name__}: {error}'.split())
    return 'it is no image or damaged' if img is None else None
