# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""TrashCan 1.0: rubbish, animals and vehicles on the sea floor."""
from pathlib import Path
from typing import List

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO

from mmsemi.registry import DATASETS

#: Classes of the instance version, with ids from 1 on in the files.
TRASHCAN_CLASSES = ('rov', 'plant', 'animal_fish', 'animal_starfish',
                    'animal_shells', 'animal_crab', 'animal_eel',
                    'animal_etc', 'trash_clothing', 'trash_pipe',
                    'trash_bottle', 'trash_bag', 'trash_snack_wrapper',
                    'trash_can', 'trash_cup', 'trash_container',
                    'trash_unknown_instance', 'trash_branch',
                    'trash_wreckage', 'trash_tarp', 'trash_rope', 'trash_net')
#: What a text encoder reads for them. Prefixes that many classes share would
#: only pull their texts together.
TRASHCAN_TEXTS = dict(
    rov='remotely operated vehicle',
    plant='plant',
    animal_fish='fish',
    animal_starfish='starfish',
    animal_shells='shells',
    animal_crab='crab',
    animal_eel='eel',
    animal_etc='other animal',
    trash_clothing='clothing',
    trash_pipe='pipe',
    trash_bottle='bottle',
    trash_bag='bag',
    trash_snack_wrapper='snack wrapper',
    trash_can='can',
    trash_cup='cup',
    trash_container='container',
    trash_unknown_instance='unknown trash',
    trash_branch='branch',
    trash_wreckage='wreckage',
    trash_tarp='tarp',
    trash_rope='rope',
    trash_net='net')
URL = 'https://conservancy.umn.edu/handle/11299/214865'


class OrderedCOCO(COCO):
    """mmdet's reader that refuses classes in another order than the file's.

    Data set and metric number labels in the order of the file, whatever the
    order of ``metainfo['classes']``.
    """

    def get_cat_ids(self, cat_names=(), sup_names=(), cat_ids=()):
        """Return the ids of categories; see mmdet.

        Raises:
            ValueError: If a name is missing or the order differs.
        """
        found = super().get_cat_ids(
            list(cat_names), list(sup_names), list(cat_ids))
        names = [self.cats[number]['name'] for number in found]
        if cat_names and names != list(cat_names):
            missing = [name for name in cat_names if name not in names]
            what = f'lacks {", ".join(missing)}' if missing else \
                f'has them in the order {", ".join(names)}'
            raise ValueError(
                'The categories of the file must be the classes '
                f'{", ".join(cat_names)}, but it {what}. Set metainfo='
                'dict(classes=(...)) to the names in the file, in its order.')
        return found


@DATASETS.register_module()
class TrashCanDataset(CocoDataset):
    """TrashCan 1.0 in its instance version, of 22 classes.

    J. Hong, M. Fulton and J. Sattar, TrashCan: A Semantically-Segmented
    Dataset towards Visual Detection of Marine Debris, arXiv 2007.08097. It
    is free for academic use; https://conservancy.umn.edu/handle/11299/214865
    has the files. ``metainfo['class_texts']`` says what a text encoder reads
    for each class.

    Arguments are those of mmdet's ``CocoDataset``.

    Raises:
        FileNotFoundError: If there is no ``ann_file``.
        ValueError: If its categories are others, as those of the material
            version are.
    """

    METAINFO = dict(
        classes=TRASHCAN_CLASSES,
        class_texts=TRASHCAN_TEXTS,
        palette=[(220, 20, 60), (60, 180, 75), (255, 160, 122),
                 (255, 215, 0), (250, 170, 200), (255, 99, 71),
                 (138, 43, 226), (210, 180, 140), (0, 130, 200),
                 (106, 90, 205), (0, 191, 255), (70, 240, 240),
                 (240, 50, 230), (192, 192, 192), (245, 130, 48),
                 (0, 128, 128), (170, 255, 195), (139, 69, 19),
                 (128, 128, 0), (25, 25, 112), (188, 143, 143),
                 (47, 79, 79)])
    COCOAPI = OrderedCOCO

    def load_data_list(self) -> List[dict]:
        """Load the annotations.

        Returns:
            list[dict]: One entry per image.
        """
        # Remote files ("s3://...") are the storage backend's to find.
        if '://' not in self.ann_file and not Path(self.ann_file).is_file():
            raise FileNotFoundError(
                f'ann_file {self.ann_file} does not exist. TrashCan 1.0 is at '
                f'{URL}; its folder instance_version has '
                'instances_train_trashcan.json and '
                'instances_val_trashcan.json.')
        try:
            return super().load_data_list()
        except ValueError as error:
            raise ValueError(f'ann_file {self.ann_file}: {error}') from error
