# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Dict, List, Optional, Sequence, Union

from mmengine.evaluator import Evaluator
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, ValLoop
from torch.utils.data import DataLoader

from mmsemi.methods import MultiViewModel
from mmsemi.registry import LOOPS


@LOOPS.register_module()
class MultiViewValLoop(ValLoop):
    """Validate all models in a model: teacher and student, networks, mean.

    Metrics carry the name of what predicted as a prefix, such as
    ``teacher/`` or ``network_0/``. Those of the model's default
    (``model.predict_on``) come without a prefix as well, so that
    ``save_best='coco/segm_mAP'`` works. While a teacher holds nothing yet, the
    student predicts in its place: then one evaluation serves both names.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader or dict): Validation data.
        evaluator (Evaluator or dict or list): The metrics.
        fp16 (bool): Whether to validate in half precision. Defaults to
            False.
        models (Sequence[str], optional): Which of ``model.predictors`` to
            evaluate. Defaults to None: all, which takes as many evaluations.

    Raises:
        TypeError: If the model is no :class:`mmsemi.methods.MultiViewModel`.
        ValueError: If ``models`` names anything else, or leaves out the
            model that predicts.
    """

    def __init__(self,
                 runner: Runner,
                 dataloader: Union[DataLoader, Dict],
                 evaluator: Union[Evaluator, Dict, List],
                 fp16: bool = False,
                 models: Optional[Sequence[str]] = None) -> None:
        super().__init__(runner, dataloader, evaluator, fp16)
        allowed = self.model.predictors
        if models is None:
            models = allowed
        models = [models] if isinstance(models, str) else list(models)
        if not models or not set(models) <= set(allowed):
            raise ValueError(f'val_cfg.models={models}; allowed are '
                             f'{", ".join(map(repr, allowed))}, or several '
                             'of them.')
        if self.model.predict_on not in models:
            raise ValueError(
                f'val_cfg.models={models} leaves out the model that predicts '
                f'(model.predict_on={self.model.predict_on!r}).')
        self.models = models

    @property
    def model(self) -> MultiViewModel:
        """MultiViewModel: The model without distributed wrappers."""
        model = self.runner.model
        while is_model_wrapper(model):
            model = model.module
        if not isinstance(model, MultiViewModel):
            raise TypeError(
                'mmsemi.MultiViewValLoop (val_cfg.type) needs a model of '
                'several, such as teacher and student of mmsemi.FixMatch or '
                f'the networks of mmsemi.CPS, but model.type is '
                f'{type(model).__name__}. Use ValLoop for it.')
        return model

    def run(self) -> Dict[str, float]:
        """Run the validation.

        Returns:
            dict[str, float]: Metrics without prefix, then with prefixes.
        """
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        self.runner.model.eval()
        metrics = self._evaluate_models()
        self.runner.call_hook('after_val_epoch', metrics=metrics)
        self.runner.call_hook('after_val')
        return metrics

    def _evaluate_models(self) -> Dict[str, float]:
        model = self.model
        predict_on = model.predict_on
        found, prefixed = {}, {}
        try:
            for name in self.models:
                model.predict_on = name
                if model.predictor not in found:
                    found[model.predictor] = self._evaluate()
                metrics = found[model.predictor]
                if name == predict_on:
                    plain = metrics
                prefixed.update({
                    f'{name}/{key}': value
                    for key, value in metrics.items()
                })
        finally:
            model.predict_on = predict_on
        # mmdet's metrics are empty where nothing was predicted, and a hook
        # that saves the best checkpoint looks for its key; None it skips.
        keys = {key: None for metrics in found.values() for key in metrics}
        return {**keys, **plain, **prefixed}

    def _evaluate(self) -> Dict[str, float]:
        # A validation that broke off would leave its results behind.
        for metric in self.evaluator.metrics:
            metric.results.clear()
        for idx, data_batch in enumerate(self.dataloader):
            self.run_iter(idx, data_batch)
        return self.evaluator.evaluate(len(self.dataloader.dataset))
