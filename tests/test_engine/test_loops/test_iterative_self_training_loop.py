# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""GIST and RIST: what each stage learns from, and what goes on."""
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope

BASE = dict(
    type='mmsemi.IterativeSelfTrainingLoop',
    round_iters=6,
    stage_iters=4,
    stages=2)
GIST = dict(BASE, schedule='greedy', beam=2, held_out_fraction=.34)
RIST = dict(BASE, schedule='random', stages=3, seed=0)


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


class SeenHook(Hook):
    """Note the masks of every batch and the weights rounds start from."""

    priority = 'HIGHEST'

    def __init__(self):
        self.masks, self.first = {}, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        loop = runner.train_loop
        self.masks.setdefault(loop.round, set()).update(
            sample.seg_map_path for sample in data_batch['data_samples'])
        if loop._step == 0:
            weight = runner.model.decode_head.conv_seg.weight
            self.first[loop.round] = weight.detach().clone()


@pytest.fixture
def train(tiny_rounds, boxes_root, tmp_path):
    """callable: Train; return runner, what was seen and candidates."""

    def run(loop, scores=None):
        runner = tiny_rounds.make_runner(boxes_root, tmp_path, loop)
        seen, stored = SeenHook(), []
        runner.register_hook(seen)
        train_loop = runner.build_train_loop(runner._train_loop)
        runner._train_loop = train_loop
        if scores is not None:
            given = iter(scores)
            train_loop._held_out_score = lambda: next(given)
        store = train_loop._store
        train_loop._store = lambda **lists: (stored.append(lists),
                                             store(**lists))
        runner.train()
        return runner, seen, stored

    return run


def folders(paths, work_dir):
    """Name where masks come from: 'ann' or the round that made them."""
    return {
        path[len(work_dir) + 1:].split('/')[1]
        if path.startswith(work_dir) else 'ann'
        for path in paths
    }


def weights_of(work_dir, name):
    checkpoint = torch.load(work_dir / name, weights_only=False)
    return checkpoint['state_dict']['decode_head.conv_seg.weight']


def test_greedy_keeps_the_best_and_ends_with_it(train, tmp_path):
    runner, seen, stored = train(GIST, [.1, .2, .3, .5, .2, .4, .3])
    root = str(tmp_path)
    assert [folders(seen.masks[k], root) for k in range(7)] == [
        # The stage from entry 0, then from the two that it left: round 2,
        # which learned from pseudo-labels and made new ones, and round 1.
        {'ann'},
        {'ann'},
        {'round_0'},
        {'ann'},
        {'round_2'},
        {'ann'},
        {'round_0'}
    ]
    beams = [lists['beam'] for lists in stored if 'beam' in lists]
    assert [[(c.unit, c.labels, c.history) for c in beam] for beam in beams
            ] == [
                [(0, 0, ())],
                [(2, 2, ('pseudo', )), (1, 0, ('human', ))],
                [(3, 2, ('pseudo', 'human')), (5, 0, ('human', 'human'))],
            ]
    assert torch.equal(seen.first[1], seen.first[2])
    assert torch.equal(seen.first[3], seen.first[4])
    assert torch.equal(seen.first[5], seen.first[6])
    assert not torch.equal(seen.first[3], seen.first[5])
    # Round 3 ended with iteration 18.
    assert torch.equal(
        weights_of(tmp_path, 'iter_30.pth'),
        weights_of(tmp_path, 'iter_18.pth'))
    files = {p.parent.name for p in tmp_path.rglob('weights.pth')}
    assert files == {'round_0', 'round_1', 'round_2', 'round_3', 'round_5'}


def test_held_out_images_are_never_trained_on(train):
    runner, seen, _ = train(dict(GIST, beam=1, stages=1))
    loop = runner.train_loop
    held_out = loop.state['held_out']
    assert len(held_out) == 2
    kept = {loop.labeled.get_data_info(i)['seg_map_path'] for i in held_out}
    trained = set().union(*seen.masks.values())
    assert not kept & trained
    assert len([path for path in trained if '/ann/' in path]) == 4
    score = loop.state['beam'][0]['score']
    assert loop._held_out_score() == score


