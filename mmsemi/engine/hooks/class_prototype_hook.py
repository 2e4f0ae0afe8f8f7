# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""How similar the classes are, measured before the first iteration."""
import time
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.dataset import Compose, pseudo_collate
from mmengine.dist import all_reduce, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.utils import ProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmsemi.datasets import leaf_datasets
from mmsemi.models.evaluation_mode import evaluating
from mmsemi.models.label_smoothing import ClassPrototypes, choose_instances
from mmsemi.registry import HOOKS
from mmsemi.structures.tensor_masks import TensorMasks

#: A labelled image: the data set, the number in it, and how many instances
#: of each class to take.
Choice = Tuple[Dataset, int, Dict[int, int]]


@HOOKS.register_module()
class ClassPrototypeHook(Hook):
    """Measure the classes' similarities and counts for label smoothing.

    Before the first iteration the backbone, as it was initialised or loaded,
    looks at labelled images without augmentation; the mean embedding of a
    class's instances is its prototype (see :class:`ClassPrototypes`). The
    cosines between prototypes, and the number of labelled instances of each
    class, go to every :class:`SimilarityLabelSmoothing` in the model, a
    plain mmdet detector or a teacher and its student, to every
    :class:`ClassCalibrator` with ``rest='similarity'``, and to any other
    module with ``set_statistics`` and ``has_statistics``.

    A checkpoint has them, and then nothing is measured: a resumed training
    goes on with the same. All processes share the images.

    Args:
        pipeline (Sequence[dict], optional): Transforms of the images,
            without augmentation. Annotations are loaded right after the
            image, wherever they stand, so that they follow every resize;
            without masks, boxes stand in for them. Defaults to None: that
            of ``val_dataloader``.
        max_per_class (int, optional): So many instances of a class are
            enough; images that are not needed are not loaded. Counts are
            those of all instances. None takes all. Defaults to 200.
        level (int): Which of the backbone's outputs. Defaults to -1, the
            last.
        num_workers (int, optional): Processes that load images. Defaults to
            None: as many as ``train_dataloader`` has.
        seed (int): Seed of the choice of images. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range, the model has nothing to
            fill or no backbone, the images have no annotations, or there is
            no pipeline.
    """

    # Before the calibration, which may need the similarities.
    priority = 'ABOVE_NORMAL'

    def __init__(self,
                 pipeline: Optional[Sequence[dict]] = None,
                 max_per_class: Optional[int] = 200,
                 level: int = -1,
                 num_workers: Optional[int] = None,
                 seed: int = 0) -> None:
        for field, value, low in (('max_per_class', max_per_class, 1),
                                  ('num_workers', num_workers, 0)):
            if value is not None and (not isinstance(value, int)
                                      or value < low):
                raise ValueError(
                    f'ClassPrototypeHook.{field}={value!r}; allowed are None '
                    f'and whole numbers from {low}.')
        self.pipeline = pipeline
        self.max_per_class = max_per_class
        self.level = level
        self.num_workers = num_workers
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        """Measure, unless the statistics were loaded."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        modules = [
            m for m in model.modules() if hasattr(m, 'set_statistics')
            and getattr(m, 'needs_statistics', True)
        ]
        if not modules:
            raise ValueError(
                'ClassPrototypeHook finds nothing in the model that needs '
                'similarities of classes. Use a loss_cls=dict(type='
                "'mmsemi.SoftCrossEntropyLoss', smoothing=dict(type='mmsemi."
                "SimilarityLabelSmoothing', num_classes=...)) or calibrator="
                "dict(rest='similarity', ...) of mmsemi.CalibrateScores, or "
                'remove the hook.')
        waiting = [m for m in modules if not m.has_statistics]
        if not waiting:
            print_log(
                'The similarities of the classes come from the checkpoint.',
                logger='current')
            return
        numbers = {module.num_classes for module in waiting}
        if len(numbers) > 1:
            raise ValueError('Modules that need similarities of classes have '
                             f'num_classes={sorted(numbers)}; they must have '
                             'the same.')
        similarity, counts = self.measure(runner, model, numbers.pop())
        for module in waiting:
            module.set_statistics(similarity, counts)

    @torch.no_grad()
    def measure(self, runner: Runner, model: nn.Module,
                num_classes: int) -> Tuple[Tensor, Tensor]:
        """Measure similarities and counts.

        Args:
            runner (Runner): For its data.
            model (nn.Module): The detector, or a model with a ``student``.
            num_classes (int): Number of classes C.

        Returns:
            tuple[Tensor, Tensor]: Cosines (C, C) float64 and numbers of
            labelled instances (C,) int64.
        """
        begin = time.perf_counter()
        detector = getattr(model, 'student', model)
        if not hasattr(detector, 'backbone'):
            raise ValueError('ClassPrototypeHook needs a model with a '
                             f'backbone; {type(detector).__name__} has none.')
        datasets = leaf_datasets(
            runner.train_dataloader.dataset,
            labeled_only=True,
            first_only=hasattr(model, 'student'))
        chosen, counts = self._choose(datasets, num_classes)
        prototypes = None
        share = chosen[get_rank()::get_world_size()]
        with evaluating(detector.backbone) as backbone:
            for batch, quota in self._load(runner, model, share):
                outputs = backbone(batch['inputs'])
                if not isinstance(outputs, Tensor):
                    outputs = outputs[self.level]
                if prototypes is None:
                    prototypes = ClassPrototypes(num_classes,
                                                 outputs.shape[1])
                self._add(prototypes, outputs[0], batch, quota)
        prototypes = _add_up(prototypes, num_classes)
        print_log(
            f'Prototypes of {int((prototypes.count > 0).sum())} of '
            f'{num_classes} classes from {int(prototypes.count.sum())} '
            f'instances in {len(chosen)} images, in '
            f'{time.perf_counter() - begin:.1f} s; labelled instances: '
            f'{int(counts.sum())}.',
            logger='current')
        return prototypes.similarity(), counts

    def _choose(self, datasets: List[Dataset],
                num_classes: int) -> Tuple[List[Choice], Tensor]:
        places = [(dataset, index) for dataset in datasets
                  for index in range(len(dataset))]
        labels = [_labels(dataset, index) for dataset, index in places]
        flat = torch.tensor([label for found in labels for label in found],
                            dtype=torch.long)
        if len(flat) == 0:
            raise ValueError('ClassPrototypeHook finds no annotated instance '
                             'in the labelled images of train_dataloader.')
        if int(flat.max()) >= num_classes:
            raise ValueError(
                f'num_classes={num_classes} in the model, but the labelled '
                f'images have an instance of label {int(flat.max())}.')
        chosen = choose_instances(labels, self.max_per_class, self.seed)
        return ([(*places[number], quota) for number, quota in chosen],
                torch.bincount(flat, minlength=num_classes))

    def _load(self, runner: Runner, model: nn.Module,
              share: List[Choice]) -> Iterator[Tuple[dict, Dict[int, int]]]:
        workers = self.num_workers
        if workers is None:
            workers = runner.train_dataloader.num_workers
        loader = DataLoader(
            LabeledImages(share, self._transforms(runner)),
            batch_size=1,
            num_workers=min(workers, len(share)),
            collate_fn=pseudo_collate,
            # Its own: a resumed training does not get here, and must find
            # the random states of one that did.
            generator=torch.Generator())
        preprocess = getattr(model.data_preprocessor, 'data_preprocessor',
                             model.data_preprocessor)
        bar = ProgressBar(len(share)) if is_main_process() else None
        for data, (_, _, quota) in zip(loader, share):
            yield preprocess(data, False), quota
            if bar is not None:
                bar.update()
        if bar is not None:
            print()

    def _transforms(self, runner: Runner) -> Compose:
        pipeline = self.pipeline
        if pipeline is None and runner.val_loop is not None:
            pipeline = getattr(
                leaf_datasets(runner.val_loop.dataloader.dataset)[0],
                'pipeline', None)
        if pipeline is None:
            raise ValueError(
                'ClassPrototypeHook.pipeline is not given, and there is no '
                'val_dataloader whose pipeline could be taken.')
        if not isinstance(pipeline, Compose):
            pipeline = Compose(list(pipeline))
        return annotations_first(pipeline)

    @staticmethod
    def _add(prototypes: ClassPrototypes, feature_map: Tensor, batch: dict,
             quota: Dict[int, int]) -> None:
        sample = batch['data_samples'][0]
        instances = sample.get('gt_instances')
        if instances is None or 'labels' not in instances:
            raise ValueError(
                'The pipeline of ClassPrototypeHook (by default that of '
                'val_dataloader) loads no annotations; it needs '
                "dict(type='LoadAnnotations', with_bbox=True, with_mask="
                'True).')
        labels = instances.labels.to(feature_map.device)
        wanted = labels.new_zeros(prototypes.num_classes)
        for label, number in quota.items():
            wanted[label] = number
        # An instance's number within its class.
        order = (labels[:, None] == labels).tril(-1).sum(1)
        kept = order < wanted[labels]
        masks, bboxes = canvas_masks(sample, batch['inputs'].shape[2:])
        prototypes.update(feature_map, masks[kept], labels[kept],
                          bboxes[kept])


class LabeledImages(Dataset):
    """Chosen images of labelled data sets, loaded in their own way.

    Args:
        choices (list[Choice]): The images.
        transforms (Compose): What loads them.
    """

    def __init__(self, choices: List[Choice], transforms: Compose) -> None:
        self.choices = choices
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.choices)

    def __getitem__(self, index: int) -> dict:
        dataset, number, _ = self.choices[index]
        info = dataset.get_data_info(number)
        data = self.transforms(info)
        if data is None:
            raise ValueError(
                'The pipeline of ClassPrototypeHook drops the labelled image '
                f'{info.get("img_path")}; it must keep all.')
        return data


def annotations_first(pipeline: Compose) -> Compose:
    """Load annotations before the image changes.

    mmdet's test pipelines load them after the resize, in the frame of the
    original image, because its metrics compare in that.

    Args:
        pipeline (Compose): Transforms.

    Returns:
        Compose: The same, with those that load annotations right after
        those that load the image. Unchanged if none is known to load it.
    """
    images = [
        t for t in pipeline.transforms if isinstance(t, LoadImageFromFile)
    ]
    if not images:
        return pipeline
    annotations = [
        t for t in pipeline.transforms if isinstance(t, LoadAnnotations)
    ]
    others = [
        t for t in pipeline.transforms
        if not isinstance(t, (LoadImageFromFile, LoadAnnotations))
    ]
    return Compose([*images, *annotations, *others])


def canvas_masks(sample: BaseDataElement,
                 canvas: Sequence[int]) -> Tuple[Tensor, Tensor]:
    """Return the masks of an image on the canvas that the model sees.

    Args:
        sample (BaseDataElement): With ``gt_instances``, whose ``bboxes`` and
            possibly ``masks`` are in the image's frame, and ``img_shape``.
        canvas (Sequence[int]): Height and width after padding.

    Returns:
        tuple[Tensor, Tensor]: Masks (N, H, W) bool, the boxes' area where
        there are none, and boxes (N, 4).

    Raises:
        ValueError: If the masks have another size than the image.
    """
    instances = sample.gt_instances
    bboxes = instances.bboxes
    # Box structures keep their numbers in a tensor.
    bboxes = getattr(bboxes, 'tensor', bboxes)
    if 'masks' not in instances:
        inside = []
        for axis, length in ((1, canvas[0]), (0, canvas[1])):
            centre = torch.arange(length, device=bboxes.device) + 0.5
            inside.append((centre >= bboxes[:, axis, None])
                          & (centre < bboxes[:, axis + 2, None]))
        return inside[0][:, :, None] & inside[1][:, None], bboxes
    masks = instances.masks
    if (masks.height, masks.width) != tuple(sample.img_shape[:2]):
        raise ValueError(
            f'Masks of {masks.height} x {masks.width} pixels on an image of '
            f'{tuple(sample.img_shape[:2])}: the pipeline of '
            'ClassPrototypeHook must load annotations before the image '
            'changes its size.')
    masks = TensorMasks(masks.to_tensor(torch.bool, bboxes.device))
    return masks.pad(tuple(canvas)).masks, bboxes


def _labels(dataset: Dataset, index: int) -> List[int]:
    info = dataset.get_data_info(index) if hasattr(
        dataset, 'get_data_info') else {}
    if info.get('instances') is None:
        raise ValueError(
            'ClassPrototypeHook needs labelled instances in train_dataloader,'
            f' but its {type(dataset).__name__} lists none.')
    return [
        instance['bbox_label'] for instance in info['instances']
        if not instance.get('ignore_flag', 0)
    ]


def _add_up(prototypes: Optional[ClassPrototypes],
            num_classes: int) -> ClassPrototypes:
    """Add up the parts of all processes, some of which may have had none."""
    channels = torch.tensor(0 if prototypes is None else prototypes.channels)
    all_reduce(channels, op='max')
    if prototypes is None:
        prototypes = ClassPrototypes(num_classes, int(channels))
    prototypes.reduce()
    return prototypes
