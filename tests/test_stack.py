"""MMAction2's own AVA path, start to end, on the torch and numpy that are installed.

Nothing of memvit_mm but compat takes part: if this fails, the stack is at fault.
"""

import json
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import memvit_mm  # noqa: F401

cv2 = pytest.importorskip('cv2')
CLASSES = 4


@pytest.fixture(scope='module')
def ava(tmp_path_factory):
    """One video of 4 s at 30 frames/s as raw frames, with boxes at 901 and 902 s."""
    root = tmp_path_factory.mktemp('ava')
    frames = root / 'rawframes' / 'video1'
    frames.mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    for index in range(1, 121):
        cv2.imwrite(str(frames / f'img_{index:05}.jpg'), picture)
    box = [0.1, 0.2, 0.6, 0.9]
    lines = [
        f'video1,{second:04},{",".join(map(str, box))},{label},0'
        for second in (901, 902)
        for label in (1, 3)
    ]
    (root / 'ann.csv').write_text('\n'.join(lines) + '\n')
    (root / 'labels.pbtxt').write_text(
        ''.join(
            f'item {{\n  name: "action {label}"\n  id: {label}\n}}\n'
            for label in range(1, CLASSES)
        )
    )
    proposals = {
        f'video1,{second:04}': np.array([[*box, 0.97]], np.float32)
        for second in (901, 902)
    }
    (root / 'proposals.pkl').write_bytes(pickle.dumps(proposals))
    (root / 'excluded.csv').write_text('')
    return root


def make_config(ava, work_dir, epochs=1):
    pipeline = [
        dict(type='SampleAVAFrames', clip_len=4, frame_interval=2),
        dict(type='RawFrameDecode', io_backend='disk'),
        dict(type='Resize', scale=(64, 48), keep_ratio=False),
        dict(type='FormatShape', input_format='NCTHW', collapse=True),
        dict(type='PackActionInputs'),
    ]
    dataset = dict(
        type='AVADataset',
        ann_file=str(ava / 'ann.csv'),
        exclude_file=str(ava / 'excluded.csv'),
        label_file=str(ava / 'labels.pbtxt'),
        proposal_file=str(ava / 'proposals.pkl'),
        data_prefix=dict(img=str(ava / 'rawframes')),
        pipeline=pipeline,
        num_classes=CLASSES,
        timestamp_start=900,
        start_index=1,
        test_mode=True,
        use_frames=True,
        fps=30,
    )
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )
    evaluator = dict(
        type='AVAMetric',
        ann_file=str(ava / 'ann.csv'),
        label_file=str(ava / 'labels.pbtxt'),
        exclude_file=str(ava / 'excluded.csv'),
        num_classes=CLASSES,
    )
    model = dict(
        type='FastRCNN',
        _scope_='mmdet',
        init_cfg=None,
        backbone=dict(
            type='mmaction.ResNet3dSlowOnly',
            depth=50,
            base_channels=4,
            pretrained=None,
            lateral=False,
            num_stages=4,
            spatial_strides=(1, 2, 2, 1),
        ),
        roi_head=dict(
            type='AVARoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor3D',
                roi_layer_type='RoIAlign',
                output_size=8,
                with_temporal_pool=True,
            ),
            bbox_head=dict(
                type='BBoxHeadAVA',
                background_class=True,
                topk=2,
                in_channels=128,
                num_classes=CLASSES,
                multilabel=True,
                dropout_ratio=0.5,
            ),
        ),
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor',
            mean=[0.0] * 3,
            std=[255.0] * 3,
            format_shape='NCTHW',
        ),
        train_cfg=dict(
            rcnn=dict(
                assigner=dict(
                    type='MaxIoUAssignerAVA',
                    pos_iou_thr=0.9,
                    neg_iou_thr=0.9,
                    min_pos_iou=0.9,
                ),
                sampler=dict(
                    type='RandomSampler',
                    num=32,
                    pos_fraction=1,
                    neg_pos_ub=-1,
                    add_gt_as_proposals=True,
                ),
                pos_weight=1.0,
            )
        ),
        test_cfg=dict(rcnn=None),
    )
    train_loader = dict(loader, dataset=dict(dataset, test_mode=False))
    return Config(
        dict(
            default_scope='mmaction',
            model=model,
            train_dataloader=train_loader,
            val_dataloader=loader,
            test_dataloader=loader,
            val_evaluator=evaluator,
            test_evaluator=evaluator,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            val_cfg=dict(),
            test_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            param_scheduler=[dict(type='LinearLR', by_epoch=True, end=2)],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1, save_best='auto'),
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_hooks=[dict(type='EMAHook')],
            work_dir=str(work_dir),
            log_level='WARNING',
            randomness=dict(seed=0),
        )
    )


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_train_validate_test_and_resume(ava, tmp_path):
    config = make_config(ava, tmp_path)
    Runner.from_cfg(config).train()
    # mAP over a class without a box is what needs np.NAN.
    log = [json.loads(line) for line in scalars(tmp_path).splitlines()]
    assert any('mAP/overall' in entry for entry in log)

    resumed = make_config(ava, tmp_path, epochs=2)
    resumed.merge_from_dict(dict(resume=True, experiment_name='resumed'))
    runner = Runner.from_cfg(resumed)
    runner.train()
    assert runner.epoch == 2
    # The log history came back: two steps of each epoch.
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 4 and np.isfinite(losses).all()

    tested = make_config(ava, tmp_path / 'test')
    tested.merge_from_dict(
        dict(load_from=str(tmp_path / 'epoch_2.pth'), experiment_name='tested')
    )
    assert 'mAP/overall' in Runner.from_cfg(tested).test()


def scalars(work_dir):
    return '\n'.join(
        path.read_text() for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
    )


@pytest.mark.filterwarnings('ignore')
def test_recognizer_on_a_video(tmp_path):
    pytest.importorskip('decord')
    from mmaction.apis import inference_recognizer, init_recognizer

    video = str(tmp_path / 'video.mp4')
    writer = cv2.VideoWriter(video, cv2.VideoWriter_fourcc(*'mp4v'), 25, (64, 48))
    for _ in range(20):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    config = Config(
        dict(
            default_scope='mmaction',
            model=dict(
                type='Recognizer3D',
                backbone=dict(
                    type='ResNet3dSlowOnly',
                    depth=50,
                    base_channels=4,
                    pretrained=None,
                    lateral=False,
                ),
                cls_head=dict(
                    type='I3DHead',
                    num_classes=5,
                    in_channels=128,
                    average_clips='prob',
                ),
                data_preprocessor=dict(
                    type='ActionDataPreprocessor', format_shape='NCTHW'
                ),
            ),
            test_pipeline=[
                dict(type='DecordInit'),
                dict(
                    type='SampleFrames',
                    clip_len=4,
                    frame_interval=2,
                    num_clips=1,
                    test_mode=True,
                ),
                dict(type='DecordDecode'),
                dict(type='Resize', scale=(32, 32), keep_ratio=False),
                dict(type='FormatShape', input_format='NCTHW'),
                dict(type='PackActionInputs'),
            ],
        )
    )
    model = init_recognizer(config, device='cpu')
    result = inference_recognizer(model, video)
    assert result.pred_score.shape == (5,)
    assert torch.isfinite(result.pred_score).all()
