# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope

from mmsemi.apis.refinement_report import RefinementJudge, RefinementRow
from mmsemi.datasets.digits import make_digits
from mmsemi.datasets.proposal_writer import ProposalWriter
from mmsemi.datasets.refer_files import read_annotations
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import DenseTargets

ROOT = Path(__file__).resolve().parents[2]
NUM = 12


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Path:
    """Write digits, proposals, a config and an untrained checkpoint."""
    work = tmp_path_factory.mktemp('work')
    digits = make_digits(
        work / 'digits', num_train=NUM, num_val=3, percents=(50, ),
        referring=True)
    masks = np.zeros((2, 64, 64), bool)
    # Of every image: nearly all of it, and nothing of interest.
    masks[0, 1:] = True
    masks[1, :2, :2] = True
    with ProposalWriter(work / 'store', dict(backend='two')) as writer:
        for i in range(NUM):
            writer.add(f'train/{i:06d}.png', masks)
    config = Config.fromfile(
        ROOT / 'configs/semires/semires_lavt-swin_1xb16-3k_digits-2p.py')
    lists = 'splits/referring.seed0-fold0@50'
    sources = config.train_dataloader.dataset.datasets
    for source, end in zip(sources, ('', '-unlabeled')):
        source.image_list = f'{lists}{end}.txt'
        source.data_root = str(digits)
    sources[1].pipeline[-1].unsup_teacher[0].store = str(work / 'store')
    config.val_dataloader.dataset.data_root = str(digits)
    config.test_dataloader = config.val_dataloader
    config.val_dataloader.batch_size = 5
    config.dump(work / 'semi.py')
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.step.fill_(2000)
    torch.save(dict(state_dict=model.state_dict()), work / 'semi.pth')
    return work


def of_interest(work: Path) -> int:
    """Return the number of references of unlabelled scenes."""
    data = read_annotations(work / 'digits/annotations/referring.json')
    names = (work / 'digits/splits/referring.seed0-fold0@50-unlabeled.txt'
             ).read_text().split()
    images = {i['image_id'] for i in data['images'] if i['file_name'] in names}
    return sum(ref['image_id'] in images for ref in data['refs'])


def test_numbers_by_hand():
    row = RefinementRow('iom')
    truth = torch.tensor([[[1, 1, 0, 0]], [[1, 1, 255, 0]]])
    before = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 0]]]).bool()
    after = torch.tensor([[[1, 1, 1, 0]], [[1, 1, 1, 0]]]).bool()
    row.add(before, after, truth, torch.tensor([True, False]))
    row.add(before[:1], before[:1] & False, truth[:1], torch.tensor([True]))
    numbers = row.numbers()
    ious = {k: numbers.pop(k) for k in list(numbers) if 'iou' in k}
    assert numbers == dict(
        name='iom',
        references=3,
        better=1,
        worse=1,
        same=0,
        unmatched=1,
        precision=.5)
    # Before 1/2, 2/2 and 1/2, after 2/3, 2/2 and 0/2.
    assert ious == pytest.approx(
        dict(
            mean_iou_before=100 * 2 / 3,
            overall_iou_before=100 * 4 / 6,
            mean_iou_after=100 * (2 / 3 + 1) / 3,
            overall_iou_after=100 * 4 / 7))
    empty = RefinementRow('x')
    empty.add(before[:1], before[:1], truth[:1], torch.tensor([False]))
    assert empty.numbers()['precision'] is None


def test_judge_sees_hidden_masks_in_the_view(work, monkeypatch):
    judge = RefinementJudge(
        str(work / 'semi.py'),
        work / 'semi.pth',
        strategies=('iom', ),
        device='cpu')

    def right(inputs, samples):
        """Label as the hidden masks say."""
        label = torch.stack([s.gt_sem_seg.data[0] for s in samples]).long()
        logits = 9. * torch.stack([1 - label, label], 1).float()
        valid = torch.ones_like(label, dtype=torch.bool)
        return DenseTargets.from_logits(logits, valid, True).unbind()

    monkeypatch.setattr(judge, '_labels', right)
    config, iom = (row.numbers() for row in judge.judge(progress=False))
    total = of_interest(work)
    assert (config['name'], iom['name']) == ('config', 'iom')
    # CPI-U takes what covers the digit, which is all of the image.
    assert config['worse'] == config['references'] == total
    assert config['mean_iou_before'] == 100
    assert 0 < config['mean_iou_after'] < 15
    assert iom['unmatched'] == total and iom['mean_iou_after'] == 100


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):

    def run_tool(*options):
        tool = str(ROOT / 'tools/analysis/refinement_report.py')
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, options)])
        runpy.run_path(tool, run_name='__main__')
        return capsys.readouterr().out

    return run_tool


def test_tool_writes_table_and_numbers(work, run, tmp_path):
    out = run(work / 'semi.py', work / 'semi.pth', '--which', 'student',
              '--strategies', 'iom', 'cpi', '--max-refs', 3, '--device',
              'cpu', '--quiet')
    report = json.loads(
        (tmp_path / 'work_dirs/semi/refinement.json').read_text())
    assert report['labelled_by'] == 'student'
    names = [row['name'] for row in report['pipelines']]
    assert names == ['config', 'iom', 'cpi']
    assert {row['references'] for row in report['pipelines']} == {3}
    for row in report['pipelines']:
        counted = [row[k] for k in ('better', 'worse', 'same', 'unmatched')]
        assert sum(counted) == 3
        assert f'| {row["name"]} | 3 |' in out
    assert out.splitlines()[-1] == 'Written: work_dirs/semi/refinement.json'


@pytest.mark.parametrize('options, message', [
    (['--cfg-options', 'model.pseudo_label_pipeline=[]'],
     'no strategy is given'),
    (['--max-refs', '0'], 'max_refs=0'),
    (['--store', 'nowhere'], 'nowhere'),
])
def test_what_cannot_be_reported_is_said(work, run, capsys, options, message):
    with pytest.raises(SystemExit) as error:
        run(work / 'semi.py', work / 'semi.pth', '--device', 'cpu', *options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_other_models_are_refused(work, run, capsys):
    plain = ROOT / 'configs/lavt/lavt_swin_1xb8-3k_digits-2p.py'
    with pytest.raises(SystemExit):
        run(plain, work / 'semi.pth', '--device', 'cpu')
    assert 'labeled=False' in capsys.readouterr().err
