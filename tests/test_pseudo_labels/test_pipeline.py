# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch

from mmsemi.pseudo_labels import (FilterByArea, FilterByScore,
                                  PseudoLabelPipeline, PseudoLabelStage,
                                  SkipUncertainImages)
from mmsemi.registry import TRANSFORMS

BOX_FIELDS = ('bboxes', 'labels', 'scores')


class Recorder(PseudoLabelStage):
    """Writes its name and what it was given."""

    def __init__(self, name, requires=(), writes=()):
        super().__init__()
        self.name = name
        self.requires = requires
        self.writes = writes
        self.seen = []

    def forward(self, pseudo_labels, data_samples):
        self.seen.append((pseudo_labels, data_samples))
        return [f'{label}>{self.name}' for label in pseudo_labels]


def test_stages_run_in_order_on_the_whole_batch():
    first, second = Recorder('first'), Recorder('second')
    pipeline = PseudoLabelPipeline([first, second], BOX_FIELDS)
    samples = ['sample 0', 'sample 1']
    assert pipeline(['a', 'b'], samples) == [
        'a>first>second', 'b>first>second'
    ]
    assert first.seen == [(['a', 'b'], samples)]
    assert second.seen == [(['a>first', 'b>first'], samples)]


def test_no_stage_keeps_everything():
    labels = [object(), object()]
    pipeline = PseudoLabelPipeline([], BOX_FIELDS)
    assert pipeline(labels, [None, None]) is labels
    assert not pipeline.needs('scores')


def test_configs_are_built_and_left_as_they_were():
    config = dict(type='mmsemi.FilterByScore', score_thr=0.3)
    pipeline = PseudoLabelPipeline([config, FilterByArea(4)], BOX_FIELDS)
    assert [type(stage) for stage in pipeline.stages] == [
        FilterByScore, FilterByArea
    ]
    assert pipeline.stages[0].score_thr == 0.3
    assert config == dict(type='mmsemi.FilterByScore', score_thr=0.3)


@pytest.mark.parametrize('name', [
    'FilterByScore', 'FilterByArea', 'FilterByMaskQuality', 'RemoveDuplicates',
    'KeepTopScores', 'SkipUncertainImages', 'SharpenSoftLabels'
])
def test_every_stage_is_registered_under_its_name(name):
    stage = TRANSFORMS.get(f'mmsemi.{name}')
    assert stage.__name__ == name
    assert issubclass(stage, PseudoLabelStage)


def test_a_field_that_nobody_provides_is_refused():
    with pytest.raises(ValueError) as error:
        PseudoLabelPipeline([
            Recorder('first'),
            Recorder('second', requires=('scores', 'quality', 'masks'))
        ], BOX_FIELDS)
    message = str(error.value)
    assert 'pseudo_label_pipeline[1] (Recorder)' in message
    assert "needs ['masks', 'quality']" in message
    assert "only ['bboxes', 'labels', 'scores']" in message


def test_a_field_may_come_from_an_earlier_stage_only():
    writer = Recorder('writer', writes=('quality', ))
    reader = Recorder('reader', requires=('quality', ))
    pipeline = PseudoLabelPipeline([writer, reader], BOX_FIELDS)
    assert pipeline.needs('quality')
    assert not pipeline.needs('scores')
    with pytest.raises(ValueError, match=r'pipeline\[0\]'):
        PseudoLabelPipeline([reader, writer], BOX_FIELDS)


def test_mask_quality_needs_a_model_with_mask_scores():
    stage = dict(type='mmsemi.FilterByMaskQuality', min_mask_score=0.5)
    with pytest.raises(ValueError, match='mask_scores'):
        PseudoLabelPipeline([stage], (*BOX_FIELDS, 'masks'))
    pipeline = PseudoLabelPipeline([stage],
                                   (*BOX_FIELDS, 'masks', 'mask_scores'))
    assert pipeline.needs('mask_scores')
    by_box = dict(type='mmsemi.FilterByMaskQuality', min_box_iou=0.5)
    pipeline = PseudoLabelPipeline([by_box], (*BOX_FIELDS, 'masks'))
    assert not pipeline.needs('mask_scores')


@pytest.mark.parametrize('stage', ['FilterByScore', torch.nn.Identity(), 3])
def test_what_is_no_stage_is_refused(stage):
    with pytest.raises(TypeError, match=r'pipeline\[1\] is a \w+, which'):
        PseudoLabelPipeline([Recorder('first'), stage], BOX_FIELDS)


def test_a_data_transform_is_no_stage():
    with pytest.raises(TypeError, match='Resize'):
        PseudoLabelPipeline([dict(type='mmdet.Resize', scale=(8, 8))],
                            BOX_FIELDS)


def test_a_stage_must_say_what_it_does():
    with pytest.raises(TypeError, match='abstract'):
        PseudoLabelStage()


def test_what_a_stage_learns_is_in_the_checkpoint():
    stage = Recorder('calibrated')
    stage.temperature = torch.nn.Parameter(torch.tensor(2.))
    pipeline = PseudoLabelPipeline(
        [FilterByScore(0.5, [0.1, 0.2]), stage], BOX_FIELDS)
    assert list(pipeline.state_dict()) == ['stages.1.temperature']


def test_usable_survives_later_stages(instances_factory):
    """The mark of one stage must reach the method through all others."""
    certain = instances_factory([[0, 0, 4, 4]], [0], (8, 8), [0.9])
    hesitant = instances_factory([[0, 0, 4, 4], [4, 4, 8, 8]], [0, 1], (8, 8),
                                 [0.9, 0.4])
    pipeline = PseudoLabelPipeline([
        SkipUncertainImages(0.3, 0.7),
        FilterByScore(0.5),
        dict(type='mmsemi.FilterByArea', min_area=4),
        dict(type='mmsemi.FilterByMaskQuality', min_box_iou=0.5),
        dict(type='mmsemi.RemoveDuplicates'),
        dict(type='mmsemi.KeepTopScores', max_per_image=1),
    ], (*BOX_FIELDS, 'masks'))
    kept = pipeline([certain, hesitant], [None, None])
    assert [label.usable for label in kept] == [True, False]
    assert [len(label) for label in kept] == [1, 1]
    assert 'usable' not in hesitant and len(hesitant) == 2
