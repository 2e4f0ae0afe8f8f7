# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""LAVT's backbone: a Swin transformer that reads a sentence on its way."""
from typing import Optional, Sequence, Tuple

import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import trunc_normal_
from mmseg.models.backbones import SwinTransformer
from torch import Tensor, nn

from mmsemi.registry import MODELS
from .swin_weights import load_swin_weights

# Added to the scores of padding; what softmax leaves of it is 0.
PADDING_SCORE = -1e4


class PixelWordAttention(BaseModule):
    """Pixels gather the words that they need (LAVT's PWAM).

    Each pixel attends to the words; what it gathered multiplies its own
    projection (LAVT, section 3.2). With x the pixels, l the words and m
    their mask::

        q = norm(query(x)),  k = key(l) m,  v = value(l) m
        a = softmax(q k / sqrt(C), over the words that are no padding) v
        F = GELU(project(GELU(vision(x)) * norm(language(a))))

    All maps are 1 x 1 convolutions with bias and ``norm`` is an instance
    norm over the pixels, without weights. Scores are divided by the square
    root of all channels, with several heads too, as in the released code;
    the paper has one head.

    Args:
        channels (int): Channels C of the pixels.
        text_channels (int): Channels D of the words.
        num_heads (int): Defaults to 1.
        dropout (float): After either GELU. Defaults to 0.

    Source: Yang et al., LAVT: Language-Aware Vision Transformer for
    Referring Image Segmentation, CVPR 2022.
    """

    def __init__(self,
                 channels: int,
                 text_channels: int,
                 num_heads: int = 1,
                 dropout: float = 0.) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(
                f'backbone.fusion_heads has {num_heads} for a stage of '
                f'{channels} channels; allowed are divisors of its channels.')
        self.num_heads = num_heads
        self.scale = channels**-0.5
        self.vision = nn.Conv1d(channels, channels, 1)
        self.query = nn.Conv1d(channels, channels, 1)
        self.key = nn.Conv1d(text_channels, channels, 1)
        self.value = nn.Conv1d(text_channels, channels, 1)
        self.language = nn.Conv1d(channels, channels, 1)
        self.project = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lang: Tensor, mask: Tensor) -> Tensor:
        """Fuse pixels with words.

        Args:
            x (Tensor): Pixels (B, HW, C), HW > 1.
            lang (Tensor): Words (B, T, D).
            mask (Tensor): (B, T) bool, False on padding.

        Returns:
            Tensor: (B, HW, C).
        """
        x, lang = x.transpose(1, 2), lang.transpose(1, 2)
        known = mask[:, None].to(lang)
        query = F.instance_norm(self.query(x))
        key, value = self.key(lang) * known, self.value(lang) * known
        bias = ((1 - known) * PADDING_SCORE)[:, None].to(query)
        gathered = F.scaled_dot_product_attention(
            self._heads(query),
            self._heads(key),
            self._heads(value),
            attn_mask=bias,
            scale=self.scale)
        gathered = gathered.transpose(2, 3).reshape(x.shape)
        language = F.instance_norm(self.language(gathered))
        vision = self.dropout(F.gelu(self.vision(x)))
        fused = self.dropout(F.gelu(self.project(vision * language)))
        return fused.transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """Split (B, C, L) into (B, heads, L, C / heads)."""
        return x.unflatten(1, (self.num_heads, -1)).transpose(2, 3)


