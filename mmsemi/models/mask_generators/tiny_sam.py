# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Random models of SAM's families that run in milliseconds."""
from typing import Any

import torch

TINY = 'tiny-random'
_PROMPTS = dict(hidden_size=32, image_size=64, mask_input_channels=16)
_DECODER = dict(
    hidden_size=32,
    mlp_dim=64,
    num_attention_heads=4,
    iou_head_hidden_dim=32)
_VISION = dict(
    hidden_size=32,
    output_channels=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=64,
    patch_size=8,
    window_size=4,
    global_attn_indexes=[1],
    num_pos_feats=16,
    mlp_dim=64,
    # The default is so small that every mask would be alike.
    initializer_range=0.02)
_HIERA = dict(
    hidden_size=16,
    num_attention_heads=1,
    blocks_per_stage=[1, 1, 2, 1],
    embed_dim_per_stage=[16, 32, 64, 128],
    num_attention_heads_per_stage=[1, 2, 4, 8],
    window_size_per_stage=[4, 4, 4, 4],
    window_positional_embedding_background_size=[4, 4],
    # Not the first block of a stage.
    global_attention_blocks=[3],
    image_size=[64, 64])
_PYRAMID = dict(
    backbone_channel_list=[128, 64, 32, 16],
    backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    fpn_hidden_size=32)


def build_tiny_sam(family: str = 'sam') -> Any:
    """Build a small model with random weights, the same at every call.

    Args:
        family (str): 'sam', 'sam2' or 'sam_hq'. Defaults to 'sam'.

    Returns:
        nn.Module: A model of transformers for images of 64 pixels.
    """
    import transformers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == 'sam2':
            return transformers.Sam2Model(
                transformers.Sam2Config(
                    vision_config=dict(
                        _PYRAMID,
                        backbone_config=dict(
                            _HIERA, model_type='sam2_hiera_det_model')),
                    prompt_encoder_config=dict(_PROMPTS, patch_size=16),
                    mask_decoder_config=_DECODER)).eval()
        decoder = dict(_DECODER)
        if family == 'sam_hq':
            decoder['vit_dim'] = _VISION['hidden_size']
            model_type, config_type = (transformers.SamHQModel,
                                       transformers.SamHQConfig)
        else:
            model_type, config_type = (transformers.SamModel,
                                       transformers.SamConfig)
        return model_type(
            config_type(
                vision_config=_VISION,
                prompt_encoder_config=dict(_PROMPTS, patch_size=8),
                mask_decoder_config=decoder)).eval()
