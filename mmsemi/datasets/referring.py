# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Images with referring expressions as a dataset for mmseg's pipelines."""
import os.path as osp
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

import numpy as np
from mmengine.dataset import BaseDataset

from mmsemi.registry import DATASETS
from .refer_files import read_annotations
from .transforms.referring import LoadReferringMask
from .transforms.view_checks import iter_transforms

SENTENCES = ('random', 'all', 'first')
TEXT_FIELDS = ('sent', 'raw')


@DATASETS.register_module()
class ReferringDataset(BaseDataset):
    """Objects of images and the sentences that refer to them.

    It reads the JSON file of :mod:`mmsemi.datasets.refer_files` and is
    mmengine's ``BaseDataset`` else. In training one sample is one ref (an
    object with its sentences), and its sentence is drawn anew whenever it is
    read, from NumPy's global state: inside ``mmsemi.MultiSourceDataset`` with
    ``mmsemi.MultiSourceSampler`` a draw depends on the seed and the position
    in the stream alone, so a resumed training reads the same sentences. For
    validation one sample is one (ref, sentence) pair, as LAVT's evaluation
    counts them.

    A sample has ``img_path``, ``height`` and ``width`` (pixels), ``text``
    (str), ``ref_id``, ``sent_id``, ``image_id``, an empty ``seg_fields``,
    mmseg's ``reduce_zero_label`` (False) and, if labelled, ``ref_mask``, the
    object's segmentation in COCO's format, which
    ``mmsemi.LoadReferringMask`` decodes. Unlabelled samples keep their text.

    mmdet's ``RefCocoDataset`` reads a pickle, takes an image for a sample
    and draws sentences once, when it is built.

    Args:
        ann_file (str): JSON file, relative to ``data_root``.
        data_prefix (dict): ``img_path``, the folder that file names start
            from. Defaults to dict(img_path='').
        split (str): Split whose refs are taken. Defaults to 'train'.
        image_list (str, optional): Text file of image file names, one per
            line, relative to ``data_root``: only refs of these images are
            taken. The labelled or unlabelled part of the split. Defaults to
            None: all images.
        labeled (bool): Whether masks are handed out. Defaults to True.
        sentence (str): 'random': a sample per ref, its sentence drawn at
            every access; 'all': a sample per sentence; 'first': a sample per
            ref with its first sentence. Defaults to 'random'.
        text_field (str): 'sent', the cleaned sentence, or 'raw', as it was
            typed, which LAVT evaluates with. Defaults to 'sent'.
        **kwargs: Other arguments of ``BaseDataset``, such as ``data_root``
            and ``pipeline``.

    Raises:
        FileNotFoundError: If the file or the list is missing.
        ValueError: If an argument is not as above, if the split is unknown,
            if a listed image has no ref in the split, or if the pipeline of
            an unlabelled source loads masks.
    """

    METAINFO = dict(
        classes=('background', 'referred'), palette=[[0, 0, 0], [230, 25, 75]])

    def __init__(self,
                 ann_file: str,
                 data_prefix: Optional[dict] = None,
                 split: str = 'train',
                 image_list: Optional[str] = None,
                 labeled: bool = True,
                 sentence: str = 'random',
                 text_field: str = 'sent',
                 data_root: str = '',
                 pipeline: Sequence[Union[dict, Callable]] = (),
                 **kwargs: Any) -> None:
        for field, value, allowed in (('sentence', sentence, SENTENCES),
                                      ('text_field', text_field,
                                       TEXT_FIELDS)):
            if value not in allowed:
                raise ValueError(f'ReferringDataset.{field} must be one of '
                                 f'{allowed}, got {value!r}.')
        self.split = split
        self.image_list = None if image_list is None else osp.join(
            data_root or '', image_list)
        self.labeled = labeled
        self.sentence = sentence
        self.text_field = text_field
        super().__init__(
            ann_file=ann_file,
            data_root=data_root or '',
            data_prefix=dict(data_prefix or dict(img_path='')),
            pipeline=list(pipeline),
            **kwargs)
        if not labeled and any(
                isinstance(slot[-1], LoadReferringMask)
                for slot in iter_transforms(self.pipeline)):
            raise ValueError(
                'ReferringDataset with labeled=False hands out no masks; '
                'remove mmsemi.LoadReferringMask from its pipeline.')

    def load_data_list(self) -> List[dict]:
        """List the samples.

        Returns:
            list[dict]: One per ref, or per sentence with ``sentence='all'``,
            in the order of the file. Each has ``sentences``, a list of
            (sent_id, text), besides what the class describes.
        """
        data = read_annotations(self.ann_file)
        images = {image['image_id']: image for image in data['images']}
        masks = {
            ann['ann_id']: ann['segmentation']
            for ann in data['annotations']
        }
        refs = [ref for ref in data['refs'] if ref['split'] == self.split]
        if not refs:
            splits = sorted({ref['split'] for ref in data['refs']})
            raise ValueError(f'ReferringDataset.split={self.split!r} has no '
                             f'ref in {self.ann_file}; it has {splits}.')
        refs = self._listed(refs, images)
        root = self.data_prefix.get('img_path', '')
        samples = []
        for ref in refs:
            image = images[ref['image_id']]
            sample = dict(
                img_path=osp.join(root, image['file_name']),
                height=image['height'],
                width=image['width'],
                image_id=image['image_id'],
                ref_id=ref['ref_id'],
                reduce_zero_label=False,
                label_map=None,
                seg_fields=[])
            if self.labeled:
                sample['ref_mask'] = masks[ref['ann_id']]
            sentences = [(sentence['sent_id'], sentence[self.text_field])
                         for sentence in ref['sentences']]
            if self.sentence == 'all':
                samples += [
                    dict(sample, sentences=[pair]) for pair in sentences
                ]
            else:
                if self.sentence == 'first':
                    sentences = sentences[:1]
                samples.append(dict(sample, sentences=sentences))
        return samples

    def get_size(self, idx: int) -> Tuple[int, int]:
        """Return the size of a sample's image, from the annotations.

        Args:
            idx (int): Index of the sample.

        Returns:
            tuple[int, int]: Width and height in pixels.
        """
        info = self.get_data_info(idx)
        return info['width'], info['height']

    def prepare_data(self, idx: int) -> Any:
        """Draw the sentence of a sample and run the pipeline on it.

        Args:
            idx (int): Index of the sample.

        Returns:
            Any: What the pipeline returns.
        """
        results = self.get_data_info(idx)
        sentences = results.pop('sentences')
        # No draw where there is no choice, so that lists of single sentences
        # give the same views as fixed ones.
        chosen = np.random.randint(
            len(sentences)) if len(sentences) > 1 else 0
        results['sent_id'], results['text'] = sentences[chosen]
        return self.pipeline(results)

    def _listed(self, refs: List[dict], images: dict) -> List[dict]:
        if self.image_list is None:
            return refs
        names = set(read_image_list(self.image_list))
        kept = [
            ref for ref in refs
            if images[ref['image_id']]['file_name'] in names
        ]
        found = {images[ref['image_id']]['file_name'] for ref in kept}
        unknown = sorted(names - found)
        if unknown:
            raise ValueError(
                f'{len(unknown)} of {len(names)} images of '
                f'{self.image_list} (ReferringDataset.image_list) have no '
                f'ref in the split {self.split!r} of {self.ann_file}, among '
                f'them {", ".join(unknown[:3])}. Lists name files as the '
                "annotations' file_name does.")
        return kept


def read_image_list(path: str) -> List[str]:
    """Read a list of image file names.

    Args:
        path (str): Text file, one name per line; empty lines are left out.

    Returns:
        list[str]: The names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the list is empty or has a name twice.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'There is no list of images {path} (image_list, joined to '
            'data_root). tools/dataset_converters/split_refer.py and '
            'make_digits.py --referring write such lists.')
    with open(path, encoding='utf-8-sig') as file:
        names = [line.strip() for line in file]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f'The list {path} names no image.')
    if len(set(names)) < len(names):
        raise ValueError(f'The list {path} has a name twice.')
    return names
