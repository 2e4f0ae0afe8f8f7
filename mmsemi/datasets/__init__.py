# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .calibration_split import halve_images, hold_out_images
from .digit_expressions import DIGIT_WORDS
from .digits import make_digits
from .instance_checks import (InstanceReport, KnownInstances, check_instances,
                              known_instances)
from .known_splits import KNOWN_SPLITS, KnownSplit, identify_split, set_hash
from .multi_source import MultiSourceDataset
from .proposal_store import ProposalStore
from .proposal_writer import ProposalWriter
from .refer_files import (convert_refs, load_refs, read_annotations,
                          write_annotations)
from .referring import ReferringDataset
from .referring_checks import ReferringReport, check_referring
from .referring_splits import split_referring
from .samplers import MultiSourceSampler, SeededIndex, check_batch_size
from .semantic_sampling import (classes_in_masks, find_pairs, read_mask,
                                split_by_classes)
from .semantic_splits import (SemanticSplit, convert_split, missing_files,
                              mmseg_lines, read_split_list, write_lists)
from .splits import (check_coco, check_no_leak, load_coco, split_coco,
                     split_coco_k_shot, split_stem, write_split)
from .unlabeled import UnlabeledImageDataset
from .wrapped_datasets import leaf_datasets

__all__ = [
    'DIGIT_WORDS', 'InstanceReport', 'KNOWN_SPLITS', 'KnownInstances',
    'KnownSplit', 'MultiSourceDataset', 'MultiSourceSampler', 'ProposalStore',
    'ProposalWriter', 'ReferringDataset', 'ReferringReport', 'SeededIndex',
    'SemanticSplit', 'UnlabeledImageDataset', 'check_batch_size', 'check_coco',
    'check_instances', 'check_no_leak', 'check_referring', 'classes_in_masks',
    'convert_refs', 'convert_split', 'find_pairs', 'halve_images',
    'hold_out_images', 'identify_split', 'known_instances', 'leaf_datasets',
    'load_coco', 'load_refs', 'make_digits', 'missing_files', 'mmseg_lines',
    'read_annotations', 'read_mask', 'read_split_list', 'set_hash',
    'split_by_classes', 'split_coco', 'split_coco_k_shot', 'split_referring',
    'split_stem', 'write_annotations', 'write_lists', 'write_split'
]

if is_installed('mmdet'):
    from .digits_instance import DigitsInstanceDataset, LongTailedDigitsDataset
    from .lvis import LVISV1FederatedDataset
    from .trashcan import TrashCanDataset
    __all__ += [
        'DigitsInstanceDataset', 'LVISV1FederatedDataset',
        'LongTailedDigitsDataset', 'TrashCanDataset'
    ]

if is_installed('mmseg'):
    from .digits_semantic import DigitsSemanticDataset
    from .semantic_checks import check_semantic_dataset
    __all__ += ['DigitsSemanticDataset', 'check_semantic_dataset']
