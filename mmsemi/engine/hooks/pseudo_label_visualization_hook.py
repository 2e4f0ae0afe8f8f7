# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path
from typing import Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mmsemi.registry import HOOKS
from mmsemi.visualization import collect_panels
from .teacher_update_hook import teacher_student


@HOOKS.register_module()
class PseudoLabelVisualizationHook(Hook):
    """Write pictures of what the student is taught.

    Each picture shows the weak view, the teacher's pseudo-labels on it, the
    strong view, and the student's prediction on that. Those of referring
    models show the sentence, the teacher's mask, the proposals chosen for
    it, the refined mask and the weights. The pictures are
    ``iter_{iteration}_{image}.png``. During the burn-in, when there are no
    pseudo-labels, nothing is drawn. Drawing changes neither the model nor
    any random state, and only the first process draws.

    Args:
        interval (int): Iterations between two drawings. Defaults to 500.
        max_images (int): Images drawn from one batch. Defaults to 4.
        scale (float, optional): Factor on the size of the views. Defaults to
            None: small views are enlarged, large ones reduced.
        score_thr (float): The student's instances are drawn from this score
            on. Defaults to 0.3.
        out_dir (str, optional): Folder of the pictures. Defaults to None:
            ``vis_data/pseudo_labels`` in ``work_dir``.
    """

    priority = 'NORMAL'

    def __init__(self,
                 interval: int = 500,
                 max_images: int = 4,
                 scale: Optional[float] = None,
                 score_thr: float = 0.3,
                 out_dir: Optional[str] = None) -> None:
        for name, value in (('interval', interval), ('max_images',
                                                     max_images)):
            if isinstance(value,
                          bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'PseudoLabelVisualizationHook.{name}='
                                 f'{value!r}; allowed are whole numbers '
                                 'from 1.')
        if scale is not None and not scale > 0:
            raise ValueError(f'PseudoLabelVisualizationHook.scale={scale!r}; '
                             'allowed are numbers above 0, and None.')
        self.interval = interval
        self.max_images = max_images
        self.scale = scale
        self.score_thr = score_thr
        self.out_dir = out_dir

    def before_train(self, runner: Runner) -> None:
        """Check the model and make the folder."""
        teacher_student(runner, type(self).__name__)
        if is_main_process():
            self._folder(runner).mkdir(parents=True, exist_ok=True)

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Draw the batch."""
        model = teacher_student(runner, type(self).__name__)
        if not self.every_n_train_iters(
                runner,
                self.interval) or not is_main_process() or model.burning_in:
            return
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', {})
        panels = collect_panels(
            model,
            data_batch,
            metainfo.get('classes'),
            max_images=self.max_images,
            palette=metainfo.get('palette'),
            scale=self.scale,
            score_thr=self.score_thr)
        for i, panel in enumerate(panels):
            name = f'iter_{runner.iter + 1:06d}_{i}.png'
            Image.fromarray(panel).save(self._folder(runner) / name)

    def _folder(self, runner: Runner) -> Path:
        if self.out_dir is not None:
            return Path(self.out_dir)
        return Path(runner.work_dir) / 'vis_data' / 'pseudo_labels'
