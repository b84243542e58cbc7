"""EPIC-KITCHENS-100 from its official CSV files, for models with memory."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
from mmaction.datasets.base import BaseActionDataset
from mmaction.registry import DATASETS
from mmengine.fileio import join_path
from mmengine.logging import MMLogger
from mmengine.utils import is_abs

from memvit_mm.datasets.bad_clip_mixin import BadClipMixin
from memvit_mm.datasets.media import MediaMixin
from memvit_mm.datasets.sampling.stream_keys import StreamKeysMixin

from .clips import TASKS, Clip, ClipRule
from .files import (
    IGNORE,
    Segment,
    VideoInfo,
    read_classes,
    read_segments,
    read_video_info,
    settle,
)
from .transforms import find_clip_seconds
from .videos import FRAMES_TMPL, VIDEO_TMPL, find_video

# In seconds: the least that anticipation must have seen of a video to be trained on.
SHORTEST = 1 / 30
# What a clip of no segment has.
IN_BETWEEN = Segment(None, None, None, None, None, IGNORE, IGNORE, line=0)


@DATASETS.register_module()
class EpicKitchensDataset(StreamKeysMixin, BadClipMixin, MediaMixin, BaseActionDataset):
    """EPIC-KITCHENS-100 (arXiv 2006.13256): one sample per segment, in time order.

    Reads the official CSV files as they are; any data in their format works. A sample
    is a clip of one narrated segment with the label ``[verb, noun]``. The samples of a
    video are in the order in which their clips *end*, so that a model with memory,
    read by ``SequentialClipSampler``, has seen nothing later than the current clip::

        train_pipeline = [
            dict(type='VideoInit'),
            dict(type='SampleEpicFrames', clip_len=16, frame_interval=4),
            dict(type='VideoDecode'),
            dict(type='StreamConsistent', transforms=[
                dict(type='RandomRescale', scale_range=(256, 320)),
                dict(type='RandomCrop', size=224),
                dict(type='Flip', flip_ratio=0.5)]),
            dict(type='FormatShape', input_format='NCTHW'),
            dict(type='PackActionInputs', meta_keys=(
                'img_shape', 'video_id', 'timestamp', 'stream', 'narration_id'))]
        train_dataloader = dict(
            batch_size=8, num_workers=8,
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_sampler=dict(type='SequentialClipSampler', shuffle=True),
            dataset=dict(
                type='EpicKitchensDataset', task='recognition', context_stride=2.0,
                data_root='data/epic', ann_file='annotations/EPIC_100_train.csv',
                video_info_file='annotations/EPIC_100_video_info.csv',
                class_files=('annotations/EPIC_100_verb_classes.csv',
                             'annotations/EPIC_100_noun_classes.csv'),
                data_prefix=dict(video=['EPIC-KITCHENS', '/disk2/EPIC-KITCHENS']),
                pipeline=train_pipeline))

    A test takes ``test_mode=True`` and no random transforms.

    **When clips end.** In anticipation ``tau_a`` seconds before the segment starts. In
    recognition within the segment: in its middle in a test, anywhere in training; a
    segment shorter than the clip begins with its first frame repeated. ``timestamp``
    is that end; in training a clip may end up to ``jitter`` seconds earlier, and then
    still not before the clip before it. Details are in :class:`ClipRule`, the frames in
    :class:`SampleEpicFrames`. Times come from the timestamp columns and the frame rate
    of the video itself, never from the frame columns.

    **Clips in between.** ``context_stride`` adds clips of no segment, with the label
    ``[-100, -100]`` and ``narration_id`` None, so that a stream covers the video.

    **Odd rows** are settled as :func:`settle` says, and counted in the log.

    Args:
        ann_file (str): ``EPIC_100_train.csv``, ``EPIC_100_validation.csv`` or
            ``EPIC_100_test_timestamps.csv`` (no labels, with ``test_mode``).
        pipeline (list): The transforms.
        task (str): ``'recognition'`` or ``'anticipation'``.
        tau_a (float): Anticipation: seconds between the observed clip and the segment.
        context_stride (float): Seconds between clips that fill the stream, 0 for none.
        jitter (float): Recognition, training: range, in seconds, within which a clip's
            end is drawn; ``float('inf')`` for the whole segment, to be used without
            memory and ``context_stride``; 0 for the middle always.
        clip_seconds (float, optional): Seconds from the first frame of a clip to its
            last. By default those of ``SampleEpicFrames`` in the pipeline.
        data_prefix (dict, optional): Under ``video``, or ``img`` with ``use_frames``,
            the folder of the participants' folders, or a list of such; the first in
            which a video exists is taken. Defaults to ``data_root``.
        path_tmpl (str, optional): A video in there; by default, as downloaded,
            ``'{participant}/videos/{video}.MP4'``, and for frames
            ``'{participant}/rgb_frames/{video}'``.
        use_frames (bool): Folders of extracted frames instead of videos.
        filename_tmpl (str): Name of a frame.
        start_index (int, optional): Number of the first frame in its name. Defaults to
            1 for frames and 0 for videos.
        frame_fps (float or str, optional): Frames per second of the extracted frames.
            By default as the official ones: 50 for videos with three digits after
            the participant (``P01_101``), else 60. ``'video_info'`` for that of the
            video. (Frames extracted at another rate than the video's may show what is
            up to half a frame of the video later.)
        video_info_file (str, optional): ``EPIC_100_video_info.csv``: durations, which
            tell the segments that end after their video, and frame rates.
        class_files (Sequence[str], optional): ``EPIC_100_verb_classes.csv`` and
            ``EPIC_100_noun_classes.csv``; then ``metainfo`` has the names as
            ``verb_classes`` and ``noun_classes``.
        num_classes (Sequence[int], optional): Numbers of verbs and nouns. By default
            those of ``class_files``, else 97 and 300.
        missing_videos (str): When videos are not on disk, looked up at the start:
            ``'stop'`` (with ``on_bad_clip='skip'``: a warning), ``'leave_out'`` their
            segments, or do not look: ``'unchecked'``.
        test_mode (bool): No jitter, and every segment is kept.
        filter_cfg (dict, optional): ``participants`` or ``videos``: lists of ids to
            keep; other videos are not looked up.
        **kwargs: ``on_bad_clip`` of :class:`BadClipMixin`, and as ``BaseDataset``:
            ``data_root``, ``metainfo``, ``indices``, ``serialize_data``, ``lazy_init``.

    A sample has ``filename`` (with ``use_frames``: ``frame_dir``, ``filename_tmpl``,
    ``total_frames`` and ``fps``), ``video_id``, ``narration_id`` (str, None in
    between), ``participant_id``, ``start`` and ``stop`` (seconds, None in between),
    ``timestamp`` (float, seconds), ``jitter`` and ``earliest`` (seconds, for
    ``SampleEpicFrames``), ``label`` (``[verb, noun]``, -100 for none), ``tau_a``
    (seconds, 0 in recognition), ``segments`` (float64 ``[n, 4]``, all of the video:
    start, stop, verb, noun, for ``EpicFrameLabels``) and ``sample_idx``.

    Raises:
        ValueError, FileNotFoundError: In one sentence that names file, line and id.
    """

    METAINFO = dict(dataset_type='EPIC-KITCHENS-100')

    def __init__(
        self,
        ann_file: str,
        pipeline: list,
        task: str = 'recognition',
        tau_a: float = 1.0,
        context_stride: float = 0.0,
        jitter: float = 2.0,
        clip_seconds: Optional[float] = None,
        data_prefix: Optional[dict] = None,
        path_tmpl: Optional[str] = None,
        use_frames: bool = False,
        filename_tmpl: str = 'frame_{:010d}.jpg',
        start_index: Optional[int] = None,
        frame_fps: Union[float, str, None] = None,
        video_info_file: Optional[str] = None,
        class_files: Optional[Sequence[str]] = None,
        num_classes: Optional[Sequence[int]] = None,
        missing_videos: str = 'stop',
        metainfo: Optional[Mapping] = None,
        data_root: Optional[str] = '',
        **kwargs: Any,
    ) -> None:
        self.task = task
        self.tau_a = tau_a
        self.context_stride = context_stride
        self.jitter = jitter
        self.clip_seconds = clip_seconds
        self.path_tmpl = path_tmpl or (FRAMES_TMPL if use_frames else VIDEO_TMPL)
        self.use_frames = use_frames
        self.filename_tmpl = filename_tmpl
        self.frame_fps = frame_fps
        self.missing_videos = missing_videos
        self.video_info_file = _under(data_root, video_info_file)
        self._segments: dict[str, np.ndarray] = {}
        self._check_options()
        names = [read_classes(_under(data_root, path)) for path in class_files or ()]
        if names:
            keys = ('verb_classes', 'noun_classes')
            metainfo = {**dict(zip(keys, names)), **(metainfo or {})}
        num_classes = tuple(num_classes or map(len, names)) or (97, 300)
        if len(num_classes) != 2:
            raise ValueError(
                'class_files and num_classes are of verbs and of nouns, two of each; '
                f'got num_classes={num_classes}.'
            )
        if start_index is None:
            start_index = 1 if use_frames else 0
        super().__init__(
            ann_file,
            pipeline,
            data_prefix=data_prefix or {},
            num_classes=num_classes,
            start_index=start_index,
            metainfo=metainfo,
            data_root=data_root,
            **kwargs,
        )

    def _check_options(self) -> None:
        for name, choices in (
            ('task', TASKS),
            ('missing_videos', ('stop', 'leave_out', 'unchecked')),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f'{name} must be one of {", ".join(choices)}, got {value!r}.'
                )
        for name in ('tau_a', 'context_stride', 'jitter', 'clip_seconds'):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value >= 0):
                raise ValueError(f'{name} must be at least 0 seconds, got {value!r}.')
        fps = self.frame_fps
        if not (fps in (None, 'video_info') or _is_number(fps) and 0 < fps < math.inf):
            raise ValueError(
                f"frame_fps must be frames per second, above 0, or 'video_info', got "
                f'{fps!r}.'
            )
        if fps == 'video_info' and self.video_info_file is None:
            raise ValueError(
                "frame_fps='video_info' needs a video_info_file: name it, or give the "
                'frames per second as a number.'
            )

    def load_data_list(self) -> list[dict]:
        """One record per clip, video by video, in time order."""
        infos = {}
        if self.video_info_file is not None:
            infos = read_video_info(self.video_info_file)
        segments = read_segments(
            self.ann_file, self.num_classes, need_labels=not self.test_mode
        )
        read, found = segments, len(segments)
        segments = self._chosen(segments)
        durations = {video: info.duration for video, info in infos.items()}
        segments, odd = settle(segments, durations, self.test_mode)
        segments = self._leave_out_unobserved(segments, odd)
        videos: dict[str, list[Segment]] = {}
        for segment in segments:
            videos.setdefault(segment.video_id, []).append(segment)
        sources = self._sources(videos, infos)
        seconds = self.clip_seconds
        if seconds is None:
            seconds = find_clip_seconds(self.pipeline.transforms)
        jitter = 0.0 if self.test_mode else self.jitter
        rule = ClipRule(self.task, self.tau_a, seconds, jitter, self.context_stride)
        clips = {video: rule.clips(videos[video]) for video in sources}
        self._segments = {
            video: np.array([(s.start, s.stop, s.verb, s.noun) for s in videos[video]])
            for video in sources
        }
        self._log(found, videos, sources, clips, odd)
        if self.test_mode:
            unwanted = [s.narration_id for s in read if s.video_id not in sources]
            self._metainfo['left_out'] = unwanted
        return [
            self._record(clip, video, sources[video], before)
            for video in sources
            for before, clip in zip([None, *clips[video]], clips[video])
        ]

    def filter_data(self) -> list[dict]:
        """Nothing is left to filter: ``load_data_list`` reads ``filter_cfg``."""
        return self.data_list

    def get_data_info(self, idx: int) -> dict:
        """A sample's dict, as the pipeline gets it."""
        info = super().get_data_info(idx)
        info['tau_a'] = self.tau_a if self.task == 'anticipation' else 0.0
        info['segments'] = self._segments[info['video_id']]
        if self.use_frames:
            info['filename_tmpl'] = self.filename_tmpl
        return info

    def _chosen(self, segments: list[Segment]) -> list[Segment]:
        """The segments that ``filter_cfg`` keeps."""
        columns = dict(participants='participant_id', videos='video_id')
        for key, names in (self.filter_cfg or {}).items():
            if key not in columns:
                raise ValueError(
                    f'filter_cfg has {key!r}, it takes participants and videos, lists '
                    'of ids to keep.'
                )
            if isinstance(names, str):
                raise ValueError(
                    f'filter_cfg has {key}={names!r}, expected a list of names: put it '
                    'in [].'
                )
            segments = [s for s in segments if getattr(s, columns[key]) in names]
        return segments

    def _leave_out_unobserved(
        self, segments: list[Segment], odd: list[str]
    ) -> list[Segment]:
        """In training, leave out what starts before anything could be observed."""
        if self.task != 'anticipation':
            return segments
        seen = [s for s in segments if s.start - self.tau_a >= SHORTEST]
        if len(seen) < len(segments):
            count = len(segments) - len(seen)
            done = 'first frame shown' if self.test_mode else 'left out'
            odd.append(f'{count} with nothing to observe ({done})')
        return segments if self.test_mode else seen

    def _record(
        self, clip: Clip, video: str, source: dict, before: Optional[Clip]
    ) -> dict:
        segment = clip.segment or IN_BETWEEN
        is_within = clip.segment is not None and self.task == 'recognition'
        return dict(
            source,
            video_id=video,
            timestamp=clip.timestamp,
            previous=-math.inf if before is None else before.timestamp,
            jitter=clip.jitter,
            earliest=segment.start if is_within else 0.0,
            narration_id=segment.narration_id,
            start=segment.start,
            stop=segment.stop,
            label=[segment.verb, segment.noun],
        )

    def _log(
        self,
        found: int,
        videos: dict[str, list[Segment]],
        sources: dict[str, dict],
        clips: dict[str, list[Clip]],
        odd: list[str],
    ) -> None:
        """Say what is used and what it costs, and refuse to use nothing."""
        logger = MMLogger.get_current_instance()
        used = sum(len(videos[video]) for video in sources)
        if not used:
            raise ValueError(
                f'{self.ann_file} leaves no segment of {found}: check filter_cfg='
                f'{self.filter_cfg}, missing_videos={self.missing_videos!r} and the '
                f'file ({", ".join(odd) or "nothing odd in it"}).'
            )
        logger.info(
            f'{self.ann_file}: {used} of {found} segments, in {len(sources)} videos; '
            f'odd rows: {", ".join(odd) or "none"}.'
        )
        if self.context_stride:
            total = sum(map(len, clips.values()))
            logger.info(
                f'context_stride={self.context_stride} adds {total - used:,} '
                f'unlabelled clips to {used:,} segments ({total / used:.1f}x the '
                'clips).'
            )

    def _join_prefix(self) -> None:
        """As in mmengine, and lists of folders are taken, too."""
        given, self.data_prefix = self.data_prefix, {}
        super()._join_prefix()
        self.data_prefix = {
            key: _under(self.data_root, prefix)
            if isinstance(prefix, str)
            else [_under(self.data_root, root) for root in prefix]
            for key, prefix in given.items()
        }

    @property
    def roots(self) -> list[str]:
        """The folders in which a video is looked for, in this order."""
        key, kind = ('img', 'frames') if self.use_frames else ('video', 'videos')
        if self.data_prefix and key not in self.data_prefix:
            raise ValueError(
                f'data_prefix has {", ".join(map(repr, self.data_prefix))} and no '
                f'{key!r}, the folder of the {kind}: name it, or change use_frames='
                f'{self.use_frames}.'
            )
        roots = self.data_prefix.get(key, self.data_root or '')
        return [roots] if isinstance(roots, str) else roots

    def _sources(
        self, videos: dict[str, list[Segment]], infos: dict[str, VideoInfo]
    ) -> dict[str, dict]:
        """Where each video is that is used, and its participant."""
        sources, missing = {}, []
        for video, segments in videos.items():
            participant = segments[0].participant_id
            source, absent = find_video(self, participant, video, infos)
            if absent is not None:
                missing.append(absent)
                if self.missing_videos == 'leave_out':
                    continue
            sources[video] = dict(source, participant_id=participant)
        if missing:
            sentence = (
                f'{len(missing)} of {len(videos)} videos in {self.ann_file} are not on '
                f'disk, the first is {missing[0]}: check data_prefix, path_tmpl and '
                f"use_frames={self.use_frames}, or set missing_videos='leave_out' "
                '(their segments then count in no metric).'
            )
            goes_on = self.missing_videos == 'leave_out' or self.on_bad_clip == 'skip'
            if len(missing) == len(videos) or not goes_on:
                raise FileNotFoundError(sentence)
            MMLogger.get_current_instance().warning(sentence)
        return sources


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _under(root: Optional[str], path: Optional[str]) -> Optional[str]:
    """A path that is relative to a root, as mmengine joins them."""
    if path is None or not root or is_abs(path):
        return path
    return join_path(root, path) if path else root
