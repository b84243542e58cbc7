"""Sources: real video files, healthy and not, and what is no video."""

import struct
import wave

import cv2
import numpy as np
import pytest
import stream_data as data
from stream_data import FPS, SIZE

from memvit_mm.apis import VideoFile, VideoStream
from memvit_mm.apis.stdet import iter_stdet
from memvit_mm.apis.streams.sources import LiveCapture, open_source


@pytest.fixture(scope='module')
def frames():
    return data.pictures(60)


@pytest.fixture
def video(tmp_path, frames):
    data.write_video(tmp_path / 'a.mp4', frames)
    return tmp_path / 'a.mp4'


def read(source) -> tuple:
    pairs = list(source)
    source.close()
    return [image for image, _ in pairs], [time for _, time in pairs]


@pytest.mark.parametrize('ext, size', [('mp4', SIZE), ('mkv', (66, 98)), ('avi', SIZE)])
def test_frames_are_those_of_decord(tmp_path, ext, size):
    path = tmp_path / f'a.{ext}'
    data.write_video(path, data.pictures(40, size=size), 29.97)
    source = VideoFile(path)
    assert (source.count, source.variable) == (40, False)
    assert source.fps == pytest.approx(29.97, abs=1e-3)
    assert source.duration == pytest.approx(40 / source.fps)
    images, times = read(source)
    np.testing.assert_array_equal(images, data.read_video(str(path)))
    np.testing.assert_allclose(times, np.arange(40) / source.fps)


