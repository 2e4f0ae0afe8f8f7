# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""LVIS v1 with what its images were searched for."""
from typing import List, Mapping, Optional, Sequence

from mmdet.datasets import LVISV1Dataset
from mmengine.fileio import exists, get_local_path

from mmsemi.registry import DATASETS

#: Rare, common and frequent: up to 10, up to 100 and more training images.
LVIS_FREQUENCIES = ('r', 'c', 'f')
URL_PREFIX = 'http://images.cocodataset.org/'


def check_lvis(annotations: Mapping, source: str) -> None:
    """Raise ValueError if annotations are none of LVIS v1.

    Args:
        annotations (Mapping): Content of the file.
        source (str): Its name, for the message.
    """
    needed = dict(
        images=('id', 'coco_url', 'height', 'width', 'neg_category_ids',
                'not_exhaustive_category_ids'),
        categories=('id', 'name', 'frequency'),
        annotations=('id', 'image_id', 'category_id', 'bbox', 'area'))
    for part, fields in needed.items():
        entries = annotations.get(part)
        if not isinstance(entries, list):
            raise ValueError(f'{source} is no file of LVIS v1: it has no list '
                             f'"{part}".')
        for entry in entries:
            missing = [field for field in fields if field not in entry]
            if missing:
                raise ValueError(
                    f'{source} is no file of LVIS v1: an entry of "{part}" '
                    f'(id {entry.get("id")}) lacks {", ".join(missing)}. '
                    'COCO, LVIS v0.5 and the file of test images are other '
                    'formats; ann_file must be lvis_v1_train.json, '
                    'lvis_v1_val.json or a part of them.')
    wrong = {
        str(category['frequency'])
        for category in annotations['categories']
    } - {*LVIS_FREQUENCIES}
    if wrong:
        raise ValueError(f'{source} has categories of frequency '
                         f'{", ".join(sorted(wrong))}; LVIS knows '
                         f'{", ".join(LVIS_FREQUENCIES)}.')


def lvis_categories(categories: Sequence[Mapping],
                    classes: Optional[Sequence[str]],
                    source: str) -> List[Mapping]:
    """Return the categories of the classes in the order of the labels.

    Args:
        categories (Sequence[Mapping]): ``categories`` of the file.
        classes (Sequence[str], optional): Names of the classes that are
            used. None takes all categories.
        source (str): Name of the file, for the message.

    Returns:
        list[Mapping]: One category per class, in the order of the file, in
        which mmdet's data sets count labels.

    Raises:
        ValueError: If the file lacks a class, or the classes have another
            order than in the file, so that names would not fit labels.
    """
    if classes is None:
        return list(categories)
    wanted = set(classes)
    chosen = [c for c in categories if c['name'] in wanted]
    names = [c['name'] for c in chosen]
    missing = [name for name in classes if name not in set(names)]
    if missing:
        raise ValueError(
            f'{source} has no category of {len(missing)} of the '
            f'{len(classes)} classes, such as {", ".join(missing[:3])}. '
            'Write metainfo=dict(classes=(...)) with the names of its '
            '"categories".')
    if names != list(classes):
        raise ValueError(
            'metainfo.classes must have the order of the categories in '
            f'{source}: {", ".join(names[:3])}, ...')
    return chosen


@DATASETS.register_module()
class LVISV1FederatedDataset(LVISV1Dataset):
    """LVIS v1, with what each image was searched for.

    LVIS is federated: an image was searched for some classes alone, and of
    some of these not every instance is annotated. Every item has, beside
    what mmdet's data set gives, label indices for the ``meta_keys`` of
    ``PackDetInputs``:

    - ``neg_category_ids``: classes that the image certainly has not;
    - ``not_exhaustive_category_ids``: classes of which not every instance is
      annotated.

    ``mmsemi.CalibrateScores`` and ``mmsemi.CalibrationMetric`` go by them.
    ``metainfo['frequency']`` has one letter per class: 'r' for rare, 'c' for
    common, 'f' for frequent.

    The package ``lvis``, which fails with NumPy 2, is not needed. Arguments
    are those of mmdet's ``CocoDataset``; images are found below
    ``data_prefix['img']`` in ``train2017`` and ``val2017``, as their
    ``coco_url`` says.

    Raises:
        FileNotFoundError: If there is no ``ann_file``.
        ValueError: If it is no file of LVIS v1, or its categories are not
            ``metainfo['classes']``.
    """

    def load_data_list(self) -> List[dict]:
        """Load the annotations.

        Returns:
            list[dict]: One entry per image.
        """
        if not exists(self.ann_file, backend_args=self.backend_args):
            raise FileNotFoundError(
                f'ann_file {self.ann_file} does not exist. The annotations '
                'of LVIS v1 are at https://www.lvisdataset.org/dataset.')
        with get_local_path(
                self.ann_file, backend_args=self.backend_args) as local_path:
            coco = self.COCOAPI(local_path)
        check_lvis(coco.dataset, self.ann_file)
        chosen = lvis_categories(coco.dataset['categories'],
                                 self.metainfo.get('classes'), self.ann_file)
        self._metainfo['frequency'] = tuple(c['frequency'] for c in chosen)
        self.cat_ids = [c['id'] for c in chosen]
        self.cat2label = {cat: label for label, cat in enumerate(self.cat_ids)}
        self.cat_img_map = coco.cat_img_map
        return [
            self._parse(image, coco.img_ann_map[image['id']])
            for image in coco.dataset['images']
        ]

    def _parse(self, image: dict, annotations: List[dict]) -> dict:
        # The file's name tells neither train2017 nor val2017.
        file_name = image['coco_url'].replace(URL_PREFIX, '')
        info = self.parse_data_info(
            dict(
                raw_img_info=dict(
                    image, img_id=image['id'], file_name=file_name),
                raw_ann_info=annotations))
        for key in ('neg_category_ids', 'not_exhaustive_category_ids'):
            info[key] = [
                self.cat2label[cat] for cat in image[key]
                if cat in self.cat2label
            ]
        return info
