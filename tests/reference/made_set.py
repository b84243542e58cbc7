"""A made set of videos of very different lengths and sizes, and small models for it.

Folders of tiny frames, with annotations both as MMAction2's AVA (for a detector) and as
its RawframeDataset (for a recognizer). For tools that check what a run must keep.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path

# Clips of each video, and height and width of its frames in pixels.
LENGTHS = (1, 200, 2, 60, 1, 21, 3, 8, 5)
SIZES = ((32, 32), (32, 48), (48, 32))
CLIP_LEN = 8
CLASSES = 6


def write_set(folder: Path, lengths: Sequence[int] = LENGTHS) -> None:
    """Frames, annotations, proposals and labels.

    Some frames have nobody in them, some one person, some several.
    """
    import cv2
    import numpy as np

    random = np.random.RandomState(0)
    ava, clips, proposals = [], [], {}
    for number, length in enumerate(lengths):
        video = f'video{number}'
        images = folder / 'frames' / video
        images.mkdir(parents=True, exist_ok=True)
        size = SIZES[number % len(SIZES)]
        for frame in range(length + CLIP_LEN - 1):
            image = random.randint(0, 256, (*size, 3), dtype=np.uint8)
            cv2.imwrite(str(images / f'img_{frame + 1:05d}.jpg'), image)
        for second in range(length):
            people = (second + number) % 4
            corner = random.rand(people, 2) * 0.4
            boxes = np.concatenate([corner, corner + 0.3 + 0.2 * corner], axis=1)
            scores = np.full((people, 1), 0.95)
            proposals[f'{video},{second:04d}'] = np.concatenate([boxes, scores], 1)
            label = 1 + random.randint(CLASSES)
            x1, y1, x2, y2 = boxes[0] if people else (0.1, 0.1, 0.5, 0.5)
            box = f'{x1:.6f},{y1:.6f},{x2:.6f},{y2:.6f}'
            ava.append(f'{video},{second:04d},{box},{label},1')
            clips.append(f'{video} {second} {CLIP_LEN} {label - 1}')
    (folder / 'ava.csv').write_text('\n'.join(ava) + '\n')
    (folder / 'clips.txt').write_text('\n'.join(clips) + '\n')
    (folder / 'proposals.pkl').write_bytes(pickle.dumps(proposals))
    labels = [
        f'item {{\n  name: "action {label}"\n  id: {label}\n}}\n'
        for label in range(1, CLASSES + 1)
    ]
    (folder / 'labels.pbtxt').write_text(''.join(labels))


def write_detector(folder: Path) -> tuple[Path, Path]:
    """The demo's detector on the set as AVA's: config and checkpoint."""
    cfg = _demo_config()
    cfg.model.roi_head.bbox_head.num_classes = CLASSES + 1
    files = dict(
        ann_file=str(folder / 'ava.csv'), label_file=str(folder / 'labels.pbtxt')
    )
    dataset = dict(
        type='MemoryAVADataset',
        **files,
        proposal_file=str(folder / 'proposals.pkl'),
        data_prefix=dict(img=str(folder / 'frames')),
        num_classes=CLASSES + 1,
        keyframes='annotated',
        timestamp_start=0,
        timestamp_end=10**4,
        fps=1,
        test_mode=True,
        pipeline=[
            dict(type='SampleClipFrames', clip_len=CLIP_LEN, frame_interval=1),
            dict(type='RawFrameDecode'),
            *_packing(collapse=True),
        ],
    )
    evaluator = dict(type='MemoryAVAMetric', **files, num_classes=CLASSES + 1)
    return _write(folder / 'detector.py', cfg, dataset, evaluator, {})


def write_recognizer(folder: Path) -> tuple[Path, Path]:
    """A recognizer with the demo's backbone on MMAction2's RawframeDataset."""
    backbone = dict(_demo_config().model.backbone, output_cls_token=True)
    return _write_recognizer(folder / 'recognizer.py', backbone, 'MViTHead')


def write_vit(folder: Path) -> tuple[Path, Path]:
    """A recognizer with a small MemoryViT, on the same."""
    backbone = dict(
        type='MemoryViT',
        img_size=32,
        patch_size=8,
        embed_dims=48,
        depth=3,
        num_heads=2,
        num_frames=CLIP_LEN,
        memory_levels=[
            dict(type='kmeans', ages=(1, 2), tokens=12),
            dict(type='coreset', ages=(3, 4), tokens=6),
        ],
    )
    return _write_recognizer(folder / 'vit.py', backbone, 'TimeSformerHead')


def _write_recognizer(path: Path, backbone: dict, head: str) -> tuple[Path, Path]:
    folder, cfg = path.parent, _demo_config()
    cfg.model = dict(
        type='MemoryRecognizer3D',
        backbone=backbone,
        cls_head=dict(
            type=head,
            num_classes=CLASSES,
            in_channels=48,
            dropout_ratio=0.0,
            average_clips='prob',
        ),
        data_preprocessor=dict(
            type='ActionDataPreprocessor',
            mean=cfg.model.data_preprocessor.mean,
            std=cfg.model.data_preprocessor.std,
            format_shape='NCTHW',
        ),
    )
    dataset = dict(
        type='RawframeDataset',
        ann_file=str(folder / 'clips.txt'),
        data_prefix=dict(img=str(folder / 'frames')),
        with_offset=True,
        test_mode=True,
        pipeline=[
            dict(type='SampleFrames', clip_len=CLIP_LEN, num_clips=1, test_mode=True),
            dict(type='RawFrameDecode'),
            # The folder is the stream, the clip's first frame its time.
            dict(
                type='KeyMapper',
                mapping=dict(video_id='frame_dir', timestamp='offset'),
                auto_remap=False,
            ),
            *_packing(),
        ],
    )
    evaluator = dict(type='AccMetric', metric_list=('top_k_accuracy',))
    keys = dict(video_key='frame_dir', order_key='offset')
    return _write(path, cfg, dataset, evaluator, keys)


def _demo_config():
    from mmengine.config import Config

    from memvit_mm.paths import get_config_path

    return Config.fromfile(get_config_path('memvit_demo.py'))


def _packing(**kwargs) -> list[dict]:
    keys = ('img_shape', 'video_id', 'timestamp', 'sample_idx')
    return [
        dict(type='FormatShape', input_format='NCTHW', **kwargs),
        dict(type='PackActionInputs', meta_keys=keys),
    ]


def _write(
    path: Path, cfg, dataset: dict, evaluator: dict, keys: dict
) -> tuple[Path, Path]:
    """Save the config, and random weights that leave no term zero by accident."""
    import torch
    from mmaction.registry import MODELS
    from mmengine.registry import init_default_scope

    def loader(shuffle: bool) -> dict:
        return dict(
            batch_size=1,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=shuffle, **keys),
            dataset=dict(dataset, test_mode=not shuffle),
        )

    cfg.train_dataloader = loader(True)
    cfg.val_dataloader = cfg.test_dataloader = loader(False)
    cfg.val_evaluator = cfg.test_evaluator = evaluator
    cfg.dump(str(path))

    init_default_scope('mmaction')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
        if name.endswith('.gate'):
            parameter.data.add_(1.0)
    torch.save(dict(state_dict=model.state_dict()), path.with_suffix('.pth'))
    return path, path.with_suffix('.pth')
