# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Calibrate on all labels with two teachers that learned half of them."""
import copy
from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmsemi.datasets import leaf_datasets, load_coco
from mmsemi.engine.hooks.calibration_hook import (build_calibration_loader,
                                                  calibration_stages,
                                                  check_calibration_images,
                                                  measure_calibration,
                                                  set_class_groups)
from mmsemi.engine.hooks.class_prototype_hook import annotations_first
from mmsemi.methods import TeacherStudent
from mmsemi.methods.teacher_checkpoint import fill_teacher
from mmsemi.pseudo_labels import CalibrationStage
from .checkpoints import load_checkpoint_file
from .data_files import data_sources
from .predictors import build_wrapper

PathLike = Union[str, Path]


class CrossFit:
    """Measure teachers on images that they did not learn, and add it up.

    What is counted is what :class:`mmsemi.CalibrationHook` would count for
    each teacher; the statistics of all are added, so that the maps are those
    of one set with the images of all. Two teachers of one recipe, trained on
    the halves of ``split_coco.py --folds 2`` and each measured on the other
    half, calibrate with every label, and none that its teacher learned.

    Args:
        cfg (Config): Of the training that is to use the calibration, with
            calibration stages. Images are loaded as those of
            ``val_dataloader`` (``test_dataloader`` where there is none), from
            where the first source of ``train_dataloader`` has its images.
        teachers (Sequence[tuple]): Checkpoint and annotation file of each:
            weights of a plain segmenter or of a semi-supervised model, whose
            teacher is taken, and labelled images it did not learn.
        device (str, optional): Defaults to None: a GPU if there is one.

    Attributes:
        stages (list[CalibrationStage]): Those of the pipeline; fitted by
            :meth:`measure`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the config has no teacher, no calibration stage or not
            the data to measure on, or two files share an image.
        RuntimeError: If the weights are those of another model.
    """

    def __init__(self,
                 cfg: Config,
                 teachers: Sequence[Tuple[PathLike, PathLike]],
                 device: Optional[str] = None) -> None:
        if cfg.get('model') is None:
            raise ValueError('The config has no model.')
        for _, ann_file in teachers:
            if not Path(ann_file).is_file():
                raise FileNotFoundError(
                    f'There is no annotation file {ann_file}.')
            if str(ann_file).endswith('.json'):
                # What mmdet raises does not name a broken file.
                load_coco(ann_file)
        model = build_wrapper(cfg)
        if not isinstance(model, TeacherStudent):
            raise ValueError(
                'Cross-fitting needs the config of a training with a teacher,'
                f' but model.type is {cfg.model.get("type")}.')
        self.model = model.to(device or get_device()).eval()
        self.stages = calibration_stages(model)
        # Before an hour of predictions.
        for checkpoint, _ in teachers:
            self._fill(checkpoint)
        self.teachers = list(teachers)
        self.loaders = [
            _build_loader(cfg, ann_file) for _, ann_file in teachers
        ]
        _check_disjoint(self.loaders, [ann_file for _, ann_file in teachers])
        for loader in self.loaders:
            check_calibration_images(self.stages, loader)
            set_class_groups(self.stages, loader)

    def measure(self) -> List[CalibrationStage]:
        """Measure all teachers, with a progress bar, and fit.

        Returns:
            list[CalibrationStage]: The stages, with the statistics of all.
        """
        for (checkpoint, _), loader in zip(self.teachers, self.loaders):
            self._fill(checkpoint)
            measure_calibration(self.model, loader, show=True)
        for stage in self.stages:
            stage.calibrator.fit()
        return self.stages

    def _fill(self, checkpoint: PathLike) -> None:
        weights = load_checkpoint_file(checkpoint)['state_dict']
        fill_teacher(
            self.model.labeler, weights, str(checkpoint), complete=True)


def _build_loader(cfg: Config, ann_file: PathLike) -> DataLoader:
    """Load images of the labelled source as those of the validation."""
    for field in ('val_dataloader', 'test_dataloader'):
        shown = cfg.get(field)
        if shown is not None:
            break
    else:
        raise ValueError('The config has neither val_dataloader nor '
                         'test_dataloader, whose pipeline the images need.')
    loaded = cfg.get('train_dataloader')
    if loaded is None:
        raise ValueError('The config has no train_dataloader, whose first '
                         'source says where the labelled images are.')
    _, source = next(data_sources(loaded.dataset, 'train_dataloader.dataset'))
    _, shown_source = next(data_sources(shown.dataset, f'{field}.dataset'))
    # Of a file elsewhere, data_root must not be put before its path.
    dataset = dict(
        copy.deepcopy(dict(source)),
        ann_file=str(Path(ann_file).resolve()),
        pipeline=copy.deepcopy(shown_source.pipeline),
        test_mode=True)
    # Whatever chooses images of the labelled source.
    dataset.pop('indices', None)
    config = dict(
        batch_size=1,
        num_workers=shown.get('num_workers', 0),
        dataset=dataset)
    loader = build_calibration_loader(Runner, config)
    for leaf in leaf_datasets(loader.dataset):
        if isinstance(leaf.pipeline, Compose):
            leaf.pipeline = annotations_first(leaf.pipeline)
    return loader


def _check_disjoint(loaders: Sequence[DataLoader],
                    ann_files: Sequence[PathLike]) -> None:
    """Raise ValueError if two halves share an image."""
    seen = {}
    for loader, ann_file in zip(loaders, ann_files):
        dataset = loader.dataset
        names = {
            dataset.get_data_info(i)['img_path']
            for i in range(len(dataset))
        }
        for name in names & seen.keys():
            raise ValueError(
                f'{seen[name]} and {ann_file} share images, such as {name}: '
                'one of the teachers has learned what it is measured on. '
                'split_coco.py --folds 2 makes halves.')
        seen.update(dict.fromkeys(names, ann_file))
