# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Names of classes as a second opinion on what an image shows."""
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, xavier_init
from torch import Tensor, nn

from mmsemi.registry import MODELS
from .losses.dense_losses import full_precision
from .text import TextEmbeddings, check_class_order, load_text_embeddings

TextSource = Union[str, Path, dict, TextEmbeddings]

#: Gate of each fusion before training, where none is given.
GATES = dict(similarity=1., feature=.1, concat=1.)
#: Features wider than this meet the texts in a space of this width.
MAX_EMBED_CHANNELS = 1024
#: How far the text vectors of a checkpoint may be from those of the file.
TEXT_TOLERANCE = 1e-4


def prepare_text_vectors(vectors: Tensor, center: bool = True) -> Tensor:
    """Centre and normalise text vectors.

    Vectors of a language model are nearly parallel; what tells classes apart
    is how they differ from their mean.

    Args:
        vectors (Tensor): (C, D), one row per class.
        center (bool): Subtract the mean over the classes; a single class
            stays as it is. Defaults to True.

    Returns:
        Tensor: (C, D) float32, rows of length 1.

    Raises:
        ValueError: If a row has no direction, because its text is like the
            mean of all.
    """
    vectors = vectors.float()
    if center and len(vectors) > 1:
        largest = vectors.norm(dim=1).max()
        vectors = vectors - vectors.mean(0)
        if bool((vectors.norm(dim=1) <= 1e-6 * largest).any()):
            raise ValueError(
                'A class has a text vector equal to the mean of all, which '
                'center=True turns into nothing. Give the classes other '
                'texts, or set center=False.')
    return F.normalize(vectors, dim=1)


def cosine_logits(features: Tensor, texts: Tensor, tau: float) -> Tensor:
    """Compare features with texts.

    Args:
        features (Tensor): (..., E).
        texts (Tensor): (K, E).
        tau (float): Factor.

    Returns:
        Tensor: tau times the cosines, (..., K).
    """
    # In half precision the guard against a division by zero is zero.
    features = F.normalize(full_precision(features), dim=-1, eps=1e-6)
    return tau * F.linear(
        features, F.normalize(full_precision(texts), dim=-1, eps=1e-6))


