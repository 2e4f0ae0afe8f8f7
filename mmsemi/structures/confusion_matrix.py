# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Counts of which class was taken for which, and what follows from them."""
from typing import Dict, List, Optional, Sequence, Union

import numpy as np
import torch
from torch import Tensor

#: How a class counts that occurs neither in truth nor in prediction.
ABSENT = ('nan', 'zero')

LabelMap = Union[Tensor, np.ndarray]


class ConfusionMatrix:
    """Pixels by true and predicted class, summed over images as integers.

    It needs no runner::

        matrix = ConfusionMatrix(21)
        for prediction, truth in pairs:
            matrix.update(prediction, truth)
        print(matrix.metrics()['mIoU'])

    Of one class c with TP true positives, T true and P predicted pixels,
    IoU is TP / (T + P - TP) and accuracy TP / T. Both are computed from the
    sums over all images, never averaged over images.

    A prediction that names no class (below 0, or ``num_classes`` and above)
    is wrong: it counts in T of the true class and in no P, as in mmseg's
    IoUMetric. A truth that names no class and is not ``ignore_index`` is an
    error in the data and is refused; mmseg drops such pixels from T and
    leaves them in P.

    Args:
        num_classes (int): Number of classes K, above 0.
        ignore_index (int): True label of the pixels that do not count.
            Defaults to 255.
        absent (str): What classes count that cannot be judged: 'nan' leaves
            them out of the means, as mmseg does; 'zero' gives them 0, as the
            released evaluation of UniMatch and U2PL does. IoU cannot be
            judged without a true or predicted pixel, accuracy without a true
            one. Defaults to 'nan'.

    Attributes:
        counts (Tensor): (K, K + 1) int64 on the CPU: rows are true classes,
            columns predicted ones, the last column predictions that name no
            class.

    Raises:
        TypeError: If ``num_classes`` or ``ignore_index`` is no integer.
        ValueError: If ``num_classes`` or ``absent`` is out of range.
    """

    def __init__(self,
                 num_classes: int,
                 ignore_index: int = 255,
                 absent: str = 'nan') -> None:
        for name, value in (('num_classes', num_classes), ('ignore_index',
                                                           ignore_index)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f'{name}={value!r} must be an integer.')
        if num_classes < 1:
            raise ValueError(f'num_classes={num_classes} must be above 0.')
        check_absent(absent)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.absent = absent
        self.counts = torch.zeros((num_classes, num_classes + 1),
                                  dtype=torch.long)

    def update(self, prediction: LabelMap,
               target: LabelMap) -> 'ConfusionMatrix':
        """Count the pixels of one or several images.

        Args:
            prediction (Tensor or np.ndarray): Predicted classes, integers of
                any shape.
            target (Tensor or np.ndarray): True classes, of the same shape.

        Returns:
            ConfusionMatrix: Itself.

        Raises:
            TypeError: If the maps do not hold integers.
            ValueError: If their shapes differ, or the truth holds a class
                out of range.
        """
        prediction = _as_labels(prediction, 'prediction')
        target = _as_labels(target, 'truth').to(prediction.device)
        if prediction.shape != target.shape:
            raise ValueError(
                f'The prediction has the size {tuple(prediction.shape)} and '
                f'the truth {tuple(target.shape)}; they must be equal.')
        num = self.num_classes
        counted = target != self.ignore_index
        target, prediction = target[counted], prediction[counted]
        wrong = target[(target < 0) | (target >= num)]
        if len(wrong) > 0:
            raise ValueError(
                f'The truth holds the labels {wrong.unique().tolist()[:10]}; '
                f'allowed are 0 to {num - 1} and '
                f'ignore_index={self.ignore_index}.')
        named = (prediction >= 0) & (prediction < num)
        prediction = prediction.where(named, num)
        counts = torch.bincount(
            target * (num + 1) + prediction, minlength=num * (num + 1))
        self.counts += counts.reshape(num, num + 1).cpu()
        return self

    def merge(self, other: 'ConfusionMatrix') -> 'ConfusionMatrix':
        """Add the counts of another matrix.

        Args:
            other (ConfusionMatrix): Of the same classes; left as it is.

        Returns:
            ConfusionMatrix: Itself.

        Raises:
            ValueError: If ``other`` has another number of classes or
                ignores another label.
        """
        for name in ('num_classes', 'ignore_index'):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    'Confusion matrices can be merged if they agree in '
                    f'{name}, but these have {ours} and {theirs}.')
        self.counts += other.counts
        return self

    @property
    def matrix(self) -> Tensor:
        """Tensor: (K, K) int64, without predictions that name no class."""
        return self.counts[:, :-1]

    @property
    def num_pixels(self) -> int:
        """int: Pixels that were counted."""
        return int(self.counts.sum())

    def iou(self) -> Tensor:
        """Return the IoU of every class.

        Returns:
            Tensor: (K,) float64, from 0 to 1; NaN or 0 where a class is
            absent, by ``absent``.
        """
        return self._share(self._union())

    def accuracy(self) -> Tensor:
        """Return the share of every class's pixels that were found.

        Returns:
            Tensor: (K,) float64, from 0 to 1; NaN or 0 where a class is
            absent, by ``absent``.
        """
        return self._share(self.counts.sum(1))

    def mean_iou(self) -> float:
        """Return the mean IoU of the classes that can be judged.

        Returns:
            float: From 0 to 1; NaN if no pixel was counted.
        """
        return float(self.iou().nanmean())

    def metrics(self,
                class_names: Optional[Sequence[str]] = None
                ) -> Dict[str, float]:
        """Return all metrics in percent.

        Args:
            class_names (Sequence[str], optional): K names for the keys of
                single classes. Defaults to None: their numbers.

        Returns:
            dict[str, float]: ``PA`` (share of right pixels; mmseg's aAcc),
            ``MA`` (mean of the classes' accuracies; mmseg's mAcc), ``mIoU``,
            ``FWIoU`` (mean of the classes' IoU, weighted by their true
            pixels), ``IoU/NAME`` and ``Acc/NAME``. Not rounded; NaN where
            nothing was counted.

        Raises:
            ValueError: If the number of names is not K.
        """
        names = unique_names(class_names, self.num_classes)
        true = self.counts.sum(1).double()
        hits = self.matrix.diagonal()
        iou, accuracy = self.iou(), self.accuracy()
        # A class without true pixels has no weight, whatever its IoU is.
        weighted = (true * iou.nan_to_num(0.)).sum() / true.sum()
        found = {
            'PA': hits.sum() / true.sum(),
            'MA': accuracy.nanmean(),
            'mIoU': self.mean_iou(),
            'FWIoU': weighted
        }
        found.update({f'IoU/{name}': v for name, v in zip(names, iou)})
        found.update({f'Acc/{name}': v for name, v in zip(names, accuracy)})
        return {key: 100 * float(value) for key, value in found.items()}

    def _union(self) -> Tensor:
        hits = self.matrix.diagonal()
        return self.counts.sum(1) + self.matrix.sum(0) - hits

    def _share(self, whole: Tensor) -> Tensor:
        share = self.matrix.diagonal().double() / whole
        return share.nan_to_num(0.) if self.absent == 'zero' else share


def check_absent(absent: str) -> None:
    """Raise ValueError unless a rule for absent classes is known.

    Args:
        absent (str): One of :data:`ABSENT`.
    """
    if absent not in ABSENT:
        raise ValueError(f"absent={absent!r}; allowed are 'nan' and 'zero'.")


def unique_names(class_names: Optional[Sequence[str]],
                 num_classes: int) -> List[str]:
    """Return names that can serve as keys.

    Args:
        class_names (Sequence[str], optional): The names. None: numbers.
        num_classes (int): How many there must be.

    Returns:
        list[str]: The names; of equal ones the second and later are followed
        by the number of the class, as in ``'door (7)'``.

    Raises:
        ValueError: If their number is wrong.
    """
    if class_names is None:
        return [str(i) for i in range(num_classes)]
    if len(class_names) != num_classes:
        raise ValueError(f'{len(class_names)} names of classes were given '
                         f'for {num_classes} classes.')
    names = []
    for i, name in enumerate(class_names):
        names.append(f'{name} ({i})' if name in names else str(name))
    return names


def _as_labels(labels: LabelMap, what: str) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f'The {what} must hold integers, one class per '
                        f'pixel, but its type is {labels.dtype}.')
    return labels.detach().long()
