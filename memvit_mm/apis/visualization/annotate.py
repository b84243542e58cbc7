"""annotate_video: a stream's predictions as a video, lines, a timeline and a report."""

import contextlib
import math
import os.path as osp
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Optional

import numpy as np

from memvit_mm.apis.models.results import Prediction
from memvit_mm.apis.report.media import KeyFrame
from memvit_mm.apis.report.page import write_report
from memvit_mm.apis.streams.clip_grid import ClipGrid
from memvit_mm.apis.streams.playback import Pictures, Playback
from memvit_mm.apis.streams.predictor import Predictor
from memvit_mm.apis.streams.sources import VideoFile
from memvit_mm.apis.streams.stream import StreamCounts, VideoStream
from memvit_mm.io.output_files import check_apart, check_output
from memvit_mm.video.writer import VideoWriter

from .draw import Look, Painter
from .prediction_lines import PredictionLines
from .stream_info import StreamInfo, alone, info_of
from .timeline import draw_timeline


@dataclass
class Outputs:
    """What to make of a video. Folders are made, and existing files are replaced.

    Raises:
        ValueError, PermissionError: By :meth:`check`, if a file cannot be written.
    """

    video: Optional[str] = None
    """The annotated video, see :class:`VideoWriter` for endings."""
    lines: Optional[str] = None
    """A line of JSON per prediction, see :class:`PredictionLines`."""
    timeline: Optional[str] = None
    """A picture of the classes over time, see :func:`draw_timeline`."""
    report: Optional[str] = None
    """A page of HTML, see :func:`write_report`."""

    @property
    def files(self) -> dict[str, str]:
        """The files to write, by kind."""
        return {kind: path for kind, path in asdict(self).items() if path is not None}

    def check(self, source: Optional[str] = None) -> None:
        """Refuse what cannot be written, before anything is computed."""
        if not self.files:
            raise ValueError('Give at least one of video, lines, timeline, report.')
        check_apart(self.files)
        for kind, path in self.files.items():
            setattr(self, kind, check_output(kind, path, source))