def test_start(video):
    images, times = read(VideoFile(video, start=50))
    np.testing.assert_array_equal(images, data.read_video(str(video))[50:])
    assert times[0] == pytest.approx(50 / FPS)


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_turned_videos_come_upright(video, degrees):
    lying = data.read_video(str(video))
    upright = [np.rot90(image, -degrees // 90) for image in lying]
    data.turn(video, degrees)
    images, _ = read(VideoFile(video))
    np.testing.assert_array_equal(images, upright)
    # As tools/test.py reads them, and a detector that is asked where people are.
    np.testing.assert_array_equal(data.read_video(str(video)), upright)
    seen = []
    model = data.ava_model()
    list(VideoStream(model, boxes=lambda image, _: seen.append(image) or []).run(video))
    list(iter_stdet(model, video, det_model=lambda image, _: seen.append(image) or []))
    assert len(seen) == 8
    for number, image in enumerate(seen):
        second = 1 + number % (len(seen) // 2)
        np.testing.assert_array_equal(image, upright[second * FPS])


class TestVariableFrameRate:
    """Twelve frames a second, in the middle six."""

    times = np.cumsum([0] + [1 + (20 <= n < 40) for n in range(59)])

    @pytest.fixture
    def path(self, tmp_path, frames):
        path = tmp_path / 'vfr.mp4'
        data.write_video(path, frames)
        data.vary(path, [(20, 1), (20, 2), (20, 1)], 80 / FPS)
        return path

    def test_times_of_the_file(self, path):
        source = VideoFile(path)
        assert source.variable
        np.testing.assert_allclose(read(source)[1], self.times / FPS, atol=1e-3)

    def test_constant_as_tools_test(self, path):
        source = VideoFile(path, timing='frames')
        assert not source.variable
        np.testing.assert_allclose(read(source)[1], np.arange(60) / source.fps)

    def test_a_prediction_is_about_its_second(self, path):
        asked = {}
        stream = VideoStream(
            data.ava_model(),
            boxes=lambda image, time: asked.update({time: image}) or [],
        )
        found = list(stream.run(path))
        assert [p.time for p in found] == [1, 2, 3, 4, 5, 6]
        shown = data.read_video(str(path))
        for second, image in asked.items():
            near = [n for n in range(60) if abs(self.times[n] / FPS - second) < 0.18]
            assert any(np.array_equal(image, shown[n]) for n in near)


class TestDamage:
    @pytest.fixture
    def broken(self, video):
        data.damage(video)
        return video

    def test_stop(self, broken):
        found = []
        source = VideoFile(broken)
        with pytest.raises(
            ValueError, match=r'a\.mp4 is damaged: .* second [12]\.\d+ '
        ):
            for frame in source:
                found.append(frame.time)
        assert 1 < found[-1] < 3

    def test_go_on(self, broken, frames):
        with pytest.warns(UserWarning, match=r'from second .* cannot be decoded, and'):
            images, times = read(VideoFile(broken, on_damage='go_on'))
        assert len(images) < 60
        # Frames after the damage are where they belong.
        assert times[-1] == pytest.approx(59 / FPS)
        numbers = np.round(np.array(times) * FPS).astype(int)
        assert (np.diff(numbers) > 0).all()
        error = [
            np.abs(frames[n] - i.astype(int)).mean() for n, i in zip(numbers, images)
        ]
        assert error[-1] < 25

    def test_clips_without_a_second_of_frames_are_skipped(self, broken):
        model = data.epic_model()
        stream = VideoStream(model, on_damage='go_on', max_gap=0.25)
        with pytest.warns(UserWarning, match='is damaged'):
            found = list(stream.run(broken))
        assert stream.counts.skipped >= 1
        assert len(found) + stream.counts.skipped == 5
        with pytest.raises(ValueError, match="with on_damage='go_on'"):
            list(VideoStream(model).run(broken))

    def test_end_is_missing(self, tmp_path, frames):
        path = tmp_path / 'a.avi'
        data.write_video(path, frames)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        images, _ = read(VideoFile(path))
        assert 20 < len(images) < 40

    def test_end_is_damaged(self, video):
        content = video.read_bytes()
        data.damage(video, 0.5, content.find(b'moov') / len(content) - 0.01)
        with pytest.warns(UserWarning, match=r'ends at second [123].* until 5\.00'):
            images, _ = read(VideoFile(video))
        assert 12 < len(images) < 48

    def test_trimmed(self, video):
        data.vary(video, [(60, 1)], 3.0)
        images, _ = read(VideoFile(video))
        assert 36 <= len(images) <= 38


class TestNoVideo:
    def check(self, source, sentence, error=ValueError):
        with pytest.raises(error, match=sentence):
            list(VideoStream(data.epic_model()).run(source))

    def test_missing(self, tmp_path):
        self.check(tmp_path / 'no.mp4', r'no\.mp4 does not exist', FileNotFoundError)

    def test_folder(self, tmp_path):
        self.check(tmp_path, r'has no frames: expected .*img_00001\.jpg')

    def test_empty(self, tmp_path):
        (tmp_path / 'a.mp4').touch()
        self.check(tmp_path / 'a.mp4', r'a\.mp4 is empty \(0 bytes\)')

    def test_sound(self, tmp_path):
        pytest.importorskip('decord')  # OpenCV does not tell sound from damage
        with wave.open(str(tmp_path / 'a.wav'), 'wb') as file:
            file.setparams((1, 2, 8000, 0, 'NONE', ''))
            file.writeframes(struct.pack('<8000h', *range(8000)))
        self.check(tmp_path / 'a.wav', r'a\.wav has sound, but no video')

    @pytest.mark.parametrize('ext', ['jpg', 'png'])
    def test_picture(self, tmp_path, ext, frames):
        cv2.imwrite(str(tmp_path / f'a.{ext}'), frames[0])
        self.check(tmp_path / f'a.{ext}', 'is a still image')

    def test_text(self, tmp_path):
        (tmp_path / 'a.mp4').write_text('no video at all' * 100)
        self.check(tmp_path / 'a.mp4', 'cannot be opened or decoded: it is damaged')

    def test_camera(self):
        self.check(99, 'Camera 99 cannot be opened: check that it is there')
        with pytest.raises(ValueError, match='Stream nowhere.mp4 cannot be opened'):
            LiveCapture('nowhere.mp4')

    def test_something_else(self):
        self.check(3.5, 'or an iterable of frames, got: float')
        self.check(True, 'True is no camera')
        self.check(np.zeros((4, 4)), r'\[frames, H, W, 3\] .* array \[4, 4\]')

    def test_options(self, video):
        with pytest.raises(ValueError, match='timing must be one of'):
            VideoFile(video, timing='exact')
        with pytest.raises(ValueError, match='on_damage must be one of'):
            VideoFile(video, on_damage='weep')


def test_live_capture_reads(video):
    # A file stands in for the camera: OpenCV reads both alike.
    source = LiveCapture(str(video))
    assert (source.live, source.fps) == (True, FPS)
    images, times = read(source)
    assert len(images) == 60 and images[0].shape == (*SIZE, 3)
    assert times[0] >= 0 and (np.diff(times) >= 0).all()


def test_folders_of_frames(tmp_path, frames):
    for number, frame in enumerate(frames, 1):
        cv2.imwrite(str(tmp_path / f'img_{number:05}.png'), frame[..., ::-1])
    folder = dict(frame_dir=tmp_path, filename_tmpl='img_{:05}.png')
    images, times = read(open_source(dict(folder, fps=FPS)))
    np.testing.assert_array_equal(images, frames)
    np.testing.assert_allclose(times, np.arange(60) / FPS)
    model = data.epic_model()
    assert len(list(VideoStream(model, fps=FPS).run(folder))) == 5
    stream = VideoStream(model, fps=FPS)
    found = [next(stream.run(folder)), *stream.run(folder)]
    assert [prediction.time for prediction in found] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match='without times: give fps'):
        next(VideoStream(model).run(folder))


def test_generators_are_closed():
    closed = []

    def frames():
        try:
            yield np.zeros((4, 4, 3), np.uint8)
        finally:
            closed.append(True)

    source = open_source(frames(), fps=5)
    assert next(iter(source)).time is None
    source.close()
    assert closed
