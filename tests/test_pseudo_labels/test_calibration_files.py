# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pickle

import pytest
import torch

from mmsemi.pseudo_labels import (CalibrateScores, load_calibration,
                                  save_calibration)

MODES = ('scalar', 'bin', 'platt', 'temperature')


def stage(num_classes=2, **settings):
    return CalibrateScores(dict(num_classes=num_classes, **settings))


def predictions(seed, number=40):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(number, generator=generator)
    labels = torch.randint(0, 2, (number, ), generator=generator)
    return scores, labels, torch.rand(number, generator=generator) < scores


@pytest.mark.parametrize('mode', MODES)
def test_two_parts_are_fitted_as_one(mode, tmp_path):
    """Two teachers, each on its half: the sum is that of all predictions."""
    halves = predictions(0), predictions(1, 25)
    pooled = stage()
    alone = [stage(), stage()]
    for part, single in zip(halves, alone):
        pooled.calibrator.update(*part)
        single.calibrator.update(*part)
        single.calibrator.fit()
    pooled.calibrator.fit()
    save_calibration([pooled], tmp_path / 'new' / 'file.pth')
    loaded = stage(mode=mode)
    load_calibration([loaded], tmp_path / 'new' / 'file.pth')
    calibrator = loaded.calibrator
    assert bool(calibrator.active)
    # Exactly: sums of statistics are not rounded.
    assert calibrator.statistics.equal(alone[0].calibrator.statistics +
                                       alone[1].calibrator.statistics)
    assert calibrator.statistics[..., 0].sum() == 65
    joined = stage(mode=mode).calibrator
    joined.update(*(torch.cat(pair) for pair in zip(*halves)))
    joined.fit()
    assert calibrator.params.equal(joined.params)
    # It takes the place of what was counted before.
    load_calibration([loaded], tmp_path / 'new' / 'file.pth')
    assert calibrator.statistics[..., 0].sum() == 65


def test_groups_come_along(tmp_path):
    saved = stage(groups=[1, 0])
    save_calibration([saved], tmp_path / 'a.pth')
    free, own = stage(), stage(groups=[0, 1])
    load_calibration([free], tmp_path / 'a.pth')
    load_calibration([own], tmp_path / 'a.pth')
    assert free.calibrator.groups.tolist() == [1, 0]
    assert own.calibrator.groups.tolist() == [0, 1]


def test_stages_keep_their_order(tmp_path):
    pair = stage(), stage(3)
    for i, one in enumerate(pair):
        one.calibrator.update(
            torch.tensor([.5]), torch.tensor([i]), torch.tensor([1.]))
        one.calibrator.fit()
    save_calibration(pair, tmp_path / 'a.pth')
    again = stage(), stage(3)
    load_calibration(again, tmp_path / 'a.pth')
    for one, other in zip(pair, again):
        assert other.calibrator.statistics.equal(one.calibrator.statistics)


def test_files_of_other_stages(tmp_path):
    save_calibration([stage()], tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='of 1 calibration stages.* has 2'):
        load_calibration([stage(), stage()], tmp_path / 'a.pth')
    for other, message in ((stage(3), 'num_classes=3'),
                           (stage(num_bins=5), 'num_bins=5')):
        with pytest.raises(ValueError, match=message):
            load_calibration([other], tmp_path / 'a.pth')
        assert not bool(other.calibrator.active)


@pytest.mark.parametrize('values', [(-1, 0, 0), (1, 2, 0), (1, 0, 2),
                                    (1, float('nan'), 0)])
def test_impossible_statistics(values, tmp_path):
    broken = stage()
    broken.calibrator.statistics[0, 0] = torch.tensor(values).double()
    save_calibration([broken], tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='no predictions can'):
        load_calibration([stage()], tmp_path / 'a.pth')


def test_nothing_in_a_file_is_run(tmp_path):

    class Trap:

        def __reduce__(self):
            return (tmp_path / 'ran').mkdir, ()

    torch.save(dict(calibration=[Trap()]), tmp_path / 'trap.pth')
    (tmp_path / 'plain.pkl').write_bytes(pickle.dumps(Trap()))
    (tmp_path / 'text.pth').write_text('no')
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    torch.save([1], tmp_path / 'list.pth')
    for name in ('trap.pth', 'plain.pkl', 'text.pth', 'weights.pth',
                 'list.pth'):
        with pytest.raises(ValueError, match='is no calibration file'):
            load_calibration([stage()], tmp_path / name)
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(FileNotFoundError, match='gone.pth'):
        load_calibration([stage()], tmp_path / 'gone.pth')
