# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/semires_lavt_swin-b.py',
    '../_base_/datasets/semi_refcoco-plus.py',
    '../_base_/schedules/schedule_semires_140k.py',
    '../_base_/semires_runtime.py'
]
# The burn-in; student and teacher both start from it.
load_from = 'work_dirs/lavt_swin-b_4xb2-11k_refcocoplus-1over20/iter_11200.pth'

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.image_list = 'refer/splits/refcoco+-unc.semires@5.txt'
unlabeled_dataset.image_list = \
    'refer/splits/refcoco+-unc.semires@5-unlabeled.txt'
unlabeled_dataset.pipeline[-1].unsup_teacher.insert(0, _base_.proposals)
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
