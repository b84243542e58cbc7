"""SourceReader: the thread that turns a source's frames into clips for the model."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Optional

from .clip_buffer import BufferState, ReadyClip
from .predictor import PreparedClip
from .sources import frames_after

WHEN_SLOW = ('block', 'drop')
# Seconds to wait for a thread whose source does not answer.
PATIENCE = 5.0


class SourceReader:
    """Reads a source in the background, into a bounded queue of prepared clips.

    Args:
        source: As :func:`open_source` gives it. Closed at the end, by the thread.
        stream (VideoStream): Whose clips these are. If it has begun, it goes on.
        condition (threading.Condition, optional): Notified of every change; readers
            may share it.
    """

    def __init__(
        self, source: Any, stream: Any, condition: Optional[threading.Condition] = None
    ) -> None:
        self.source = source
        self.stream = stream
        self.condition = condition or threading.Condition()
        self.drops = (
            stream.when_slow or ('drop' if source.live else 'block')
        ) == 'drop'
        """Whether the clip that waits longest is dropped when too many wait."""
        self.dropped = 0
        """Clips that were dropped."""
        self.error: Optional[BaseException] = None
        """What ended the source before its time."""
        self.done = False
        """Whether no clip will come any more."""
        self.ready: deque[tuple[PreparedClip, BufferState]] = deque()
        """Clips that wait, oldest first; look and take under the condition only."""
        self._stop = False
        self._thread = threading.Thread(
            target=self._run, name=f'frames of {stream.buffer.name}', daemon=True
        )

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def take(self) -> Optional[tuple[PreparedClip, BufferState]]:
        """Wait for the next clip; None at the end of the source.

        Raises:
            Exception: What went wrong in reading, after the clips before it.
        """
        with self.condition:
            self.condition.wait_for(lambda: self.ready or self.done)
            if self.ready:
                self.condition.notify_all()
                return self.ready.popleft()
        if self.error is not None:
            raise self.error
        return None

    def stop(self) -> None:
        """Let the thread end as soon as it can; clips that wait are forgotten."""
        with self.condition:
            self._stop = True
            self.ready.clear()
            self.condition.notify_all()
        stop = getattr(self.source, 'stop', None)
        if stop is not None:
            stop()

    def close(self, patience: float = PATIENCE) -> None:
        """Stop, and wait for the thread to end, for so many seconds at most."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(patience)

    def _run(self) -> None:
        try:
            for clip in self._clips():
                self._offer(clip)
        except BaseException as error:
            self.error = error
        try:
            self.source.close()
        except Exception as error:
            self.error = self.error or error
        finally:
            with self.condition:
                self.done = True
                self.condition.notify_all()

    def _clips(self) -> Iterator[ReadyClip]:
        buffer = self.stream.buffer
        for frame in frames_after(self.source, buffer):
            if self._stop:
                return
            yield from buffer.feed(frame.image, frame.time)
            if buffer.complete:
                break
        if not self._stop:
            yield from buffer.finish()

    def _offer(self, clip: ReadyClip) -> None:
        if self._stop:
            return
        prepared = self.stream.prepare(clip)
        with self.condition:
            while len(self.ready) >= self.stream.queue_size and not self._stop:
                if self.drops:
                    self.ready.popleft()
                    self.dropped += 1
                else:
                    self.condition.wait()
            if not self._stop:
                self.ready.append((prepared, clip.after))
                self.condition.notify_all()
