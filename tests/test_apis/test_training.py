# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import zipfile

import pytest
from mmengine.config import Config

from mmsemi.apis import distributed, training
from mmsemi.apis.checkpoints import check_teacher, latest_checkpoint
from mmsemi.apis.distributed import check_launcher, use_cpu_backend
from mmsemi.apis.training import prepare_testing, prepare_training
from mmsemi.methods import TeacherSettings


def config(**more) -> Config:
    return Config(
        dict(
            model=dict(type='mmsemi.X', segmentor=dict()),
            train_dataloader=dict(),
            train_cfg=dict(max_iters=1),
            optim_wrapper=dict(type='OptimWrapper'),
            **more))


def checkpoint(path):
    """Write something that looks like a whole checkpoint."""
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('data', b'weights')
    return str(path)


def test_defaults():
    cfg = prepare_training(config())
    assert cfg.work_dir == 'work_dirs/config'
    assert cfg.launcher == 'none'
    assert 'resume' not in cfg and 'randomness' not in cfg
    assert 'env_cfg' not in cfg


def test_work_dir_and_seed():
    cfg = config(work_dir='theirs', randomness=dict(deterministic=True))
    assert prepare_training(cfg).work_dir == 'theirs'
    prepared = prepare_training(cfg, work_dir='mine', seed=7)
    assert prepared.work_dir == 'mine'
    assert prepared.randomness == dict(deterministic=True, seed=7)
    assert cfg.work_dir == 'theirs'


@pytest.mark.parametrize('field', [
    'model', 'train_dataloader', 'train_cfg', 'optim_wrapper'
])
def test_what_training_needs(field):
    cfg = config()
    cfg[field] = None
    with pytest.raises(ValueError, match=f'has no {field}'):
        prepare_training(cfg)


def test_amp_needs_a_gpu_and_a_plain_wrapper(monkeypatch):
    monkeypatch.setattr(training, 'get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match='--amp needs a GPU'):
        prepare_training(config(), amp=True)
    monkeypatch.setattr(training, 'get_device', lambda: 'cuda')
    assert prepare_training(
        config(), amp=True).optim_wrapper == dict(
            type='AmpOptimWrapper', loss_scale='dynamic')
    cfg = config()
    cfg.optim_wrapper.type = 'mmengine.DeepSpeedOptimWrapper'
    with pytest.raises(ValueError, match='DeepSpeedOptimWrapper'):
        prepare_training(cfg, amp=True)


def test_auto_scale_lr():
    cfg = prepare_training(
        config(auto_scale_lr=dict(base_batch_size=16)), auto_scale_lr=True)
    assert cfg.auto_scale_lr == dict(base_batch_size=16, enable=True)


def test_resume_from_a_file(tmp_path):
    path = checkpoint(tmp_path / 'a.pth')
    cfg = prepare_training(config(), resume=path)
    assert (cfg.resume, cfg.load_from) == (True, path)
    with pytest.raises(FileNotFoundError, match='b.pth'):
        prepare_training(config(), resume=tmp_path / 'b.pth')


def test_first_start_with_resume_keeps_load_from(tmp_path):
    path = checkpoint(tmp_path / 'a.pth')
    cfg = config(load_from=path, work_dir=str(tmp_path / 'w'))
    prepared = prepare_training(cfg, resume=True)
    assert (prepared.resume, prepared.load_from) == (False, path)
    (tmp_path / 'w').mkdir()
    latest = checkpoint(tmp_path / 'w' / 'iter_2.pth')
    prepared = prepare_training(cfg, resume='auto')
    assert (prepared.resume, prepared.load_from) == (True, latest)
    cfg = config(resume=True, work_dir=str(tmp_path / 'w'))
    assert prepare_training(cfg).load_from == latest


def test_latest_checkpoint_is_a_whole_one(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    checkpoint(tmp_path / 'best_coco_segm_mAP_iter_20.pth')
    assert latest_checkpoint(tmp_path) is None
    older = checkpoint(tmp_path / 'iter_9.pth')
    newer = checkpoint(tmp_path / 'iter_10.pth')
    assert latest_checkpoint(tmp_path) == newer
    # Killed while it was written.
    (tmp_path / 'iter_11.pth').write_bytes(b'PK\x03\x04half')
    assert latest_checkpoint(tmp_path) == newer
    # What the training noted counts most, in a moved folder too.
    note = tmp_path / 'last_checkpoint'
    note.write_text(older)
    assert latest_checkpoint(tmp_path) == older
    note.write_text('/once/here/iter_9.pth')
    assert latest_checkpoint(tmp_path) == older
    note.write_text('')
    assert latest_checkpoint(tmp_path) == newer


def test_processes_must_resume_from_one_checkpoint(monkeypatch):
    cfg = config(resume=True, load_from='w/iter_2.pth', work_dir='w')
    seen = []

    def gather(start):
        seen.append(start)
        return [start, None]

    monkeypatch.setattr(training, 'all_gather_object', gather)
    with pytest.raises(
            RuntimeError,
            match=r'in w to resume from \(process 0: w/iter_2.pth, process 1: '
            r'none\)'):
        training._check_same_start(cfg)
    # What a first start loads is no matter of the work dir.
    training._check_same_start(config(load_from='x.pth'))
    assert seen == ['w/iter_2.pth', None]


def test_testing_needs_its_parts(tmp_path):
    with pytest.raises(ValueError, match='has no test_dataloader'):
        prepare_testing(config(), tmp_path / 'a.pth')


@pytest.mark.parametrize('settings, step, empty', [
    (dict(burn_in_steps=3), 2, True),
    (dict(burn_in_steps=3), 3, False),
    (dict(burn_in_steps=3, average_burn_in=True), 2, False),
    (dict(burn_in_steps=3, mode='frozen'), 2, False),
    (dict(), 0, False),
])
def test_check_teacher(settings, step, empty):
    settings = TeacherSettings(**settings)
    if empty:
        with pytest.raises(ValueError, match='of optimizer step 2'):
            check_teacher(settings, step)
    else:
        check_teacher(settings, step)


@pytest.mark.parametrize('launcher, missing', [
    ('pytorch', 'RANK, WORLD_SIZE, LOCAL_RANK'),
    ('slurm', 'SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID'),
    ('mpi', 'OMPI_COMM_WORLD_RANK'),
])
def test_launcher_must_have_started_the_process(monkeypatch, launcher,
                                                missing):
    for name in missing.split(', '):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=missing):
        check_launcher(launcher)
    with pytest.raises(ValueError, match="launcher='ssh'; allowed are none"):
        check_launcher('ssh')


def test_cpu_backend(monkeypatch):
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    cfg = config(
        launcher='pytorch',
        find_unused_parameters=True,
        env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=9)))
    use_cpu_backend(cfg)
    assert cfg.env_cfg.dist_cfg == dict(backend='gloo', timeout=9)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None)
    alone = config(launcher='none')
    use_cpu_backend(alone)
    assert 'model_wrapper_cfg' not in alone
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    with_gpu = config(launcher='pytorch')
    use_cpu_backend(with_gpu)
    assert 'env_cfg' not in with_gpu
