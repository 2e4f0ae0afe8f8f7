# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Mask proposals of many images on disk: the format and its reader.

A store is a folder:

- ``manifest.json``: version of the format, what made the masks, and the
  checksum of that;
- ``NAME.bin``: records, one after another, one per image;
- ``NAME.jsonl``: one line per record of the ``.bin`` beside it: the key of
  the image, height and width, number of masks, offset, size and checksum.

A record holds COCO's run lengths, see :mod:`.proposal_records`.

Files only ever grow, first the record, then its line, so what a killed
writer leaves behind is at most a record without a line or half a line.
:mod:`mmsemi.datasets.proposal_writer` writes.
"""
import hashlib
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Dict, Iterator, Optional, Tuple, Union

from .proposal_records import Entry, Proposals, decode_record

VERSION = 1
MANIFEST = 'manifest.json'
TOOL = 'tools/generate_proposals.py'


class ProposalStore:
    """Reader of a folder of mask proposals.

    Reading an image is one seek. The index is read when it is first needed;
    no file stays open, so that a store can be used in workers of a data
    loader, forked or not.

    Args:
        path (str or Path): The store's folder.
        settings (dict, optional): What must have made the masks. Defaults to
            None: anything.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If the manifest is damaged, of another version, or names
            other settings.
    """

    def __init__(self,
                 path: Union[str, Path],
                 settings: Optional[dict] = None) -> None:
        self.path = Path(path)
        self.settings = read_manifest(self.path)
        if settings is not None:
            check_settings(self.path, self.settings, settings)
        self._index: Optional[Index] = None

    def __getstate__(self) -> dict:
        # A worker that is not forked reads the index itself.
        return dict(self.__dict__, _index=None)

    @property
    def index(self) -> 'Index':
        """Index: What is in the store; read once."""
        if self._index is None:
            self._index = read_index(self.path)
        return self._index

    def __len__(self) -> int:
        return len(self.index.entries)

    def __contains__(self, key: str) -> bool:
        return key in self.index.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.index.entries)

    def find_key(self,
                 img_path: Union[str, Path],
                 img_root: Optional[Union[str, Path]] = None) -> str:
        """Return the key of an image file.

        Args:
            img_path (str or Path): The file.
            img_root (str or Path, optional): The folder that the keys start
                from. Defaults to None: the key is the end of the path that
                is in the store.

        Returns:
            str: Key, a relative path with '/'.

        Raises:
            KeyError: If the image is not in the store.
            ValueError: If two keys are ends of the path, or the image is
                not below ``img_root``.
        """
        entries, broken = self.index.entries, self.index.broken
        if img_root is not None:
            found = [image_key(img_path, img_root)]
        else:
            parts = PurePath(img_path).parts
            ends = ['/'.join(parts[i:]) for i in range(len(parts))]
            found = [end for end in ends if end in entries] or [
                end for end in ends if end in broken
            ]
        if len(found) > 1:
            raise ValueError(
                f'{img_path} may be {" or ".join(map(repr, found))} of the '
                f'proposals in {self.path}. Name the folder that the images '
                'were in when the proposals were made (img_root).')
        if found and found[0] in entries:
            return found[0]
        if found and found[0] in broken:
            raise KeyError(
                f'{img_path} has no proposals in {self.path}, because it '
                f'could not be read: {broken[found[0]]}.')
        some = next(iter(entries), None)
        raise KeyError(
            f'{img_path} is not among the {len(entries)} images of '
            f'{self.path}' + (f', such as {some!r}' if some else '') +
            f'. Make its proposals with {TOOL}, or, if its name there '
            'differs, give the folder that names start from (img_root).')

    def read(self, key: str) -> Proposals:
        """Read the proposals of an image.

        Args:
            key (str): Path of the image relative to the image root, see
                :meth:`find_key`.

        Returns:
            Proposals: Maybe none, best first.

        Raises:
            KeyError: If the image is not in the store.
            ValueError: If the record is damaged or cut off.
        """
        if key not in self.index.entries:
            self.find_key(key, '')
        entry = self.index.entries[key]
        path = self.path / f'{entry.shard}.bin'
        try:
            with open(path, 'rb') as file:
                file.seek(entry.offset)
                record = file.read(entry.size)
        except FileNotFoundError:
            raise FileNotFoundError(f'{path} is missing; it holds the '
                                    f'proposals of {key!r}.') from None
        if len(record) < entry.size:
            raise ValueError(_cut_off(path, key))
        if zlib.crc32(record) != entry.checksum:
            raise ValueError(
                f'{path} is damaged: the proposals of {key!r} (bytes '
                f'{entry.offset} to {entry.offset + entry.size}) do not have '
                f'their checksum. Delete this file and the .jsonl beside it '
                f'and run {TOOL} again; it makes what is missing.')
        return decode_record(record, entry)

    def verify(self) -> None:
        """Read every record; see :meth:`read` for what it raises."""
        for key in self:
            self.read(key)

    def num_bytes(self) -> int:
        """Return the bytes of all files of the store."""
        return sum(f.stat().st_size for f in self.path.iterdir())


def image_key(img_path: Union[str, Path], img_root: Union[str, Path]) -> str:
    """Return the key of an image: its path below a folder, with '/'.

    Args:
        img_path (str or Path): The image file.
        img_root (str or Path): The folder; '' for a path that is relative
            already.

    Returns:
        str: The key.

    Raises:
        ValueError: If the file is not below the folder.
    """
    path, root = Path(img_path), Path(img_root)
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        pass
    try:
        return path.absolute().relative_to(root.absolute()).as_posix()
    except ValueError:
        raise ValueError(f'The image {img_path} is not below {img_root} '
                         '(img_root).') from None


def settings_checksum(settings: dict) -> str:
    """Return the SHA-256 of a generator's settings."""
    text = json.dumps(settings, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path) -> dict:
    """Return the settings of the generator that made a store.

    Args:
        path (Path): The store's folder.

    Returns:
        dict: The settings.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If the manifest is damaged or of another version.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(
            f'{path} is no store of mask proposals: it has no {MANIFEST}. '
            f'Make one with {TOOL}.')
    try:
        content = json.loads(manifest.read_text(encoding='utf-8'))
        version, settings = content['version'], content['settings']
        whole = content['checksum'] == settings_checksum(settings)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{manifest} is damaged ({error}).') from None
    if version != VERSION:
        raise ValueError(f'{manifest} is of version {version!r}; this mmsemi '
                         f'reads version {VERSION}.')
    if not whole:
        raise ValueError(f'{manifest} is damaged: the settings do not have '
                         'their checksum.')
    return settings


def check_settings(path: Path, found: dict, wanted: dict) -> None:
    """Raise ValueError unless a store was made with these settings."""
    wanted = json.loads(json.dumps(wanted))
    if found == wanted:
        return
    differ = [
        f'{name}: {found.get(name)!r} there, {wanted.get(name)!r} here'
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    raise ValueError(
        f'The proposals in {path} were made with other settings '
        f'({"; ".join(differ)}). Use the same settings or another folder.')


@dataclass
class Index:
    """What a store holds.

    Args:
        entries (dict[str, Entry]): By key.
        broken (dict[str, str]): Why an image could not be read, by key.
    """

    entries: Dict[str, Entry] = field(default_factory=dict)
    broken: Dict[str, str] = field(default_factory=dict)


def read_index(path: Path) -> Index:
    """Read the index of a store.

    Args:
        path (Path): The store's folder.

    Returns:
        Index: Half a line at the end of a file, which a killed run leaves,
        is not looked at.

    Raises:
        ValueError: If a file is cut off or damaged.
    """
    index = Index()
    for file in sorted(path.glob('*.jsonl')):
        lines = list(read_lines(file))
        # After the lines: another process may write at the moment.
        records = file.with_suffix('.bin')
        size = records.stat().st_size if records.is_file() else 0
        for key, entry, _ in lines:
            if isinstance(entry, str):
                index.broken[key] = entry
                continue
            if entry.offset + entry.size > size:
                raise ValueError(_cut_off(records, key))
            index.entries.setdefault(key, entry)
    for key in index.entries:
        index.broken.pop(key, None)
    return index


def read_lines(file: Path) -> Iterator[Tuple[str, Union[Entry, str], int]]:
    """Read the whole lines of an index file.

    Args:
        file (Path): The ``.jsonl``.

    Yields:
        tuple: Key, entry (or why the image could not be read), and the
        place in the file where the next line starts.

    Raises:
        ValueError: If a whole line is damaged.
    """
    place = 0
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b'\n'):
            return
        place += len(line)
        try:
            key, *rest = json.loads(line)
            if isinstance(rest[0], str):
                entry, = rest
            else:
                offset, size, checksum, number, (height, width) = rest
                entry = Entry(file.stem, offset, size, checksum, number,
                              (height, width))
        except (ValueError, TypeError, IndexError, KeyError):
            raise ValueError(
                f'{file} is damaged: it has the line {line[:80]!r}. Delete '
                f'it and the .bin beside it and run {TOOL} again; it makes '
                'what is missing.') from None
        yield key, entry, place


def _cut_off(path: Path, key: str) -> str:
    return (f'{path} is cut off: the proposals of {key!r} are not, or not '
            f'whole, in it. Run {TOOL} again with the same settings; it '
            'makes what is missing.')
