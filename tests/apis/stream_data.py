"""Videos, models and configs for the tests of streams."""

import struct
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'models'))

import small_models
from turned import turn  # noqa: F401

from memvit_mm.video.open_video import open_video

FPS, SECONDS, SIZE = 12, 6, (48, 64)  # height, width
PREPROCESSOR = dict(
    type='mmaction.ActionDataPreprocessor',
    mean=[114.75] * 3,
    std=[57.375] * 3,
    format_shape='NCTHW',
)
PACKING = [
    dict(type='Resize', scale=(32, 32), keep_ratio=False),
    dict(type='FormatShape', input_format='NCTHW', collapse=True),
    dict(type='PackActionInputs', meta_keys=('img_shape', 'video_id', 'timestamp')),
]


def pictures(count: int, seed: int = 0, size: tuple = SIZE) -> list:
    """Frames [H, W, 3] in which something moves."""
    rng = np.random.RandomState(seed)
    height, width = size
    wide = rng.randint(0, 255, (height // 8, width // 2, 3), dtype=np.uint8)
    wide = cv2.resize(wide, (width * 4, height), interpolation=cv2.INTER_LINEAR)
    return [np.roll(wide, -5 * n, axis=1)[:, :width].copy() for n in range(count)]


def write_video(path: Path, frames: list, fps: float = FPS) -> str:
    """A real video."""
    height, width = frames[0].shape[:2]
    codec = 'MJPG' if str(path).endswith('.avi') else 'mp4v'
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, (width, height)
    )
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return str(path)


def read_video(path: str) -> list:
    """Its frames, as VideoDecode gives them to tools/test.py."""
    reader = open_video(path)
    return list(reader.get_batch(range(len(reader))).asnumpy())


def vary(path: Path, rates: list, seconds: float) -> None:
    """Let an mp4 file show ``frames`` pictures each of ``ticks`` / FPS seconds.

    Args:
        path (Path): The file, as OpenCV writes it: its header is at its end.
        rates (list): Pairs of (frames, ticks).
        seconds (float): How much of it its edit list lets through.
    """
    data = bytearray(path.read_bytes())
    place = data.find(b'stts')
    size, _, count, _, tick = struct.unpack('>I4xIIII', data[place - 4 : place + 20])
    assert (size, count) == (24, 1)
    table = b''.join(struct.pack('>II', n, ticks * tick) for n, ticks in rates)
    more = len(table) - 8
    for name in (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stts'):
        at = data.find(name) - 4
        grown = struct.unpack('>I', data[at : at + 4])[0] + more
        data[at : at + 4] = struct.pack('>I', grown)
    place = data.find(b'stts')
    data[place + 8 : place + 20] = struct.pack('>I', len(rates)) + table
    place = data.find(b'elst') + 12
    data[place : place + 4] = struct.pack('>I', round(seconds * 1000))
    path.write_bytes(data)


def damage(path: Path, start: float = 0.4, stop: float = 0.5) -> None:
    """Zeros from one fraction of a file to another."""
    data = bytearray(path.read_bytes())
    begin, end = int(start * len(data)), int(stop * len(data))
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def ava_pipeline() -> list:
    return [
        dict(type='VideoInit'),
        dict(type='SampleClipFrames', clip_len=8, frame_interval=1, test_mode=True),
        dict(type='VideoDecode'),
        *PACKING,
    ]


def epic_pipeline(target_fps: float = FPS, views: int = 1) -> list:
    resize = [PACKING[0]]
    if views == 3:
        scale = dict(type='Resize', scale=(32, 64), keep_ratio=False)
        resize = [scale, dict(type='ThreeCrop', crop_size=32)]
    packing = [*resize, dict(type='FormatShape', input_format='NCTHW'), PACKING[2]]
    return [
        dict(type='VideoInit'),
        dict(
            type='SampleEpicFrames',
            clip_len=8,
            frame_interval=1,
            target_fps=target_fps,
        ),
        dict(type='VideoDecode'),
        *packing,
    ]


def config(pipeline: list, **dataset) -> Config:
    """As far as streams read it."""
    return Config(
        dict(
            default_scope='mmaction',
            test_dataloader=dict(dataset=dict(pipeline=pipeline, **dataset)),
        )
    )


def epic_model(
    max_streams: int = 64, backbone: dict = None, **dataset
) -> torch.nn.Module:
    """A small recognizer with verbs and nouns, and its config."""
    backbone = backbone or small_models.backbone_cfg(output_cls_token=False)
    model = small_models.recognizer(
        cls_head=dict(
            type='EpicHead',
            in_channels=small_models.DIMS,
            num_verbs=4,
            num_nouns=6,
            dropout_ratio=0.0,
        ),
        backbone=backbone,
        data_preprocessor=PREPROCESSOR,
        memory=dict(type='ClipMemory', max_streams=max_streams),
    )
    model.cfg = config(epic_pipeline(), context_stride=1.0, **dataset)
    return model


def ava_model(detector=small_models.detector) -> torch.nn.Module:
    """A small detector, and its config."""
    model = detector(data_preprocessor=PREPROCESSOR)
    model.cfg = config(ava_pipeline())
    return model


def scores_of(predictions: list) -> dict:
    """Scores by time."""
    return {round(p.time, 6): p.scores for p in predictions}


def assert_same(found: list, expected: list, atol: float = 1e-5) -> None:
    """The same clips with the same scores."""
    found, expected = scores_of(found), scores_of(expected)
    assert list(found) == list(expected)
    for time, scores in expected.items():
        np.testing.assert_allclose(found[time], scores, atol=atol, rtol=0)


def threads() -> list:
    """Threads of sources that are alive."""
    return [t for t in threading.enumerate() if t.name.startswith('frames of')]
