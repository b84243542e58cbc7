"""annotate_video: a stream's predictions as a video, lines, a timeline and a report."""

import os.path as osp
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Optional

import numpy as np

from memvit_mm.apis.models.stream_info import StreamInfo, alone, info_of
from memvit_mm.apis.report.media import KeyFrame
from memvit_mm.apis.report.page import write_report
from memvit_mm.apis.streams.playback import Pictures, Playback
from memvit_mm.apis.streams.results import Prediction
from memvit_mm.apis.streams.stream import StreamCounts, VideoStream
from memvit_mm.io.output_files import check_apart, check_output
from memvit_mm.video.writer import VideoWriter

from .draw import Look, Painter
from .prediction_lines import PredictionLines
from .timeline import draw_timeline
from .window import Window


@dataclass
class Outputs:
    """What to make of a video. Folders are made, files that exist are replaced.

    Raises:
        ValueError, PermissionError: By :meth:`check`, if one cannot be written.
    """

    video: Optional[str] = None
    """The annotated video, see :class:`VideoWriter` for endings."""
    lines: Optional[str] = None
    """A line of JSON per prediction, see :class:`PredictionLines`."""
    timeline: Optional[str] = None
    """A picture of the classes over time, see :func:`draw_timeline`."""
    report: Optional[str] = None
    """A page of HTML, see :func:`write_report`."""
    show: bool = False
    """Whether to show it on the screen."""

    @property
    def files(self) -> dict[str, str]:
        """The files, by kind."""
        paths = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: p for k, p in paths.items() if k != 'show' and p is not None}

    def check(self, source: str) -> None:
        """Refuse what cannot be made, before anything is computed."""
        if not self.files and not self.show:
            raise ValueError(
                'Nothing is asked for: name a video, lines, a timeline or a report, '
                'or show it.'
            )
        check_apart(self.files)
        for kind, path in self.files.items():
            setattr(self, kind, check_output(kind, path, source))


class Annotated(NamedTuple):
    """What was made of a video."""

    predictions: list[Prediction]
    """Of its clips."""
    info: StreamInfo
    """The model's kind, classes and times."""
    counts: StreamCounts
    """What became of frames and clips."""
    files: dict[str, str]
    """What was written, by kind."""
    duration: float
    """Seconds of the video that were predicted, or all of it."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or the window was closed: ``made`` is what there is until then."""

    def __init__(self, made: Annotated) -> None:
        super().__init__()
        self.made = made


def annotate_video(
    stream: VideoStream,
    source: str,
    outputs: Outputs,
    look: Optional[Look] = None,
    codec: Optional[str] = None,
    about: Optional[dict[str, Any]] = None,
    progress: Optional[Callable[[float, Optional[float]], None]] = None,
) -> Annotated:
    """Run a stream over a video file, and write what it says in every form asked for.

    With ``VideoStream(ComparingPredictor(model, ...))`` all of them also say what the
    model says without memory.

    Whatever ends it early (Ctrl-C, a damaged file, a full disk), the video is playable,
    every line is whole, and timeline and report show what was predicted until then; the
    exception goes on to the caller.

    Args:
        stream (VideoStream): Not in use. Its ``on_damage='go_on'`` reads over damage.
        source (str): A video file.
        outputs (Outputs): What to write.
        look (Look, optional): How predictions are drawn.
        codec (str, optional): Of the video, see :class:`VideoWriter`.
        about (dict, optional): What else to say in lines and report, such as the
            ``config`` and the ``checkpoint``.
        progress (callable, optional): Called after each prediction with its time and
            the video's duration (None where it is not known), in seconds.

    Raises:
        ValueError, FileNotFoundError, PermissionError: In one sentence.
        Interrupted: At Ctrl-C, or if the window is closed, with what was ``made``.

    Examples:
        >>> import tempfile, numpy as np
        >>> from memvit_mm.apis import init_recognizer
        >>> from memvit_mm.apis.streams.memory_effect import ComparingPredictor
        >>> folder = tempfile.mkdtemp()
        >>> video = VideoWriter(f'{folder}/in.mp4', fps=12)
        >>> for number in range(60):
        ...     video.write(np.full((48, 64, 3), 4 * number, np.uint8), number / 12)
        >>> video.close()
        >>> model = init_recognizer('memvit_demo_epic_cls.py', device='cpu')
        >>> made = annotate_video(
        ...     VideoStream(ComparingPredictor(model)),
        ...     f'{folder}/in.mp4',
        ...     Outputs(video=f'{folder}/out.mp4', timeline=f'{folder}/out.png'),
        ... )
        >>> [prediction.time for prediction in made.predictions], sorted(made.files)
        ([2.0, 4.0], ['timeline', 'video'])
    """
    source = osp.expanduser(str(source))
    playback = Playback(source, stream.timing)
    try:
        outputs.check(source)
        info = info_of(stream.predictor, playback.file.fps, stream.stride)
        painter = Painter(info, playback.size, look)
        session = _Session(source, outputs, playback, painter, codec, about or {})
    except BaseException:
        playback.close()
        raise
    try:
        try:
            for prediction in stream.run(source):
                session.take(prediction)
                if progress is not None:
                    progress(prediction.time, playback.duration)
            session.finish()
        except KeyboardInterrupt:
            session.close('interrupted', stream.counts)
            raise
        except BaseException as error:
            session.close(str(error) or type(error).__name__, stream.counts)
            raise
        session.close(None, stream.counts)
    except KeyboardInterrupt:
        raise Interrupted(session.made(stream.counts)) from None
    return session.made(stream.counts)


