# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Gradients of FixMatch; run by a test, one of two processes."""
import importlib.util
import sys
from pathlib import Path

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from torch import distributed

from mmsemi.registry import MODELS


def make_model(segmentor):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmsemi.FixMatch',
            segmentor=segmentor,
            mix=None,
            pseudo_label_pipeline=[
                dict(type='mmsemi.KeepConfidentPixels', conf_thr=.26)
            ]))
    model.init_weights()
    return model


def gradients(model, batch):
    """Return the gradients of a model, wrapped or not, by name."""
    inner = getattr(model, 'module', model)
    model.zero_grad()
    inner.parse_losses(model(*batch, mode='loss'))[0].backward()
    return {
        name: param.grad.clone()
        for name, param in inner.student.named_parameters()
    }


def main():
    rank, folder = int(sys.argv[1]), sys.argv[2]
    spec = importlib.util.spec_from_file_location(
        'tiny', Path(__file__).with_name('conftest.py'))
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    torch.set_num_threads(1)
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    model = MMDistributedDataParallel(
        make_model(tiny.tiny_dense_segmentor()), broadcast_buffers=False)
    found = gradients(model, tiny.dense_batch(seed=rank))
    torch.save(found, f'{folder}/{rank}.pth')
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
