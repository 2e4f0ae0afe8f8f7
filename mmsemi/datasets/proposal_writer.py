# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Writing mask proposals; the format is in :mod:`.proposal_store`."""
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import IO, Optional, Sequence, Tuple, Union

import numpy as np

from .proposal_records import encode_record
from .proposal_store import (MANIFEST, VERSION, Index, check_settings,
                             read_index, read_lines, read_manifest,
                             settings_checksum)

try:
    import fcntl
except ImportError:
    # Windows: one writer at a time.
    fcntl = None


class ProposalWriter:
    """Adds the proposals of images to a store, new or continued.

    Several processes, on several machines, may write into one store: each
    writes files of its own. What killed processes left is repaired when a
    writer opens the store: half-written ends are cut off, and images whose
    records are not whole count as not done. Files that another process
    writes at the moment are left alone (they are locked; on Windows, which
    has no such locks, let one process start after the other).

    Args:
        path (str or Path): The store's folder, made if missing.
        settings (dict): What makes the masks: names and numbers that JSON
            can hold.
        rank (int): Number of this process, part of its files' names.
            Defaults to 0.
        shard_bytes (int): A new file is begun after so many bytes. Defaults
            to 1 GiB.

    Raises:
        ValueError: If the store was made with other settings.
    """

    def __init__(self,
                 path: Union[str, Path],
                 settings: dict,
                 rank: int = 0,
                 shard_bytes: int = 1 << 30) -> None:
        self.path = Path(path)
        self.settings = settings
        self.rank = rank
        self.shard_bytes = shard_bytes
        self.path.mkdir(parents=True, exist_ok=True)
        _claim(self.path, settings)
        for file in sorted(self.path.glob('*.jsonl')):
            _repair(file)
        #: Index: What was in the store when the writer opened it.
        self.found: Index = read_index(self.path)
        self._files: Optional[Tuple[IO, IO]] = None

    def __enter__(self) -> 'ProposalWriter':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self,
            key: str,
            masks: np.ndarray,
            predicted_iou: Optional[Sequence[float]] = None,
            stability: Optional[Sequence[float]] = None) -> int:
        """Add the proposals of an image.

        Args:
            key (str): Path of the image relative to the image root, with
                '/'.
            masks (np.ndarray): (N, H, W) bool, N from 0, best first.
            predicted_iou (Sequence[float], optional): (N,). Defaults to
                None: unknown.
            stability (Sequence[float], optional): (N,). Defaults to None:
                unknown.

        Returns:
            int: Bytes of the record.

        Raises:
            ValueError: If a shape is not as above.
        """
        masks = np.asarray(masks)
        if masks.ndim != 3 or masks.dtype != bool:
            raise ValueError(f'The masks of {key!r} must be bool, (N, H, W), '
                             f'but are {masks.dtype}, {masks.shape}.')
        unknown = np.full(len(masks), np.nan)
        scores = [
            unknown if given is None else np.asarray(given, dtype=float)
            for given in (predicted_iou, stability)
        ]
        for score in scores:
            if score.shape != (len(masks), ):
                raise ValueError(f'{key!r} has {len(masks)} masks and scores '
                                 f'of shape {score.shape}.')
        record = encode_record(masks, *scores)
        records, lines = self._open()
        offset = records.tell()
        records.write(record)
        records.flush()
        # Only after the record may there be a line that promises it.
        self._write_line(lines, [
            key, offset,
            len(record),
            zlib.crc32(record),
            len(masks), masks.shape[1:]
        ])
        if records.tell() >= self.shard_bytes:
            self.close()
        return len(record)

    def add_broken(self, key: str, reason: str) -> None:
        """Record that an image cannot be read.

        Args:
            key (str): See :meth:`add`.
            reason (str): Why, in a line.
        """
        self._write_line(self._open()[1], [key, reason])

    def close(self) -> None:
        """Close the files of this process."""
        if self._files is not None:
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
        self._files = None

    def _open(self) -> Tuple[IO, IO]:
        """Return the files to append to, new ones if there are none."""
        number = 0
        while self._files is None:
            name = f'{self.rank:04d}-{number:04d}'
            number += 1
            try:
                # The name is taken once the index exists.
                lines = open(self.path / f'{name}.jsonl', 'xb')
            except FileExistsError:
                continue
            _lock(lines, wait=True)
            self._files = open(self.path / f'{name}.bin', 'wb'), lines
        return self._files

    @staticmethod
    def _write_line(file: IO, line: list) -> None:
        file.write(json.dumps(line).encode() + b'\n')
        file.flush()


def _claim(path: Path, settings: dict) -> None:
    """Write the manifest, or check the one that is there."""
    manifest = path / MANIFEST
    if not manifest.exists():
        content = dict(
            version=VERSION,
            settings=settings,
            checksum=settings_checksum(settings))
        handle, temporary = tempfile.mkstemp(
            prefix=f'.{MANIFEST}.', suffix='.tmp', dir=path)
        with os.fdopen(handle, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=2, sort_keys=True)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        try:
            # Fails if another process was faster, unlike os.replace.
            os.link(temporary, manifest)
        except FileExistsError:
            pass
        except OSError:
            # No links on this file system.
            os.replace(temporary, manifest)
        finally:
            Path(temporary).unlink(missing_ok=True)
    check_settings(path, read_manifest(path), settings)


def _repair(file: Path) -> None:
    """Cut off what a killed process left at the end of its two files."""
    with open(file, 'r+b') as lines:
        if not _lock(lines, wait=False):
            return
        records = file.with_suffix('.bin')
        size = records.stat().st_size if records.is_file() else 0
        whole = end = 0
        for _, entry, place in read_lines(file):
            if not isinstance(entry, str):
                # Entries stand in the order of their records.
                if entry.offset + entry.size > size:
                    break
                end = entry.offset + entry.size
            whole = place
        lines.truncate(whole)
        if size > end:
            os.truncate(records, end)


def _lock(file: IO, wait: bool) -> bool:
    """Lock a file until it is closed; False if another process has it."""
    if fcntl is None:
        return wait
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        # The file system knows no locks.
        return wait
    return True
