# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
from mmengine.config import Config, ConfigDict

from mmsemi.methods import load_segmentor_config

MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text('x = 1\n'
                    "model = dict(type='A', data_preprocessor=None,\n"
                    "             backbone=dict(type='B', depth=3,\n"
                    '                           stages=[1, 2]))\n')
    return path


def test_model_config_is_copied():
    config = dict(type='A', backbone=dict(type='B', depth=3))
    loaded = load_segmentor_config(config)
    assert isinstance(loaded, ConfigDict)
    assert loaded == config
    loaded.backbone.depth = 4
    assert config['backbone']['depth'] == 3


def test_config_of_mmdet_by_name():
    loaded = load_segmentor_config(MASK_RCNN)
    assert loaded.type == 'MaskRCNN'
    assert loaded.backbone.depth == 50
    assert loaded.roi_head.mask_head.num_classes == 80
    # Bare types inside must resolve in mmdet under any default scope.
    assert loaded['_scope_'] == 'mmdet'


def test_config_file_by_path(config_file, monkeypatch):
    loaded = load_segmentor_config(str(config_file))
    assert loaded.backbone == dict(type='B', depth=3, stages=[1, 2])
    assert 'x' not in loaded
    monkeypatch.chdir(config_file.parent)
    assert load_segmentor_config('small.py') == loaded


def test_changes_are_merged_as_in_config_inheritance(config_file):
    change = dict(
        cfg_path=str(config_file),
        backbone=dict(depth=7, stages=[9]),
        head=dict(type='H'))
    before = Config(dict(a=change)).a
    loaded = load_segmentor_config(change)
    assert loaded == dict(
        type='A',
        data_preprocessor=None,
        backbone=dict(type='B', depth=7, stages=[9]),
        head=dict(type='H'))
    assert change == before


def test_changes_may_replace_a_part(config_file):
    loaded = load_segmentor_config(
        dict(
            cfg_path=str(config_file),
            backbone=dict(_delete_=True, type='C', width=2)))
    assert loaded.backbone == dict(type='C', width=2)


def test_changes_of_a_named_config_keep_its_scope():
    loaded = load_segmentor_config(
        dict(cfg_path=MASK_RCNN, backbone=dict(depth=18)))
    assert loaded.backbone.depth == 18
    assert loaded.backbone.num_stages == 4
    assert loaded['_scope_'] == 'mmdet'


def test_two_loads_share_nothing(config_file):
    first = load_segmentor_config(str(config_file))
    first.backbone.stages.append(3)
    assert load_segmentor_config(str(config_file)).backbone.stages == [1, 2]


@pytest.mark.parametrize('name', [
    'no_such_config.py', 'mmdet::mask_rcnn/no_such_config.py',
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco', 'nobody::a/b.py', ''
])
@pytest.mark.parametrize('field', ['segmentor', 'student.segmentor'])
def test_missing_configs(name, field):
    with pytest.raises(FileNotFoundError) as error:
        load_segmentor_config(name, field)
    assert str(error.value).startswith(f'{field}={name!r} is no config')
    assert 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py' in str(error.value)


def test_missing_cfg_path_is_named():
    with pytest.raises(FileNotFoundError, match="cfg_path='gone.py' is no"):
        load_segmentor_config(dict(cfg_path='gone.py'))


def test_config_name_without_a_folder_cannot_be_read():
    with pytest.raises(ValueError, match="segmentor='mmdet::x.py' cannot be"):
        load_segmentor_config('mmdet::x.py')


def test_config_without_a_model(tmp_path):
    path = tmp_path / 'data.py'
    path.write_text('dataset = dict(a=1)\n')
    with pytest.raises(ValueError, match='data.py.* defines no model'):
        load_segmentor_config(str(path))


@pytest.mark.parametrize('segmentor, message', [
    (None, 'segmentor must be .* got NoneType None'),
    (3, 'got int 3'),
    ([dict(type='A')], 'got list'),
    (dict(backbone=dict(type='B'), neck=None),
     r"neither 'type' .*'cfg_path'.*\['backbone', 'neck'\]"),
    (dict(cfg_path=None), 'segmentor.cfg_path=None is no string'),
    (dict(cfg_path=dict(type='A')), 'segmentor.cfg_path=.* is no string'),
])
def test_bad_segmentors(segmentor, message):
    with pytest.raises(ValueError, match=message):
        load_segmentor_config(segmentor)
