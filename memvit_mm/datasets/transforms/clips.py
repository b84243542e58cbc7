"""The frames of a clip, and random transforms whose draws hold along a stream."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, Union

import numpy as np
import torch
from mmaction.datasets.transforms import SampleAVAFrames
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform

from memvit_mm.structures import BadClipError, ClipIndex


def stable_seed(*parts: Any) -> int:
    """A number in [0, 2**32) that depends on the parts alone.

    Equal in every process and run, unlike ``hash``.

    Examples:
        >>> stable_seed(0, 'video', 3)
        3421710369
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], 'little')


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed ``random``, ``numpy.random`` and torch's CPU generator for a while.

    Their states are as before afterwards, whatever happens inside.
    """
    python, numpy = random.getstate(), np.random.get_state()
    tensor = torch.default_generator.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(tensor)


def draw_of(results: dict) -> Optional[tuple[int, int]]:
    """The epoch and the seed with which the sampler drew a sample, if it told them."""
    index = results.get('sample_idx')
    return (index.epoch, index.seed) if isinstance(index, ClipIndex) else None


@TRANSFORMS.register_module()
class StreamConsistent(BaseTransform):
    """Random transforms whose draws are the same for all clips of a video.

    With memory a clip is compared with what was seen before, so a crop, flip, scale or
    colour must not change in the middle of a video. The usual transforms (MMAction2's
    ``RandomRescale``, ``RandomCrop``, ``RandomResizedCrop``, ``Flip``,
    ``ColorJitter``, ... and all that draw from ``random``, ``numpy.random`` or torch's
    CPU generator) work inside unchanged: the generators are seeded from (seed, video,
    epoch) before them and put back after them. ``SequentialClipSampler`` delivers
    the epoch and its seed with each index, to workers too; without it the epoch is 0.

    A draw that depends on the frame size, as a crop's position, stays as long as the
    size does. Imgaug and Albumentations have generators of their own and are not
    covered. What must differ from clip to clip (frame jitter) stays outside.

    ``per='clip'`` draws for each clip anew, as the published AVA recipe does; the draws
    are reproducible all the same.

    Args:
        transforms (Sequence[dict or callable]): The transforms, in order.
        seed (int): Tells apart two ``StreamConsistent`` in a pipeline, which would
            draw the same numbers otherwise. Defaults to 0.
        video_key (str): Key of the video in ``results``.
        per (str): What draws are the same for: 'video' or 'clip'. Defaults to 'video'.

    Raises:
        ValueError: If the sample has no video, or no ``timestamp`` for ``per='clip'``.

    Examples:
        >>> import numpy as np
        >>> from mmaction.registry import TRANSFORMS
        >>> flip = TRANSFORMS.build(dict(
        ...     type='StreamConsistent', transforms=[dict(type='Flip')]))
        >>> def flipped(video, second):
        ...     return bool(flip(dict(
        ...         imgs=[np.zeros((4, 6, 3))], modality='RGB', video_id=video,
        ...         timestamp=second))['flip'])
        >>> [[flipped(video, second) for second in range(3)] for video in 'abc']
        [[False, False, False], [True, True, True], [False, False, False]]
    """

    def __init__(
        self,
        transforms: Sequence[Union[dict, Callable[[dict], Optional[dict]]]],
        seed: int = 0,
        video_key: str = 'video_id',
        per: str = 'video',
    ) -> None:
        if per not in ('video', 'clip'):
            raise ValueError(f"per must be 'video' or 'clip', got {per!r}.")
        if isinstance(transforms, dict) or callable(transforms):
            raise ValueError(
                'StreamConsistent takes a list of transforms, got one: put it in [].'
            )
        self.seed = seed
        self.video_key = video_key
        self.per = per
        # ColorJitter draws the order of its steps when it is built: make that the
        # same on every rank and after a restart.
        with seeded(stable_seed('build', seed)):
            self.transforms = [
                TRANSFORMS.build(transform)
                if isinstance(transform, dict)
                else transform
                for transform in transforms
            ]

    def transform(self, results: dict) -> Optional[dict]:
        """Apply the transforms with this stream's draws."""
        keys = [self.video_key, 'timestamp'][: 1 + (self.per == 'clip')]
        for key in keys:
            if key not in results:
                raise ValueError(
                    f'StreamConsistent found no {key!r} in the sample (its keys: '
                    f'{", ".join(sorted(map(str, results)))}): add it in the dataset, '
                    'or name the right key of the video with video_key=....'
                )
        epoch, seed = draw_of(results) or (0, 0)
        video, *clip = (str(results[key]) for key in keys)
        with seeded(stable_seed(self.seed, seed, video, epoch, *clip)):
            for transform in self.transforms:
                results = transform(results)
                if results is None:
                    return None
        return results

    def __repr__(self) -> str:
        inside = ', '.join(map(repr, self.transforms))
        return (
            f'{type(self).__name__}(transforms=[{inside}], seed={self.seed}, '
            f'per={self.per!r})'
        )


