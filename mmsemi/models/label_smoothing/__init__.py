# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .class_prototypes import (ClassPrototypes, choose_instances,
                               instance_embeddings)
from .similarity_label_smoothing import (SimilarityLabelSmoothing,
                                         concave_strength,
                                         neighbour_distribution,
                                         power_strength)

__all__ = [
    'ClassPrototypes', 'SimilarityLabelSmoothing', 'choose_instances',
    'concave_strength', 'instance_embeddings', 'neighbour_distribution',
    'power_strength'
]
