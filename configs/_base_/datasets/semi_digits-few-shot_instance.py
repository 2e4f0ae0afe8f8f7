# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# The embedded digits with a few instances of a class labelled, and as many
# labelled scenes in a batch as others. The commands that make them are in
# docs/digits_few_shot.md.
_base_ = './semi_digits_instance.py'

train_dataloader = dict(
    batch_size=16, sampler=dict(batch_size=16, source_ratio=[1, 1]))
