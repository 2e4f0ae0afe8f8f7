# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
from functools import partial

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS
from torch import nn

from mmsemi.engine.optimizers import (JointOptimWrapper,
                                      NetworkOptimWrapperConstructor)
from mmsemi.registry import OPTIM_WRAPPER_CONSTRUCTORS

CONSTRUCTOR = 'mmsemi.NetworkOptimWrapperConstructor'


@MODELS.register_module(force=True)
class ToyNetworks(BaseModel):
    """Two linear layers with losses of their own."""

    def __init__(self, num=2, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        torch.manual_seed(0)
        self.networks = nn.ModuleList(nn.Linear(4, 1) for _ in range(num))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if isinstance(inputs, dict):
            inputs = torch.stack(inputs['sup'])
        return {
            f'loss_{i}': (i + 1) * network(inputs).square().mean()
            for i, network in enumerate(self.networks)
        }


def config(**changes):
    return dict(
        dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=.05, momentum=.9),
            constructor=CONSTRUCTOR), **changes)


def steps(model, wrapper, num=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    wrapper.initialize_count_status(model, 0, num)
    for _ in range(num):
        data = dict(inputs=torch.randn(3, 4, generator=generator))
        model.train_step(data, wrapper)
    return [p.detach().clone() for p in model.parameters()]


def test_one_wrapper_per_network():
    model = ToyNetworks(3)
    wrapper = build_optim_wrapper(model, config())
    assert isinstance(wrapper, JointOptimWrapper)
    assert isinstance(wrapper, OptimWrapperDict)
    assert list(wrapper.keys()) == ['networks.0', 'networks.1', 'networks.2']
    for part, network in zip(wrapper.values(), model.networks):
        found = [
            p for group in part.optimizer.param_groups
            for p in group['params']
        ]
        assert {id(p) for p in found} == {id(p) for p in network.parameters()}


def test_paramwise_settings_see_plain_names():
    wrapper = build_optim_wrapper(
        ToyNetworks(),
        config(
            paramwise_cfg=dict(
                custom_keys={'bias': dict(lr_mult=.1)},
                constructor='DefaultOptimWrapperConstructor')))
    for part in wrapper.values():
        rates = [group['lr'] for group in part.optimizer.param_groups]
        assert rates == pytest.approx([.05, .005])


@pytest.mark.parametrize('counts', [1, 2, 3])
def test_equals_one_optimizer(counts):
    model = ToyNetworks()
    single = copy.deepcopy(model)
    one = build_optim_wrapper(
        single,
        config(
            constructor='DefaultOptimWrapperConstructor',
            accumulative_counts=counts))
    two = build_optim_wrapper(model, config(accumulative_counts=counts))
    for a, b in zip(steps(single, one), steps(model, two)):
        assert torch.equal(a, b)


def test_gradients_are_clipped_by_network():
    model = ToyNetworks()
    wrapper = build_optim_wrapper(
        model,
        config(
            optimizer=dict(type='SGD', lr=1.),
            clip_grad=dict(max_norm=1e-3)))
    before = [p.detach().clone() for p in model.parameters()]
    after = steps(model, wrapper, num=1)
    gaps = [(a - b).flatten() for a, b in zip(after, before)]
    moves = torch.stack([torch.cat(gaps[:2]).norm(),
                         torch.cat(gaps[2:]).norm()])
    assert torch.allclose(moves, torch.full((2, ), 1e-3), rtol=1e-3)


def test_synchronizes_only_before_a_step():
    model = ToyNetworks()
    wrapper = build_optim_wrapper(model, config(accumulative_counts=2))
    wrapper.initialize_count_status(model, 0, 5)
    seen = []
    for _ in range(5):
        seen.append(wrapper.should_sync())
        with wrapper.optim_context(model):
            loss = sum(model(torch.ones(1, 4)).values())
        wrapper.update_params(loss)
        assert wrapper.should_update() == seen[-1]
    assert seen == [False, True, False, True, True]


@pytest.fixture
def half_precision_on_cpu(monkeypatch):
    """Let mmengine's wrapper for half precision work without a GPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available',
                        lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler',
                        partial(torch.amp.GradScaler, 'cpu'))


def test_half_precision(half_precision_on_cpu):
    """All share one scale, which changes once a step."""
    settings = dict(
        type='AmpOptimWrapper',
        loss_scale=dict(init_scale=8., growth_interval=2),
        dtype='bfloat16',
        clip_grad=dict(max_norm=100.))
    model = ToyNetworks()
    single = copy.deepcopy(model)
    one = build_optim_wrapper(
        single,
        config(constructor='DefaultOptimWrapperConstructor', **settings))
    two = build_optim_wrapper(model, config(**settings))
    scalers = {id(part.loss_scaler) for part in two.values()}
    assert scalers == {id(two.loss_scaler)}
    with two.optim_context(model):
        assert model.networks[0](torch.ones(1, 4)).dtype == torch.bfloat16
    for a, b in zip(steps(single, one), steps(model, two)):
        assert torch.allclose(a, b)
    # Five steps, of which the second and the fourth double it.
    assert one.loss_scaler.get_scale() == two.loss_scaler.get_scale() == 32.


def test_overflow_skips_the_network_alone(half_precision_on_cpu):
    model = ToyNetworks()
    wrapper = build_optim_wrapper(
        model,
        config(type='AmpOptimWrapper', loss_scale=dict(init_scale=8.)))
    before = [p.detach().clone() for p in model.parameters()]
    losses = model(torch.ones(1, 4))
    wrapper.update_params(losses['loss_0'] +
                          losses['loss_1'] * float('inf'))
    after = list(model.parameters())
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])
    assert wrapper.loss_scaler.get_scale() == 4.


def test_state_dict(half_precision_on_cpu):
    for kind in ('OptimWrapper', 'AmpOptimWrapper'):
        model = ToyNetworks()
        wrapper = build_optim_wrapper(model, config(type=kind))
        steps(model, wrapper, 3)
        again = build_optim_wrapper(
            copy.deepcopy(model), config(type=kind))
        again.load_state_dict(copy.deepcopy(wrapper.state_dict()))
        for a, b in zip(again.values(), wrapper.values()):
            for c, d in zip(a.optimizer.state.values(),
                            b.optimizer.state.values()):
                assert torch.equal(c['momentum_buffer'], d['momentum_buffer'])


def test_runner_trains_with_schedulers_and_resumes(runner_factory, tmp_path):
    settings = dict(
        model=dict(
            type='ToyNetworks',
            data_preprocessor=dict(type='BaseDataPreprocessor')),
        optim_wrapper=config(),
        custom_hooks=[dict(type='mmsemi.TrainingCheckHook')],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=2),
            checkpoint=dict(
                type='CheckpointHook', interval=4, by_epoch=False)))
    runner = runner_factory(work_dir=tmp_path / 'whole', **settings)
    runner.train()
    for part in runner.optim_wrapper.values():
        assert part.optimizer.param_groups[0]['lr'] == pytest.approx(.05)
    scalar = runner.message_hub.get_scalar('train/networks.1.lr')
    assert scalar.data[0][0] == pytest.approx(.025)
    assert set(runner.param_schedulers) == {'networks.0', 'networks.1'}

    resumed = runner_factory(
        work_dir=tmp_path / 'resumed',
        resume=True,
        load_from=str(tmp_path / 'whole' / 'iter_4.pth'),
        **copy.deepcopy(settings))
    resumed.train()
    assert resumed.iter == 8
    for name, part in resumed.optim_wrapper.items():
        assert part.get_lr() == runner.optim_wrapper[name].get_lr()


def test_wrapped_models():

    class Wrapped(MMDistributedDataParallel):

        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    wrapper = build_optim_wrapper(Wrapped(ToyNetworks()), config())
    assert len(wrapper) == 2


def test_model_without_networks_is_refused():
    with pytest.raises(TypeError, match='mmsemi.CPS, but Linear has none'):
        build_optim_wrapper(nn.Linear(1, 1), config())


def test_weights_outside_are_not_forgotten():
    model = ToyNetworks()
    model.projector = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="leave out 2 .*'projector.weight'"):
        build_optim_wrapper(model, config())


def test_config_must_be_a_dict():
    with pytest.raises(TypeError, match='must be a dict, got list'):
        NetworkOptimWrapperConstructor([])


def test_unlike_wrappers_are_refused():

    def wrapper(counts):
        return OptimWrapper(
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=.1),
            accumulative_counts=counts)

    with pytest.raises(ValueError, match="'OptimWrapper', 1.*'OptimWrap"):
        JointOptimWrapper(a=wrapper(1), b=wrapper(2))
    with pytest.raises(ValueError, match='got none'):
        JointOptimWrapper()


def test_is_registered_for_mmengine():
    assert OPTIM_WRAPPER_CONSTRUCTORS.get(
        CONSTRUCTOR) is NetworkOptimWrapperConstructor
