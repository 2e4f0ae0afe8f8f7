# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Encode the names of classes once, into a file for a semantic branch.

The names come from a config, from an annotation file in COCO's format, or
from the command line; they must be in the order of the data set's labels::

    python tools/encode_class_names.py --config CONFIG.py --out trashcan.pt
    python tools/encode_class_names.py --ann-file instances_train.json \\
        --texts texts.json --out trashcan.pt
    python tools/encode_class_names.py --classes crab eel starfish \\
        --model openai/clip-vit-base-patch32 --pooling cls --out sea.pt

texts.json says what stands for a class instead of its name, for some classes
or all: {"animal_etc": "other animal", "rov": "remotely operated vehicle"}. A
data set may say so itself, in metainfo['class_texts']: --config finds that,
and texts.json goes before it.

Without network, name a folder that holds config.json, the weights and the
tokenizer's files, or take char-ngrams, which needs no weights: it knows how
names are spelled and nothing of what they mean.

In the config of a model: text_embeddings='trashcan.pt'. Training and testing
read this file alone; a checkpoint holds the vectors too.
"""
import argparse
import json
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from mmsemi.apis.cli import usage_errors

DEFAULT_MODEL = 'allenai/scibert_scivocab_uncased'
POOLINGS = ('mean', 'cls', 'first_layer')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        '--config',
        help="path of a config, or the name of one of mmsemi's, whose test "
        'data (else validation, else training data) name the classes')
    source.add_argument(
        '--ann-file',
        metavar='FILE',
        help="annotations in COCO's format; the order is that of its "
        '"categories"')
    source.add_argument(
        '--classes', nargs='+', metavar='NAME', help='the names themselves')
    parser.add_argument(
        '--texts',
        metavar='FILE',
        help='JSON object with texts by class name (default: those of the '
        "config's data set, else the name in lower case, with spaces for "
        'underscores)')
    parser.add_argument(
        '--model',
        default=DEFAULT_MODEL,
        help='text encoder: a name on the Hugging Face hub, a folder, or '
        f'char-ngrams (default: {DEFAULT_MODEL})')
    parser.add_argument(
        '--pooling',
        choices=POOLINGS,
        default='mean',
        help='how the tokens of a text become one vector: mean of the last '
        "layer's word pieces; cls, its classification token (CLIP: the "
        'projected end token); first_layer, mean of the first layer (default: '
        'mean)')
    parser.add_argument(
        '--out', required=True, metavar='FILE', help='file to write (.pt)')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace an existing file')
    parser.add_argument(
        '--quiet', action='store_true', help='show no progress bar')
    return parser


def config_classes(name: str) -> Tuple[List[str], Dict[str, str]]:
    """Return the classes of a config's data, in the order of its labels.

    Beside them the texts that the data set has for some of them or all.
    """
    from mmengine.registry import init_default_scope

    from mmsemi.apis.configs import load_config
    from mmsemi.apis.data_files import data_sources, source_files
    from mmsemi.apis.inference import dataset_meta
    cfg = load_config(name)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    loaders = [
        key for key in ('test_dataloader', 'val_dataloader',
                        'train_dataloader') if cfg.get(key)
    ]
    if not loaders:
        raise ValueError(f'The config {name} has no data. Use --ann-file or '
                         '--classes.')
    cfg.test_dataloader = cfg[loaders[0]]
    meta = dataset_meta(cfg, {})
    classes = meta.get('classes')
    if not classes:
        raise ValueError(
            f'The data of the config {name} name no classes. Write '
            'metainfo=dict(classes=(...)) into the data set, or use '
            '--ann-file or --classes.')
    for _, source in data_sources(cfg.test_dataloader.dataset, ''):
        for path in source_files(source):
            if path.endswith('.json') and Path(path).is_file():
                check_label_order(list(classes), path)
    texts = meta.get('class_texts') or {}
    if not isinstance(texts, dict):
        raise ValueError(f"metainfo['class_texts'] of the config {name} must "
                         f'be texts by class name, not a '
                         f'{type(texts).__name__}.')
    # A config may take some of the classes that its data set knows.
    return list(classes), {
        key: text
        for key, text in texts.items() if key in classes
    }


def check_label_order(classes: List[str], path: str) -> None:
    """Refuse classes that mmdet numbers in another order.

    It numbers them as the annotation file lists them, whatever the order of
    metainfo.classes is.

    Raises:
        ValueError: If the orders differ.
    """
    from mmsemi.datasets import load_coco
    categories = load_coco(path).get('categories') or []
    names = [
        category.get('name') for category in categories
        if isinstance(category, dict)
    ]
    labels = [name for name in names if name in classes]
    if len(labels) == len(classes) and labels != classes:
        raise ValueError(
            f'The "categories" of {path} are in another order than the '
            "config's metainfo.classes, and mmdet numbers the labels in that "
            f'of the file. Write the classes as the file does: {labels}.')


def annotated_classes(path: str) -> List[str]:
    """Return the names of an annotation file's categories."""
    from mmsemi.datasets import load_coco
    categories = load_coco(path).get('categories')
    if not isinstance(categories, list) or not categories or not all(
            isinstance(category, dict)
            and isinstance(category.get('name'), str)
            for category in categories):
        raise ValueError(f'{path} has no "categories" with names. Is it in '
                         "COCO's format?")
    return [category['name'] for category in categories]


def read_texts(path: Optional[str]) -> Optional[Dict[str, str]]:
    """Read the file of --texts."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file {path} (--texts).')
    try:
        texts = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} (--texts) is not valid JSON: {error}') \
            from None
    if not isinstance(texts, dict):
        raise ValueError(f'{path} (--texts) must hold one JSON object with '
                         f'texts by class name, not a {type(texts).__name__}.')
    return texts


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        out = Path(args.out)
        if out.exists() and not args.overwrite:
            raise FileExistsError(f'{out} exists; --overwrite replaces it.')
        texts = read_texts(args.texts) or {}
        if args.config:
            classes, known = config_classes(args.config)
            texts = {**known, **texts}
        elif args.ann_file:
            classes = annotated_classes(args.ann_file)
        else:
            classes = args.classes
        from mmsemi.models.text import encode_classes
        embeddings = encode_classes(
            classes,
            args.model,
            texts,
            args.pooling,
            progress=not args.quiet)
        embeddings.save(out)
    for name, text in zip(embeddings.classes, embeddings.texts):
        print(f'{name}: {text}')
    number, width = embeddings.vectors.shape
    print(f'{number} classes, {width} numbers each, written to {out} '
          f'(checksum {embeddings.checksum[:12]})')


if __name__ == '__main__':
    main()