class Annotated(NamedTuple):
    """What was made of a video."""

    predictions: list[Prediction]
    """Those of its clips."""
    info: StreamInfo
    """The model's kind, classes and times."""
    counts: StreamCounts
    """What became of frames and clips."""
    files: dict[str, str]
    """What was written, by kind."""
    duration: float
    """Seconds of the video that were predicted, or all of it."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed. ``made`` is what was written before."""

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
    """Run a stream over a video file, and write its predictions as files.

    With ``VideoStream(ComparingPredictor(model, ...))`` all of them also show what the
    model predicts without memory.

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
        Interrupted: At Ctrl-C, with what was ``made``.

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
    with contextlib.closing(Playback(source, stream.timing)) as playback:
        outputs.check(source)
        session = _Session(stream, source, outputs, playback, look, codec, about or {})
        try:
            try:
                for prediction in stream.run(source):
                    session.take(prediction)
                    if progress is not None:
                        progress(prediction.time, playback.duration)
                session.draw(math.inf, None)
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt)
                told = str(error) or type(error).__name__
                session.close('interrupted' if interrupted else told)
                raise
            session.close(None)
        except KeyboardInterrupt:
            raise Interrupted(session.made()) from None
        return session.made()


class _Session:
    """The outputs of one video while they are made."""

    def __init__(
        self,
        stream: VideoStream,
        source: str,
        outputs: Outputs,
        playback: Playback,
        look: Optional[Look],
        codec: Optional[str],
        about: dict[str, Any],
    ) -> None:
        self.stream = stream
        self.source = source
        self.outputs = outputs
        self.playback = playback
        self.about = about
        fps, (height, width) = playback.file.fps, playback.size
        self.info = info_of(stream.predictor, fps, stream.stride)
        self.painter = Painter(self.info, playback.size, look)
        self.predictions: list[Prediction] = []
        self.written: dict[str, str] = {}
        self.duration = 0.0
        self.facts = dict(
            name=osp.basename(source),
            size=[width, height],
            fps=round(fps, 4),
            duration=None if playback.duration is None else round(playback.duration, 3),
        )
        self.pictures = Pictures() if outputs.report else None
        self.video = self.lines = None
        if outputs.video:
            self.video = VideoWriter(outputs.video, fps, codec)
        if outputs.lines:
            top, said = self.painter.look.top, dict(video=self.facts, **about)
            self.lines = PredictionLines(outputs.lines, self.info, top, **said)

    def take(self, prediction: Prediction) -> None:
        """Write the next prediction, and draw the frames up to its time."""
        _check_finite(prediction)
        # All predictions are kept until the end; the model's whole answers need not be.
        for one in (prediction, prediction.without_memory):
            if one is not None:
                one.data_sample = None
        self.predictions.append(prediction)
        if self.lines is not None:
            self.lines.write(prediction)
        self.draw(prediction.time, prediction)

    def draw(self, until: float, after: Optional[Prediction]) -> None:
        """Draw the frames up to a time.

        Args:
            until (float): In seconds.
            after (Prediction, optional): The prediction of that time.
        """
        if self.video is None and self.pictures is None:
            self.duration = self.duration if after is None else after.time
            return
        earlier = self.predictions if after is None else self.predictions[:-1]
        before, frame = earlier[-1] if earlier else None, None
        for frame in self.playback.until(until):
            if self.video is not None:
                painted = self.painter.paint(frame.image, frame.time, before, after)
                self.video.write(painted, frame.time)
            self.duration = frame.time + 1 / self.playback.file.fps
        if self.pictures is not None and frame is not None and after is not None:
            self.pictures.add(frame.image, after.time)

    def made(self) -> Annotated:
        """What there is by now."""
        return Annotated(
            self.predictions, self.info, self.stream.counts, self.written, self.duration
        )

    def close(self, reason: Optional[str]) -> None:
        """Complete every file with what there is.

        Args:
            reason (str, optional): Why the run ended early.

        Raises:
            KeyboardInterrupt: If Ctrl-C came meanwhile, when all files are complete.
            Exception: The first error, unless the run ended early: then errors become
                warnings.
        """
        errors, interrupted = [], False
        for kind, path in self.outputs.files.items():
            try:
                try:
                    there = self._complete(kind, path, reason)
                except KeyboardInterrupt:
                    interrupted = True
                    there = self._complete(kind, path, reason)
                if there:
                    self.written[kind] = path
            except Exception as error:
                errors.append(error)
        if errors and reason is None:
            raise errors[0]
        for error in errors:
            warnings.warn(str(error), stacklevel=3)
        if interrupted:
            raise KeyboardInterrupt

    def _complete(self, kind: str, path: str, reason: Optional[str]) -> bool:
        """Complete one file; returns whether there is something in it."""
        if kind == 'video':
            self.video.close()
            return self.video.count > 0
        if kind == 'lines':
            counts = self.stream.counts._asdict()
            del counts['predictions']
            self.lines.close(complete=reason is None, reason=reason, **counts)
            return True
        if not self.predictions:
            return False
        if kind == 'timeline':
            others, name = alone(self.predictions), self.facts['name']
            draw_timeline(path, self.predictions, self.info, others, name)
        else:
            more = {k: v for k, v in self.about.items() if v is not None}
            write_report(
                path,
                self.predictions,
                dict(self.facts, **more),
                keyframes=[KeyFrame(*pair) for pair in self.pictures.found],
                memory_seconds=self.info.memory_seconds,
                clip_seconds=self.info.clip_seconds,
                clip_file=self.source,
            )
        return True


def short_stride(predictor: Predictor, file: VideoFile) -> Optional[float]:
    """The stride with which a video that is too short for a clip gives one clip.

    Args:
        predictor (Predictor): The model and its pipeline.
        file (VideoFile): The video.

    Returns:
        float, optional: In seconds; None for videos that are long enough for the
        config's stride.
    """
    usual = ClipGrid(predictor.recipe, file.fps).stride
    if file.count is None or usual * file.fps < file.count:
        return None
    # A clip's time is at its end, or for people at its middle.
    seconds = file.count / file.fps
    return min(usual, seconds / 2 if predictor.recipe.centered else seconds)


def _check_finite(prediction: Prediction) -> None:
    for told, one in (('', prediction), (' without memory', prediction.without_memory)):
        if one is not None and not np.isfinite(one.scores).all():
            raise ValueError(
                f'The prediction{told} at {prediction.time:g} seconds has scores that '
                'are nan or infinite: use a checkpoint of a training that did not '
                'diverge.'
            )
