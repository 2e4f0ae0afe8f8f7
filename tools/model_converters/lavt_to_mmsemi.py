# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Turn the official weights of LAVT into a checkpoint of mmsemi's."""
import argparse
import os
import re
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from mmsemi.apis.cli import add_cfg_options, usage_errors

Weights = Dict[str, Tensor]

#: Parts of BERT that LAVT does not use, and a buffer of old versions.
DROPPED = re.compile(r'text_encoder\.bert\.(pooler\..+|'
                     r'embeddings\.position_ids)')
#: It follows from the window; the released SemiRES averages it by mistake.
INDEX = 'relative_position_index'
NUMBER = r'(\d+)'
AFFINE = '(weight|bias)'
NORM = '(weight|bias|running_mean|running_var|num_batches_tracked)'

#: Names in ``backbone`` beyond those of Swin, and mmsemi's.
FUSION = {
    'vis_project.0': 'vision',
    'image_lang_att.f_query.0': 'query',
    'image_lang_att.f_key.0': 'key',
    'image_lang_att.f_value.0': 'value',
    'image_lang_att.W.0': 'language',
    'project_mm.0': 'project'
}
BACKBONE = (
    *((rf'layers\.{NUMBER}\.fusion\.{re.escape(official)}\.{AFFINE}',
       rf'fusions.\1.{ours}.\2') for official, ours in FUSION.items()),
    (rf'layers\.{NUMBER}\.res_gate\.([02])\.weight', r'gates.\1.\2.weight'),
)
#: In ``classifier``: first or second layer, and the coarser of both maps.
CLASSIFIER = re.compile(rf'(conv|bn)([12])_([234])\.{NORM}')


def convert_key(key: str) -> Optional[str]:
    """Return mmsemi's name of a weight.

    Args:
        key (str): Its official name, that of BERT's behind 'bert_model.'.

    Returns:
        str or None: None if it has none.
    """
    from mmsemi.models.backbones.swin_weights import convert_swin_key
    part, _, name = key.partition('.')
    if part in ('bert_model', 'text_encoder'):
        return f'text_encoder.bert.{name}'
    if part == 'backbone':
        for pattern, ours in BACKBONE:
            match = re.fullmatch(pattern, name)
            if match:
                return f'backbone.{match.expand(ours)}'
        ours = convert_swin_key(name)
        return None if ours is None else f'backbone.{ours}'
    if part == 'classifier':
        match = CLASSIFIER.fullmatch(name)
        if match:
            step, layer = 4 - int(match[3]), int(match[2]) - 1
            return f'decode_head.steps.{step}.{layer}.{match[1]}.{match[4]}'
        if name in ('conv1_1.weight', 'conv1_1.bias'):
            return f"decode_head.conv_seg.{name.partition('.')[2]}"
    return None


def convert_weights(official: Mapping[str, Tensor],
                    expected: Mapping[str, Tensor]) -> Weights:
    """Rename weights, and check that they are those of a model.

    Args:
        official (Mapping[str, Tensor]): Weights by official name.
        expected (Mapping[str, Tensor]): Weights of the model by mmsemi's.

    Returns:
        dict[str, Tensor]: One for every expected weight; position indices
        are the model's.

    Raises:
        ValueError: If a weight is unknown, missing or of another shape.
    """
    from mmsemi.models.backbones.swin_weights import reorder_patch_merging
    converted, unknown = {}, []
    for key, weight in official.items():
        ours = convert_key(key)
        if ours is not None and DROPPED.fullmatch(ours):
            continue
        if ours not in expected:
            unknown.append(key)
            continue
        merges = '.downsample.' in key
        converted[ours] = reorder_patch_merging(weight) if merges else weight
    problems = list(_problems(unknown, converted, expected))
    if problems:
        raise ValueError(
            ' '.join(problems) + ' Choose the config of this size, window '
            'and text encoder.')
    return {
        key: weight if key.endswith(INDEX) else converted[key]
        for key, weight in expected.items()
    }


def _problems(unknown: List[str], converted: Mapping[str, Tensor],
              expected: Mapping[str, Tensor]) -> Iterator[str]:
    missing = [
        key for key in expected
        if key not in converted and not key.endswith(INDEX)
    ]
    for keys, what in ((unknown, 'of the file are not in the model'),
                       (missing, 'of the model are not in the file')):
        if keys:
            yield f'{len(keys)} weights {what}: {shortened(keys)}.'
    wrong = [
        f'{key} is {tuple(weight.shape)}, in the model '
        f'{tuple(expected[key].shape)}' for key, weight in converted.items()
        if weight.shape != expected[key].shape
    ]
    if wrong:
        yield f'{len(wrong)} weights have another shape: {shortened(wrong)}.'


