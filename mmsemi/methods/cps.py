# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Cross pseudo supervision: networks that label for each other.

X. Chen et al., Semi-supervised semantic segmentation with cross pseudo
supervision, CVPR 2021. More than two networks: D. Filipiak et al., n-CPS,
arXiv 2112.07528.
"""
import copy
import math
from contextlib import nullcontext
from itertools import combinations, permutations
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.logging import print_log
from mmengine.model import ModuleList
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmsemi.models.dense_forward import (check_dense_segmentor,
                                         check_reads_no_text, decode,
                                         dense_logits, resize_logits)
from mmsemi.models.dense_prediction import predict_dense
from mmsemi.models.evaluation_mode import evaluating
from mmsemi.models.losses import LossNormalizer, dense_cross_entropy
from mmsemi.models.shared_decoding import decode_with_losses, extract_together
from mmsemi.models.view_images import view_images
from mmsemi.pseudo_labels import PseudoLabelPipeline, stage_samples
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import (DensePseudoLabel,
                                                  DenseTargets, valid_pixels)
from .dense_views import (PARTNER_VIEWS, build_mix, check_same_geometry,
                          has_partners)
from .multi_view_model import (MultiViewModel, matching_weights, scale_losses,
                               without_prefix)
from .segmentor_config import load_segmentor_config
from .weight_schedule import WeightSchedule, check_weight

LABEL_VIEW = 'unsup_teacher'
STUDENT_VIEWS = ('unsup_teacher', 'unsup_student')
PARTNERS = dict(zip(STUDENT_VIEWS, PARTNER_VIEWS))
HEADS = ('decode_head.', 'auxiliary_head.')


def cross_pseudo_loss(logits_a: Tensor,
                      logits_b: Tensor,
                      valid: Optional[Tensor] = None) -> Tensor:
    """Compute cross pseudo supervision of two networks (CPS, equation 2).

    Args:
        logits_a (Tensor): (N, C, H, W), of the one network.
        logits_b (Tensor): (N, C, H, W), of the other.
        valid (Tensor, optional): (N, H, W) bool, False on padding. Defaults
            to None: all pixels.

    Returns:
        Tensor: The sum of both directions, each the mean cross entropy of one
        network's logits with the other's likeliest classes. Labels pass no
        gradient.
    """
    return (
        dense_cross_entropy(logits_a, logits_b.argmax(1), valid=valid) +
        dense_cross_entropy(logits_b, logits_a.argmax(1), valid=valid))


@MODELS.register_module()
class CPS(MultiViewModel):
    """Networks of one architecture that learn from each other's labels.

    They share the pretrained backbone's start, while each head draws its own
    weights; equal networks would agree on everything and learn nothing.
    Without ``mix`` every network learns the others' labels on labelled and
    unlabelled images. With ``mix=dict(type='mmsemi.BoxMix')`` it learns them
    on mixed unlabelled images only; their logits are mixed like the images.

    A ``pseudo_label_pipeline`` stands between the networks, as it does between
    teacher and student: each network's labels of unlabelled images pass its
    own, and what it drops teaches nobody. The paper has none. Networks that
    start without pretraining need one, because hard labels of uncertain
    pixels pull them towards the most frequent class. With
    :class:`CalibratePixels` in it, each network has a calibration of its own,
    which corrects what it teaches; see :class:`CalibrationHook`.

    With n networks the loss is the sum over all ordered pairs (n-CPS), and
    any network or the mean of all probabilities (``predict_on='mean'``)
    predicts.

    The networks may have one optimizer or one each
    (``mmsemi.NetworkOptimWrapperConstructor``), as in the released code; with
    SGD and equal settings both give the same weights, because labels pass no
    gradient from one network to the other.

    What the released code does and the paper does not tell:

    - losses are reduced over processes inside the graph, so that gradients
      shrink with their number. Not reproduced;
    - padding is learned from (``train_padding``). Off by default;
    - labelled and unlabelled images pass separately, each with batch
      statistics of its own (``joint_forward=False``). One pass by default;
    - images to mix are labelled in training mode, as by default;
    - the loss weighs 1.5 on VOC and 6 on Cityscapes as in the paper, but 1
      and 5 in the folders with CutMix (``cps_weight``);
    - the partner of mixing is another crop of the same image. By default it
      is another image of the batch; the view 'unsup_partner_teacher' (and
      'unsup_partner_student' if that is learned from) brings others, see
      :class:`SemiSemanticSegmentor`.

    Args:
        segmentor (dict or str): The mmseg model of every network; see
            :func:`load_segmentor_config`. A checkpoint of a whole segmenter
            belongs into ``load_from``, not into its ``init_cfg``.
        num_networks (int): From 2. Defaults to 2.
        cps_weight (float or dict): Weight of the sum over ordered pairs, or
            the arguments of :class:`WeightSchedule`, whose steps are here
            iterations of the training. The published weight is constant.
            Defaults to 1.5.
        sup_weight (float): Weight of each network's supervised loss. Defaults
            to 1.
        pseudo_label_pipeline (Sequence[dict]): Stages between the networks;
            see :mod:`mmsemi.pseudo_labels`. The loss stays a mean over all
            valid pixels, so it shrinks when few are kept. Defaults to none,
            as in the paper.
        mix (dict, optional): What mixes unlabelled images, such as
            ``dict(type='mmsemi.BoxMix')``. Defaults to None: nothing.
        student_view (str): The unlabelled view that is learned from,
            'unsup_teacher' (the weak one) or 'unsup_student'. Labels always
            come from the weak view. Defaults to 'unsup_teacher', as released.
        label_in_train_mode (bool): Whether networks label with the batch's
            statistics, where labels need a pass of their own (with ``mix`` or
            ``student_view='unsup_student'``). Defaults to True.
        joint_forward (bool): Whether labelled and unlabelled images share one
            pass, if their sizes are equal. Defaults to True.
        train_padding (bool): Whether padding is learned from. Defaults to
            False.
        predict_on (str): 'network_0', 'network_1', ... or 'mean'. Defaults to
            'network_0', as released.
        data_preprocessor (dict or nn.Module, optional): Preprocessor of one
            view. Defaults to None: that of the segmenter.
        init_cfg (dict, optional): Unused; the segmenter's own is applied.

    Raises:
        ValueError: If an argument is out of range or the segmenter gives no
            logits of every pixel.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 num_networks: int = 2,
                 cps_weight: Union[float, dict] = 1.5,
                 sup_weight: float = 1.,
                 pseudo_label_pipeline: Sequence[dict] = (),
                 mix: Optional[dict] = None,
                 student_view: str = LABEL_VIEW,
                 label_in_train_mode: bool = True,
                 joint_forward: bool = True,
                 train_padding: bool = False,
                 predict_on: str = 'network_0',
                 data_preprocessor: Optional[Union[dict, nn.Module]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        if not isinstance(num_networks, int) or num_networks < 2:
            raise ValueError(f'num_networks={num_networks!r}; allowed are '
                             'whole numbers from 2.')
        if student_view not in STUDENT_VIEWS:
            raise ValueError(f'student_view={student_view!r}; allowed are '
                             f'{STUDENT_VIEWS}.')
        try:
            schedule = WeightSchedule.from_config(cps_weight)
        except ValueError as error:
            raise ValueError(
                str(error).replace('unsup_weight', 'cps_weight')) from None
        check_weight(sup_weight, 'sup_weight')
        if not label_in_train_mode and mix is None and (student_view
                                                        == LABEL_VIEW):
            raise ValueError(
                'label_in_train_mode=False has no effect: without mix and on '
                "student_view='unsup_teacher', labels come from the pass that "
                'is trained.')
        config = load_segmentor_config(segmentor)
        self.check_preprocessor(config, data_preprocessor)
        # Some models change the config they are built from.
        networks = [
            MODELS.build(copy.deepcopy(config)) for _ in range(num_networks)
        ]
        check_dense_segmentor(networks[0])
        check_reads_no_text(networks[0], 'mmsemi.CPS')
        self.predictors = tuple(f'network_{i}'
                                for i in range(num_networks)) + ('mean', )
        super().__init__(networks[0], predict_on, data_preprocessor, init_cfg)
        self.networks = ModuleList(networks)
        self.cps_weight = schedule
        # In every checkpoint, so that schedules go on where they stopped.
        self.register_buffer('iteration', torch.zeros((), dtype=torch.long))
        self.sup_weight = float(sup_weight)
        self.pseudo_label_pipelines = ModuleList([
            PseudoLabelPipeline(
                pseudo_label_pipeline,
                ('label', 'confidence', 'weight', 'valid', 'prob'))
            for _ in networks
        ])
        self.mix = build_mix(mix)
        self.student_view = student_view
        self.label_in_train_mode = label_in_train_mode
        self.joint_forward = joint_forward
        self.train_padding = train_padding
        views = ('sup', LABEL_VIEW, student_view)
        self.views = tuple(dict.fromkeys(views))

    # Training -------------------------------------------------------------

    def loss(self, inputs: Dict[str, Tensor],
             data_samples: Dict[str, list]) -> Dict[str, Tensor]:
        """Compute supervised losses and cross pseudo supervision.

        Args:
            inputs (dict[str, Tensor]): Images (N, C, H, W) by view: 'sup',
                'unsup_teacher' and ``student_view``.
            data_samples (dict[str, list]): Data samples by view.

        Returns:
            dict[str, Tensor]: Losses ``sup_0_*``, ``sup_1_*``, ... of the
            networks, ``loss_cps``, and figures: ``pseudo/agreement``, the
            share of unlabelled pixels on which all networks agree, and
            ``pseudo/kept_share``, the share that a network gives the others
            to learn, on average.
        """
        self._check_views(inputs, self.views)
        check_same_geometry(inputs, data_samples, self.student_view)
        images = inputs[self.student_view]
        targets = None
        if self.mix is not None or self.student_view != LABEL_VIEW:
            targets = self._targets(
                self._label(inputs[LABEL_VIEW]), data_samples[LABEL_VIEW],
                inputs[LABEL_VIEW])
        if self.mix is not None:
            images, targets = self._mixed(inputs, data_samples, targets)

        losses, labeled, unlabeled = {}, [], []
        for i, network in enumerate(self.networks):
            own, *logits = self._forward_both(network, inputs['sup'],
                                              data_samples['sup'], images)
            losses.update(scale_losses(own, self.sup_weight, f'sup_{i}_'))
            labeled.append(logits[0])
            unlabeled.append(logits[1])
        if targets is None:
            targets = self._targets(unlabeled, data_samples[LABEL_VIEW],
                                    inputs[LABEL_VIEW])
        parts = [(unlabeled, targets)]
        if self.mix is None:
            valid = self._valid(inputs['sup'], data_samples['sup'])
            parts.append((labeled, [
                DenseTargets.from_logits(logits, valid) for logits in labeled
            ]))
        losses['loss_cps'] = self._weight() * _pair_loss(parts)
        losses.update(_figures(targets))
        for i, pipeline in enumerate(self.pseudo_label_pipelines):
            for name, value in pipeline.figures.items():
                losses[f'pseudo/{name}_{i}'] = value
        return losses

    def _weight(self) -> float:
        """Return this iteration's weight, and count it in training."""
        schedule = self.cps_weight
        # On a device, reading the count would make the host wait.
        constant = schedule.begin == schedule.ramp_steps == 0
        weight = schedule.weight if constant else schedule(int(self.iteration))
        if self.training:
            self.iteration += 1
        return weight

    def _forward_both(
            self, network: nn.Module, labeled: Tensor,
            labeled_samples: List[SegDataSample],
            unlabeled: Tensor) -> Tuple[Dict[str, Tensor], Tensor, Tensor]:
        """Return supervised losses and logits of both parts.

        Logits have full size, but those of labelled images only where they
        are learned from.
        """
        batches = [labeled, unlabeled]
        if self.joint_forward:
            features = extract_together(network, batches)
        else:
            features = [network.extract_feat(batch) for batch in batches]
        logits, losses = decode_with_losses(network, features[0],
                                            labeled_samples)
        if len(features) == 1:
            logits, others = logits[:len(labeled)], logits[len(labeled):]
        else:
            others = decode(network, features[1])
        if self.mix is None:
            logits = resize_logits(network, logits, labeled.shape[2:])
        return losses, logits, resize_logits(network, others,
                                             unlabeled.shape[2:])

    def _valid(self, images: Tensor,
               data_samples: List[SegDataSample]) -> Tensor:
        if self.train_padding:
            return torch.ones_like(images[:, 0], dtype=torch.bool)
        return valid_pixels(data_samples, images.shape[2:], images.device)

    @torch.no_grad()
    def _label(self, images: Tensor) -> List[Tensor]:
        """Return every network's logits of weak views, full size."""
        logits = []
        for network in self.networks:
            with (nullcontext()
                  if self.label_in_train_mode else evaluating(network)):
                logits.append(dense_logits(network, images))
        # Older versions of torch would reuse the half precision weights of
        # this pass, which have no gradient, in the next one.
        torch.clear_autocast_cache()
        return logits

    @property
    def burning_in(self) -> bool:
        """bool: Whether labels do not count yet (``cps_weight.begin``)."""
        return int(self.iteration) < self.cps_weight.begin

    @torch.no_grad()
    def predict_unfiltered(
            self, inputs: Tensor, data_samples: List[SegDataSample]
    ) -> List[List[DensePseudoLabel]]:
        """Return what each network sees when evaluating, before any stage.

        Args:
            inputs (Tensor): Images (N, 3, H, W), preprocessed.
            data_samples (list[SegDataSample]): Their data samples; ground
                truth in them is not looked at.

        Returns:
            list[list[DensePseudoLabel]]: N of each network.
        """
        logits = []
        for network in self.networks:
            with evaluating(network):
                logits.append(dense_logits(network, inputs))
        torch.clear_autocast_cache()
        return [
            part.unbind() for part in self._unfiltered(logits, data_samples)
        ]

    def _unfiltered(self, logits: List[Tensor],
                    data_samples: List[SegDataSample]) -> List[DenseTargets]:
        valid = self._valid(logits[0], data_samples)
        with_prob = self.pseudo_label_pipelines[0].needs('prob')
        return [
            DenseTargets.from_logits(part, valid, with_prob)
            for part in logits
        ]

    @torch.no_grad()
    def _targets(self, logits: List[Tensor],
                 data_samples: List[SegDataSample],
                 inputs: Tensor) -> List[DenseTargets]:
        """Return every network's pseudo-labels that passed its pipeline."""
        targets = self._unfiltered(logits, data_samples)
        if not self.pseudo_label_pipelines[0].stages:
            return targets
        images = None
        if self.pseudo_label_pipelines[0].needs_image:
            images = view_images(inputs, self.data_preprocessor)
        bare = stage_samples(data_samples, logits[0].shape[2:], images)
        step = max(int(self.iteration) - self.cps_weight.begin, 0)
        return [
            DenseTargets.from_pseudo_labels(
                pipeline(part.unbind(), bare, step))
            for pipeline, part in zip(self.pseudo_label_pipelines, targets)
        ]

    @torch.no_grad()
    def _mixed(
            self, inputs: Dict[str, Tensor], data_samples: Dict[str, list],
            targets: List[DenseTargets]) -> Tuple[Tensor, List[DenseTargets]]:
        """Mix images and every network's pseudo-labels alike."""
        images, others = inputs[self.student_view], None
        partner, other_targets = None, [None] * len(targets)
        weak, strong = PARTNERS[LABEL_VIEW], PARTNERS[self.student_view]
        if has_partners(inputs, sorted({weak, strong})):
            others = inputs[strong]
            other_targets = self._targets(
                self._label(inputs[weak]), data_samples[weak], inputs[weak])
            partner = torch.arange(len(images), device=images.device)
        plan = self.mix.plan(targets[0], partner)
        if plan is None:
            return images, targets
        return plan.mix(images, others), [
            plan.mix_targets(own, other)
            for own, other in zip(targets, other_targets)
        ]

    # Prediction -----------------------------------------------------------

    @property
    def predictor(self) -> nn.Module:
        """nn.Module: The network that predicts; all of them for 'mean'."""
        if self.predict_on == 'mean':
            return self.networks
        return self.networks[self.predictors.index(self.predict_on)]

    def predict(self, inputs: Tensor,
                data_samples: List[SegDataSample]) -> List[SegDataSample]:
        """Predict label maps; see :func:`predict_dense`."""
        return predict_dense(
            list(self.networks) if self.predict_on == 'mean' else
            self.predictor, inputs, data_samples)

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """Compute losses, predictions or raw outputs.

        The raw output of 'mean' is the logarithm of the mean probability.
        For arguments and results see :meth:`MultiViewModel.forward`.
        """
        if mode != 'tensor' or self.predict_on != 'mean':
            return super().forward(inputs, data_samples, mode)
        logs = torch.stack([
            network(inputs, data_samples, mode='tensor').log_softmax(1)
            for network in self.networks
        ])
        return logs.logsumexp(0) - math.log(len(logs))

    # Weights --------------------------------------------------------------

    def init_weights(self) -> None:
        """Initialise every network; pretrained backbones start equal.

        Raises:
            ValueError: If two networks came out equal.
        """
        for network in self.networks:
            network.init_weights()
        states = [list(network.parameters()) for network in self.networks]
        for first, second in combinations(states, 2):
            if all(torch.equal(a, b) for a, b in zip(first, second)):
                raise ValueError(
                    'Two networks start with equal weights, so they would '
                    'never disagree. Remove the constant or pretrained '
                    'init_cfg of segmentor; a whole segmenter is loaded by '
                    'load_from, a backbone by segmentor.backbone.init_cfg.')

    def _load_from_state_dict(self, state_dict: dict, prefix: str,
                              local_metadata: dict, strict: bool,
                              missing_keys: List[str],
                              unexpected_keys: List[str],
                              error_msgs: List[str]) -> None:
        """Let a checkpoint of a plain segmenter fill the networks.

        The first gets all of it, the others all but the heads, which stay as
        they were initialised.
        """
        own = without_prefix(state_dict, prefix)
        first = self.networks[0]
        is_plain = not any(key.startswith('networks.') for key in own)
        if not matching_weights(
                own if is_plain else without_prefix(own, 'networks.0.'),
                first):
            raise RuntimeError(
                'The checkpoint matches nothing: none of its '
                f'{len(own)} keys (such as {list(own)[:3]}) is a weight of '
                'the segmenter, by name and shape (such as '
                f'{list(first.state_dict())[:3]}). Is it of another model, '
                'or of a backbone alone? The latter belongs into init_cfg of '
                'the backbone.')
        if is_plain:
            for key in own:
                del state_dict[prefix + key]
            state_dict[f'{prefix}iteration'] = self.iteration.clone()
            stages = self.pseudo_label_pipelines.state_dict(
                prefix=f'{prefix}pseudo_label_pipelines.')
            state_dict.update(stages)
            for i, network in enumerate(self.networks):
                weights = dict(own)
                if i > 0:
                    weights.update({
                        key: value
                        for key, value in network.state_dict().items()
                        if key.startswith(HEADS)
                    })
                for key, value in weights.items():
                    state_dict[f'{prefix}networks.{i}.{key}'] = value
            print_log(
                'Loaded a plain segmenter into network_0, and all but its '
                'heads into the other networks: with equal heads the '
                'networks would agree on everything and learn nothing from '
                'each other.',
                logger='current',
                level=30)
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)


