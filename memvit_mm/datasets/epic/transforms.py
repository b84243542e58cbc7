"""Transforms for EPIC-KITCHENS: the frames of a clip, and labels along it."""

from typing import Any

import numpy as np
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform

from memvit_mm.datasets.transforms.clips import draw_of, stable_seed
from memvit_mm.structures import IGNORE, BadClipError

# In frames: what rounding may cost when a time in seconds is turned into a frame.
ROUNDING = 1e-6
# In seconds: how much shorter than its annotation a video may be.
MARGIN = 1.0


@TRANSFORMS.register_module()
class SampleEpicFrames(BaseTransform):
    """Choose the frames of a clip that ends at a given time.

    Frames are counted back from the end. The clip's moments are
    ``end - i * frame_interval / target_fps`` for ``i`` from ``clip_len - 1`` to 0, and
    its frames are those on the screen then, the last ones whose time (number over the
    video's own frame rate, which must be constant) is not later. So a clip lasts as
    long in videos at 30, 50, 59.94 and 90 frames a second, and no frame comes after
    ``timestamp``.

    Moments before ``earliest`` (the start of the segment in recognition, else that of
    the video) show the frame at ``earliest``: a clip that does not fit begins with its
    first frame repeated, as in the anticipation challenge's baseline. Moments after the
    last frame show the last one. A clip that ends before the video begins shows the
    first frame alone, since a test must answer for every segment.

    In training the dataset allows the clip to end up to ``jitter`` seconds before
    ``timestamp``. By how much is drawn per (seed, epoch, narration) under
    ``SequentialClipSampler``, from ``numpy.random`` otherwise.

    Required keys: ``timestamp``, and ``avg_fps`` (of an open video) or ``fps`` and
    ``start_index`` (of frames); ``total_frames``. Optional keys: ``earliest``,
    ``jitter`` (seconds), ``narration_id``. Added keys: ``frame_inds`` (int64
    ``[clip_len]``), ``frame_times`` (float64 ``[clip_len]``, the moments, in seconds),
    ``clip_len``, ``frame_interval`` and ``num_clips``.

    Args:
        clip_len (int): Frames in a clip.
        frame_interval (int): From one frame of the clip to the next, in frames at
            ``target_fps``.
        target_fps (float): Frames per second in which ``frame_interval`` counts.

    Raises:
        ValueError: If an argument is out of range.
        BadClipError: If the video ends more than a second before the clip does.

    Examples:
        >>> sample = SampleEpicFrames(clip_len=4, frame_interval=3)
        >>> clip = sample(dict(timestamp=1.0, avg_fps=50.0, total_frames=500))
        >>> clip['frame_inds'], clip['frame_times'].round(2)
        (array([35, 40, 45, 50]), array([0.7, 0.8, 0.9, 1. ]))
    """

    def __init__(
        self, clip_len: int = 16, frame_interval: int = 4, target_fps: float = 30.0
    ) -> None:
        for name, value in (('clip_len', clip_len), ('frame_interval', frame_interval)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}.')
        if not target_fps > 0:
            raise ValueError(f'target_fps must be above 0, got {target_fps}.')
        self.clip_len = clip_len
        self.frame_interval = frame_interval
        self.target_fps = target_fps

    @property
    def clip_seconds(self) -> float:
        """Seconds from the first frame of a clip to its last."""
        return (self.clip_len - 1) * self.frame_interval / self.target_fps

    def transform(self, results: dict) -> dict:
        """Add ``frame_inds`` and what decoders expect with them."""
        is_video = results.get('avg_fps') is not None
        fps = results['avg_fps'] if is_video else results['fps']
        total = int(results['total_frames'])
        end = results['timestamp'] - self._earlier(results)
        if end > total / fps + MARGIN:
            name = results.get('filename', results.get('frame_dir', 'the video'))
            raise BadClipError(
                f'{name} ends after {total / fps:.2f} seconds ({total} frames at '
                f'{fps:g} a second), but narration {results.get("narration_id")!r} has '
                f'a clip that ends at {end:.2f}: the file is cut short, or of another '
                'frame rate than the dataset says; fetch it again, or name its '
                'duration in video_info_file.'
            )
        back = np.arange(self.clip_len - 1, -1, -1)
        times = end - back * self.frame_interval / self.target_fps
        times = np.maximum(times, results.get('earliest', 0.0))
        inds = np.floor(times * fps + ROUNDING).astype(np.int64)
        inds = np.clip(inds, 0, total - 1)
        if not is_video:
            inds = inds + results.get('start_index', 0)
        results['frame_inds'] = inds
        results['frame_times'] = times
        results['clip_len'] = self.clip_len
        results['frame_interval'] = self.frame_interval
        results['num_clips'] = 1
        return results

    @staticmethod
    def _earlier(results: dict) -> float:
        """By how many seconds the clip ends before it must."""
        jitter = results.get('jitter', 0.0)
        if not jitter:
            return 0.0
        draw = draw_of(results)
        if draw is None:
            return np.random.random_sample() * jitter
        key = (*draw, str(results.get('narration_id')))
        return stable_seed(*key) / 2**32 * jitter

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(clip_len={self.clip_len}, '
            f'frame_interval={self.frame_interval}, target_fps={self.target_fps})'
        )


