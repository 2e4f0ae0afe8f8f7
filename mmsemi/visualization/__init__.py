# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .drawing import (default_palette, draw_instances, draw_label_map,
                      fitting_scale, pseudo_label_panel, view_to_image)
from .reliability_diagrams import draw_reliability_diagrams
from .training_panels import collect_panels

__all__ = [
    'collect_panels', 'default_palette', 'draw_instances', 'draw_label_map',
    'draw_reliability_diagrams', 'fitting_scale', 'pseudo_label_panel',
    'view_to_image'
]
