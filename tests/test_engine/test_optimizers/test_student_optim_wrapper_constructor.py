# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmsemi.engine.optimizers import StudentOptimWrapperConstructor
from mmsemi.methods import TeacherStudent

LAYER_DECAY = dict(decay_rate=0.5, decay_type='layer_wise', num_layers=6)


class ToyConvNeXt(nn.Module):
    """The parameter names of a ConvNeXt with one block per stage.

    mmdet's constructor looks at names and at the class name alone.
    """

    def __init__(self):
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(2, 2, 1) for _ in range(4))
        self.stages = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(2, 2, 1)]) for _ in range(4))


class ToyModel(nn.Module):

    def __init__(self):
        super().__init__()
        self.backbone = ToyConvNeXt()
        self.head = nn.Linear(2, 2)
        # Frozen weights of the student itself are the constructor's affair.
        self.backbone.downsample_layers[1].requires_grad_(False)


class ToyPair(nn.Module):

    def __init__(self):
        super().__init__()
        self.student = ToyModel()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


class Wrapped(MMDistributedDataParallel):

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


def groups_of(wrapper, model):
    """Name the parameters in each group and drop their objects."""
    names = {id(param): name for name, param in model.named_parameters()}
    return [{
        **group, 'params': [names[id(p)] for p in group['params']]
    } for group in wrapper.optimizer.param_groups]


def config(**changes):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        **changes)


@pytest.mark.parametrize('wrap', [lambda model: model, Wrapped])
@pytest.mark.parametrize('inner, paramwise', [
    ('mmdet.LearningRateDecayOptimizerConstructor', LAYER_DECAY),
    ('mmdet.LearningRateDecayOptimizerConstructor',
     dict(decay_rate=0.9, decay_type='stage_wise', num_layers=4)),
    (None,
     dict(
         custom_keys={'backbone.stages.1': dict(lr_mult=0.1)},
         bias_decay_mult=0.)),
    (None, None),
])
def test_groups_equal_those_of_the_plain_model(inner, paramwise, wrap):
    model = ToyPair()
    plain = config()
    ours = config(constructor='mmsemi.StudentOptimWrapperConstructor')
    if paramwise is not None:
        plain['paramwise_cfg'] = copy.deepcopy(paramwise)
        ours['paramwise_cfg'] = copy.deepcopy(paramwise)
    if inner is not None:
        plain['constructor'] = inner
        ours['paramwise_cfg']['constructor'] = inner
    given = copy.deepcopy(ours)
    wrapper = build_optim_wrapper(wrap(model), ours)
    assert ours == given
    assert type(wrapper) is OptimWrapper
    groups = groups_of(wrapper, model.student)
    assert groups == groups_of(
        build_optim_wrapper(model.student, plain), model.student)
    taught = {id(p) for p in model.teacher.parameters()}
    assert not taught & {
        id(p)
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }


def test_layer_decay_gives_these_rates():
    """And none of them under the prefix: the trap this class is for."""
    model = ToyPair()
    inner = 'mmdet.LearningRateDecayOptimizerConstructor'
    wrapper = build_optim_wrapper(
        model,
        config(
            constructor='mmsemi.StudentOptimWrapperConstructor',
            paramwise_cfg=dict(constructor=inner, **LAYER_DECAY)))
    rates = {
        name: group['lr'] / 1e-3
        for group in groups_of(wrapper, model.student)
        for name in group['params'] if name.endswith('weight')
    }
    assert rates == pytest.approx({
        'backbone.downsample_layers.0.weight': .5**7,
        'backbone.stages.0.0.weight': .5**6,
        'backbone.stages.1.0.weight': .5**5,
        'backbone.downsample_layers.2.weight': .5**4,
        'backbone.stages.2.0.weight': .5**4,
        'backbone.downsample_layers.3.weight': .5,
        'backbone.stages.3.0.weight': .5,
        'head.weight': 1.
    })


def test_runner_trains_the_student_alone(runner_factory):
    model = dict(type='ToyTeacherStudent', teacher=dict(mode='frozen'))
    runner = runner_factory(
        model=model,
        optim_wrapper=config(
            constructor='mmsemi.StudentOptimWrapperConstructor',
            paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.)})))
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    after = runner.model.state_dict()
    changed = {
        name
        for name, _ in runner.model.named_parameters()
        if not torch.equal(before[name], after[name])
    }
    assert changed == {'student.head.weight', 'student.head.bias'}
    assert isinstance(runner.model, TeacherStudent)


def test_model_without_student_is_refused():
    with pytest.raises(TypeError, match='ToyModel has none'):
        build_optim_wrapper(
            ToyModel(),
            config(constructor='mmsemi.StudentOptimWrapperConstructor'))


def test_weights_outside_the_student_are_not_forgotten():
    model = ToyPair()
    model.projector = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="leave out 2 .*'projector.weight'"):
        build_optim_wrapper(
            model, config(constructor='mmsemi.StudentOptimWrapperConstructor'))


def test_config_must_be_a_dict():
    with pytest.raises(TypeError, match='must be a dict, got list'):
        StudentOptimWrapperConstructor([])


def test_is_registered_for_mmengine():
    assert OPTIM_WRAPPER_CONSTRUCTORS.get(
        'mmsemi.StudentOptimWrapperConstructor'
    ) is StudentOptimWrapperConstructor
