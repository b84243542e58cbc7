"""Disks that are full: a small file system, or a limit to the size of files."""

import json
import os
import resource
import subprocess
from contextlib import contextmanager

import cv2
import pytest
import stream_data as data

from memvit_mm.apis import Interrupted, Outputs, VideoStream, annotate_video
from memvit_mm.apis.visualization.prediction_lines import read_lines
from memvit_mm.io.output_files import check_output
from memvit_mm.video.writer import CODECS, VideoWriter

FPS, FRAMES = 30, 90
IMAGES = [frame.repeat(2, 0).repeat(2, 1) for frame in data.pictures(FRAMES)]


@contextmanager
def small_disk(folder, size):
    """A file system of so many bytes."""
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip('There is no command mount.')
    if done.returncode:
        pytest.skip(f'A file system cannot be mounted: {done.stderr.strip()}')
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


@contextmanager
def small_files(folder, size):
    """Files of so many bytes at most, of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=[small_disk, small_files])
def full(request, tmp_path):
    """An empty folder, and what lets it have so many bytes."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    return folder, lambda size: request.param(folder, size)


def write(path):
    writer = VideoWriter(str(path), FPS)
    for number, image in enumerate(IMAGES):
        writer.write(image, number / FPS)
    writer.close()


@pytest.mark.parametrize('ending', CODECS)
def test_a_video_that_is_not_whole_is_not_there(full, tmp_path, ending):
    folder, limited = full
    whole = tmp_path / f'whole{ending}'
    write(whole)
    capture = cv2.VideoCapture(str(whole), cv2.CAP_FFMPEG)
    assert sum(capture.grab() for _ in range(FRAMES + 1)) == FRAMES
    size = whole.stat().st_size
    # In the middle, and where no more than the end of the index is missing.
    for left in (size // 2 // 4096 * 4096, (size - 1) // 4096 * 4096):
        with limited(left):
            path = folder / f'out{ending}'
            path.write_text('of before')
            with pytest.raises(OSError, match='The video .* could not be written') as e:
                write(path)
            assert str(path) in str(e.value) and f'{FRAMES} frames' in str(e.value)
            assert [p.name for p in folder.iterdir()] == [path.name]
            assert path.read_text() == 'of before'
            path.unlink()


@pytest.mark.parametrize('limited, size', [(small_disk, 4096), (small_files, 0)])
def test_a_disk_that_is_full_already(tmp_path, limited, size):
    with limited(tmp_path, size):
        (tmp_path / 'other').write_bytes(bytes(size))
        with pytest.raises(PermissionError) as error:
            check_output('video', str(tmp_path / 'out.mp4'))
        assert f'{tmp_path}/out.mp4 cannot be written (' in str(error.value)
        for ending in CODECS:
            with pytest.raises(OSError, match=rf'out\{ending} c'):
                write(tmp_path / f'out{ending}')
        assert [p.name for p in tmp_path.iterdir()] == ['other']


def test_annotate_video(full, tmp_path):
    """Lines are whole, and the video is either whole or not there."""
    folder, limited = full
    source = tmp_path / 'a.mp4'
    data.write_video(source, data.pictures(72))
    outputs = Outputs(video=str(folder / 'o.mp4'))
    with limited(40960), pytest.raises(OSError, match=r'o\.mp4 could not be written'):
        annotate_video(VideoStream(data.epic_model()), str(source), outputs)
    assert not list(folder.glob('*.mp4'))

    def stop(*told):
        raise KeyboardInterrupt

    stream = VideoStream(data.epic_model(), stride=5.0)
    with limited(40960), pytest.raises(Interrupted) as error:  # noqa: SIM117
        with pytest.warns(UserWarning, match=r'o\.mp4 could not be written'):
            annotate_video(stream, str(source), outputs, progress=stop)
    assert error.value.made.files == {}


def test_lines_to_a_pipe(tmp_path):
    """That is named like a file, and whose other end is another program's."""
    source, path = tmp_path / 'a.mp4', tmp_path / 'o.jsonl'
    data.write_video(source, data.pictures(48))
    end, begin = os.pipe()
    path.symlink_to(f'/dev/fd/{begin}')
    annotate_video(
        VideoStream(data.epic_model()), str(source), Outputs(lines=str(path))
    )
    os.close(begin)
    with open(end) as pipe:
        kinds = [json.loads(line)['type'] for line in pipe]
    assert kinds[0] == 'stream' and kinds[-1] == 'end' and 'prediction' in kinds


def test_lines_stay_whole(full, tmp_path):
    folder, limited = full
    source, path = tmp_path / 'a.mp4', str(folder / 'o.jsonl')
    data.write_video(source, data.pictures(72))
    stream = VideoStream(data.epic_model(), stride=0.2)
    with limited(4096):
        with pytest.raises(OSError, match=r'o\.jsonl could not be written any further'):
            annotate_video(stream, str(source), Outputs(lines=path))
        _, found, end = read_lines(path)
    assert len(found) > 3 and [line['number'] for line in found] == list(
        range(len(found))
    )
    # There may be room for the last line, which is shorter.
    assert end is None or not end['complete']
