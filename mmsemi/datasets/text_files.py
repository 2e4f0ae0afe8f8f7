# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Write text files whole or not at all, and never over other content."""
import os
import tempfile
from pathlib import Path
from typing import Mapping


def write_texts(files: Mapping[Path, str], overwrite: bool = False) -> None:
    """Write files, each of which appears whole or not at all.

    A file that already has this very content is left alone. Nothing is
    written if one of the files must not be.

    Args:
        files (Mapping[Path, str]): Content by path; folders are created
            where missing.
        overwrite (bool): Whether files with other content may be replaced.
            Defaults to False.

    Raises:
        FileExistsError: If a file with other content is in the way.
    """
    todo = []
    for path, text in files.items():
        if path.exists():
            if path.read_bytes() == text.encode('utf-8'):
                continue
            if not overwrite:
                raise FileExistsError(
                    f'{path} exists with other content. Remove it, choose '
                    'another folder or pass overwrite=True (--overwrite).')
        todo.append((path, text))
    for path, text in todo:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomic(path, text)


def _write_atomic(path: Path, text: str) -> None:
    handle, tmp = tempfile.mkstemp(
        prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(text.encode('utf-8'))
        # mkstemp makes files that only the owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(tmp, 0o666 & ~umask)
        os.replace(tmp, path)
    except BaseException:
        os.unlink(tmp)
        raise


def lines_text(lines: list) -> str:
    """Return a list file's content: one entry per line, none blank.

    Args:
        lines (list[str]): Entries. An empty list gives an empty file.

    Returns:
        str: Text that ends with a newline.
    """
    return ''.join(f'{line}\n' for line in lines)
