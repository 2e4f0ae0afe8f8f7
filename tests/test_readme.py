# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What README and docs show is right."""
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from mmengine.config import Config

from mmsemi.apis import check_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def example_config(page: str, after: str) -> str:
    """Return the first Python block of a page after some words."""
    text = (ROOT / page).read_text()
    block = re.search(r'^( *)```python\n(.*?)^\1```',
                      text[text.index(after):], re.DOTALL | re.MULTILINE)
    return textwrap.dedent(block[2])


@pytest.mark.parametrize('page, after, model', [
    ('README.md', '## Make your own mmdet config semi-supervised',
     'SemiInstanceSegmentor'),
    ('docs/own_data.md', 'Write a config', 'SemiInstanceSegmentor'),
    ('README.md', '## Semantic segmentation', 'FixMatch'),
    ('docs/configs.md', '## Semantic models', 'FixMatch'),
])
def test_example_config_is_right(page, after, model, tmp_path):
    code = example_config(page, after)
    path = tmp_path / 'my_config.py'
    path.write_text(code)
    findings = check_config(path, load_data=False)
    assert [f for f in findings if f.level != 'note'] == []
    # Bare types are the library's, not mmsemi's: see compat.
    cfg = Config.fromfile(path)
    assert '_scope_' not in cfg.train_dataloader
    assert cfg.model.type == f'mmsemi.{model}'


def test_own_config_takes_at_most_15_lines():
    code = example_config('README.md',
                          '## Make your own mmdet config semi-supervised')
    assert len(code.splitlines()) <= 15


@pytest.mark.parametrize('page', PAGES, ids=[page.name for page in PAGES])
def test_links_and_files_exist(page):
    text = page.read_text()
    for link in re.findall(r'\]\((?!http)([^)#]+)', text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r'(?:python|bash) (tools/[\w/]+\.\w+)', text):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r'configs/\w+/\S+\.py', text):
        assert (ROOT / path).is_file(), path


def test_stages_in_the_docs_are_all_there():
    import mmsemi.pseudo_labels as rooms
    stages = {
        name
        for name in rooms.__all__
        if isinstance(getattr(rooms, name), type)
        and issubclass(getattr(rooms, name), rooms.PseudoLabelStage)
        and not inspect.isabstract(getattr(rooms, name))
    }
    table = (ROOT / 'docs/concepts.md').read_text()
    assert set(re.findall(r'^\| `(\w+)\(', table, re.MULTILINE)) == stages
