# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The mask proposals of one image, in memory and in bytes.

A record is, for each mask, a row of :data:`ROW`, followed by the compressed
run lengths of all masks (COCO's, as pycocotools writes them), deflated.
"""
import zlib
from dataclasses import dataclass
from typing import List, NamedTuple, Tuple

import numpy as np
import pycocotools.mask as mask_utils
import torch

from mmsemi.structures.packed_masks import PackedMasks

#: What is kept of a mask beside its pixels. ``length``: bytes of its run
#: lengths; ``bbox``: x1, y1, x2, y2 in pixels, x2 and y2 behind the last
#: ones; NaN for a score that the generator does not give.
ROW = np.dtype([('length', '<u4'), ('area', '<u4'), ('bbox', '<u4', 4),
                ('predicted_iou', '<f4'), ('stability', '<f4')])


class Entry(NamedTuple):
    """Where the proposals of an image are; a line of the index.

    Attributes:
        shard: Name of the files without suffix.
        offset: First byte in the ``.bin``.
        size: Bytes.
        checksum: CRC-32 of these bytes.
        num_masks: Number of masks, from 0.
        shape: Height and width of the image.
    """
    shard: str
    offset: int
    size: int
    checksum: int
    num_masks: int
    shape: Tuple[int, int]


@dataclass
class Proposals:
    """The proposals of one image, best first.

    Args:
        counts (list[bytes]): COCO's compressed run lengths of each mask.
        shape (tuple[int, int]): Height and width of the image.
        area (np.ndarray): (N,), pixels of each mask.
        bbox (np.ndarray): (N, 4), x1, y1, x2, y2 in pixels, the tight box.
        predicted_iou (np.ndarray): (N,) float32, the generator's estimate
            of each mask's quality; NaN where it gives none.
        stability (np.ndarray): (N,) float32, how little each mask depends
            on the generator's threshold; NaN where it gives none.
    """

    counts: List[bytes]
    shape: Tuple[int, int]
    area: np.ndarray
    bbox: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: np.ndarray) -> 'Proposals':
        """Choose masks by an array of indices or a slice."""
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        return Proposals([self.counts[i] for i in index], self.shape,
                         self.area[index], self.bbox[index],
                         self.predicted_iou[index], self.stability[index])

    def rles(self) -> List[dict]:
        """Return the masks as pycocotools takes them."""
        return [dict(size=list(self.shape), counts=c) for c in self.counts]

    def masks(self) -> np.ndarray:
        """Return the masks as bool, (N, H, W)."""
        if not self.counts:
            return np.zeros((0, *self.shape), dtype=bool)
        decoded = mask_utils.decode(self.rles())
        return np.ascontiguousarray(decoded.transpose(2, 0, 1)).view(bool)

    def packed(self) -> PackedMasks:
        """Return the masks, eight to a byte, on the CPU."""
        height, width = self.shape
        planes = np.zeros((-(-len(self) // 8), width, height), dtype=np.uint8)
        for k, plane in enumerate(planes.reshape(-1, height * width)):
            # Where a run begins its bit flips, and then holds.
            for bit, counts in enumerate(self.counts[8 * k:8 * k + 8]):
                np.bitwise_xor.at(plane, run_starts(counts),
                                  np.uint8(1 << bit))
            np.bitwise_xor.accumulate(plane, out=plane)
        data = np.ascontiguousarray(planes.transpose(0, 2, 1))
        return PackedMasks(torch.from_numpy(data), len(self))


def encode_record(masks: np.ndarray, predicted_iou: np.ndarray,
                  stability: np.ndarray) -> bytes:
    """Return the bytes of one image's masks.

    Args:
        masks (np.ndarray): (N, H, W) bool, N from 0.
        predicted_iou (np.ndarray): (N,).
        stability (np.ndarray): (N,).

    Returns:
        bytes: A record.
    """
    rows = np.zeros(len(masks), dtype=ROW)
    columns = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))
    rles = mask_utils.encode(columns) if len(masks) else []
    counts = [rle['counts'] for rle in rles]
    rows['length'] = [len(c) for c in counts]
    if len(masks):
        rows['area'] = mask_utils.area(rles)
        boxes = mask_utils.toBbox(rles)
        boxes[:, 2:] += boxes[:, :2]
        rows['bbox'] = boxes
    rows['predicted_iou'] = predicted_iou
    rows['stability'] = stability
    return rows.tobytes() + zlib.compress(b''.join(counts))


def decode_record(record: bytes, entry: Entry) -> Proposals:
    """Undo :func:`encode_record`."""
    end = entry.num_masks * ROW.itemsize
    rows = np.frombuffer(record[:end], dtype=ROW)
    packed = zlib.decompress(record[end:])
    ends = rows['length'].astype(np.int64).cumsum().tolist()
    counts = [packed[a:b] for a, b in zip([0, *ends], ends)]
    return Proposals(counts, entry.shape, rows['area'].astype(np.int64),
                     rows['bbox'].astype(np.int64),
                     rows['predicted_iou'].copy(), rows['stability'].copy())


def run_starts(counts: bytes) -> np.ndarray:
    """Return where the runs of a mask begin.

    pycocotools would make a byte of every pixel first, which takes many
    times longer than all the rest of reading.

    Args:
        counts (bytes): COCO's compressed run lengths: numbers in groups of
            five bits, lowest first, from the fourth on as difference to the
            number before the last.

    Returns:
        np.ndarray: int64, places in the columns, one after another, of all
        runs but the first, which is background and begins at 0.
    """
    groups = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(groups < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    power = np.arange(len(groups)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((groups & 31) << 5 * power, first)
    negative = (groups[last] & 16) > 0
    numbers[negative] -= 1 << 5 * (power[last[negative]] + 1)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers[:-1].cumsum()
