# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = (
    './mean-teacher_deeplabv3plus_r101-d16_cutmix_'
    '4xb4-40k_voc-blended-1over16.py')

# The Mean Teacher that comes with CPS.
model = dict(
    conf_thr=0.,
    conf_per_pixel=True,
    mix=None,
    average_classes=True,
    use_labeled=True,
    unsup_weight=100.)