def changed_indices(official: Mapping[str, Tensor],
                    expected: Mapping[str, Tensor]) -> List[str]:
    """List the position indices of a file that are not what they must be.

    Args:
        official (Mapping[str, Tensor]): Weights by official name.
        expected (Mapping[str, Tensor]): Weights of the model by mmsemi's.

    Returns:
        list[str]: Official names.
    """
    return [
        key for key, value in official.items() if key.endswith(INDEX)
        and not torch.equal(value, expected[convert_key(key)])
    ]


def shortened(names: List[str]) -> str:
    """Join up to three names."""
    rest = len(names) - 3
    return ', '.join(names[:3]) + (f' and {rest} more' if rest > 0 else '')


def read_weights(path: Path) -> Weights:
    """Read weights without running code from the file.

    Args:
        path (Path): A checkpoint of LAVT: a dict with ``model`` and, unless
            BERT is in it, ``bert_model``.

    Returns:
        dict[str, Tensor]: The weights by name, those of ``bert_model``
        behind 'bert_model.'.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds more than data and the arguments of the
            training, or no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {path}.')
    try:
        # LAVT's trainer saves its parsed arguments, too.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location='cpu', weights_only=True)
    # Bytes that are no checkpoint can make it fail in any way.
    except Exception as error:
        raise ValueError(
            f'{path} is damaged or holds more than weights, settings and '
            f'arguments ({type(error).__name__}); to read more is to run '
            'code from the file.') from error
    weights = {}
    for part, prefix in (('model', ''), ('bert_model', 'bert_model.')):
        found = loaded.get(part) if isinstance(loaded, dict) else None
        if found is None and part == 'bert_model':
            continue
        if not isinstance(found, dict) or not found or not all(
                isinstance(value, Tensor) for value in found.values()):
            raise ValueError(f'{path} holds no weights: expected a dict with '
                             'tensors by name under "model", and under '
                             '"bert_model" where BERT is not in it.')
        weights.update({
            prefix + re.sub(r'^module\.', '', key): value
            for key, value in found.items()
        })
    return weights


def save(content: dict, path: Path) -> None:
    """Write a checkpoint at once, so that no half file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp{os.getpid()}')
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Convert a checkpoint of the official LAVT, or of '
        'SemiRES, for a config of mmsemi. Every weight must have a place, '
        'and every place a weight.',
        epilog='Example: lavt_to_mmsemi.py configs/_base_/models/'
        'lavt_swin-b.py refcoco.pth lavt_swin-b_refcoco.pth')
    parser.add_argument(
        'config', help='config of the model, also one that mmsemi wraps')
    parser.add_argument('checkpoint', type=Path, help='official file')
    parser.add_argument('out', type=Path, help='file to write')
    add_cfg_options(parser)
    return parser


def build_expected(config: str, options: Optional[dict]) -> Tuple[Weights,
                                                                  str]:
    """Return the weights that a config's model has, and its type."""
    from mmengine.registry import init_default_scope

    from mmsemi.apis import load_config
    from mmsemi.methods import load_segmentor_config
    from mmsemi.registry import MODELS
    loaded = load_config(config, options)
    init_default_scope('mmseg')
    model = load_segmentor_config(loaded.model.get('segmentor', loaded.model))
    return MODELS.build(model).state_dict(), str(model.type)


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        weights = read_weights(args.checkpoint)
        expected, kind = build_expected(args.config, args.cfg_options)
        state_dict = convert_weights(weights, expected)
        changed = changed_indices(weights, expected)
        save(
            dict(
                meta=dict(converted_from=args.checkpoint.name),
                state_dict=state_dict), args.out)
    if changed:
        print(f'Warning: {len(changed)} position indices of the file are not '
              f'those of its windows ({shortened(changed)}), as the released '
              'SemiRES leaves them in its teachers; the right ones were '
              'written, so that predictions differ a little.')
    print(f'{args.out}: {len(state_dict)} weights of {kind} from '
          f'{len(weights)} of {args.checkpoint}')


if __name__ == '__main__':
    main()
