# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import signal

import pytest

from mmsemi.datasets.samplers import multi_source_sampler as module


@pytest.fixture(autouse=True)
def no_hang():

    def stop(*_):
        raise TimeoutError('The test hangs.')

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 120)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def ranks(monkeypatch):

    def be(rank, world_size):
        monkeypatch.setattr(module, 'get_dist_info', lambda:
                            (rank, world_size))

    return be


@pytest.fixture
def warnings_given(monkeypatch):
    given = []
    monkeypatch.setattr(module, 'print_log',
                        lambda text, **kwargs: given.append(text))
    return given