@TRANSFORMS.register_module()
class SampleClipFrames(SampleAVAFrames):
    """Choose the frames of the clip around a keyframe.

    As MMAction2's ``SampleAVAFrames``, with these differences:

    - For videos the frame rate is the container's own, so a film at 24 or 25 frames a
      second is not read at 30. (``fps=1`` in the dataset means that timestamps count
      frames, as in MultiSports, and stays.)
    - ``start_index`` is added once: ``img_00001.jpg`` is frame 0, the first frame of
      second ``timestamp_start``. MMAction2 adds it twice and reads one frame late.
      Frames of a video count from 0 whatever ``start_index`` says.
    - Jitter is drawn per (video, timestamp, epoch) under ``SequentialClipSampler``, so
      that a resumed run draws the same; from ``numpy.random`` otherwise.
    - A clip that does not fit into its video, or lies outside it, is refused.

    Required keys: ``timestamp`` (seconds), ``timestamp_start`` (second of frame 0),
    ``fps``, and ``total_frames`` or ``shot_info``. Added keys: ``frame_inds``
    (int64 array ``[clip_len]``), ``clip_len``, ``frame_interval``, ``num_clips`` and
    ``crop_quadruple``.

    Frame ``i`` of the clip is ``center + (i - clip_len // 2) * frame_interval``, with
    ``center = round((timestamp - timestamp_start) * fps)``. Frames before the first or
    after the last one of the video repeat that one.

    Args:
        clip_len (int): Frames in a clip.
        frame_interval (int): Frames from one frame of the clip to the next.
        test_mode (bool): No jitter.
        jitter (bool): In training, move each frame by ``-interval // 2`` to
            ``interval // 2 - 1`` frames at random (interval 4: -2 to 1; 3: -2 to 0; 1:
            not at all), the first one only forward and the last one only backward, so
            that no clip begins before or ends after one without jitter. As in the
            published AVA code.

    Raises:
        ValueError: If the clip is longer than the video or has no frame in it.

    Examples:
        >>> sample = SampleClipFrames(clip_len=4, frame_interval=2, test_mode=True)
        >>> sample(dict(timestamp=901, timestamp_start=900, fps=30, total_frames=90,
        ...             start_index=1))['frame_inds']
        array([27, 29, 31, 33])
    """

    def __init__(
        self,
        clip_len: int = 16,
        frame_interval: int = 4,
        test_mode: bool = False,
        jitter: bool = True,
    ) -> None:
        for name, value in (('clip_len', clip_len), ('frame_interval', frame_interval)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}.')
        super().__init__(clip_len, frame_interval, test_mode=test_mode)
        self.jitter = jitter

    def transform(self, results: dict) -> dict:
        """Add ``frame_inds`` and what decoders and crops expect with them."""
        is_video = results.get('avg_fps') is not None
        fps = results['fps']
        if is_video and fps != 1:
            fps = results['avg_fps']
        if results.get('total_frames') is not None:
            first, total = 0, int(results['total_frames'])
        else:
            first, total = results['shot_info'][0], results['shot_info'][1]
        second = results['timestamp'] - results['timestamp_start']
        center = int(round(second * fps))
        start = center - self.clip_len // 2 * self.frame_interval
        inds = start + np.arange(self.clip_len) * self.frame_interval
        self._check(results, inds, center, first, total)

        if self.jitter and not self.test_mode:
            inds = inds + self._offsets(results)
        inds = np.clip(inds, first, total - 1)
        if not is_video:
            inds = inds + results.get('start_index', 0)
        results['frame_inds'] = inds.astype(np.int64)
        results['clip_len'] = self.clip_len
        results['frame_interval'] = self.frame_interval
        results['num_clips'] = 1
        results['crop_quadruple'] = np.array([0, 0, 1, 1], dtype=np.float32)
        return results

    def _offsets(self, results: dict) -> np.ndarray:
        """Jitter of each frame, in frames."""
        random = np.random
        draw = draw_of(results)
        if draw is not None:
            # Equal times draw alike, whatever type they have.
            time = float(results['timestamp'])
            key = str(results.get('video_id')), int(time) if time == int(time) else time
            random = np.random.RandomState(stable_seed(*draw, *key))
        low, high = -self.frame_interval // 2, self.frame_interval // 2
        if high == 0:
            return np.zeros(self.clip_len, dtype=np.int64)
        # randint leaves the upper end out.
        lows, highs = np.full(self.clip_len, low), np.full(self.clip_len, high)
        highs[-1], lows[0] = 0, 0
        return random.randint(lows, np.maximum(highs, lows + 1))

    def _check(
        self, results: dict, inds: np.ndarray, center: int, first: int, total: int
    ) -> None:
        """Refuse what could only repeat the same frame over and over."""
        name = results.get('filename', results.get('frame_dir', 'the video'))
        span = (self.clip_len - 1) * self.frame_interval + 1
        if span > total - first:
            raise BadClipError(
                f'{name} has {total - first} frames, fewer than the {span} that a clip '
                f'of {self.clip_len} frames, {self.frame_interval} apart, spans: use a '
                'smaller clip_len or frame_interval, or leave the video out with '
                'exclude_file.'
            )
        if inds[-1] < first or inds[0] >= total:
            raise BadClipError(
                f'{name} has {total - first} frames, but the keyframe at second '
                f'{results["timestamp"]} is frame {center}: check that timestamps '
                f'count from timestamp_start={results["timestamp_start"]}, or leave '
                'the keyframe out with exclude_file.'
            )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(clip_len={self.clip_len}, '
            f'frame_interval={self.frame_interval}, test_mode={self.test_mode}, '
            f'jitter={self.jitter})'
        )
