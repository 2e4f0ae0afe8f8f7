# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
from mmengine.config import Config

from mmsemi import apis
from mmsemi.apis import configs
from mmsemi.apis.configs import (config_name, diff_configs, find_config,
                                 flatten_config, get_config, list_configs,
                                 load_config)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A small folder of configs in place of mmsemi's own."""
    for name in ('_base_/base.py', 'cps/unet_2k.py', 'mean_teacher/solo.py',
                 'mean_teacher/unet_2k.py'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"name = '{name}'\nmodel = dict(type='A', depth=1)\n"
                        "param_scheduler = [dict(type='B', end=5)]\n"
                        'max_iters = 5\n'
                        'train_cfg = dict(max_iters=max_iters)\n')
    monkeypatch.setattr(configs, 'config_dir', lambda: tmp_path)
    return tmp_path


def test_list_configs(shelf):
    assert list_configs() == [
        'cps/unet_2k.py', 'mean_teacher/solo.py', 'mean_teacher/unet_2k.py'
    ]
    assert list_configs('unet*') == [
        'cps/unet_2k.py', 'mean_teacher/unet_2k.py'
    ]
    assert list_configs('mean_teacher/*') == [
        'mean_teacher/solo.py', 'mean_teacher/unet_2k.py'
    ]
    assert list_configs('nothing') == []


def test_own_configs_are_found():
    names = apis.list_configs('mean-teacher_solov2*')
    assert names
    assert apis.get_config(names[0]).default_scope == 'mmdet'


@pytest.mark.parametrize('name', [
    'solo', 'solo.py', 'mean_teacher/solo', 'mean_teacher/solo.py'
])
def test_get_config_by_name(shelf, name):
    assert get_config(name).name == 'mean_teacher/solo.py'


def test_unclear_names(shelf):
    with pytest.raises(
            FileNotFoundError,
            match='fits cps/unet_2k.py, mean_teacher/unet_2k.py'):
        get_config('unet_2k')
    with pytest.raises(
            FileNotFoundError, match=r'Did you mean mean_teacher/solo.py\?'):
        get_config('sollo')
    with pytest.raises(FileNotFoundError, match='is a folder'):
        find_config(shelf)


def test_file_wins_over_name(shelf, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp('elsewhere')
    (other / 'solo.py').write_text("name = 'own'")
    monkeypatch.chdir(other)
    assert load_config('solo.py').name == 'own'
    assert load_config('solo').name == 'mean_teacher/solo.py'


def test_config_of_another_package():
    cfg = load_config('mmdet::solov2/solov2_r50_fpn_1x_coco.py',
                      {'model.mask_head.num_classes': 3})
    assert cfg.model.type == 'SOLOv2'
    assert cfg.model.mask_head.num_classes == 3


def test_options_leave_the_given_config_alone(shelf):
    cfg = get_config('solo')
    changed = load_config(
        cfg, {
            'model.depth': 9,
            'param_scheduler.0.end': 7,
            'custom_hooks': ['x']
        })
    assert changed.model.depth == 9
    assert changed.param_scheduler[0].end == 7
    assert changed.custom_hooks == ['x']
    assert (cfg.model.depth, cfg.param_scheduler[0].end) == (1, 5)
    assert changed.filename == cfg.filename


@pytest.mark.parametrize('options, message', [
    ({'modle.depth': 2}, "the config has no 'modle'. Did you mean model"),
    ({'max_iters': 2}, 'max_iters is a variable that the config file has '
     'already used. Set the keys where it was used: param_scheduler.0.end '
     'train_cfg.max_iters'),
    ({'name': 'x'}, 'Set the keys where it was used.'),
    ({'param_scheduler.3.end': 2}, 'do not fit the config'),
])
def test_options_without_effect(shelf, options, message):
    with pytest.raises(ValueError, match=message):
        load_config(get_config('solo'), options)


def test_flatten_config():
    assert flatten_config(
        dict(a=dict(b=1, c={}), d=[1, 2], e=[dict(f=None), []])) == {
            'a.b': 1,
            'a.c': {},
            'd': [1, 2],
            'e[0].f': None,
            'e[1]': []
        }


def test_diff_configs():
    base = Config(dict(a=1, b=dict(c=[1]), same='x'))
    other = Config(dict(a=2, b=dict(c=[1, 2]), same='x', new=None))
    assert diff_configs(base, other) == [
        '- a = 1', '+ a = 2', '- b.c = [1]', '+ b.c = [1, 2]', '+ new = None'
    ]
    assert diff_configs(base, base) == []


@pytest.mark.parametrize('config, name', [
    ('configs/cps/unet_2k.py', 'unet_2k'),
    ('mmdet::solov2/solov2_r50_fpn_1x_coco.py', 'solov2_r50_fpn_1x_coco'),
    (Config({}), 'config'),
])
def test_config_name(config, name):
    assert config_name(config) == name


def test_api_names_exist():
    for name in apis.__all__:
        assert callable(getattr(apis, name))
    with pytest.raises(AttributeError, match='no_such_name'):
        apis.no_such_name
