# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The published splits of Pascal VOC and Cityscapes, told by their hash.

Numbers of papers compare only within one protocol: the same number of VOC
images is a point or more harder or easier, depending on how many of them
carry the official masks and how many those of SBD.
"""
import hashlib
from typing import Iterable, NamedTuple, Optional

#: Images of the official lists.
TRAIN_SIZES = dict(voc=10582, cityscapes=2975)


class KnownSplit(NamedTuple):
    """A published list of labelled images, or an official list.

    Attributes:
        dataset: 'voc' or 'cityscapes'.
        protocol: Which lists it belongs to; 'val' is the official
            validation list.
        fraction: Share of labelled images as papers write it.
        labeled: Number of images in the list.
        variant: What tells lists of one protocol and fraction apart, or ''.
    """
    dataset: str
    protocol: str
    fraction: str
    labeled: int
    variant: str = ''

    @property
    def unlabeled(self) -> int:
        """int: Number of images in the unlabelled list that goes with it."""
        return TRAIN_SIZES[self.dataset] - self.labeled

    @property
    def stem(self) -> str:
        """str: File name of the list, such as 'blended-cps-1over8'."""
        parts = [self.protocol]
        if self.protocol != 'city-1_30':
            parts.append(self.fraction.replace('/', 'over'))
        if self.variant:
            parts.append(self.variant)
        return '-'.join(parts)

    def __str__(self) -> str:
        variant = f' ({self.variant})' if self.variant else ''
        return f'{self.protocol} {self.fraction}{variant}'


def _voc(protocol: str, fraction: str, labeled: int, variant: str = ''):
    return KnownSplit('voc', protocol, fraction, labeled, variant)


def _city(protocol: str, fraction: str, labeled: int):
    return KnownSplit('cityscapes', protocol, fraction, labeled)


#: First 12 hexadecimal digits of :func:`set_hash`, and what the set is.
KNOWN_SPLITS = {
    '124b0aab2fcd': _voc('original', '1/16', 92),
    '79b959bccf77': _voc('original', '1/8', 183),
    'f0e702c687e2': _voc('original', '1/4', 366),
    '8c23014f5128': _voc('original', '1/2', 732),
    '1c27978cdf51': _voc('original', '1/2', 732, 'tss'),
    '129f1fe99172': _voc('original', 'full', 1464),
    'baa85754594f': _voc('blended-cps', '1/16', 662),
    'c9ca45b4e688': _voc('blended-cps', '1/8', 1323),
    'fd0e8dca3dac': _voc('blended-cps', '1/4', 2646),
    '5338f2777301': _voc('blended-cps', '1/2', 5291),
    'feea46927383': _voc('priority-u2pl', '1/16', 662),
    '23921931a213': _voc('priority-u2pl', '1/8', 1323),
    'd35f7cd4b481': _voc('priority-u2pl', '1/4', 2646),
    'aacb97f26e94': _voc('priority-u2pl', '1/2', 5291),
    '70187bd5e194': _voc('blended-pixelssl', '1/16', 662, 'split0'),
    '0b996766ba8c': _voc('blended-pixelssl', '1/16', 662, 'split1'),
    '0ccdcc314066': _voc('blended-pixelssl', '1/16', 662, 'split2'),
    'c4164038958f': _city('city-1_30', '1/30', 100),
    '1e5363dd012c': _city('city-cps', '1/16', 186),
    '6b3b52bab110': _city('city-cps', '1/8', 372),
    '6856046a4415': _city('city-cps', '1/4', 744),
    '2b3183629a3a': _city('city-cps', '1/2', 1488),
    'f20f7c7dea9c': _city('city-u2pl', '1/16', 186),
    'f13edf481be9': _city('city-u2pl', '1/8', 372),
    '7d0cfd6f5390': _city('city-u2pl', '1/4', 744),
    'c6122be0439b': _city('city-u2pl', '1/2', 1488),
    '84a0c61df170': _city('city-eln', '1/8', 371),
    'f0c47fc0574e': _city('city-eln', '1/4', 743),
    '6f8edc379937': _voc('val', 'full', 1449),
    '9e85f1e65cf6': _city('val', 'full', 500),
}


def set_hash(ids: Iterable[str]) -> str:
    """Return the hash of a set of images, whatever their order.

    Args:
        ids (Iterable[str]): Image ids: '2007_000733' in VOC,
            'aachen_000000_000019' in Cityscapes.

    Returns:
        str: First 12 hexadecimal digits of the SHA-256 of the sorted ids,
        joined by newlines.
    """
    text = '\n'.join(sorted(ids))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def identify_split(ids: Iterable[str]) -> Optional[KnownSplit]:
    """Tell which published list holds exactly these images.

    Args:
        ids (Iterable[str]): Image ids, see :func:`set_hash`.

    Returns:
        KnownSplit | None: None for a list that is not known.
    """
    ids = list(ids)
    known = KNOWN_SPLITS.get(set_hash(ids))
    return known if known and known.labeled == len(ids) else None


def same_size(dataset: str, number: int) -> list:
    """List the known labelled splits with as many images.

    Args:
        dataset (str): 'voc' or 'cityscapes'.
        number (int): Number of images.

    Returns:
        list[KnownSplit]: Candidates, in the order of the table.
    """
    return [
        split for split in KNOWN_SPLITS.values()
        if split.dataset == dataset and split.labeled == number
    ]
