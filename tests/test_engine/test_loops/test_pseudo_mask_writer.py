# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import os

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.models.data_preprocessor import SegDataPreProcessor
from PIL import Image
from torch import nn

from mmsemi.engine.loops.pseudo_mask_writer import (LabelingSettings,
                                                    PseudoMaskWriter,
                                                    read_json, weights_digest)
from mmsemi.engine.loops.round_data import build_unlabeled, mask_names

PLAIN = LabelingSettings(scales=(1., ), flip=False)


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


class Brightness(nn.Module):
    """Class 1 where red is bright, 2 where green is, else 0."""

    def __init__(self, test_cfg=None):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(100.))
        self.data_preprocessor = SegDataPreProcessor(test_cfg=test_cfg)

    def inference(self, inputs, metas):
        dark = self.bias.expand_as(inputs[:, 0])
        return torch.stack([dark, inputs[:, 0], inputs[:, 1]], 1)


@pytest.fixture
def images(tiny_rounds, boxes_root):
    return build_unlabeled(
        tiny_rounds.dataset(boxes_root, 'unlabeled',
                            [tiny_rounds.LOAD[0], tiny_rounds.PACK], False))


def red_and_green(dataset, index):
    image = np.array(Image.open(dataset.get_data_info(index)['img_path']))
    # BGR in the loader: class 1 is the last channel's.
    logits = np.stack(
        [np.full(image.shape[:2], 100.), image[..., 2], image[..., 1]])
    return logits.argmax(0)


@pytest.mark.parametrize('batch_size', [1, 4])
@pytest.mark.parametrize('test_cfg', [None, dict(size_divisor=12)])
def test_masks_mirror_the_images(images, tmp_path, batch_size, test_cfg):
    settings = LabelingSettings((1., ), False, batch_size=batch_size)
    writer = PseudoMaskWriter(images, settings)
    writer.write(Brightness(test_cfg), str(tmp_path / 'r'), range(9))
    paths = writer.paths(str(tmp_path / 'r'), range(9))
    assert paths[2].endswith('r/masks/sub/unlabeled2.png')
    for index, path in paths.items():
        found = np.array(Image.open(path))
        assert found.shape == (16, 16)
        assert np.array_equal(found, red_and_green(images, index))
    assert not list(tmp_path.rglob('*.tmp'))
    manifest = read_json(str(tmp_path / 'r' / 'manifest.json'))
    assert manifest['num_images'] == 9
    assert manifest['weights'] == weights_digest(Brightness())
    assert manifest['settings']['batch_size'] == batch_size


def test_threshold_ignores_unsure_pixels(images, tmp_path):
    settings = LabelingSettings((1., ), False, confidence_thr=.99)
    writer = PseudoMaskWriter(images, settings)
    model = Brightness()
    # As bright as the brightest noise.
    model.bias.data.fill_(79)
    writer.write(model, str(tmp_path), [0])
    mask = np.array(Image.open(writer.paths(str(tmp_path), [0])[0]))
    assert 255 in mask and 0 in mask


def test_complete_masks_are_kept_and_stale_ones_removed(images, tmp_path):
    folder = str(tmp_path)
    writer = PseudoMaskWriter(images, PLAIN)
    writer.write(Brightness(), folder, range(9))
    paths = writer.paths(folder, range(9))
    os.remove(paths[3])
    with open(paths[4], 'wb') as file:
        file.write(b'kept')
    writer.write(Brightness(), folder, range(9))
    assert os.path.getsize(paths[4]) == 4
    assert np.array(Image.open(paths[3])).shape == (16, 16)
    other = Brightness()
    other.bias.data += 1
    for change in (lambda: writer.write(other, folder, range(9)),
                   lambda: writer.write(other, folder, [3, 4]),
                   lambda: PseudoMaskWriter(
                       images, LabelingSettings((1., ), True)).write(
                           other, folder, [3, 4])):
        with open(paths[4], 'wb') as file:
            file.write(b'old')
        change()
        assert np.array(Image.open(paths[4])).shape == (16, 16)


def test_missing_masks_are_named(images, tmp_path):
    writer = PseudoMaskWriter(images, PLAIN)
    with pytest.raises(FileNotFoundError, match='unlabeled0.png is missing'):
        writer.check(str(tmp_path), [0])


def test_map_gives_numbers_in_the_order_asked(images):
    writer = PseudoMaskWriter(
        images, LabelingSettings((1., ), False, batch_size=2))
    names = writer.map(
        lambda data: [
            int(sample.img_path[-5]) for sample in data['data_samples']
        ], [5, 1, 7])
    order = [
        int(images.get_data_info(i)['img_path'][-5]) for i in (5, 1, 7)
    ]
    assert names == order


def test_labeling_leaves_random_states_alone(images, tmp_path):
    state = torch.get_rng_state()
    PseudoMaskWriter(images, PLAIN).write(Brightness(), str(tmp_path), [0, 1])
    assert torch.equal(torch.get_rng_state(), state)


class Listed(list):
    """Images by their paths."""

    def get_data_info(self, index):
        return dict(img_path=self[index])


def test_mask_names():
    assert mask_names(Listed(['/a/b/1.jpg', '/a/c/1.jpg'])) == [
        'b/1.png', 'c/1.png'
    ]
    assert mask_names(Listed(['/a/1.jpg', '/a/1.png'])) == [
        '1.jpg.png', '1.png.png'
    ]
    with pytest.raises(ValueError, match='twice: /a/1.jpg'):
        mask_names(Listed(['/a/1.jpg', '/a/2.jpg', '/a/1.jpg']))


def test_digest_sees_every_weight():
    model = Brightness()
    digest = weights_digest(model)
    model.bias.data += 1e-5
    assert weights_digest(model) != digest
