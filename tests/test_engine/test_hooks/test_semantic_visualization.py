# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Pictures of pseudo-labels of every pixel, also without mmdet."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mmsemi.visualization.drawing import GAP, TITLE_HEIGHT

ROOT = Path(__file__).resolve().parents[3]
PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@DATASETS.register_module(force=True)
class NoisyMaps(BaseDataset):
    """One image of 16 x 24 pixels in three views, with a label map."""

    METAINFO = dict(classes=('a', 'b', 'c'), palette=PALETTE)

    def load_data_list(self):
        return [dict(idx=i) for i in range(8)]

    def prepare_data(self, idx):
        generator = torch.Generator().manual_seed(int(idx))
        image = torch.randint(
            0, 256, (3, 16, 24), generator=generator, dtype=torch.uint8)
        samples = {}
        for view in ('sup', 'unsup_teacher', 'unsup_student'):
            samples[view] = SegDataSample(
                metainfo=dict(img_shape=(16, 24), ori_shape=(16, 24)))
        samples['sup'].set_data(
            dict(gt_sem_seg=PixelData(data=torch.zeros(1, 16, 24).long())))
        return dict(
            inputs=dict.fromkeys(samples, image), data_samples=samples)


SEGMENTOR = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[114.] * 3,
        std=[60.] * 3,
        bgr_to_rgb=True,
        size=(16, 24)),
    backbone=dict(
        type='mmseg.ResNet',
        depth=18,
        base_channels=4,
        stem_channels=4,
        num_stages=1,
        strides=(1, ),
        dilations=(1, ),
        out_indices=(0, )),
    decode_head=dict(
        type='FCNHead',
        in_channels=4,
        in_index=0,
        channels=4,
        num_convs=1,
        concat_input=False,
        num_classes=3,
        norm_cfg=dict(type='BN')))


@pytest.mark.parametrize('kind', ['FixMatch', 'UniMatch'])
def test_pictures_of_every_pixel(runner_factory, tmp_path, kind):
    states = []
    for name in ('plain', 'drawn'):
        hook = dict(
            type='mmsemi.PseudoLabelVisualizationHook',
            interval=1,
            max_images=2,
            scale=2,
            out_dir=str(tmp_path / 'pictures'))
        views = dict(type='NoisyMaps')
        runner = runner_factory(
            work_dir=tmp_path / name,
            max_iters=2,
            model=dict(
                type=f'mmsemi.{kind}',
                segmentor=SEGMENTOR,
                pseudo_label_pipeline=[
                    dict(type='mmsemi.KeepConfidentPixels', conf_thr=0.4)
                ]),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                dataset=dict(type='TwoStrongMaps')
                if kind == 'UniMatch' else views,
                sampler=dict(type='InfiniteSampler'),
                collate_fn=dict(type='pseudo_collate')),
            custom_hooks=[dict(type='mmsemi.TeacherUpdateHook')] +
            ([hook] if name == 'drawn' else []),
            default_scope='mmseg')
        runner.train()
        states.append(runner.model.state_dict())
    assert sorted(p.name for p in (tmp_path / 'pictures').iterdir()) == [
        f'iter_00000{step}_{i}.png' for step in (1, 2) for i in (0, 1)
    ]
    panel = np.array(Image.open(tmp_path / 'pictures' / 'iter_000002_0.png'))
    assert panel.shape == (2 * 16 + TITLE_HEIGHT + GAP,
                           4 * (2 * 24 + GAP) + GAP, 3)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@DATASETS.register_module(force=True)
class TwoStrongMaps(NoisyMaps):
    """With a second strong view."""

    def prepare_data(self, idx):
        data = super().prepare_data(idx)
        for part in data.values():
            part['unsup_student_2'] = part['unsup_student']
        return data


WITHOUT_MMDET = '''
import importlib.util
import sys


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'mmdet':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Hidden())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split('.')[
    0] == 'mmdet' else found(name, *args)
from mmengine.registry import HOOKS, MODELS
from mmsemi.apis import (check_config, export_model, init_model,
                         prepare_testing)
print(HOOKS.get('mmsemi.PseudoLabelVisualizationHook').__name__,
      MODELS.get('mmsemi.FixMatch').__name__,
      MODELS.get('mmsemi.SemiInstanceSegmentor'))
'''


def test_a_semantic_user_needs_no_mmdet():
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', WITHOUT_MMDET],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120)
    assert done.stdout.splitlines()[-1:] == [
        'PseudoLabelVisualizationHook FixMatch None'
    ], done.stdout + done.stderr
