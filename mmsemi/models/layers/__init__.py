# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .fastinst_layers import (FastInstDecoderLayer, guided_attn_mask,
                              predicted_attn_mask)
from .fastinst_pixel_decoder import FastInstPixelDecoder
from .instance_activation_queries import (InstanceActivationQueries,
                                          QueryProposals, activation_scores,
                                          cell_locations, local_maxima)

__all__ = [
    'FastInstDecoderLayer', 'FastInstPixelDecoder',
    'InstanceActivationQueries', 'QueryProposals', 'activation_scores',
    'cell_locations', 'guided_attn_mask', 'local_maxima', 'predicted_attn_mask'
]
