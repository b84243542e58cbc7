"""AVA v2.2 from folders of frames, for models with memory: 16 frames, 4 apart.

Files as MMAction2's tools/data/ava leaves them:

    data/ava/rawframes/<video>/img_00001.jpg ...
    data/ava/annotations/ava_{train,val}_v2.2.csv
    data/ava/annotations/ava_{train,val}_excluded_timestamps_v2.2.csv
    data/ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt
    data/ava/annotations/ava_dense_proposals_{train,val}.FAIR.recall_93.9.pkl

`ava_videos.py` beside this reads videos instead.
"""

dataset_type = 'MemoryAVADataset'
data_prefix = dict(img='data/ava/rawframes')
anno_root = 'data/ava/annotations'
label_file = f'{anno_root}/ava_action_list_v2.2_for_activitynet_2019.pbtxt'
ann_file_val = f'{anno_root}/ava_val_v2.2.csv'
# First and last second.
keyframe_range = (902, 1798)
exclude_file_val = f'{anno_root}/ava_val_excluded_timestamps_v2.2.csv'

augmentation = [
    # What is drawn is the same for all clips of a video in an epoch, so that memory and
    # clip show the same place in the same light. The published code draws for each clip
    # anew: per='clip', as in memvit_ava_published.py.
    dict(
        type='StreamConsistent',
        per='video',
        transforms=[
            dict(type='ResizeShortSide', short_side=(256, 320)),
            dict(type='RandomCrop', size=224),
            dict(type='Flip', flip_ratio=0.5),
            # Frames are float32 from here on.
            dict(
                type='ClipColors',
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                lighting=0.1,
            ),
        ],
    ),
]
packing = [
    dict(type='FormatShape', input_format='NCTHW', collapse=True),
    dict(
        type='PackActionInputs',
        meta_keys=(
            'img_shape',
            'img_key',
            'video_id',
            'timestamp',
            'stream',
            # Detections are matched with ground truth before the crop.
            'whole_frame_boxes',
        ),
    ),
]
train_pipeline = [
    dict(type='SampleClipFrames', clip_len=16, frame_interval=4),
    dict(type='RawFrameDecode'),
    *augmentation,
    *packing,
]
test_pipeline = [
    dict(type='SampleClipFrames', clip_len=16, frame_interval=4, test_mode=True),
    dict(type='RawFrameDecode'),
    dict(type='ResizeShortSide', short_side=224),
    *packing,
]
# While training, a centre crop is validated, as published; boxes are evaluated whole.
center_crop = dict(type='CenterCrop', crop_size=224)
val_pipeline = [*test_pipeline[:-2], center_crop, *packing]

train_dataloader = dict(
    batch_size=2,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='SequentialClipSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        ann_file=f'{anno_root}/ava_train_v2.2.csv',
        exclude_file=f'{anno_root}/ava_train_excluded_timestamps_v2.2.csv',
        label_file=label_file,
        proposal_file=f'{anno_root}/ava_dense_proposals_train.FAIR.recall_93.9.pkl',
        person_det_score_thr=0.9,
        keyframe_range=keyframe_range,
        # All keyframes with a person, annotated or detected.
        keyframes='detected',
        pipeline=train_pipeline,
        use_frames=True,
        data_prefix=data_prefix,
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    batch_sampler=dict(type='SequentialClipSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        ann_file=ann_file_val,
        exclude_file=exclude_file_val,
        label_file=label_file,
        proposal_file=f'{anno_root}/ava_dense_proposals_val.FAIR.recall_93.9.pkl',
        person_det_score_thr=0.9,
        keyframe_range=keyframe_range,
        # All keyframes with a person; 'annotated' is MMAction2's choice.
        keyframes='detected',
        pipeline=val_pipeline,
        test_mode=True,
        use_frames=True,
        data_prefix=data_prefix,
    ),
)
test_dataloader = dict(
    val_dataloader, dataset=dict(val_dataloader['dataset'], pipeline=test_pipeline)
)

val_evaluator = dict(
    type='MemoryAVAMetric',
    ann_file=ann_file_val,
    exclude_file=exclude_file_val,
    label_file=label_file,
)
test_evaluator = val_evaluator
