# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What is known of the transforms of mmcv, mmdet and mmseg.

:mod:`mmsemi.datasets.transforms.view_checks` applies it.
"""

# They record their matrix in edge coordinates, or move nothing, or only run
# other transforms, which are looked at themselves.
RIGHT = dict(
    mmcv=frozenset([
        'Compose', 'ImageToTensor', 'KeyMapper', 'LoadAnnotations',
        'LoadImageFromFile', 'Normalize', 'Pad', 'RandomApply', 'RandomChoice',
        'RandomChoiceResize', 'RandomGrayscale', 'RandomResize', 'ToTensor'
    ]),
    mmdet=frozenset([
        'ColorTransform', 'CutOut', 'FilterAnnotations', 'GeomTransform',
        'ImageToTensor', 'InferencerLoader', 'LoadEmptyAnnotations',
        'LoadMultiChannelImageFromFiles', 'LoadProposals', 'PackDetInputs',
        'PhotoMetricDistortion', 'ProposalBroadcaster', 'RandomCrop',
        'RandomErasing', 'RandomFlip', 'Resize', 'ResizeShortestEdge',
        'SegRescale', 'ToTensor', 'WrapFieldsToLists', 'YOLOXHSVRandomAug'
    ]),
    mmseg=frozenset([
        'AdjustGamma', 'BioMedicalGaussianBlur', 'BioMedicalGaussianNoise',
        'BioMedicalRandomGamma', 'CLAHE', 'GenerateEdge', 'PackSegInputs',
        'PhotoMetricDistortion', 'RGB2Gray', 'RandomCutOut', 'Rerange',
        'ResizeShortestEdge', 'SegRescale'
    ]))

# What to write instead; None where nothing does the same inside a view.
UNRECORDED = {
    'mmcv.CenterCrop': 'mmdet.RandomCrop',
    'mmcv.MultiScaleFlipAug': None,
    'mmcv.RandomFlip': 'mmdet.RandomFlip',
    'mmcv.Resize': 'mmdet.Resize',
    'mmcv.TestTimeAug': None,
    'mmdet.Albu': 'mmsemi.StrongColor and mmsemi.RandomAffine',
    'mmdet.CachedMixUp': None,
    'mmdet.CopyPaste': None,
    'mmdet.CutHeight': 'mmdet.RandomCrop',
    'mmdet.Expand': 'mmsemi.RandomAffine with a scale below 1',
    'mmdet.InstaBoost': None,
    'mmdet.MinIoURandomCrop': 'mmdet.RandomCrop',
    'mmdet.MixUp': None,
    'mmdet.Mosaic': None,
    'mmdet.RandomAffine': 'mmsemi.RandomAffine',
    'mmdet.RandomCenterCropPad': 'mmdet.RandomCrop',
    'mmdet.RandomShift': 'mmsemi.RandomTranslate',
    'mmseg.Albu': 'mmsemi.StrongColor and mmsemi.RandomAffine',
    'mmseg.BioMedical3DPad': 'mmdet.Pad',
    'mmseg.BioMedical3DRandomCrop': None,
    'mmseg.BioMedical3DRandomFlip': None,
    'mmseg.RandomCrop': 'mmdet.RandomCrop',
    'mmseg.RandomDepthMix': None,
    'mmseg.RandomFlip': 'mmdet.RandomFlip',
    'mmseg.RandomMosaic': None,
    'mmseg.RandomRotFlip': 'mmsemi.RandomRotate and mmdet.RandomFlip',
    'mmseg.RandomRotate': 'mmsemi.RandomRotate',
    'mmseg.Resize': 'mmdet.Resize',
    'mmseg.ResizeToMultiple': 'mmdet.Resize',
}

# They record, but half a pixel off: OpenCV counts from pixel centres.
PIXEL_INDEX = {
    'mmdet.Rotate': 'mmsemi.RandomRotate',
    'mmdet.ShearX': 'mmsemi.RandomShear',
    'mmdet.ShearY': 'mmsemi.RandomShear',
}

PADDING = ('Pad', 'BioMedical3DPad')
PADDING_TEXT = (
    'pads the image, and the model cannot tell this padding from image; '
    'remove it and set data_preprocessor.size (or size_divisor) of the '
    'model, which pads at the right and bottom and marks what it pads')
