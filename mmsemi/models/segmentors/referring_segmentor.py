# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Segment what a sentence refers to."""
import inspect
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmsemi.models.dense_forward import Features, decode, resize_logits
from mmsemi.models.dense_prediction import predict_dense
from mmsemi.registry import MODELS

#: Background, and what is referred to.
NUM_CLASSES = 2

Texts = List[List[str]]


@MODELS.register_module()
class ReferringSegmentor(EncoderDecoder):
    """An mmseg segmenter of two classes that reads sentences.

    The backbone gets the words with the image, ``backbone(images, features,
    mask)``; everything behind it is mmseg's. So ``decode_head`` and
    ``auxiliary_head`` may be any of mmseg's heads with
    ``num_classes=2, out_channels=2`` whose logits come from ``conv_seg``
    (FCN, PSP, UPer, SegFormer and others; not MaskFormer's kin and no
    cascade), and a neck may stand before them.

    Sentences are ``data_sample.text``, in the metainfo: a string, or a list
    of K strings for K masks of one image. Then ``gt_sem_seg`` and
    ``pred_sem_seg`` have K channels, with 0 for background, 1 for what the
    k-th sentence refers to and, in the ground truth, 255 for neither, and
    ``seg_logits`` has 2K, a pair for each sentence. Every sentence passes
    the backbone with its image, since both meet there.

    Images are predicted as a whole: what is "leftmost" in a window need not
    be so in the image.

    Args:
        backbone (dict): Such as ``mmsemi.LAVTSwin``.
        decode_head (dict): Such as ``mmsemi.LAVTHead``.
        text_encoder (dict): Such as ``mmsemi.BertTextEncoder``. Called with
            B sentences, it returns features (B, T, D) and a mask (B, T).
        neck (dict, optional): Between backbone and heads.
        auxiliary_head (dict or list[dict], optional): For training only.
        train_cfg (dict, optional): As mmseg's.
        test_cfg (dict, optional): Allowed is ``dict(mode='whole')``, the
            default.
        data_preprocessor (dict, optional): Such as
            ``mmseg.SegDataPreProcessor``.
        init_cfg (dict, optional): Initialisation beyond that of the parts.

    Raises:
        ValueError: If a head has other channels than two, the words do not
            fit the backbone, or ``test_cfg`` asks for windows.
    """

    reads_text = True

    def __init__(self,
                 backbone: dict,
                 decode_head: dict,
                 text_encoder: dict,
                 neck: Optional[dict] = None,
                 auxiliary_head: Optional[Union[dict, List[dict]]] = None,
                 train_cfg: Optional[dict] = None,
                 test_cfg: Optional[dict] = None,
                 data_preprocessor: Optional[Union[dict, nn.Module]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        test_cfg = ConfigDict(test_cfg or {})
        if test_cfg.setdefault('mode', 'whole') != 'whole':
            raise ValueError(
                f'test_cfg.mode={test_cfg.mode!r}; allowed with '
                "mmsemi.ReferringSegmentor is 'whole': sentences speak of "
                'places in the whole image.')
        super().__init__(
            backbone,
            decode_head,
            neck=neck,
            auxiliary_head=auxiliary_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg)
        for field, head in self._named_heads():
            channels = getattr(head, 'out_channels', None)
            if channels != NUM_CLASSES:
                raise ValueError(
                    f'{field}.out_channels={channels}; a referring segmenter '
                    'needs two, background and referred: set num_classes=2 '
                    'and out_channels=2.')
        try:
            inspect.signature(self.backbone.forward).bind(None, None, None)
        except TypeError:
            raise ValueError(
                f'backbone of type {type(self.backbone).__name__} does not '
                'take images, words and their mask; use one that reads '
                'sentences, such as mmsemi.LAVTSwin.') from None
        self.text_encoder = MODELS.build(text_encoder)
        given = getattr(self.text_encoder, 'out_channels', None)
        wanted = getattr(self.backbone, 'text_channels', None)
        if None not in (given, wanted) and given != wanted:
            raise ValueError(
                f'text_encoder gives features of {given} channels, but '
                f'backbone.text_channels={wanted}; set it to {given}.')

    def _named_heads(self) -> List[Tuple[str, nn.Module]]:
        heads = [('decode_head', self.decode_head)]
        if self.with_auxiliary_head:
            auxiliary = self.auxiliary_head
            many = isinstance(auxiliary, nn.ModuleList)
            heads += [('auxiliary_head', head)
                      for head in (auxiliary if many else [auxiliary])]
        return heads

    # Sentences ------------------------------------------------------------

    def encode_text(
        self, texts: Sequence[Union[str, SegDataSample]]
    ) -> Tuple[Tensor, Tensor]:
        """Encode sentences, given as they are or in data samples.

        Args:
            texts (Sequence[str or SegDataSample]): Sentences, or samples
                whose sentences are taken one after the other.

        Returns:
            tuple[Tensor, Tensor]: Features (B, T, D) and a mask (B, T) bool,
            False on padding, for all B sentences.
        """
        flat = []
        for text in texts:
            flat += [text] if isinstance(text, str) else text_of(text)
        return self.text_encoder(flat)

    @staticmethod
    def single_texts(data_samples: Optional[list]) -> Texts:
        """Return the sentences of images that have one each.

        Args:
            data_samples (list[SegDataSample]): N samples.

        Returns:
            list[list[str]]: N lists of one sentence.

        Raises:
            ValueError: If an image has none, or several.
        """
        texts = texts_of(data_samples)
        for sentences in texts:
            if len(sentences) > 1:
                raise ValueError(
                    f'An image comes with {len(sentences)} sentences, but '
                    'views for pseudo-labels have one: set sentence='
                    "'random' or 'first' of the dataset.")
        return texts

    def extract_feat(self,
                     inputs: Tensor,
                     texts: Optional[Texts] = None) -> Features:
        """Extract features of every pair of image and sentence.

        Args:
            inputs (Tensor): Images (N, 3, H, W).
            texts (list[list[str]]): The sentences of each image.

        Returns:
            Features: Of sum(K) pairs, the sentences of an image side by
            side.

        Raises:
            ValueError: If there are no sentences, or of another number of
                images.
        """
        if texts is None or len(texts) != len(inputs):
            num = 'no' if texts is None else len(texts)
            raise ValueError(f'{len(inputs)} images come with {num} lists of '
                             'sentences; a referring segmenter needs one '
                             'list per image.')
        counts = [len(sentences) for sentences in texts]
        features, mask = self.encode_text(sum(texts, []))
        if max(counts) > 1:
            counts = torch.tensor(counts, device=inputs.device)
            inputs = inputs.repeat_interleave(counts, 0)
        features = self.backbone(inputs, features, mask)
        return self.neck(features) if self.with_neck else features

    # The three modes ------------------------------------------------------

    def loss(self, inputs: Tensor,
             data_samples: List[SegDataSample]) -> Dict[str, Tensor]:
        """Compute losses of every sentence.

        Args:
            inputs (Tensor): Images (N, 3, H, W).
            data_samples (list[SegDataSample]): N samples with ``text`` and
                ``gt_sem_seg`` (K, H, W).

        Returns:
            dict[str, Tensor]: Losses of decode head and auxiliary heads.
        """
        texts = texts_of(data_samples)
        features = self.extract_feat(inputs, texts)
        samples = [
            sample for sample, sentences in zip(data_samples, texts)
            for sample in _one_per_sentence(sample, sentences)
        ]
        losses = self._decode_head_forward_train(features, samples)
        if self.with_auxiliary_head:
            losses.update(
                self._auxiliary_head_forward_train(features, samples))
        return losses

    def predict(
            self,
            inputs: Tensor,
            data_samples: Optional[List[SegDataSample]] = None
    ) -> List[SegDataSample]:
        """Predict a mask for every sentence.

        Args:
            inputs (Tensor): Images (N, 3, H, W).
            data_samples (list[SegDataSample]): N samples with ``text``.

        Returns:
            list[SegDataSample]: The samples with ``pred_sem_seg`` (K, H, W),
            0 or 1, and ``seg_logits`` (2K, H, W), at the images' original
            size, without padding and flip.
        """
        texts_of(data_samples)
        return predict_dense(self, inputs, data_samples)

    def _forward(self,
                 inputs: Tensor,
                 data_samples: Optional[List[SegDataSample]] = None
                 ) -> Tensor:
        """Return the decode head's raw logits (sum(K), 2, h, w)."""
        return decode(self, self.extract_feat(inputs, texts_of(data_samples)))

    def encode_decode(self, inputs: Tensor,
                      batch_img_metas: List[dict]) -> Tensor:
        """Return logits of every pixel.

        Args:
            inputs (Tensor): Images (N, 3, H, W).
            batch_img_metas (list[dict]): N dicts with ``text``.

        Returns:
            Tensor: (N, 2K, H, W) for the largest K; images with fewer
            sentences have zeros behind theirs.
        """
        texts = [text_of(meta) for meta in batch_img_metas]
        logits = decode(self, self.extract_feat(inputs, texts))
        logits = resize_logits(self, logits, inputs.shape[2:])
        parts = logits.split([len(sentences) for sentences in texts])
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return padded.flatten(1, 2)

    def postprocess_result(
            self,
            seg_logits: Tensor,
            data_samples: Optional[List[SegDataSample]] = None
    ) -> List[SegDataSample]:
        """Bring logits to the original size and take the likelier class.

        Args:
            seg_logits (Tensor): (N, 2K, H, W) for the largest K.
            data_samples (list[SegDataSample]): N samples with ``text``.

        Returns:
            list[SegDataSample]: See :meth:`predict`.
        """
        texts = texts_of(data_samples)
        samples = super().postprocess_result(seg_logits, data_samples)
        for sample, sentences in zip(samples, texts):
            logits = sample.seg_logits.data[:NUM_CLASSES * len(sentences)]
            pairs = logits.unflatten(0, (-1, NUM_CLASSES))
            sample.seg_logits = PixelData(data=logits)
            sample.pred_sem_seg = PixelData(data=pairs.argmax(1))
        return samples


def texts_of(data_samples: Optional[Sequence[Any]]) -> Texts:
    """Return the sentences of each data sample; see :func:`text_of`."""
    if data_samples is None:
        raise ValueError('A referring segmenter needs data samples with '
                         "'text', and got none.")
    return [text_of(sample) for sample in data_samples]


def text_of(sample: Any) -> List[str]:
    """Return the sentences of an image.

    Args:
        sample (SegDataSample or dict): Data sample or its metainfo, with
            ``text``, a string or a list of strings. Blank ones are allowed:
            data sets have some.

    Returns:
        list[str]: One or more.

    Raises:
        TypeError: If the text is something else.
        ValueError: If there is none.
    """
    text = sample.get('text')
    sentences = [text] if isinstance(text, str) else text
    if sentences is None or sentences in ([], ()):
        raise ValueError(
            f"A data sample has no sentence ('text'={text!r}; image: "
            f'{sample.get("img_path")}). The dataset must give one, as '
            "mmsemi.ReferringDataset does, and meta_keys of the pipeline's "
            "mmsemi.PackSegInputs must have 'text'.")
    if not isinstance(sentences, (list, tuple)) or not all(
            isinstance(sentence, str) for sentence in sentences):
        raise TypeError(f"'text' of a data sample is {text!r:.80}; allowed "
                        'are a string and a list of strings.')
    return list(sentences)


def _one_per_sentence(sample: SegDataSample,
                      sentences: List[str]) -> List[SegDataSample]:
    """Split a sample's ground truth into those of its sentences."""
    if len(sentences) == 1:
        return [sample]
    truth = sample.gt_sem_seg.data
    if len(truth) != len(sentences):
        raise ValueError(
            f'An image has {len(sentences)} sentences and gt_sem_seg of '
            f'{len(truth)} channels; one channel per sentence is needed '
            f'(image: {sample.get("img_path")}).')
    parts = []
    for sentence, mask in zip(sentences, truth):
        part = SegDataSample(metainfo={**sample.metainfo, 'text': sentence})
        part.gt_sem_seg = PixelData(data=mask[None])
        parts.append(part)
    return parts
