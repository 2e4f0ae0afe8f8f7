# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .drawing import (default_palette, draw_instances, fitting_scale,
                      pseudo_label_panel, view_to_image)

__all__ = [
    'default_palette', 'draw_instances', 'fitting_scale', 'pseudo_label_panel',
    'view_to_image'
]

if is_installed('mmdet'):
    from .instance_panels import collect_panels
    __all__ += ['collect_panels']
