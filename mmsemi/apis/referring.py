# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""From an image and sentences to masks."""
from pathlib import Path
from typing import List, Optional, Sequence, Union

import numpy as np
import torch
from mmengine.dataset import Compose
from torch import Tensor, nn

from mmsemi.models.dense_forward import reads_text
from .configs import ConfigLike
from .inference import init_model

Image = Union[str, Path, np.ndarray]


def segment_referred(config: ConfigLike,
                     checkpoint: Union[str, Path],
                     image: Image,
                     sentences: Union[str, Sequence[str]],
                     which: Optional[str] = None,
                     device: str = 'cpu',
                     batch_size: int = 8) -> Tensor:
    """Load a referring segmenter and segment what sentences refer to.

    For several images, load once with ``init_model`` and call
    :func:`predict_referred`.

    Args:
        config (str, Path or Config): See :func:`load_config`.
        checkpoint (str or Path): See :func:`init_model`.
        image (str, Path or np.ndarray): See :func:`predict_referred`.
        sentences (str or Sequence[str]): See :func:`predict_referred`.
        which (str, optional): See :func:`init_model`. Defaults to None.
        device (str): Defaults to 'cpu'.
        batch_size (int): See :func:`predict_referred`. Defaults to 8.

    Returns:
        Tensor: See :func:`predict_referred`.

    Raises:
        FileNotFoundError: If config, checkpoint or image is missing.
        TypeError: See :func:`predict_referred`.
        ValueError: See :func:`init_model` and :func:`predict_referred`.
    """
    _as_list(sentences)
    model = init_model(config, checkpoint, which, device)
    return predict_referred(model, image, sentences, batch_size)


def predict_referred(model: nn.Module,
                     image: Image,
                     sentences: Union[str, Sequence[str]],
                     batch_size: int = 8) -> Tensor:
    """Segment what sentences refer to.

    Args:
        model (nn.Module): From :func:`init_model`, a referring segmenter or
            one that is trained by several views.
        image (str, Path or np.ndarray): File, or uint8 (H, W, 3) in BGR as
            OpenCV reads it.
        sentences (str or Sequence[str]): One sentence or K.
        batch_size (int): How many sentences pass the model at once. Defaults
            to 8.

    Returns:
        Tensor: Masks on the CPU, bool, at the image's size: (H, W) of a
        string, (K, H, W) of a sequence.

    Raises:
        FileNotFoundError: If there is no such image.
        TypeError: If the model reads no sentences, or a sentence is no
            string.
        ValueError: If there is no sentence, one is blank, or the config has
            no pipeline of test images.
    """
    texts = _as_list(sentences)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f'batch_size={batch_size!r}; allowed are whole '
                         'numbers from 1.')
    predictor = getattr(model, 'predictor', model)
    if not reads_text(predictor):
        raise TypeError(
            f'{type(predictor).__name__} reads no sentences; use a config '
            'of a referring segmenter, such as mmsemi.ReferringSegmentor.')
    packed = _load(model, image, texts)
    masks = []
    for start in range(0, len(texts), batch_size):
        sample = packed['data_samples'].clone()
        sample.set_metainfo(dict(text=texts[start:start + batch_size]))
        with torch.no_grad():
            result, = model.test_step(
                dict(inputs=[packed['inputs']], data_samples=[sample]))
        masks.append(result.pred_sem_seg.data.bool().cpu())
    found = torch.cat(masks)
    return found[0] if isinstance(sentences, str) else found


def _as_list(sentences: Union[str, Sequence[str]]) -> List[str]:
    texts = [sentences] if isinstance(sentences, str) else list(sentences)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f'sentences={sentences!r:.80}; allowed are a '
                            'string and a sequence of strings.')
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f'sentences={sentences!r:.80}; at least one is '
                         'needed, and none may be blank.')
    return texts


def _load(model: nn.Module, image: Image, texts: List[str]) -> dict:
    pipeline = [dict(transform) for transform in model.cfg.get(
        'test_pipeline') or ()]
    if not pipeline:
        raise ValueError('The config has no test_dataloader with a pipeline, '
                         'which says how images are resized and packed.')
    results = dict(seg_fields=[], text=texts)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f'image has the shape {image.shape}; allowed is '
                             '(height, width, 3).')
        results['img'] = image
        for transform in pipeline:
            if str(transform['type']).endswith('LoadImageFromFile'):
                transform.clear()
                transform['type'] = 'mmseg.LoadImageFromNDArray'
    else:
        path = Path(image).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'There is no image {image}.')
        results['img_path'] = str(path)
    return Compose(pipeline)(results)