def _pair_loss(
        parts: Sequence[Tuple[List[Tensor], List[DenseTargets]]]) -> Tensor:
    """Sum cross entropies over ordered pairs of networks.

    Args:
        parts (Sequence[tuple]): Batches, which share one mean over their
            valid pixels: every network's logits (N, C, H, W) and
            pseudo-labels.
    """
    counts = [targets[0].valid.sum() for _, targets in parts]
    num_valid = sum(counts).clamp(min=1)
    return sum(
        dense_cross_entropy(
            logits[a],
            targets[b].label,
            targets[b].weight,
            targets[b].valid,
            normalizer=LossNormalizer.VALID) * (count / num_valid)
        for (logits, targets), count in zip(parts, counts)
        for a, b in permutations(range(len(logits)), 2))


def _figures(targets: List[DenseTargets]) -> Dict[str, Tensor]:
    """Describe the networks' pseudo-labels of a batch."""
    labels = torch.stack([part.label for part in targets])
    weights = torch.stack([part.weight for part in targets])
    valid = targets[0].valid
    num_valid = valid.sum().clamp(min=1)
    agreed = (labels == labels[0]).all(0) & valid
    kept = (weights > 0) & valid
    return {
        'pseudo/agreement': agreed.sum() / num_valid,
        'pseudo/kept_share': kept.sum() / (len(targets) * num_valid)
    }
