"""VideoStream: the frames of one video or camera in, predictions out as they come."""

import copy
import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from mmengine.config import Config

from memvit_mm.apis.models.classes import Labels
from memvit_mm.apis.models.results import Prediction, StreamCounts
from memvit_mm.apis.people.boxes import BoxSource
from memvit_mm.apis.people.tracking import Tracking, track_people, tracker_for
from memvit_mm.structures import BadClipError
from memvit_mm.video.video_file import check_choice

from .clip_buffer import BufferState, ClipBuffer, ReadyClip
from .clip_grid import (
    ClipGrid,
    check_at_least,
    check_positive,
    check_stride,
    check_times,
)
from .predictor import PreparedClip, predictor_of
from .reader import WHEN_SLOW, SourceReader
from .runners import Model
from .sources import Source, open_source, path_of

_numbers = itertools.count(1)


class VideoStream:
    """Predictions of one stream of frames, each as soon as its clip is complete.

    Point it at a file, a camera or anything that gives frames::

        model = init_recognizer('configs/memvit_epic_cls.py', 'weights.pth')
        for prediction in VideoStream(model).run('kitchen.mp4'):
            print(prediction.time, prediction.top_verbs(1))

    or feed it::

        stream = VideoStream(model, fps=30)
        for frame in frames:                         # [H, W, 3] uint8, RGB
            for prediction in stream.feed(frame):
                ...
        predictions = stream.finish()                # what only lacks frames

    All give the same predictions, and those that ``tools/test.py`` gives for the same
    clips: frames are chosen, scaled and packed by the test pipeline of the model's
    config. Memory stays bounded however long the stream is.

    **When clips are.** One every ``stride`` seconds, the first at ``stride``. Of models
    as AVA's the time is that of the clip's middle, so a prediction comes a second
    after the moment it is about; of others it is that of its last frame. Clips that
    begin before the first frame repeat it. At the end, clips whose moment is in the
    stream repeat the last frame.

    **Memory** is the model's ``ClipMemory``, under the stream's ``name``: several
    streams share a model without touching each other. It has room for ``max_streams``
    streams (times views) that have begun and not ended; a clip of one more is refused
    with a ``ValueError``. A stream ends with its source, :meth:`finish`, :meth:`reset`,
    or when nobody holds it any more.

    **Frame rates.** A clip's frames are counted at the stream's rate, as the datasets
    do: a file's own, else ``fps``, and where frames come with times, 30. Frames with
    times are put on that grid: :class:`ClipBuffer`. Files of variable frame rate are,
    too: :class:`VideoFile`.

    Args:
        model (nn.Module | OnnxModel): A recognizer or detector, as ``init_recognizer``
            gives it, or what was exported of one, with ``cfg``.
        boxes (callable | Mapping | str, optional): For detectors (``MemoryFastRCNN``),
            where people are: a function that is called as ``boxes(image, time)``, with
            a keyframe (``[H, W, 3]`` uint8 RGB) and its time in seconds, by the thread
            that reads, and returns boxes in pixels, ``[people, 4]`` or, with scores,
            ``[people, 5]``; or AVA's proposals or their file, in which the video has
            this stream's ``name``, or that of the file without extension; or a
            :class:`PersonDetector`.
        track (bool | IoUTracker, optional): Whether people get numbers that stay theirs
            (``track_ids``), or the tracker whose settings to use. By default where
            ``boxes`` is a :class:`PersonDetector` that tracks.
        stride (float, optional): Seconds from one clip to the next, see
            :class:`ClipGrid`.
        clip_times (sequence[float], optional): The clips' times instead, in seconds
            after the first frame.
        fps (float, optional): Frames per second of frames that are fed, of iterables
            and cameras.
        name (Hashable, optional): The stream's. One of its own by default.
        when_slow (str, optional): When the model is slower than the source: ``'block'``
            the source, or ``'drop'`` the clip that waits longest, and count it. By
            default cameras drop and all others block. Frames that are fed are never
            dropped.
        queue_size (int): Clips that wait for the model at most.
        max_gap (float): Seconds by which frames may be missing in a clip; else it is
            skipped and counted.
        timing (str): Of files, see :class:`VideoFile`.
        on_damage (str): What to do where a file is damaged, see :class:`VideoFile`.
        reconnect (int): How often in a row to open a camera or an address anew when it
            goes away, see :class:`LiveCapture`.
        labels (optional): Names of the classes, see :func:`classes_of`: a file
            (``.pbtxt``, ``.csv``, ``.txt``), a list, a mapping, or
            ``dict(verbs=..., nouns=...)`` of these. By default those of
            ``model.dataset_meta``, or of the files that the config names.
        cfg (Config | str, optional): The model's config. Defaults to ``model.cfg``.
        sampler (dict, optional): Frame sampler in place of the test pipeline's, such as
            ``dict(type='SampleEpicFrames', clip_len=16, frame_interval=4)``.

    Raises:
        ValueError, FileNotFoundError: In one sentence that names the option.

    Examples:
        >>> from mmaction.apis import init_recognizer
        >>> from memvit_mm.paths import get_config_path
        >>> config = get_config_path('memvit_demo_epic_cls.py')
        >>> stream = VideoStream(init_recognizer(config, device='cpu'), fps=12)
        >>> frames = np.zeros((60, 48, 64, 3), dtype=np.uint8)
        >>> [(p.time, p.verb_scores.shape) for p in stream.run(frames)]
        [(2.0, (4,)), (4.0, (4,))]
    """

    def __init__(
        self,
        model: Model,
        boxes: Optional[BoxSource] = None,
        stride: Optional[float] = None,
        clip_times: Optional[Sequence[float]] = None,
        fps: Optional[float] = None,
        name: Optional[Hashable] = None,
        when_slow: Optional[str] = None,
        queue_size: int = 2,
        max_gap: float = 2.0,
        timing: str = 'auto',
        on_damage: str = 'stop',
        labels: Labels = None,
        cfg: Union[Config, str, None] = None,
        sampler: Optional[dict] = None,
        track: Tracking = None,
        reconnect: int = 0,
    ) -> None:
        check_stride(stride)
        check_positive('fps', fps, 'frames per second')
        check_times(clip_times)
        check_at_least('queue_size', queue_size, 1, 'clip')
        check_at_least('max_gap', max_gap, 0, 'seconds')
        check_at_least('reconnect', reconnect, 0, 'times')
        if when_slow is not None:
            check_choice('when_slow', when_slow, WHEN_SLOW)
        check_choice('timing', timing, ('auto', 'frames', 'timestamps'))
        check_choice('on_damage', on_damage, ('stop', 'go_on'))
        self.predictor = predictor_of(
            model, cfg=cfg, boxes=boxes, labels=labels, sampler=sampler
        )
        self.name = name if name is not None else f'stream {next(_numbers)}'
        self._named = name is not None
        self.stride = stride
        self.clip_times = clip_times
        self.fps = fps
        self.when_slow = when_slow
        self.queue_size = queue_size
        self.max_gap = max_gap
        self.timing = timing
        self.on_damage = on_damage
        self.reconnect = reconnect
        self._tracker = tracker_for(track, self.predictor.boxes)
        self._reader: Optional[SourceReader] = None
        self._lock = threading.RLock()
        self.reset()

    # ----------------------------------------------------------------- predictions

    def run(self, source: Source) -> Iterator[Prediction]:
        """Read a source in the background and predict its clips.

        After a run that ended, the next one is a new stream. After one that was left
        early, or :meth:`load_state_dict`, it goes on: in a file from where it stopped,
        with other sources with the frames that come.

        Args:
            source (str | Path | int | iterable): A video file, a folder of frames
                (``img_00001.jpg``, ...), the index of a camera, an address
                (``'rtsp://...'``), or an iterable of frames (``[H, W, 3]`` uint8 RGB)
                or of pairs (frame, time in seconds).

        Yields:
            Prediction: In order of time.

        Raises:
            ValueError, FileNotFoundError: If the source cannot be opened, at the first
                prediction asked for; or fails, after the predictions before it.
            ConnectionError: If a camera or a network stream goes away, after the
                predictions before that. The next run goes on with it.
        """
        self._check_idle()
        reader = self._reader = self.open(source)
        try:
            reader.start()
            while (taken := self._take(reader)) is not None:
                yield from self._predict([taken])
            self._state = self.buffer.state.copy()
            self.predictor.forget(self.name)
        finally:
            reader.close()
            self._dropped += reader.dropped
            self._reader = None
            if not self._state.ended:
                # What was read ahead is read again.
                self.buffer.restore(self._state)

    def feed(self, frame: np.ndarray, time: Optional[float] = None) -> list[Prediction]:
        """Take the next frame, and predict what is complete with it.

        Where that fails, or is interrupted, it is as if the frame had not come: feed
        it once more, or go on with the next one. Of several threads one at a time.

        Args:
            frame (np.ndarray): ``[H, W, 3]`` uint8, RGB. It is copied.
            time (float, optional): Seconds, on any clock that does not go back. Without
                it the frame is ``1 / fps`` after the one before.

        Returns:
            list[Prediction]: The predictions of the clips that this frame completes,
            usually none or one.

        Raises:
            ValueError: If the frame is no frame, of another size or earlier than the
                ones before, or neither ``time`` nor ``fps`` is known.
        """
        with self._lock:
            self._check_idle()
            if self._state.ended or self.buffer is None:
                self.reset()
                if self.fps is None and time is None:
                    raise ValueError(
                        'The frame comes without a time: give its time in seconds, or '
                        'VideoStream fps=....'
                    )
                self._begin(self.fps or 30.0)
            if isinstance(frame, np.ndarray):
                frame = frame.copy()
            return self._advance(self.buffer.feed, frame, time)

    def finish(self) -> list[Prediction]:
        """Predict the clips that only lack frames after the last one that was fed.

        Interrupted, it can be called again.

        Raises:
            ValueError: If the stream was too short for any clip.
        """
        with self._lock:
            self._check_idle()
            if self.buffer is None or self._state.ended:
                return []
            try:
                return self._advance(self.buffer.finish)
            except BadClipError:
                # Too short for a clip: it has ended all the same.
                self._state.ended = True
                raise
            finally:
                if self._state.ended:
                    self.predictor.forget(self.name)

    @property
    def counts(self) -> StreamCounts:
        """What became of frames and clips so far."""
        dropped = self._dropped + (self._reader.dropped if self._reader else 0)
        state = self._state
        return StreamCounts(state.count, self._predictions, dropped, state.skipped)

    @property
    def frames_kept(self) -> int:
        """Frames that wait for their clips to be complete."""
        return 0 if self.buffer is None else self.buffer.frames_kept

    # --------------------------------------------------------------------- the state

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a new stream.

        Raises:
            ValueError: If it is reading a source.
        """
        self._check_idle()
        self.buffer: Optional[ClipBuffer] = None
        """Collects the frames into clips, once a frame or a source is there."""
        self._state = BufferState()
        self._path: Optional[str] = None
        self._predictions = self._dropped = 0
        if self._tracker is not None:
            self._tracker.reset()
        self.predictor.begin(self.name, self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on later, in another process.

        Memory, frames of clips that are not complete, place, clock, and whom it tracks,
        as plain values and tensors. ``torch.save`` it, and load it with
        ``weights_only=True``. It is that after the last prediction that was handed out,
        also in the middle of :meth:`run`.
        """
        state = dict(
            predictions=self._predictions,
            dropped=self.counts.dropped,
            path=self._path,
            settings=None,
            buffer=None,
            memory=self.predictor.plain(self.predictor.remembered(self.name)),
            tracker=None if self._tracker is None else self._tracker.state_dict(),
        )
        if self.buffer is not None:
            state['settings'] = self.buffer.grid.settings()
            state['buffer'] = self.buffer.pack(self._state)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: If it is something else, or was saved with other settings or by
                another model. The stream is a new one then.
        """
        self.reset()
        keys = {'predictions', 'dropped', 'path', 'settings', 'buffer', 'memory'}
        if not isinstance(state, Mapping) or not keys <= set(state):
            raise ValueError(
                'The state is none of a VideoStream: load what its state_dict() gave; '
                'that of a MultiStream goes into a MultiStream.'
            )
        try:
            self._path = state['path']
            if state['buffer'] is not None:
                self._begin(state['settings']['fps'])
                self.buffer.grid.check_settings(state['settings'])
                self._state = self.buffer.unpack(state['buffer'])
                self.buffer.restore(self._state)
            self._predictions, self._dropped = state['predictions'], state['dropped']
            if self._tracker is not None and state.get('tracker') is not None:
                self._tracker.load_state_dict(state['tracker'])
            # The stream may have had another name.
            memory = [
                dict(entry, stream=(self.name, *entry['stream'][1:]))
                for entry in state['memory']
            ]
            self.predictor.remember(memory, self.name)
        except BaseException:
            self.reset()
            raise

    # --------------------------------------------- what MultiStream and run() share

    def open(self, source: Source, condition: Any = None) -> SourceReader:
        """Open a source and make its reader; begin a stream, or go on with one.

        Args:
            source: As for :meth:`run`.
            condition (threading.Condition, optional): One that readers share.
        """
        if self._state.ended or not self._state.count:
            # Also where a source before it failed before the first prediction.
            self.reset()
        path = path_of(source)
        # A file may have moved since the stream was saved.
        names = [one and Path(one).name for one in (path, self._path)]
        if self._state.count and names[0] != names[1]:
            raise ValueError(
                f'Stream {self.name} stopped at {self._state.last_time:.2f} seconds of '
                f'{self._path or "other frames"}: call reset() before it reads '
                f'{path or "others"}, or let it go on there.'
            )
        opened = open_source(
            source,
            self.fps,
            self._state.count,
            self.reconnect,
            self.timing,
            self.on_damage,
        )
        self._path = path
        if self.buffer is None:
            self._begin(opened.fps)
        return SourceReader(opened, self, condition)

    def prepare(self, ready: ReadyClip) -> PreparedClip:
        """A complete clip as the model takes it."""
        self.predictor.check_owner(self.name, self)
        video = None
        if not self._named and self._path is not None:
            video = Path(self._path).stem
        fps, origin = self.buffer.grid.fps, ready.after.origin
        return self.predictor.prepare(self.name, ready.clip, fps, origin, video)

    def done_with(self, prediction: Prediction, after: BufferState) -> None:
        """A clip has been predicted: this is the state now."""
        self._state = after
        self._predictions += 1
        track_people(self._tracker, prediction)

    def _take(self, reader: SourceReader) -> Optional[tuple[PreparedClip, BufferState]]:
        try:
            return reader.take()
        except Exception:
            if self.buffer.state.ended:
                # Too short for its clips: it has ended all the same.
                self._state = self.buffer.state.copy()
                self.predictor.forget(self.name)
            raise

    def _begin(self, fps: float) -> None:
        grid = ClipGrid(self.predictor.recipe, fps, self.stride, self.clip_times)
        name = self.name if self._named else self._path or self.name
        self.buffer = ClipBuffer(grid, self.max_gap, name)

    def _advance(self, step: Callable[..., list[ReadyClip]], *frame: Any) -> list:
        """Predict the clips that a step of the buffer completes, or take it back."""
        try:
            ready = step(*frame)
            found = self._predict([(self.prepare(clip), clip.after) for clip in ready])
        except BaseException:
            self.buffer.restore(self._state)
            raise
        self._state = self.buffer.state.copy()
        return found

    def _predict(
        self, clips: Sequence[tuple[PreparedClip, BufferState]]
    ) -> list[Prediction]:
        """Predict all of these clips or, where that is interrupted, none."""
        if not clips:
            return []
        state, count = self._state, self._predictions
        tracker = copy.deepcopy(self._tracker)
        memory = self.predictor.remembered(self.name)
        found = []
        try:
            for clip, after in clips:
                found += self.predictor.predict([clip])
                self.done_with(found[-1], after)
        except BaseException:
            self._state, self._predictions, self._tracker = state, count, tracker
            self.predictor.remember(memory, self.name)
            raise
        return found

    def _check_idle(self) -> None:
        if self._reader is not None:
            raise ValueError(
                f'Stream {self.name} is reading a source: let run() end, or leave its '
                'loop, first.'
            )
