# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Turn the official weights of FastInst into a checkpoint of mmsemi's."""
import argparse
import re
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from mmsemi.apis.cli import add_cfg_options, usage_errors

Weights = Dict[str, Tensor]

#: The loss keeps its class weights twice; here they are in the config.
DROPPED = ('criterion.empty_weight',
           'sem_seg_head.predictor.criterion.empty_weight')
#: Counters that frozen batch norms of detectron2 do not have.
COUNTER = 'num_batches_tracked'
NUMBER = r'(\d+)'
AFFINE = '(weight|bias)'
NORM = f'(weight|bias|running_mean|running_var|{COUNTER})'
ATTENTION = r'(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias)'


def transformer_rules(official: str, attention: str, ours: str, norms: str,
                      norm: int) -> Iterator[Tuple[str, str]]:
    """Yield the rules of one kind of attention or feedforward layers.

    Args:
        official (str): What stands before ``_layers`` there.
        attention (str): The attention's name there, or '' for feedforward
            layers.
        ours (str): Name of the module in a decoder layer here.
        norms (str): Name of its list of norms here.
        norm (int): Place in that list.
    """
    source = rf'transformer_{official}_layers\.{NUMBER}\.'
    target = 'decoder_layers.{0}.'
    if attention:
        yield (rf'{source}{attention}\.{ATTENTION}', f'{target}{ours}.attn.'
               '{1}')
    else:
        yield (rf'{source}linear1\.{AFFINE}', f'{target}{ours}.layers.0.0.'
               '{1}')
        yield (rf'{source}linear2\.{AFFINE}', f'{target}{ours}.layers.1.'
               '{1}')
    yield (rf'{source}norm\.{AFFINE}', f'{target}{norms}.{norm}.' + '{1}')


#: Patterns of the official names in ``sem_seg_head.pixel_decoder`` and what
#: they become in ``panoptic_head.pixel_decoder``: {0}, {1}, ... are their
#: groups, and {less} is the first one minus 1.
PIXEL_DECODER = (
    (rf'adapter_{NUMBER}\.weight', 'lateral_convs.{less}.conv.weight'),
    (rf'adapter_{NUMBER}\.norm\.{AFFINE}', 'lateral_convs.{less}.gn.{1}'),
    (rf'layer_{NUMBER}\.weight', 'output_convs.{less}.conv.weight'),
    (rf'layer_{NUMBER}\.norm\.{AFFINE}', 'output_convs.{less}.gn.{1}'),
    (rf'ppm\.stages\.{NUMBER}\.1\.{AFFINE}', 'ppm_convs.{0}.conv.{1}'),
    (rf'ppm\.bottleneck\.{AFFINE}', 'ppm_bottleneck.conv.{0}'),
)
#: The same from ``sem_seg_head.predictor`` to ``panoptic_head``. "mask" in
#: the official names of layers means the pixel path.
PREDICTOR = (
    ('meta_pos_embed', 'meta_pos_embed'),
    (r'empty_query_features\.weight', 'aux_query_feat.weight'),
    (r'empty_query_pos_embed\.weight', 'aux_query_pos.weight'),
    (rf'query_proposal\.conv_proposal_cls_logits\.([02])\.{AFFINE}',
     'query_proposal.cls_head.{0}.{1}'),
    *transformer_rules('query_cross_attention', 'multihead_attn', 'cross_attn',
                       'norms', 0),
    *transformer_rules('query_self_attention', 'self_attn', 'self_attn',
                       'norms', 1),
    *transformer_rules('query_ffn', '', 'ffn', 'norms', 2),
    *transformer_rules('mask_cross_attention', 'multihead_attn',
                       'pixel_cross_attn', 'pixel_norms', 0),
    *transformer_rules('mask_ffn', '', 'pixel_ffn', 'pixel_norms', 1),
    (rf'decoder_query_norm_layers\.{NUMBER}\.{AFFINE}', 'query_norms.{0}.{1}'),
    (rf'class_embed_layers\.{NUMBER}\.layers\.([012])\.{AFFINE}',
     'cls_embeds.{0}.layers.{1}.{2}'),
    (rf'mask_embed_layers\.{NUMBER}\.layers\.([012])\.{AFFINE}',
     'mask_embeds.{0}.layers.{1}.{2}'),
    (rf'mask_features_layers\.{NUMBER}\.{AFFINE}', 'mask_feat_projs.{0}.{1}'),
)
#: In ``backbone``: detectron2's ResNet, then timm's ResNet-D.
BACKBONE = (
    (r'stem\.conv1\.weight', 'conv1.weight'),
    (rf'stem\.conv1\.norm\.{NORM}', 'bn1.{0}'),
    (rf'res([2-5])\.{NUMBER}\.conv([123])\.weight',
     'layer{less}.{1}.conv{2}.weight'),
    (rf'res([2-5])\.{NUMBER}\.conv([123])\.norm\.{NORM}',
     'layer{less}.{1}.bn{2}.{3}'),
    (rf'res([2-5])\.{NUMBER}\.shortcut\.weight',
     'layer{less}.{1}.downsample.0.weight'),
    (rf'res([2-5])\.{NUMBER}\.shortcut\.norm\.{NORM}',
     'layer{less}.{1}.downsample.1.{2}'),
    (rf'conv1\.([01346])\.{NORM}', 'stem.{0}.{1}'),
    (rf'bn1\.{NORM}', 'stem.7.{0}'),
    (rf'layer([1-4])\.{NUMBER}\.conv([123])\.weight',
     'layer{0}.{1}.conv{2}.weight'),
    (rf'layer([1-4])\.{NUMBER}\.bn([123])\.{NORM}', 'layer{0}.{1}.bn{2}.{3}'),
    (rf'layer([1-4])\.{NUMBER}\.downsample\.([12])\.{NORM}',
     'layer{0}.{1}.downsample.{2}.{3}'),
    (rf'layer([1-4])\.{NUMBER}\.conv2_offset\.{AFFINE}',
     'layer{0}.{1}.conv2.conv_offset.{2}'),
)
PARTS = (('sem_seg_head.pixel_decoder.', 'panoptic_head.pixel_decoder.',
          PIXEL_DECODER), ('sem_seg_head.predictor.', 'panoptic_head.',
                           PREDICTOR), ('backbone.', 'backbone.', BACKBONE))


