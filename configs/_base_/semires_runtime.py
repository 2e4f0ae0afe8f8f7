# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# semantic_runtime.py and semi_runtime.py; the training ends when five passes
# have not made the teacher better, as in the released code.
_base_ = ['./semantic_runtime.py', './semi_runtime.py']
default_hooks = dict(
    checkpoint=dict(save_best='oIoU'),
    early_stopping=dict(
        type='EarlyStoppingHook',
        monitor='oIoU',
        rule='greater',
        min_delta=0.,
        patience=5))
