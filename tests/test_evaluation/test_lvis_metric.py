# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""AP by the rules of LVIS, against numbers computed by hand."""
import json

import pytest
import torch

from mmsemi.evaluation import LVISMetric
from mmsemi.registry import METRICS

CLASSES = ('cat', 'dog', 'bird', 'cow')
CAT, DOG, BIRD, COW = range(4)
# x, y, width, height.
CAT_1, DOG_1 = (0, 0, 10, 10), (20, 20, 20, 20)
CAT_2, BIRD_2 = (50, 50, 10, 10), (0, 50, 20, 20)
NOTHING = (80, 80, 10, 10)
# IoU of 285 / 400 with the bird: right at 5 of the 10 thresholds.
BIRD_LIKE = (0, 50, 19, 15)
FOUND_1 = [(DOG, .95, NOTHING), (COW, .93, NOTHING), (CAT, .9, NOTHING),
           (BIRD, .88, NOTHING), (CAT, .8, CAT_1), (DOG, .6, DOG_1)]
FOUND_2 = [(DOG, .99, NOTHING), (CAT, .7, CAT_2), (BIRD, .5, BIRD_LIKE)]


def annotation(number, image, label, box):
    x, y, w, h = box
    return dict(
        id=number,
        image_id=image,
        category_id=10 * (label + 1),
        bbox=list(box),
        area=w * h,
        segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])


def write_truth(path, **changes):
    """Image 1 has no bird, and dogs beyond the annotated one."""
    images = [
        dict(neg_category_ids=[30], not_exhaustive_category_ids=[20]),
        dict(neg_category_ids=[], not_exhaustive_category_ids=[])
    ]
    content = dict(
        images=[
            dict(
                image,
                id=i,
                width=100,
                height=100,
                coco_url=f'http://images.cocodataset.org/val2017/{i}.jpg')
            for i, image in enumerate(images, 1)
        ],
        categories=[
            dict(id=10 * i, name=name, frequency=letter)
            for i, (name, letter) in enumerate(zip(CLASSES, 'rcff'), 1)
        ],
        annotations=[
            annotation(1, 1, CAT, CAT_1),
            annotation(2, 1, DOG, DOG_1),
            annotation(3, 2, CAT, CAT_2),
            annotation(4, 2, BIRD, BIRD_2)
        ])
    content.update(changes)
    path.write_text(json.dumps(content))
    return str(path)


def sample(image, found, masks=True):
    bboxes = torch.tensor([f[2] for f in found]).float().reshape(-1, 4)
    instances = dict(
        labels=torch.tensor([f[0] for f in found], dtype=torch.long),
        scores=torch.tensor([f[1] for f in found]),
        bboxes=torch.cat([bboxes[:, :2], bboxes[:, :2] + bboxes[:, 2:]], 1))
    if masks:
        canvas = torch.zeros((len(found), 100, 100), dtype=torch.bool)
        for mask, (_, _, (x, y, w, h)) in zip(canvas, found):
            mask[y:y + h, x:x + w] = True
        instances['masks'] = canvas
    return dict(img_id=image, pred_instances=instances)


def evaluate(path, found_1=FOUND_1, found_2=FOUND_2, **kwargs):
    metric = METRICS.build(
        dict(type='mmsemi.LVISMetric', ann_file=path, **kwargs))
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, [sample(1, found_1)])
    metric.process({}, [sample(2, found_2)])
    return metric.evaluate(2)


def test_values_are_those_computed_by_hand(tmp_path):
    """The order of the predictions of a class, and what becomes of each.

    Cat: wrong, right, right, so precision is 2/3 at every recall. Dog: of
    image 2, which was not searched for dogs, dropped; the first of image 1
    ignored; right: 1. Bird: wrong (certainly none), then right: 1/2 at 5
    thresholds, 0 at the others. Cow: no instance anywhere.
    """
    path = write_truth(tmp_path / 'lvis.json')
    values = evaluate(path, metric=['bbox', 'segm'], classwise=True)
    expected = dict(
        AP=(2 / 3 + 1 + 1 / 4) / 3,
        AP50=(2 / 3 + 1 + 1 / 2) / 3,
        AP75=(2 / 3 + 1) / 3,
        APs=(2 / 3 + 1 + 1 / 4) / 3,
        APm=-1,
        APl=-1,
        APr=2 / 3,
        APc=1,
        APf=1 / 4)
    expected.update({
        'AP/cat': 2 / 3,
        'AP/dog': 1,
        'AP/bird': 1 / 4,
        'AP/cow': -1
    })
    assert values == pytest.approx(
        {
            f'lvis/{kind}_{key}': value
            for kind in ('bbox', 'segm')
            for key, value in expected.items()
        },
        abs=1e-9)


