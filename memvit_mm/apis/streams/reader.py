"""SourceReader: the thread that turns a source's frames into clips for the model."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Optional

from .clip_buffer import BufferState, ClipBuffer, ReadyClip
from .predictor import PreparedClip
from .sources import frames_after

WHEN_SLOW = ('block', 'drop')
# Seconds to wait for a thread whose source does not answer.
PATIENCE = 5.0


class SourceReader:
    """Reads a source in the background, into a bounded queue of prepared clips.

    Args:
        source: As :func:`open_source` gives it. Closed at the end, by the thread.
        buffer (ClipBuffer): The stream's. If it has frames, the stream goes on.
        prepare (callable): Makes a :class:`PreparedClip` of a :class:`ReadyClip`.
        condition (threading.Condition, optional): Notified of every change; readers
            may share it.
        queue_size (int): Clips that wait at most.
        when_slow (str): When they do: ``'block'`` the source, or ``'drop'`` the clip
            that waits longest, and count it.
    """

    def __init__(
        self,
        source: Any,
        buffer: ClipBuffer,
        prepare: Callable[[ReadyClip], PreparedClip],
        condition: Optional[threading.Condition] = None,
        queue_size: int = 2,
        when_slow: str = 'block',
    ) -> None:
        self.source = source
        self.buffer = buffer
        self.prepare = prepare
        self.condition = condition or threading.Condition()
        self.queue_size = queue_size
        self.when_slow = when_slow
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
            target=self._run, name=f'frames of {buffer.name}', daemon=True
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
        for frame in frames_after(self.source, self.buffer):
            if self._stop:
                return
            yield from self.buffer.feed(frame.image, frame.time)
        if not self._stop:
            yield from self.buffer.finish()

    def _offer(self, clip: ReadyClip) -> None:
        if self._stop:
            return
        prepared = self.prepare(clip)
        with self.condition:
            while len(self.ready) >= self.queue_size and not self._stop:
                if self.when_slow == 'drop':
                    self.ready.popleft()
                    self.dropped += 1
                else:
                    self.condition.wait()
            if not self._stop:
                self.ready.append((prepared, clip.after))
                self.condition.notify_all()