def convert_key(key: str) -> Optional[str]:
    """Return mmsemi's name of a weight.

    Args:
        key (str): Its official name.

    Returns:
        str or None: None if it has none.
    """
    for source, target, rules in PARTS:
        if not key.startswith(source):
            continue
        for pattern, name in rules:
            match = re.fullmatch(pattern, key[len(source):])
            if match:
                groups = match.groups()
                first = groups[0] if groups else ''
                less = int(first) - 1 if first.isdigit() else None
                return target + name.format(*groups, less=less)
    return None


def convert_weights(official: Mapping[str, Tensor],
                    expected: Mapping[str, Tensor]) -> Weights:
    """Rename weights, and check that they are those of a model.

    Args:
        official (Mapping[str, Tensor]): Weights by official name.
        expected (Mapping[str, Tensor]): Weights of the model by mmsemi's.

    Returns:
        dict[str, Tensor]: One for every expected weight; counters of batches
        that the official file does not have are the model's.

    Raises:
        ValueError: If a weight is unknown, missing or of another shape.
    """
    converted = {
        convert_key(key) or key: weight
        for key, weight in official.items() if key not in DROPPED
    }
    unknown = sorted(
        key for key in official
        if key not in DROPPED and convert_key(key) not in expected)
    missing = sorted(key for key in expected
                     if key not in converted and not key.endswith(COUNTER))
    problems = [
        f'{len(keys)} weights {what}: {shortened(keys)}.'
        for keys, what in ((unknown, 'of the file are not in the model'),
                           (missing, 'of the model are not in the file'))
        if keys
    ]
    wrong = [
        f'{key} is {tuple(weight.shape)}, in the model '
        f'{tuple(expected[key].shape)}' for key, weight in converted.items()
        if key in expected and weight.shape != expected[key].shape
    ]
    if wrong:
        problems.append(f'{len(wrong)} weights have another shape: '
                        f'{shortened(wrong)}.')
    if problems:
        raise ValueError(
            ' '.join(problems) + ' Choose the config of this backbone, with '
            "its number of decoder layers and the file's number of classes.")
    return {
        key: converted.get(key, weight)
        for key, weight in expected.items()
    }