class _Session:
    """The outputs of one video while they are made."""

    def __init__(
        self,
        source: str,
        outputs: Outputs,
        playback: Playback,
        painter: Painter,
        codec: Optional[str],
        about: dict[str, Any],
    ) -> None:
        self.source = source
        self.outputs = outputs
        self.playback = playback
        self.painter = painter
        self.info = painter.info
        self.predictions: list[Prediction] = []
        self.written: dict[str, str] = {}
        self.duration = 0.0
        self.about = about
        self.pictures = Pictures() if outputs.report else None
        height, width = playback.size
        self.facts = dict(
            name=osp.basename(source),
            size=[width, height],
            fps=round(playback.file.fps, 4),
            duration=None if playback.duration is None else round(playback.duration, 3),
        )
        self.window = Window(self.facts['name']) if outputs.show else None
        self.video = self.lines = None
        if outputs.video:
            self.video = VideoWriter(outputs.video, playback.file.fps, codec)
        if outputs.lines:
            top = painter.look.top
            said = dict(video=self.facts, **about)
            self.lines = PredictionLines(outputs.lines, self.info, top, **said)

    def take(self, prediction: Prediction) -> None:
        """The next prediction: written down, and the frames up to it drawn."""
        _check_finite(prediction)
        # What is kept until the end is small.
        prediction.data_sample = None
        if prediction.without_memory is not None:
            prediction.without_memory.data_sample = None
        before = self.predictions[-1] if self.predictions else None
        self.predictions.append(prediction)
        if self.lines is not None:
            self.lines.write(prediction)
        self._draw(prediction.time, before, prediction)

    def finish(self) -> None:
        """The video has ended: draw what is left of it."""
        last = self.predictions[-1] if self.predictions else None
        self._draw(float('inf'), last, None)

    def _draw(
        self, until: float, before: Optional[Prediction], after: Optional[Prediction]
    ) -> None:
        if self.video is None and self.window is None and self.pictures is None:
            if after is not None:
                self.duration = after.time
            return
        frame = None
        for frame in self.playback.until(until):
            if self.video is not None or self.window is not None:
                painted = self.painter.paint(frame.image, frame.time, before, after)
            if self.video is not None:
                self.video.write(painted, frame.time)
            if self.window is not None:
                self.window.show(painted, frame.time)
            self.duration = frame.time + 1 / self.playback.file.fps
        if self.pictures is not None and frame is not None and after is not None:
            self.pictures.add(frame.image, after.time)

    def made(self, counts: StreamCounts) -> Annotated:
        """What there is."""
        return Annotated(
            self.predictions, self.info, counts, self.written, self.duration
        )

    def close(self, reason: Optional[str], counts: StreamCounts) -> None:
        """Finish every file, of what there is.

        Raises:
            KeyboardInterrupt: If Ctrl-C came meanwhile, when all is done.
            Exception: The first that went wrong. Where something had before, there is a
                warning.
        """
        self.playback.close()
        steps = (self._close_video, self._close_lines, self._timeline, self._report)
        errors, interrupted = [], False
        for step in steps:
            try:
                step(reason, counts)
            except KeyboardInterrupt:
                interrupted = True
                step(reason, counts)
            except Exception as error:
                errors.append(error)
        if self.window is not None:
            self.window.close()
        if errors and reason is None:
            raise errors[0]
        for error in errors:
            warnings.warn(str(error), stacklevel=3)
        if interrupted:
            raise KeyboardInterrupt

    def _close_video(self, reason: Optional[str], counts: StreamCounts) -> None:
        if self.video is not None:
            self.video.close()
            if self.video.count:
                self.written['video'] = self.outputs.video

    def _close_lines(self, reason: Optional[str], counts: StreamCounts) -> None:
        if self.lines is not None:
            self.lines.close(
                complete=reason is None,
                reason=reason,
                frames=counts.frames,
                dropped=counts.dropped,
                skipped=counts.skipped,
            )
            self.written['lines'] = self.outputs.lines

    def _timeline(self, reason: Optional[str], counts: StreamCounts) -> None:
        if self.outputs.timeline and self.predictions:
            draw_timeline(
                self.outputs.timeline,
                self.predictions,
                self.info,
                alone(self.predictions),
                self.facts['name'],
            )
            self.written['timeline'] = self.outputs.timeline

    def _report(self, reason: Optional[str], counts: StreamCounts) -> None:
        if self.outputs.report and self.predictions:
            more = {k: v for k, v in self.about.items() if v is not None}
            write_report(
                self.outputs.report,
                self.predictions,
                dict(self.facts, **more),
                without_memory=alone(self.predictions),
                keyframes=[KeyFrame(*pair) for pair in self.pictures.found],
                memory_seconds=self.info.memory_seconds,
                clip_seconds=self.info.clip_seconds,
                clip_file=self.source,
            )
            self.written['report'] = self.outputs.report


def _check_finite(prediction: Prediction) -> None:
    for told, one in (('', prediction), (' without memory', prediction.without_memory)):
        if one is not None and not np.isfinite(one.scores).all():
            raise ValueError(
                f'The prediction{told} at {prediction.time:g} seconds has scores that '
                'are nan or infinite: is the checkpoint of a run that diverged?'
            )
