# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
def setup() -> None:
    from mmengine.config.utils import MODULE2PACKAGE
    MODULE2PACKAGE['mmsemi'] = 'mmsemi'
    MODULE2PACKAGE['mmseg'] = 'mmseg'