def convert_backbone(timm: Mapping[str, Tensor],
                     expected: Mapping[str, Tensor]) -> Weights:
    """Do the same for a ResNet-D of timm alone.

    Args:
        timm (Mapping[str, Tensor]): Weights by timm's name.
        expected (Mapping[str, Tensor]): Of the whole model.

    Returns:
        dict[str, Tensor]: Weights of the backbone. Offsets of deformable
        convolutions, which timm's do not have, are the model's.

    Raises:
        ValueError: See :func:`convert_weights`.
    """
    expected = {k: v for k, v in expected.items() if k.startswith('backbone.')}
    offsets = {k: v for k, v in expected.items() if '.conv_offset.' in k}
    backbone = convert_weights(
        {
            f'backbone.{key}': weight
            for key, weight in timm.items() if not key.startswith('fc.')
        }, {k: v
            for k, v in expected.items() if k not in offsets})
    return {**backbone, **offsets}


def shortened(names: List[str]) -> str:
    """Join up to three names."""
    rest = len(names) - 3
    return ', '.join(names[:3]) + (f' and {rest} more' if rest > 0 else '')


def read_weights(path: Path) -> Weights:
    """Read weights without running code from the file.

    Args:
        path (Path): A file of weights, or of a dict that has them under
            ``model``.

    Returns:
        dict[str, Tensor]: The weights by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds more than data, or no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {path}.')
    try:
        loaded = torch.load(path, map_location='cpu', weights_only=True)
    # Bytes that are no checkpoint can make it fail in any way.
    except Exception as error:
        raise ValueError(
            f'{path} is damaged or holds more than weights '
            f'({type(error).__name__}). To read more than weights is to run '
            'code from the file. If you trust where it comes from, write its '
            'weights alone, and convert those:\n  python -c "import torch; '
            f"weights = torch.load('{path}', map_location='cpu', "
            "weights_only=False)['model']; torch.save({'model': {k: "
            'torch.as_tensor(v) for k, v in weights.items()}}, '
            "'weights.pth')\"") from error
    weights = loaded.get('model', loaded) if isinstance(loaded, dict) else None
    if not isinstance(weights, dict) or not weights or not all(
            isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f'{path} holds no weights: expected a dict of '
                         'tensors by name, possibly under "model".')
    return weights


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Convert a checkpoint of the official FastInst (of '
        'detectron2) for a config of mmsemi. Every weight must have a place, '
        'and every place a weight.',
        epilog='Example: fastinst_to_mmsemi.py '
        'configs/_base_/models/fastinst_r50_d3.py '
        'fastinst_R50_ppm-fpn_x3_640_37.9.pth fastinst_r50_d3.pth')
    parser.add_argument(
        'config', help='config of the model, also one that mmsemi wraps')
    parser.add_argument('checkpoint', type=Path, help='official file')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument(
        '--backbone-only',
        action='store_true',
        help="the file is timm's ResNet-50-D, from which the training of the "
        'DCN variants starts; write it for the init_cfg of their configs')
    add_cfg_options(parser)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        weights = read_weights(args.checkpoint)
        from mmengine.registry import init_default_scope

        from mmsemi.apis import load_config
        from mmsemi.methods import load_segmentor_config
        from mmsemi.registry import MODELS
        config = load_config(args.config, args.cfg_options)
        init_default_scope('mmdet')
        model = load_segmentor_config(
            config.model.get('segmentor', config.model))
        expected = MODELS.build(model).state_dict()
        convert = convert_backbone if args.backbone_only else convert_weights
        state_dict = convert(weights, expected)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            dict(
                meta=dict(converted_from=args.checkpoint.name),
                state_dict=state_dict), args.out)
    print(f'{args.out}: {len(state_dict)} weights from {len(weights)} of '
          f'{args.checkpoint}')


if __name__ == '__main__':
    main()
