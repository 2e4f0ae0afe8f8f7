# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Packaging; everything static is in ``setup.cfg``."""
import shutil
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent

# mmengine reads `_base_ = 'mmsemi::...'` from these in `mmsemi/.mim`.
MIM_FILES = ('configs', 'tools', 'model-index.yml', 'constraints.txt')


def provide_mim_files() -> None:
    """Make ``mmsemi/.mim`` hold what installed configs and tools need.

    The repository has links there, which an editable install follows and
    which become files in an sdist or wheel. Git leaves text files in their
    place where it cannot link (Windows), so links that lead nowhere are made
    anew, or become copies where linking fails.
    """
    folder = ROOT / 'mmsemi' / '.mim'
    folder.mkdir(exist_ok=True)
    for name in MIM_FILES:
        source, target = ROOT / name, folder / name
        if target.is_symlink() and target.exists():
            continue
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        try:
            target.symlink_to(
                Path('..', '..', name), target_is_directory=source.is_dir())
        except OSError:
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)


if __name__ == '__main__':
    provide_mim_files()
    setup()
