"""MultiStream: many sources, one model, batches of whatever clips are ready."""

import threading
import time
import weakref
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from memvit_mm.apis.models.results import Prediction, StreamCounts

from .clip_buffer import BufferState
from .clip_grid import check_at_least
from .predictor import PreparedClip, predictor_of
from .reader import PATIENCE, SourceReader
from .runners import Model
from .sources import Source
from .stream import VideoStream


@dataclass
class StreamEnd:
    """How a stream ended."""

    counts: StreamCounts
    """What became of its frames and clips."""
    error: Optional[BaseException] = None
    """What went wrong, such as a ``ConnectionError`` where a camera went away; None
    where it just ended."""


class Turn(NamedTuple):
    """A clip whose turn it is."""

    stream: VideoStream
    clip: PreparedClip
    after: BufferState
    """The stream's state once it is predicted."""


class MultiStream:
    """Predictions of many streams with one model.

    Every source is read by a thread of its own. Clips that are ready run together,
    whatever stream they come from: memory belongs to the stream, not to the row. A
    stream may join at any time (:meth:`add`), end, stall or fail without touching the
    others::

        streams = MultiStream(model, dict(door='rtsp://...', desk=0, old='a.mp4'))
        for prediction in streams:
            print(prediction.stream, prediction.time, prediction.top(1))
        print(streams.ended['old'].error)

    The loop ends when no stream is left, or after :meth:`close`. A stream's predictions
    come in order and are those that :class:`VideoStream` gives; people are tracked in
    each stream by itself. To go on another day, see :meth:`state_dict`. (On a CPU a
    model runs the rows of a batch one by one unless its ``test_cfg`` has
    ``one_by_one=False``: :class:`MemoryOwner` says why.)

    Args:
        model (nn.Module | OnnxModel): As for :class:`VideoStream`. A ``ClipMemory``
            needs ``max_streams`` as large as the number of streams times views.
        sources (Mapping, optional): Sources by name, as for :meth:`add`.
        max_batch (int): Clips that run together at most, one of a stream.
        wait (float): Seconds for which a clip waits for others to run with.
        **options: Of every stream, as for :class:`VideoStream`.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        model: Model,
        sources: Optional[Mapping[Hashable, Source]] = None,
        max_batch: int = 16,
        wait: float = 0.0,
        **options: Any,
    ) -> None:
        check_at_least('max_batch', max_batch, 1, 'clip')
        check_at_least('wait', wait, 0, 'seconds')
        if not isinstance(sources, (Mapping, type(None))):
            raise ValueError(
                f'sources is a {type(sources).__name__}: give the sources by name, '
                "such as dict(door=0, kitchen='kitchen.mp4')."
            )
        shared = ('cfg', 'boxes', 'labels', 'sampler')
        own = {key: options.pop(key) for key in shared if key in options}
        self.predictor = predictor_of(model, **own)
        self.max_batch = max_batch
        self.wait = wait
        self.options = options
        self.ended: dict[Hashable, StreamEnd] = {}
        """The streams that have ended, and how."""
        # By name, in the order of their turns.
        self._open: dict[Hashable, tuple[VideoStream, SourceReader]] = {}
        # Streams whose source is being opened, without the lock.
        self._opening: set[Hashable] = set()
        self._closings = 0
        self._condition = threading.Condition()
        # Memory, before it, of streams whose prediction is not handed out yet.
        self._waiting: dict[Hashable, list[dict]] = {}
        # States to go on from, and those of the streams that close() ended.
        self._saved: dict[Hashable, dict] = {}
        self._left: dict[Hashable, dict] = {}
        # Nobody may close it, or even begin its loop.
        weakref.finalize(self, _stop_all, self._open)
        try:
            for name, source in (sources or {}).items():
                self.add(name, source)
        except BaseException:
            self.close()
            raise

    @property
    def streams(self) -> list[Hashable]:
        """Names of the streams that have not ended."""
        with self._condition:
            return list(self._open)

    def counts(self, name: Hashable) -> StreamCounts:
        """What became of a stream's frames and clips so far."""
        with self._condition:
            if name in self._open:
                return _counts(*self._open[name])
            if name not in self.ended:
                raise ValueError(f'There is no stream {name!r}.')
            return self.ended[name].counts

    def add(self, name: Hashable, source: Source, **options: Any) -> None:
        """Let a stream join, at any time, from any thread.

        A source that cannot be opened is reported in :attr:`ended`, as one that fails
        later is.

        Args:
            name (Hashable): The stream's, one that no stream has that goes on.
            source (str | Path | int | iterable): As for :meth:`VideoStream.run`.
            **options: Of this stream, besides those of all.

        Raises:
            ValueError: If the name is taken, or the model's memory has no room.
        """
        with self._condition:
            if name in self._open or name in self._opening:
                raise ValueError(
                    f'There is a stream {name!r} already: remove it first, or choose '
                    'another name.'
                )
            count = len(self._open) + len(self._opening) + 1
            self.predictor.runner.check_room(count)
            self._opening.add(name)
            self.ended.pop(name, None)
            self._left.pop(name, None)
            saved, closings = self._saved.pop(name, None), self._closings
        reader = error = None
        try:
            # This may take its time, in which the others go on.
            stream = VideoStream(
                self.predictor, name=name, **{**self.options, **options}
            )
            try:
                if saved is not None:
                    stream.load_state_dict(saved)
                reader = stream.open(source, self._condition)
            except Exception as failure:
                error = failure
        except BaseException:
            with self._condition:
                self._opening.discard(name)
                self._condition.notify_all()
            raise
        with self._condition:
            self._opening.discard(name)
            self._condition.notify_all()
            if reader is not None and closings == self._closings:
                self._open[name] = stream, reader
                reader.start()
                return
            self.ended[name] = StreamEnd(stream.counts, error)
            self.predictor.forget(name)
            if reader is not None:
                # close() was called meanwhile.
                reader.source.close()
            elif saved is not None:
                # It may go on once its source is there.
                self._saved.setdefault(name, saved)

    def remove(self, name: Hashable) -> None:
        """Let a stream leave; the clips of it that wait are forgotten.

        Raises:
            ValueError: If there is no such stream.
        """
        with self._condition:
            if name not in self._open:
                raise ValueError(
                    f'There is no stream {name!r}, there are: '
                    f'{", ".join(map(str, self._open)) or "none"}.'
                )
            reader = self._leave(name)
        reader.close()

    def close(self) -> None:
        """End all streams, and their threads."""
        with self._condition:
            self._closings += 1
            self._left.update(self._states())
            readers = [self._leave(name) for name in list(self._open)]
        for reader in readers:
            reader.stop()
        until = time.monotonic() + PATIENCE
        for reader in readers:
            reader.close(max(0.0, until - time.monotonic()))

    # ------------------------------------------------------------------- the state

    def state_dict(self) -> dict[Hashable, dict]:
        """Everything that is needed to go on later, in another process, by stream.

        Of the streams that have not ended, or that leaving the loop ended: what
        :meth:`VideoStream.state_dict` says, after the last prediction that was handed
        out. The next day::

            streams = MultiStream(model)
            streams.load_state_dict(states)
            for name in states:
                streams.add(name, sources[name])
        """
        with self._condition:
            return {**self._saved, **self._left, **self._states()}

    def _states(self) -> dict[Hashable, dict]:
        states = {}
        for name, (stream, reader) in self._open.items():
            states[name] = stream.state_dict()
            states[name]['dropped'] += reader.dropped
            if name in self._waiting:
                states[name]['memory'] = self.predictor.plain(self._waiting[name])
        return states

    def load_state_dict(self, states: Mapping[Hashable, dict]) -> None:
        """Let streams go on from what :meth:`state_dict` gave, once they are added.

        Call it before :meth:`add`: a stream that is added under a name in ``states``
        goes on, in a file from where it stopped, with other sources with the frames
        that come; others begin. What does not fit, or has no source yet, is reported in
        :attr:`ended`, and can be added once more.

        Raises:
            ValueError: If one of these streams is there already.
        """
        with self._condition:
            there = [name for name in states if name in self._open]
            if there:
                raise ValueError(
                    f'There is a stream {there[0]!r} already: load the state before '
                    'streams are added.'
                )
            self._saved = dict(states)

    def __enter__(self) -> 'MultiStream':
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[Prediction]:
        try:
            while (batch := self._collect()) is not None:
                yield from self._predict(batch)
        except BaseException:
            self.close()
            raise

    # --------------------------------------------------------------------- a batch

    def _collect(self) -> Optional[list[Turn]]:
        """One clip of each stream that has one; None when no stream is left."""
        with self._condition:
            deadline = None
            while True:
                for name, (_, reader) in list(self._open.items()):
                    if reader.done and not reader.ready:
                        self._leave(name, reader.error)
                if not self._open and not self._opening:
                    return None
                ready = [name for name, (_, r) in self._open.items() if r.ready]
                enough = min(len(self._open), self.max_batch)
                if ready and deadline is None:
                    deadline = time.monotonic() + self.wait
                left = deadline - time.monotonic() if ready else None
                if ready and (len(ready) >= enough or left <= 0):
                    break
                self._condition.wait(left)
            batch = []
            for name in ready[: self.max_batch]:
                # Whoever had a turn comes last in the next one.
                stream, reader = self._open[name] = self._open.pop(name)
                batch.append(Turn(stream, *reader.ready.popleft()))
            self._condition.notify_all()
            return batch

    def _leave(
        self, name: Hashable, error: Optional[BaseException] = None
    ) -> SourceReader:
        stream, reader = self._open.pop(name)
        self._waiting.pop(name, None)
        self.ended[name] = StreamEnd(_counts(stream, reader), error)
        self.predictor.forget(name)
        return reader

    def _predict(self, batch: list[Turn]) -> Iterator[Prediction]:
        names = [turn.stream.name for turn in batch]
        before = self.predictor.remembered(*names)
        try:
            found = self.predictor.predict([turn.clip for turn in batch])
        except BaseException as error:
            # What is remembered stays that of the clips before.
            self.predictor.remember(before, *names)
            if not isinstance(error, Exception):
                raise
            if len(batch) == 1:
                self._fail(batch[0].stream, error)
                return
            # One of them is at fault: each by itself.
            for turn in batch:
                yield from self._predict([turn])
            return
        with self._condition:
            self._waiting = {
                name: [e for e in before if e['stream'][0] == name] for name in names
            }
        for prediction, turn in zip(found, batch):
            with self._condition:
                self._waiting.pop(turn.stream.name, None)
                if not self._goes_on(turn.stream):
                    # Removed meanwhile.
                    self.predictor.forget(turn.stream.name)
                    continue
                turn.stream.done_with(prediction, turn.after)
            yield prediction

    def _goes_on(self, stream: VideoStream) -> bool:
        return self._open.get(stream.name, (None,))[0] is stream

    def _fail(self, stream: VideoStream, error: Exception) -> None:
        with self._condition:
            if not self._goes_on(stream):
                return
            reader = self._leave(stream.name, error)
        reader.close()


def _counts(stream: VideoStream, reader: SourceReader) -> StreamCounts:
    """What became of a stream's frames and clips, those included that wait."""
    counts, state = stream.counts, stream.buffer.state
    return counts._replace(
        frames=state.count,
        dropped=counts.dropped + reader.dropped,
        skipped=state.skipped,
    )


def _stop_all(opened: dict) -> None:
    """End the threads of streams that nobody can ask for any more."""
    for _, reader in list(opened.values()):
        reader.stop()