class LanguageGate(nn.Sequential):
    """How much of the fused pixels goes on to the next stage.

    Two linear layers without bias, ReLU between and tanh after them.

    Args:
        channels (int): Channels of the pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Linear(channels, channels, bias=False), nn.ReLU(),
            nn.Linear(channels, channels, bias=False), nn.Tanh())


@MODELS.register_module()
class LAVTSwin(SwinTransformer):
    """OpenMMLab's Swin transformer with LAVT's fusion after every stage.

    After the blocks of stage i the pixels x_i meet the words::

        F_i = PWAM(x_i, words),  x_i <- x_i + gate(F_i) * F_i

    The gated sum goes on to the patch merging, the layer norm of F_i is the
    stage's output. With gates of zero the stages compute what plain Swin
    does. The last stage's gate reaches no output; it is kept, without
    gradient, because the official weights have it.

    Where the paper is silent, the released code decides: the output is F_i,
    not the gated sum; stochastic depth rises to 0.3; one head per fusion;
    linear layers of gates start from a truncated normal of 0.02.

    Sizes by ``embed_dims``, ``depths`` and ``num_heads``: T 96, (2, 2, 6, 2),
    (3, 6, 12, 24); S 96, (2, 2, 18, 2), (3, 6, 12, 24); B 128,
    (2, 2, 18, 2), (4, 8, 16, 32); L 192, (2, 2, 18, 2), (6, 12, 24, 48).

    Args:
        text_channels (int): Channels of the words, 768 for BERT-base.
            Defaults to 768.
        fusion_heads (Sequence[int]): Attention heads of the fusion in each
            stage. Defaults to 1 each.
        fusion_dropout (float): Dropout in the fusion. Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last block. Defaults
            to 0.3.
        convert_weights (bool): Whether the file that ``init_cfg`` names has
            Swin's official layout instead of OpenMMLab's. Defaults to False.
        init_cfg (dict, optional): ``dict(type='Pretrained',
            checkpoint=FILE)`` loads a plain Swin; the fusion stays random,
            position tables of another window are resized. Defaults to None.
        **kwargs: Arguments of mmseg's SwinTransformer: ``embed_dims``,
            ``depths``, ``num_heads``, ``window_size`` and others.

    Raises:
        ValueError: If an argument is out of range.

    Source: Yang et al., LAVT, CVPR 2022, section 3.
    """

    def __init__(self,
                 text_channels: int = 768,
                 fusion_heads: Optional[Sequence[int]] = None,
                 fusion_dropout: float = 0.,
                 drop_path_rate: float = 0.3,
                 convert_weights: bool = False,
                 init_cfg: Optional[dict] = None,
                 **kwargs) -> None:
        super().__init__(
            drop_path_rate=drop_path_rate, init_cfg=init_cfg, **kwargs)
        if self.init_cfg is not None and 'checkpoint' not in self.init_cfg:
            raise ValueError(
                f'backbone.init_cfg={init_cfg!r}; allowed are None and '
                "dict(type='Pretrained', checkpoint=FILE).")
        num = len(self.stages)
        heads = (1, ) * num if fusion_heads is None else tuple(fusion_heads)
        if len(heads) != num:
            raise ValueError(f'backbone.fusion_heads={heads}; one number for '
                             f'each of the {num} stages is needed.')
        self.text_channels = text_channels
        self.convert_weights = convert_weights
        self.fusions = ModuleList([
            PixelWordAttention(channels, text_channels, head, fusion_dropout)
            for channels, head in zip(self.num_features, heads)
        ])
        self.gates = ModuleList(
            [LanguageGate(channels) for channels in self.num_features])
        # DistributedDataParallel refuses parameters that get no gradient.
        self.gates[-1].requires_grad_(False)

    def init_weights(self) -> None:
        """Initialise at random, or load Swin and initialise the rest."""
        for module in self.modules():
            table = getattr(module, 'relative_position_bias_table', None)
            if table is not None:
                trunc_normal_(table, std=.02)
        for layer in self.gates.modules():
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=.02)
        if self.init_cfg is None:
            super().init_weights()
        else:
            load_swin_weights(self, self.init_cfg['checkpoint'],
                              self.convert_weights)

    def train(self, mode: bool = True) -> 'LAVTSwin':
        """Set the mode; mmseg's Swin returns nothing here."""
        super().train(mode)
        return self

    def forward(self, x: Tensor, lang: Tensor,
                mask: Tensor) -> Tuple[Tensor, ...]:
        """Return the fused maps of the stages.

        Args:
            x (Tensor): Normalised images (B, 3, H, W).
            lang (Tensor): Words (B, T, text_channels).
            mask (Tensor): (B, T) bool, False on padding.

        Returns:
            tuple[Tensor]: Of each stage in ``out_indices`` (B, C_i, H_i,
            W_i), for Swin-B at 480 x 480 pixels 128, 256, 512 and 1024
            channels at strides 4, 8, 16 and 32.

        Raises:
            ValueError: If sentences do not fit the images, or a stage has a
                single position, whose instance norm would be nothing.
        """
        if lang.shape[0] != x.shape[0] or \
                lang.shape[-1] != self.text_channels or \
                mask.shape != lang.shape[:2]:
            raise ValueError(
                f'{tuple(lang.shape)} words with a mask of '
                f'{tuple(mask.shape)} do not fit {len(x)} images and '
                f'backbone.text_channels={self.text_channels}: one row of '
                'words per image is needed.')
        image_size = tuple(x.shape[2:])
        x, size = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + self.absolute_pos_embed
        x = self.drop_after_pos(x)
        outs = []
        for i, stage in enumerate(self.stages):
            if size[0] * size[1] == 1:
                raise ValueError(
                    f'Images of {image_size[0]} x {image_size[1]} pixels '
                    f'leave stage {i} of mmsemi.LAVTSwin a single position, '
                    'and its instance norm needs two. Take larger images '
                    '(from 64 x 64 with four stages and patches of 4), in '
                    'the pipeline or by data_preprocessor.size.')
            for block in stage.blocks:
                x = block(x, size)
            fused = self.fusions[i](x, lang, mask)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(fused)
                outs.append(
                    out.transpose(1, 2).unflatten(2, size).contiguous())
            if stage.downsample is not None:
                x = x + self.gates[i](fused) * fused
                x, size = stage.downsample(x, size)
        return tuple(outs)
