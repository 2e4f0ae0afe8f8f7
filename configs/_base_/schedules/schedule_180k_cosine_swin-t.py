# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# schedule_180k_cosine.py without weight decay on norms and position biases of
# Swin-T, as in mmdet.
_base_ = './schedule_180k_cosine.py'

no_decay = dict(lr_mult=0.1, decay_mult=0.0)
custom_keys = {
    'backbone.patch_embed.norm': no_decay,
    'backbone.norm': no_decay,
    'absolute_pos_embed': no_decay,
    'relative_position_bias_table': no_decay,
}
custom_keys.update({
    f'backbone.stages.{stage}.blocks.{block}.norm': no_decay
    for stage, depth in enumerate([2, 2, 6, 2]) for block in range(depth)
})
custom_keys.update({
    f'backbone.stages.{stage}.downsample.norm': no_decay
    for stage in range(3)
})
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=custom_keys))
