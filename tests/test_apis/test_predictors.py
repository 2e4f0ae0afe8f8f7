# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from types import SimpleNamespace

import pytest

from mmsemi.apis.predictors import (check_predictor, check_weights,
                                    weight_prefix)
from mmsemi.methods import MultiViewModel, TeacherSettings


class Networks(MultiViewModel):
    """Has parts and no weights."""

    def __init__(self, predictors, predict_on, **settings):
        self.predictors = predictors
        self._predict_on = predict_on
        self.teacher_settings = TeacherSettings(**settings)

    predictor = loss = None


NETWORKS = ('network_0', 'network_1', 'mean')
PAIR = ('teacher', 'student')


def test_weight_prefix():
    assert [weight_prefix(name) for name in (*PAIR, *NETWORKS[:2])
            ] == ['teacher.', 'student.', 'networks.0.', 'networks.1.']


def test_check_predictor():
    model = Networks(NETWORKS, 'mean')
    for name in NETWORKS:
        check_predictor(model, name)
    with pytest.raises(
            ValueError,
            match="model='teacher'; allowed with Networks and this config: "
            "'network_0', 'network_1', 'mean'"):
        check_predictor(model, 'teacher')
    for plain in (None, SimpleNamespace()):
        with pytest.raises(ValueError, match='plain SOLOv2, which has no te'):
            check_predictor(plain, 'teacher', 'SOLOv2')


@pytest.mark.parametrize('predictors, which, keys, message', [
    (PAIR, 'teacher', 'teacher.a student.a step', None),
    (PAIR, 'teacher', 'a.b step', None),
    (PAIR, 'student', 'student.a', None),
    (PAIR, 'teacher', 'student.a', "a student, but nothing of 'teacher'"),
    (PAIR, 'student', 'networks.0.a', "networks, but nothing of 'student'"),
    (NETWORKS, 'mean', 'networks.0.a networks.1.a', None),
    (NETWORKS, 'mean', 'networks.0.a', "starts with 'networks.1.'"),
    (NETWORKS, 'network_0', 'a.b', None),
    (NETWORKS, 'network_1', 'a.b', 'which fills network_0 of Networks'),
    (None, None, 'a.b', None),
    (None, None, 'teacher.a student.a', 'a teacher and a student, but the '
     "config's model is a plain FCN"),
])
def test_check_weights(predictors, which, keys, message):
    model = Networks(predictors, which) if predictors else None
    weights = dict.fromkeys(keys.split(), 0)
    for chosen in (which, None):
        if message is None:
            check_weights(model, weights, chosen, 'FCN')
            continue
        with pytest.raises(ValueError, match=message):
            check_weights(model, weights, chosen, 'FCN')


def test_teacher_that_learnt_nothing():
    model = Networks(PAIR, 'teacher', burn_in_steps=3)
    weights = {'teacher.a': 0, 'student.a': 0, 'step': 2}
    check_weights(model, weights)
    check_weights(model, weights, 'student', need_teacher=True)
    with pytest.raises(ValueError, match='of optimizer step 2'):
        check_weights(model, weights, need_teacher=True)
