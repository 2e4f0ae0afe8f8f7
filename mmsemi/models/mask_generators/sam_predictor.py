# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""SAM, SAM 2 and SAM-HQ of transformers behind one face.

The image processors of transformers need torchvision for SAM 2 and for
suppressing duplicates; what they do is small and done here with torch.
"""
import os
import zlib
from typing import Any, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsemi.compat import install_command, is_installed
from .tiny_sam import TINY, build_tiny_sam

MODEL_CLASSES = dict(sam='SamModel', sam2='Sam2Model', sam_hq='SamHQModel')
DEFAULT_MODELS = dict(
    sam='facebook/sam-vit-huge',
    sam2='facebook/sam2.1-hiera-large',
    sam_hq='syscv-community/sam-hq-vit-huge')
DTYPES = ('float32', 'float16', 'bfloat16')
# Of ImageNet; all three models share them.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ImageEmbedding(NamedTuple):
    """What the decoder needs of an image.

    Attributes:
        features: Outputs of the image encoder, batch of 1 each.
        shape: Height and width of the image in pixels.
        resized: Height and width of the image in the model's frame.
    """
    features: List[Tensor]
    shape: Tuple[int, int]
    resized: Tuple[int, int]


class SAMPredictor(nn.Module):
    """Masks from prompts: points, boxes, masks.

    The model is frozen and always evaluates.

    Args:
        model (str or nn.Module): Name on the Hugging Face hub, or a folder
            with ``config.json`` and weights; 'tiny-random' for a model of
            some hundred thousand random numbers on frames of 64 pixels,
            whose masks mean nothing, to try a pipeline; or a model of
            transformers.
        family (str, optional): 'sam', 'sam2' or 'sam_hq'. Defaults to None:
            as the model's config says.
        dtype (str): 'float32', 'float16' or 'bfloat16', of the weights.
            Defaults to 'float32'.

    Raises:
        ImportError: If transformers is not installed.
        OSError: If the model is no folder and cannot be fetched.
        ValueError: If it is of another family, or an argument is none of
            those allowed.
    """

    def __init__(self,
                 model: Union[str, nn.Module],
                 family: Optional[str] = None,
                 dtype: str = 'float32') -> None:
        super().__init__()
        if not is_installed('transformers'):
            raise ImportError('SAM needs transformers. Install it:\n  '
                              f'{install_command(["transformers"])}')
        if family is not None and family not in MODEL_CLASSES:
            raise ValueError(f'family={family!r}; allowed are '
                             f'{list(MODEL_CLASSES)}.')
        if dtype not in DTYPES:
            raise ValueError(f'dtype={dtype!r}; allowed are {list(DTYPES)}.')
        self.name = type(model).__name__
        if isinstance(model, str):
            # A folder may lie elsewhere on another machine.
            self.name = os.path.basename(os.path.abspath(model)) \
                if os.path.isdir(model) else model
            model = build_tiny_sam(family or 'sam') if model == TINY \
                else _load(model, family)
        found = {
            name: key
            for key, name in MODEL_CLASSES.items()
        }.get(type(model).__name__)
        if found is None or family not in (None, found):
            raise ValueError(
                f'The model {self.name!r} is a {type(model).__name__}; '
                f'needed is {MODEL_CLASSES.get(family, MODEL_CLASSES)}.')
        self.family = found
        self.dtype = dtype
        self.model = model.to(getattr(torch, dtype)).requires_grad_(False)
        prompt_config = model.config.prompt_encoder_config
        #: int: Side of the model's square frame in pixels.
        self.frame = int(prompt_config.image_size)
        #: int: Side of the masks that it takes and gives.
        self.mask_size = 4 * self.frame // int(prompt_config.patch_size)
        super().train(False)

    def train(self, mode: bool = True) -> 'SAMPredictor':
        """Keep evaluating, whatever the mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """torch.device: Where the model is."""
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """Return a short checksum by which weights can be told apart.

        Returns:
            str: Eight hexadecimal digits, of the names of all weights and
            the first numbers of each.
        """
        checksum = 0
        for name, value in self.model.state_dict().items():
            head = value.flatten()[:256].float().cpu().numpy().tobytes()
            checksum = zlib.crc32(name.encode() + head, checksum)
        return f'{checksum:08x}'

    @torch.no_grad()
    def encode(self, image: Tensor) -> ImageEmbedding:
        """Run the image encoder, the expensive part, once per image.

        Args:
            image (Tensor): (3, H, W), RGB from 0 to 255, uint8 or float.

        Returns:
            ImageEmbedding: For :meth:`predict`.
        """
        shape = tuple(image.shape[1:])
        resized = self._resized(shape)
        with torch.autocast(self.device.type, enabled=False):
            pixels = image.to(self.device).float()[None]
            if shape != resized:
                pixels = F.interpolate(
                    pixels, resized, mode='bilinear', antialias=True)
            mean = pixels.new_tensor(_MEAN).view(3, 1, 1)
            std = pixels.new_tensor(_STD).view(3, 1, 1)
            pixels = (pixels.round_().clamp_(0, 255) / 255 - mean) / std
            pixels = F.pad(pixels, (0, self.frame - resized[1], 0,
                                    self.frame - resized[0]))
            features = self.model.get_image_embeddings(
                pixels.to(getattr(torch, self.dtype)))
        if self.family == 'sam':
            features = [features]
        elif self.family == 'sam_hq':
            # Only the first of the intermediate maps is used.
            features = [features[0], features[1][0]]
        return ImageEmbedding(list(features), shape, resized)

    @torch.no_grad()
    def predict(self,
                embedding: ImageEmbedding,
                points: Optional[Tensor] = None,
                point_labels: Optional[Tensor] = None,
                boxes: Optional[Tensor] = None,
                masks: Optional[Tensor] = None,
                multimask: bool = True) -> Tuple[Tensor, Tensor]:
        """Predict masks from N prompts on one image.

        Coordinates are those of SAM: whole numbers are centres of pixels.

        Args:
            embedding (ImageEmbedding): Of the image.
            points (Tensor, optional): (N, P, 2), x and y in pixels of the
                image. Points or boxes are needed.
            point_labels (Tensor, optional): (N, P), 1 on the object, 0 not,
                -10 for a gap.
            boxes (Tensor, optional): (N, 4), x1, y1, x2, y2 in pixels of the
                image.
            masks (Tensor, optional): (N, ``mask_size``, ``mask_size``),
                logits in the model's frame; see :meth:`to_frame`.
            multimask (bool): Whether to give several masks per prompt, which
                differ in what is taken for the object. Defaults to True.

        Returns:
            tuple[Tensor, Tensor]: Mask logits (N, M, ``mask_size``,
            ``mask_size``) and their predicted IoU (N, M), float32; M is 3,
            or 1 without ``multimask``.
        """
        dtype = getattr(torch, self.dtype)
        height, width = embedding.shape
        scale = torch.tensor(
            [embedding.resized[1] / width, embedding.resized[0] / height],
            device=self.device)
        prompts = points if boxes is None else boxes
        num = len(prompts)
        # Masks go with images, not with prompts, so that each prompt needs
        # its image then.
        batch, per_image = (1, num) if masks is None else (num, 1)
        inputs: dict = dict(multimask_output=multimask)
        features = [
            f.expand(batch, *[-1] * (f.dim() - 1)) for f in embedding.features
        ]
        if self.family == 'sam2':
            inputs['image_embeddings'] = features
        else:
            inputs['image_embeddings'] = features[0]
        if self.family == 'sam_hq':
            inputs['intermediate_embeddings'] = features[1:]
        with torch.autocast(self.device.type, enabled=False):
            if points is not None:
                points = points.to(self.device).float() * scale
                inputs['input_points'] = points.view(batch, per_image, -1, 2)
                inputs['input_labels'] = point_labels.to(
                    self.device).int().view(batch, per_image, -1)
            if boxes is not None:
                boxes = boxes.to(self.device).float() * scale.repeat(2)
                inputs['input_boxes'] = boxes.view(batch, per_image, 4)
            if masks is not None:
                inputs['input_masks'] = masks[:, None].to(self.device, dtype)
            output = self.model(**inputs)
        logits = output.pred_masks.float()
        scores = output.iou_scores.float()
        return logits.flatten(0, 1), scores.flatten(0, 1)

    def to_image(self, logits: Tensor, embedding: ImageEmbedding) -> Tensor:
        """Bring mask logits from the model's frame to the image.

        Args:
            logits (Tensor): (N, ``mask_size``, ``mask_size``).
            embedding (ImageEmbedding): Of the image.

        Returns:
            Tensor: (N, H, W), float32.
        """
        height, width = embedding.resized
        if len(logits) == 0:
            return logits.new_zeros((0, *embedding.shape))
        logits = logits[None].float()
        if (height, width) != (self.frame, self.frame):
            logits = F.interpolate(
                logits, (self.frame, ) * 2, mode='bilinear')
            logits = logits[..., :height, :width]
        return F.interpolate(logits, embedding.shape, mode='bilinear')[0]

    def to_frame(self, maps: Tensor, value: float = 0.) -> Tensor:
        """Bring maps from an image to the model's frame.

        Args:
            maps (Tensor): (N, H, W), float.
            value (float): What stands outside the image. Defaults to 0.

        Returns:
            Tensor: (N, ``mask_size``, ``mask_size``), float32.
        """
        height, width = (
            max(1, round(side * self.mask_size / self.frame))
            for side in self._resized(tuple(maps.shape[1:])))
        maps = F.interpolate(
            maps[None].float(), (height, width),
            mode='bilinear',
            antialias=True)[0]
        return F.pad(
            maps, (0, self.mask_size - width, 0, self.mask_size - height),
            value=value)

    def _resized(self, shape: Tuple[int, int]) -> Tuple[int, int]:
        """Size of an image in the frame: SAM 2 alone does not pad."""
        if self.family == 'sam2':
            return self.frame, self.frame
        scale = self.frame / max(shape)
        height, width = (max(1, int(side * scale + 0.5)) for side in shape)
        return height, width


def _load(name: str, family: Optional[str]) -> Any:
    import transformers
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        # The checkpoints of SAM 2 carry the config of its video model.
        found = config.model_type.replace('sam2_video', 'sam2')
        if found not in MODEL_CLASSES or family not in (None, found):
            allowed = list(MODEL_CLASSES) if family is None else family
            raise TypeError(
                f'The model {name!r} is of type {config.model_type!r}; '
                f'needed is {allowed}.')
        model, info = getattr(
            transformers, MODEL_CLASSES[found]).from_pretrained(
                name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise OSError(
            f'The SAM model {name!r} is neither a folder with config.json '
            'and weights nor a model that the Hugging Face hub lets this '
            'machine fetch (network? name? licence accepted?). transformers '
            f'says: {reason[0]}') from error
    missing = sorted(info['missing_keys'])
    if missing:
        raise ValueError(
            f'The SAM model {name!r} lacks {len(missing)} of its weights, '
            f'among them {missing[:3]}; its masks would be random.')
    return model