@MODELS.register_module()
class SemanticBranch(BaseModule):
    r"""Fuse what is seen with what the classes are called.

    With the visual feature x of width d, text vectors e_c, a projector
    t_c = P(e_c), a learned background vector t_bg, T = [t_0 .. t_{C-1};
    t_bg], and a learned gate g, the fused logits l are

    - 'similarity': :math:`l = l_{vis} + g \, l_{sem}`, where :math:`l_{sem}
      = \tau \langle v / |v|, T / |T| \rangle` and v = V x;
    - 'concat': the same with :math:`l_{sem,c} = MLP([x; t_c])`;
    - 'feature': :math:`l = l_{vis}(x + g \, a \, T_{fg})`, where a is the
      softmax over the C classes of the scores :math:`W_q x \cdot W_k t_c /
      \sqrt{E}`. Its semantic logits are these scores, with the background's
      besides.

    At g = 0 the fused logits are the visual ones to the last bit.

    The head learns the semantic logits also alone, with
    :attr:`aux_weight` times its classification loss; otherwise the visual
    classifier alone may do all the work. See :meth:`recording`.

    After R. Chi et al., Integrated Image-Text Based on Semi-supervised
    Learning for Small Sample Instance Segmentation (SemInst), arXiv
    2410.16063: class names through SciBERT, projected by an MLP to the width
    of the image feature and fused with it to predict the class. How they are
    fused, the background, the gate and the auxiliary loss are not public;
    they are our choices, and each is a field.

    Text vectors are centred and normalised, and are in every checkpoint, as
    the buffer ``text_vectors``.

    Args:
        text_embeddings (str, Path, dict, TextEmbeddings or None): File of
            ``tools/encode_class_names.py``; or a dict for
            :func:`~mmsemi.models.text.encode_classes` with the model
            'char-ngrams', which needs no weights. None: the vectors come
            with a checkpoint of the branch.
        num_classes (int): Number of classes C without background.
        in_channels (int): Width d of the features.
        mode (str): 'similarity', 'feature' or 'concat'. Defaults to
            'similarity'.
        center (bool): See :func:`prepare_text_vectors`. Defaults to True.
        tau (float, optional): Factor of the cosines, above 0; only with
            'similarity'. Defaults to None: 20, as in mmdet's NormedLinear.
        gate (float, optional): g before training. Defaults to None: 1, and
            0.1 with 'feature'.
        learn_gate (bool): Whether g is learned. Defaults to True.
        background (bool): Whether there is a class C, the background, that
            has no text. Defaults to True.
        aux_weight (float): Weight of the auxiliary loss, times that of the
            head's classification loss; 0 for none. Defaults to 0.5.
        embed_channels (int, optional): Width E in which features and texts
            meet. Defaults to None: d, at most 1024.
        concat_channels (int, optional): Hidden width of the MLP of 'concat',
            whose memory grows with features times classes times this width.
            Defaults to None: 256.
        text_channels (int, optional): Width D of the text vectors, only with
            ``text_embeddings=None``. Defaults to None.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an argument is out of range, or the texts are of
            another number of classes.
    """

    def __init__(self,
                 text_embeddings: Optional[TextSource],
                 num_classes: int,
                 in_channels: int,
                 mode: str = 'similarity',
                 center: bool = True,
                 tau: Optional[float] = None,
                 gate: Optional[float] = None,
                 learn_gate: bool = True,
                 background: bool = True,
                 aux_weight: float = 0.5,
                 embed_channels: Optional[int] = None,
                 concat_channels: Optional[int] = None,
                 text_channels: Optional[int] = None) -> None:
        # What is around it may have an init_cfg for all below: see
        # init_weights.
        super().__init__(init_cfg=None)
        _check(mode in GATES, 'mode', mode, ', '.join(map(repr, GATES)))
        for field, value in (('num_classes', num_classes), ('in_channels',
                                                            in_channels)):
            _check(_is_count(value), field, value, 'whole numbers from 1')
        for field, value in (('embed_channels', embed_channels),
                             ('concat_channels', concat_channels),
                             ('text_channels', text_channels)):
            _check(value is None or _is_count(value), field, value,
                   'whole numbers from 1')
        _check(tau is None or (mode == 'similarity' and tau > 0), 'tau', tau,
               "numbers above 0 with mode='similarity', and None with others")
        _check(concat_channels is None or mode == 'concat', 'concat_channels',
               concat_channels, "None unless mode='concat'")
        _check(aux_weight >= 0, 'aux_weight', aux_weight, 'numbers from 0')
        _check((text_embeddings is None) == (text_channels is not None),
               'text_channels', text_channels, 'numbers with '
               'text_embeddings=None, and None with texts')
        self.mode = mode
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.tau = 20. if tau is None else float(tau)
        self.initial_gate = GATES[mode] if gate is None else float(gate)
        self.aux_weight = float(aux_weight)
        self.classes = None
        self._recorded: Optional[List[Tensor]] = None
        self._set_texts(text_embeddings, center, text_channels)
        self._build(background, learn_gate, embed_channels, concat_channels
                    or 256)
        self._reset()

    def _set_texts(self, source: Optional[TextSource], center: bool,
                   text_channels: Optional[int]) -> None:
        # On the host: a look at the vectors would wait for the device.
        self._has_texts = source is not None
        if source is None:
            vectors = torch.zeros((self.num_classes, text_channels))
        else:
            texts = load_text_embeddings(source)
            _check(
                len(texts.classes) == self.num_classes, 'num_classes',
                self.num_classes, f'{len(texts.classes)}, the number of '
                f'classes with texts ({", ".join(texts.classes[:5])} ...)')
            self.classes = texts.classes
            vectors = prepare_text_vectors(texts.vectors, center)
        self.register_buffer('text_vectors', vectors)

    def _build(self, background: bool, learn_gate: bool,
               embed_channels: Optional[int], hidden: int) -> None:
        width = self.in_channels
        embed = embed_channels or min(width, MAX_EMBED_CHANNELS)
        # The sum with features needs texts as wide as these.
        text_width = width if self.mode == 'feature' else embed
        self.projector = nn.Sequential(
            nn.Linear(self.text_vectors.shape[1], embed), nn.ReLU(),
            nn.Linear(embed, text_width))
        # Directly owned parameters: an init_cfg around them sets everything
        # that is called `weight`.
        self.gate = nn.Parameter(torch.zeros(()), requires_grad=learn_gate)
        needed = self.mode != 'feature' or self.aux_weight > 0
        self.background = nn.Parameter(
            torch.zeros(1, text_width)) if background and needed else None
        if self.mode == 'similarity':
            # A bias would get huge gradients from features that are zero.
            self.visual = nn.Linear(width, embed, bias=False)
        elif self.mode == 'feature':
            self.query = nn.Linear(width, embed, bias=False)
            self.key = nn.Linear(width, embed, bias=False)
        else:
            # One layer on [x; t], in two parts so that neither is repeated.
            self.visual = nn.Linear(width, hidden)
            self.textual = nn.Linear(embed, hidden, bias=False)
            # The softmax takes no notice of a bias.
            self.score = nn.Linear(hidden, 1, bias=False)

    def init_weights(self) -> None:
        """Initialise everything but the text vectors.

        mmdet's box heads draw all that is below their classifier anew, with
        a deviation of 0.01; this undoes it.
        """
        if not self._is_init:
            self._reset()
        self._is_init = True

    def _reset(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                xavier_init(module, distribution='uniform')
        if self.background is not None:
            nn.init.normal_(self.background, std=0.02)
        nn.init.constant_(self.gate, self.initial_gate)

    # Fusion ---------------------------------------------------------------

    def forward(self, features: Tensor,
                visual: Union[Tensor, Callable[[Tensor], Tensor]]) -> Tensor:
        """Return the fused logits.

        Args:
            features (Tensor): (..., d), any number of leading axes.
            visual (Tensor or Callable): The visual logits (..., C + 1), or
                the classifier that makes them of features, which 'feature'
                needs. Without background C.

        Returns:
            Tensor: Of the visual logits' shape.

        Raises:
            RuntimeError: If the text vectors are not known yet.
            TypeError: If 'feature' gets logits.
        """
        if self.mode == 'feature':
            if not callable(visual):
                raise TypeError(
                    "SemanticBranch.mode='feature' changes the features, so "
                    'it needs the classifier that makes logits of them, not '
                    'its logits.')
            return visual(self.condition(features))
        logits = self._semantic_logits(features)
        self._record(logits)
        if callable(visual):
            visual = visual(features)
        return visual + self.gate * logits

    def condition(self, features: Tensor) -> Tensor:
        """Add to features the texts that they attend to; 'feature' only.

        Args:
            features (Tensor): (..., d).

        Returns:
            Tensor: (..., d).
        """
        texts = self._texts()
        query = self.query(features) / math.sqrt(self.query.out_features)
        scores = F.linear(query, self.key(texts))
        if self._records:
            logits = scores
            if self.background is not None:
                logits = torch.cat(
                    [scores, F.linear(query, self.key(self.background))], -1)
            self._record(logits)
        attended = scores.softmax(-1) @ texts
        return features + self.gate * attended

    def condition_maps(self, maps: Tensor) -> Tensor:
        """Add to every pixel the texts that it attends to; 'feature' only.

        Args:
            maps (Tensor): (N, d, H, W).

        Returns:
            Tensor: (N, d, H, W), in the same memory layout: in another one
            the layers behind it would round differently.
        """
        layout = torch.contiguous_format
        if not maps.is_contiguous() and maps.is_contiguous(
                memory_format=torch.channels_last):
            layout = torch.channels_last
        pixels = self.condition(maps.movedim(1, -1))
        return pixels.movedim(-1, 1).contiguous(memory_format=layout)

    def _semantic_logits(self, features: Tensor) -> Tensor:
        texts = self._texts()
        if self.background is not None:
            texts = torch.cat([texts, self.background])
        if self.mode == 'similarity':
            return cosine_logits(self.visual(features), texts, self.tau)
        hidden = self.visual(features)[..., None, :] + self.textual(texts)
        return self.score(hidden.relu())[..., 0]

    def _texts(self) -> Tensor:
        if not self._has_texts:
            # Somebody may have copied the buffer, as averages of models do.
            self._has_texts = bool(self.text_vectors.any())
            if not self._has_texts:
                raise RuntimeError(
                    'SemanticBranch.text_embeddings=None: the text vectors '
                    'come with a checkpoint of the branch, and none has been '
                    'loaded.')
        return self.projector(self.text_vectors)

    # Auxiliary loss -------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[List[Tensor]]:
        """Note the semantic logits of every call, for the auxiliary loss.

        The loss is ``aux_weight * loss_cls(semantic logits, ...)`` with the
        further arguments of the head's own classification loss.

        Yields:
            list[Tensor]: Receives (..., C + 1) per call, in order; stays
            empty in evaluation mode, without gradients, and if
            ``aux_weight`` is 0.
        """
        outer, self._recorded = self._recorded, []
        try:
            yield self._recorded
        finally:
            self._recorded = outer

    @property
    def _records(self) -> bool:
        return (self._recorded is not None and self.aux_weight > 0
                and self.training and torch.is_grad_enabled())

    def _record(self, logits: Tensor) -> None:
        if self._records:
            self._recorded.append(logits)

    # Classes --------------------------------------------------------------

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise ValueError if the texts are not those of these classes.

        Args:
            classes (Sequence[str]): The data set's classes, in its order.
        """
        if self.classes is not None:
            check_class_order(self.classes, classes)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args,
                              **kwargs) -> None:
        loaded = state_dict.get(f'{prefix}text_vectors')
        own = self.text_vectors
        if (self._has_texts and loaded is not None
                and loaded.shape == own.shape and not torch.allclose(
                    loaded.to(own), own, rtol=0, atol=TEXT_TOLERANCE)):
            raise ValueError(
                f'The checkpoint has other text vectors in {prefix}'
                'text_vectors than text_embeddings: those of other classes, '
                'of another order or of another text model. Give '
                'text_embeddings the file that it was trained with; to '
                'fine-tune it on other classes, remove that key from it.')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._has_texts = self._has_texts or bool(self.text_vectors.any())

    def extra_repr(self) -> str:
        """Return the settings."""
        return (f'mode={self.mode!r}, num_classes={self.num_classes}, '
                f'gate={self.initial_gate}, aux_weight={self.aux_weight}')


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _check(right: bool, field: str, value: object, allowed: str) -> None:
    if not right:
        raise ValueError(f'SemanticBranch.{field}={value!r}; allowed are '
                         f'{allowed}.')