def test_closing_stage_goes_on_from_the_best_with_all_images(train, tmp_path):
    loop = dict(GIST, beam=1, stages=1, closing_iters=5)
    runner, seen, stored = train(loop, [.1, .3, .2])
    loop = runner.train_loop
    # Rounds end with iterations 6, 10, 14 and 19; the second was the best.
    assert runner.iter == 19
    assert loop.title(3) == 'round 4 of 4 (closing stage, human labels)'
    assert torch.equal(seen.first[3], weights_of(tmp_path, 'iter_10.pth'))
    kept = {
        loop.labeled.get_data_info(i)['seg_map_path']
        for i in loop.state['held_out']
    }
    before = set().union(*(seen.masks[number] for number in range(3)))
    assert not kept & before
    assert kept < seen.masks[3]
    assert len(seen.masks[3]) == len(loop.labeled)
    # It is what the training ends with, and needs no new pseudo-labels.
    assert not torch.equal(
        weights_of(tmp_path, 'iter_19.pth'),
        weights_of(tmp_path, 'iter_10.pth'))
    assert [lists['beam'][0].labels for lists in stored
            if 'beam' in lists] == [0, 0]


def test_random_follows_its_seed(train, tmp_path):
    runner, seen, stored = train(RIST)
    assert runner.train_loop.state['choices'] == ['human', 'pseudo', 'human']
    assert [folders(seen.masks[k], str(tmp_path)) for k in range(4)
            ] == [{'ann'}, {'ann'}, {'round_0'}, {'ann'}]
    assert [lists['beam'][0].labels for lists in stored] == [0, 0, 2, 2]
    # Goes on from the weights before.
    for number, name in ((1, 'iter_6.pth'), (2, 'iter_10.pth')):
        assert torch.equal(seen.first[number], weights_of(tmp_path, name))


def test_random_closes_with_human_labels(train, tmp_path):
    runner, seen, stored = train(dict(RIST, closing_iters=5))
    # Rounds end with iterations 6, 10, 14, 18 and 23.
    assert runner.iter == 23
    assert folders(seen.masks[4], str(tmp_path)) == {'ann'}
    assert torch.equal(seen.first[4], weights_of(tmp_path, 'iter_18.pth'))
    # Labels that nothing would learn from are not made.
    assert [lists['beam'][0].labels for lists in stored] == [0, 0, 2, 2]


def test_labels_after_every_stage(train, tmp_path):
    _, seen, stored = train(dict(RIST, relabel='every'))
    assert folders(seen.masks[2], str(tmp_path)) == {'round_1'}
    assert [lists['beam'][0].labels for lists in stored] == [0, 1, 2, 2]


def test_fixed_mixes_and_can_start_anew(train, tmp_path):
    loop = dict(
        BASE, schedule='fixed', human_ratio=.25, reset_weights=True, stages=1)
    runner, seen, _ = train(loop)
    assert folders(seen.masks[1], str(tmp_path)) == {'ann', 'round_0'}
    assert runner.train_dataloader.sampler.num_per_source == [1, 3]
    assert not torch.equal(seen.first[1], weights_of(tmp_path, 'iter_6.pth'))


@pytest.mark.parametrize('fields, message', [
    (dict(schedule='clever'), "schedule='clever'"),
    (dict(stages=0), 'stages=0'),
    (dict(round_iters=2.5), 'round_iters=2.5'),
    (dict(stage_iters=-1), 'stage_iters=-1'),
    (dict(beam=0), 'beam=0'),
    (dict(schedule='random', beam=2), 'has a beam'),
    (dict(held_out_fraction=.05), 'labelled images are 0'),
    (dict(held_out_fraction=.95), 'labelled images are 6'),
    (dict(closing_iters=-1), 'closing_iters=-1'),
    (dict(human_prob=1.), 'human_prob=1.0'),
    (dict(human_ratio=0), 'human_ratio=0'),
    (dict(schedule='fixed', beam=1, human_ratio=.9), 'source_ratio'),
    (dict(relabel='never'), "relabel='never'"),
    (dict(reset_weights=None), 'reset_weights=None'),
    (dict(seed=-1), 'seed=-1'),
    (dict(seed=2**32), 'below'),
])
def test_bad_fields_are_refused_before_training(tiny_rounds, boxes_root,
                                                tmp_path, fields, message):
    runner = tiny_rounds.make_runner(boxes_root, tmp_path, {**GIST, **fields})
    with pytest.raises(ValueError, match=message):
        runner.build_train_loop(runner._train_loop)


def test_a_schedule_that_begins_after_a_stage_is_refused(
        tiny_rounds, boxes_root, tmp_path):
    runner = tiny_rounds.make_runner(
        boxes_root,
        tmp_path,
        GIST,
        param_scheduler=dict(type='PolyLR', begin=5, by_epoch=False))
    with pytest.raises(ValueError, match='begin=5, but a round ends after 4'):
        runner.build_train_loop(runner._train_loop)