@TRANSFORMS.register_module()
class EpicFrameLabels(BaseTransform):
    """Labels along a clip, for models that predict at every temporal position.

    Replaces ``label=[verb, noun]`` by an int64 array ``[2, num_positions]``. Position
    ``t`` stands for ``clip_len / num_positions`` frames and is labelled as at the last
    of them, with the action that goes on ``tau_a`` seconds later (recognition: at that
    time), -100 where nobody acts. The last position always has the segment's own label.

    Where segments overlap, the sample's own comes first, then the one that started
    last, then the one that is later in the annotation file.

    Positions that are not later than the end of the clip before are -100, too: memory
    has seen what was done then, and their labels were learned from that clip.

    Required keys: ``frame_times`` (of :class:`SampleEpicFrames`), ``segments`` (float64
    ``[n, 4]``: start and stop in seconds, verb, noun), ``start``, ``stop``, ``label``,
    ``tau_a`` (seconds) and ``narration_id``. Optional key: ``previous``, the
    ``timestamp`` of the clip before in this video.

    Args:
        num_positions (int): Temporal positions of the model's features: ``clip_len``
            over the stride of its first layer, 8 for MeMViT-16.
        only_last (bool): Label the last position only, and the others -100.
        label_context (bool): Whether clips in between, of no segment, are labelled, too
            (with all that goes on in them), and so trained on. By default all is -100.

    Raises:
        ValueError: If the clip cannot be divided into so many positions.

    Examples:
        >>> import numpy as np
        >>> segments = np.array([[0.0, 2.0, 5, 6], [3.0, 9.0, 7, 8]])
        >>> label = EpicFrameLabels(num_positions=4)
        >>> label(dict(frame_times=np.arange(8) / 2, segments=segments, start=3.0,
        ...            stop=9.0, label=[7, 8], tau_a=0.0, narration_id='a'))['label']
        array([[   5,    5, -100,    7],
               [   6,    6, -100,    8]])
    """

    def __init__(
        self,
        num_positions: int,
        only_last: bool = False,
        label_context: bool = False,
    ) -> None:
        if num_positions < 1:
            raise ValueError(f'num_positions must be at least 1, got {num_positions}.')
        self.num_positions = num_positions
        self.only_last = only_last
        self.label_context = label_context

    def transform(self, results: dict) -> dict:
        """Put the labels of all positions in place of the one label."""
        times = np.asarray(results['frame_times'])
        if len(times) % self.num_positions:
            raise ValueError(
                f'A clip of {len(times)} frames cannot be divided into num_positions='
                f'{self.num_positions}: choose a divisor of clip_len.'
            )
        labels = np.full((2, self.num_positions), IGNORE, dtype=np.int64)
        is_context = results['narration_id'] is None
        if not self.only_last and not (is_context and not self.label_context):
            # [clip_len] -> [num_positions], the last of each
            seen = times.reshape(self.num_positions, -1)[:, -1]
            labels[:] = self._at(seen + results['tau_a'], results)
            labels[:, seen <= results.get('previous', -np.inf)] = IGNORE
        if not is_context:
            labels[:, -1] = results['label']
        results['label'] = labels
        return results

    @staticmethod
    def _at(moments: np.ndarray, results: dict) -> np.ndarray:
        """Verbs and nouns [2, n] at some moments [n]."""
        segments = results['segments']
        labels = np.full((2, len(moments)), IGNORE, dtype=np.int64)
        near = (segments[:, 0] <= moments.max()) & (segments[:, 1] >= moments.min())
        segments = segments[near]
        # Of those that go on at a moment, the last in this order holds.
        order = np.argsort(segments[:, 0], kind='stable')
        for start, stop, verb, noun in segments[order].tolist():
            labels[:, (start <= moments) & (moments <= stop)] = [[verb], [noun]]
        if results['narration_id'] is not None:
            own = (results['start'] <= moments) & (moments <= results['stop'])
            labels[:, own] = np.reshape(results['label'], (2, 1))
        return labels

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_positions={self.num_positions}, '
            f'only_last={self.only_last}, label_context={self.label_context})'
        )


def find_clip_seconds(transforms: Any, default: float = 2.0) -> float:
    """Seconds that the clips of a pipeline span, from its :class:`SampleEpicFrames`."""
    for transform in transforms:
        if isinstance(transform, SampleEpicFrames):
            return transform.clip_seconds
    return default
