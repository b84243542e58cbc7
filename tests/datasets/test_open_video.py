"""Videos of turned cameras, and videos where decord is missing: all read by OpenCV."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from turned import turn

from memvit_mm.datasets import VideoDecode, VideoInit
from memvit_mm.datasets.open_video import OpenCVReader, open_video

DATA = Path(__file__).resolve().parents[1] / 'data'
CLOSED, OPEN = DATA / 'h264_closed_gop.mp4', DATA / 'h264_open_gop.mp4'
FRAMES = 60


def write(path, size=(96, 72), codec='mp4v'):
    """A video in which something moves; size is width and height."""
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 30, size
    )
    noise = np.random.RandomState(0).randint(0, 255, (size[1], 256, 3), np.uint8)
    noise = cv2.blur(noise, (9, 9))
    for number in range(FRAMES):
        writer.write(np.roll(noise, -3 * number, axis=1)[:, : size[0]].copy())
    writer.release()
    return path


def all_frames(path):
    """From the front, [N, H, W, 3]."""
    reader = open_video(str(path))
    return reader.get_batch(range(len(reader))).asnumpy()


def clips(total, step=10):
    for center in range(0, total, step):
        yield np.clip(center + np.arange(8) * 3 - 12, 0, total - 1)


# Upright videos of fewer than 64 pixels decord gives with four channels.
@pytest.mark.parametrize('size', [(96, 72), (64, 48)])
@pytest.mark.parametrize('degrees', [90, 180, 270])
@pytest.mark.parametrize('keep_open', [0, 1])
def test_turned_videos_are_upright_and_read_in_order(
    tmp_path, size, degrees, keep_open
):
    path = write(tmp_path / 'a.mp4', size)
    upright = np.rot90(all_frames(path), -degrees // 90, axes=(1, 2))
    turn(path, degrees)
    init, decode = VideoInit(keep_open=keep_open), VideoDecode()
    boxes = np.array([[0, 0, 1, 1]])
    for inds in clips(FRAMES):
        results = dict(filename=str(path), frame_inds=inds, gt_bboxes=boxes)
        results = decode(init(results))
        np.testing.assert_array_equal(results['imgs'], upright[inds])
        height, width = upright.shape[1:3]
        assert results['img_shape'] == results['original_shape'] == (height, width)
        np.testing.assert_array_equal(results['gt_bboxes'], [[0, 0, width, height]])
        assert (results['total_frames'], results['avg_fps']) == (FRAMES, 30)
    if keep_open:
        (reader,) = init._readers.here().values()
        assert reader.in_order and reader.decoded <= FRAMES + 1