def test_rules_follow_from_the_file(tmp_path):
    """Where every class was searched for, the same predictions are wrong."""
    path = tmp_path / 'lvis.json'
    content = json.loads(open(write_truth(path)).read())
    for image in content['images']:
        image.update(
            neg_category_ids=[10, 20, 30, 40], not_exhaustive_category_ids=[])
    path.write_text(json.dumps(content))
    values = evaluate(str(path), classwise=True)
    # Dog: wrong, wrong, right.
    assert values['lvis/segm_APc'] == pytest.approx(1 / 3)
    assert values['lvis/segm_APr'] == pytest.approx(2 / 3)
    assert values['lvis/segm_AP/cow'] == -1


@pytest.mark.parametrize('max_dets, cat', [(1, 0.), (3, 1 / 4), (5, 2 / 3)])
def test_limit_is_one_of_the_image_over_all_classes(tmp_path, max_dets, cat):
    """3: wrong in image 1, right in image 2: 1/2 up to a recall of 1/2."""
    path = write_truth(tmp_path / 'lvis.json')
    value = evaluate(path, max_dets=max_dets)['lvis/segm_APr']
    # 51 of the 101 recalls are at most 1/2.
    expected = 51 / 101 / 2 if max_dets == 3 else cat
    assert value == pytest.approx(expected)


def test_order_of_ids_and_many_classes_change_nothing(tmp_path, monkeypatch):
    path = tmp_path / 'lvis.json'
    expected = evaluate(write_truth(path), classwise=True)
    content = json.loads(path.read_text())
    new = {10: 7, 20: 900, 30: 3, 40: 5}
    for category in content['categories']:
        category['id'] = new[category['id']]
    for instance in content['annotations']:
        instance['category_id'] = new[instance['category_id']]
    for image in content['images']:
        for key in ('neg_category_ids', 'not_exhaustive_category_ids'):
            image[key] = [new[i] for i in image[key]]
    path.write_text(json.dumps(content))
    monkeypatch.setattr('mmsemi.evaluation.lvis_metric.CHUNK', 3)
    assert evaluate(str(path), classwise=True) == pytest.approx(expected)


def test_no_prediction_at_all(tmp_path):
    values = evaluate(write_truth(tmp_path / 'lvis.json'), [], [])
    assert values['lvis/segm_AP'] == values['lvis/segm_APr'] == 0


def test_masks_are_ranked_by_their_own_scores(tmp_path):
    metric = LVISMetric(write_truth(tmp_path / 'lvis.json'))
    metric.dataset_meta = dict(classes=CLASSES)
    first, second = sample(1, FOUND_1), sample(2, FOUND_2)
    for s in (first, second):
        found = s['pred_instances']
        found['mask_scores'] = found['scores'].clone()
    # The wrong cat comes last.
    first['pred_instances']['mask_scores'][2] = .1
    metric.process({}, [first, second])
    assert metric.evaluate(2)['lvis/segm_APr'] == pytest.approx(1)


def test_what_does_not_fit_is_refused(tmp_path):
    path = write_truth(tmp_path / 'lvis.json')
    with pytest.raises(ValueError, match='allowed are'):
        LVISMetric(path, metric='proposal')
    with pytest.raises(ValueError, match='whole numbers from 1'):
        LVISMetric(path, max_dets=0)
    with pytest.raises(ValueError, match='predicts no masks'):
        LVISMetric(path).process({}, [sample(1, FOUND_1, masks=False)])
    with pytest.raises(ValueError, match='has no image 3'):
        metric = LVISMetric(path)
        metric.process({}, [sample(3, FOUND_1)])
        metric.evaluate(1)
    with pytest.raises(ValueError, match='predicts class 4'):
        evaluate(path, [(4, .9, CAT_1)])
    with pytest.raises(ValueError, match='no file of LVIS v1'):
        evaluate(write_truth(tmp_path / 'coco.json', images=[dict(id=1)]))
