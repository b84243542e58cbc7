"""OnnxModel: an exported model and the memory of its streams, without torch."""

import importlib
import json
import os
import warnings
from collections.abc import Hashable, Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple, Optional, Union
from weakref import WeakValueDictionary

import numpy as np

from .file_format import FORMAT, KEY

# What onnxruntime calls the memory of a provider's device; 'cpu' for all others.
DEVICES = dict(CUDAExecutionProvider='cuda', TensorrtExecutionProvider='cuda')
Providers = Sequence[Union[str, tuple[str, dict]]]


class Kept(NamedTuple):
    """What is remembered of a stream. It is never changed, only replaced."""

    time: Any
    """Of its last clip; only the order matters."""
    clips: int
    """How many clips are remembered."""
    memory: tuple[Any, ...]
    """The graph's inputs on the device, an ``OrtValue`` [1, clips * tokens, C] each."""


class OnnxModel:
    """An exported model with the memory of any number of streams.

    It needs numpy and onnxruntime only: no torch, mmengine, mmcv or MMAction2. The file
    says all that there is to know (:func:`.export_onnx`)::

        model = OnnxModel('model.onnx')
        for time, clip in clips:                     # [C, T, H, W] uint8, RGB
            scores = model('door', time, clip)       # [classes]
        model.reset('door')

    A stream seen for the first time starts empty; so does one whose clip is not later
    than the clip before. Until its stream is reset, a memory is kept, and on the device
    where its provider has one of its own (CUDA): what the graph gives is what it gets
    with the next clip, without a copy. Where several streams run in one batch, their
    memories are joined and parted on the host. A run that fails leaves no trace.

    Args:
        path (str | Path): The file.
        providers (sequence, optional): onnxruntime's execution providers, in order. By
            default CUDA's where this onnxruntime has it, and the CPU's.
        options (onnxruntime.SessionOptions, optional): Threads and the like.

    Raises:
        FileNotFoundError, ValueError: If there is no such file, it is no exported model
            of this package, or this onnxruntime cannot run it.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike],
        providers: Optional[Providers] = None,
        options: Any = None,
    ) -> None:
        self.path = os.fspath(path)
        self._ort = find_onnxruntime()
        self.session = _session(self._ort, self.path, providers, options)
        self.about: dict[str, Any] = _metadata(self.path, self.session)
        """What the file says about itself, see :mod:`.file_format`."""
        first = self.session.get_providers()[0]
        options = self.session.get_provider_options().get(first, {})
        self._device = DEVICES.get(first, 'cpu'), int(options.get('device_id', 0))
        clip, self._memory = self.about['clip'], self.about['memory']
        self._dtype = np.dtype(clip['dtype'])
        # (C) -> (C, 1, 1, 1)
        self._mean, self._std = (
            np.array(clip[key], dtype=np.float32)[:, None, None, None]
            for key in ('mean', 'std')
        )
        self.owners: WeakValueDictionary = WeakValueDictionary()
        """Who reads a stream, by its name: ``VideoStream`` and ``MultiStream``."""
        self._kept: dict[Hashable, Kept] = {}
        self._aside: list[dict[Hashable, Kept]] = []
        self._warned = False

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}({self.path!r}, clip={list(self.clip_shape)}, '
            f'providers={self.session.get_providers()}, streams={len(self._kept)})'
        )

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a clip."""
        return tuple(self.about['clip']['shape'])

    @property
    def detects(self) -> bool:
        """Whether it scores people in boxes, not whole clips."""
        return self.about['task'] == 'detection'

    @property
    def horizon(self) -> int:
        """Clips that it looks back at most; 0 without a memory."""
        return self._memory['horizon']

    @property
    def num_classes(self) -> int:
        """Columns of the scores."""
        return sum(kind['count'] for kind in self.about['classes'])

    @property
    def streams(self) -> list[Hashable]:
        """The streams that are remembered."""
        return list(self._kept)

    def __call__(
        self,
        stream: Hashable,
        time: Any,
        clip: np.ndarray,
        boxes: Optional[np.ndarray] = None,
    ) -> np.ndarray:
        """Score the next clip of a stream, and remember it.

        Args:
            stream (Hashable): Its name.
            time (int | float): When the clip is, any number that grows.
            clip (np.ndarray): [C, T, H, W], uint8 (RGB, 0 to 255), or float, which has
                been normalized already.
            boxes (np.ndarray, optional): Of a detector: where people are, [people, 4]
                or, with scores, [people, 5]; x1, y1, x2, y2 in pixels of the clip.

        Returns:
            np.ndarray: float32, [classes], or of a detector [people, classes], as the
            PyTorch model's ``predict``: after the sigmoid or softmax.

        Raises:
            ValueError: If the clip or the boxes have another shape.
        """
        boxes = None if boxes is None else [boxes]
        return self.run([stream], [time], [clip], boxes)[0]

    def run(
        self,
        streams: Sequence[Hashable],
        times: Sequence[Any],
        clips: Sequence[np.ndarray],
        boxes: Optional[Sequence[np.ndarray]] = None,
    ) -> list[np.ndarray]:
        """Score a clip of each of several streams, in one batch if the file takes one.

        Arguments, result and errors are those of :meth:`__call__`, one per stream.

        Raises:
            ValueError: Also if two clips are of one stream.
        """
        if len(set(streams)) < len(streams):
            raise ValueError(
                f'run() got two clips of one stream, of {list(streams)}: clips of a '
                'stream need a call each, in time order.'
            )
        if not len(streams) == len(times) == len(clips):
            raise ValueError(
                f'run() got {len(streams)} streams, {len(times)} times and '
                f'{len(clips)} clips: give as many of each.'
            )
        for stream, time in zip(streams, times):
            if not isinstance(time, Real) or time != time:
                raise ValueError(
                    f'The time of a clip of {stream!r} is {time!r}: give a number that '
                    'grows with each of its clips.'
                )
        if not streams:
            return []
        clips = [self._normalized(clip) for clip in clips]
        boxes = self._checked(boxes, len(clips))
        past = [self._past(*pair) for pair in zip(streams, times)]
        rows = list(range(len(streams)))
        together = self.about['dynamic_batch']
        scores, kept = [], {}
        for group in [rows] if together else [[row] for row in rows]:
            some = (
                [part[row] for row in group] if part else []
                for part in (clips, boxes, past)
            )
            found, memories = self._run(*some)
            scores += found
            for row, memory in zip(group, memories):
                count = min(past[row].clips + 1, self.horizon)
                kept[streams[row]] = Kept(times[row], count, memory)
        if self.horizon:
            self._kept.update(kept)
        return scores

    def _run(
        self,
        clips: list[np.ndarray],
        boxes: list[np.ndarray],
        past: list[Kept],
    ) -> tuple[list[np.ndarray], list[tuple]]:
        """Scores of some clips, and the memories after them."""
        binding, device = self.session.io_binding(), self._device
        binding.bind_cpu_input('clip', np.stack(clips))
        if self.detects:
            # One place more than people where there is nobody.
            most = max(1, *map(len, boxes))
            padded = np.zeros((len(clips), most, 5), dtype=np.float32)
            for row, one in enumerate(boxes):
                padded[row, : len(one), : one.shape[1]] = one
            binding.bind_cpu_input('boxes', padded)
            count = np.array([len(one) for one in boxes], dtype=np.int64)
            binding.bind_cpu_input('count', count)
        binding.bind_output('scores', 'cpu')
        if self.horizon:
            ages = np.arange(self.horizon)
            valid = np.stack([ages < kept.clips for kept in past])
            binding.bind_cpu_input('valid', valid)
        # Before onnxruntime 1.23 the binding keeps none of its inputs alive.
        inputs = []
        for number, about in enumerate(self._memory['inputs']):
            inputs.append(self._joined([kept.memory[number] for kept in past]))
            binding.bind_ortvalue_input(about['name'], inputs[-1])
            binding.bind_output(f'next.{about["name"]}', *device)
        self.session.run_with_iobinding(binding)
        found, *memory = binding.get_outputs()
        scores = list(found.numpy())
        if self.detects:
            scores = [row[: len(one)] for row, one in zip(scores, boxes)]
        parted = [self._parted(value, len(clips)) for value in memory]
        return scores, list(zip(*parted)) if parted else [()] * len(clips)

    def _joined(self, values: list) -> Any:
        """The memories of several streams as that of a batch."""
        if len(values) == 1:
            return values[0]
        return self._on_device(np.concatenate([value.numpy() for value in values]))

    def _parted(self, value: Any, rows: int) -> list:
        """The memories of each stream of a batch."""
        if rows == 1:
            return [value]
        # Each owns its storage: a view would keep the whole batch alive.
        return [self._on_device(row[None].copy()) for row in value.numpy()]

    def _on_device(self, array: np.ndarray) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, *self._device)

    def _past(self, stream: Hashable, time: Any) -> Kept:
        """What is remembered of a stream before a clip."""
        kept = self._kept.get(stream)
        if kept is not None and time > kept.time:
            return kept
        if kept is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f'The clip of {stream!r} at {time} is not later than the one before '
                f'it, at {kept.time}: it starts with an empty memory. Give the clips '
                'of a stream in time order, and call reset() before it begins again. '
                '(Said once.)',
                stacklevel=4,
            )
        empty = (
            self._on_device(np.zeros((1, *about['shape']), dtype=self._dtype))
            for about in self._memory['inputs']
        )
        return Kept(None, 0, tuple(empty))

    def _normalized(self, clip: np.ndarray) -> np.ndarray:
        """A clip as the graph takes it."""
        clip = np.asarray(clip)
        if clip.shape != self.clip_shape:
            raise ValueError(
                f'A clip has the shape {list(clip.shape)}, but {self.path} takes '
                f'{list(self.clip_shape)} (channels, frames, height, width): resize '
                'it, or export the model with --shape FRAMES HEIGHT WIDTH.'
            )
        if clip.dtype.kind == 'f':
            return np.ascontiguousarray(clip, dtype=self._dtype)
        if self.about['clip']['reverse_channels']:
            clip = clip[::-1]
        clip = (clip.astype(np.float32) - self._mean) / self._std
        return clip.astype(self._dtype, copy=False)

    def _checked(
        self, boxes: Optional[Iterable[np.ndarray]], clips: int
    ) -> list[np.ndarray]:
        if not self.detects:
            if boxes is not None:
                raise ValueError(f'{self.path} scores whole clips: leave boxes out.')
            return []
        boxes = [np.asarray(one, dtype=np.float32) for one in boxes or ()]
        boxes = [one.reshape(0, 4) if one.size == 0 else one for one in boxes]
        shapes = [one.shape for one in boxes]
        right = all(len(s) == 2 and s[1] in (4, 5) for s in shapes)
        if len(boxes) != clips or not right:
            raise ValueError(
                f'{self.path} scores people, and got boxes of shapes '
                f'{list(map(list, shapes))} for {clips} clips: give boxes [people, 4], '
                'or [people, 5] with scores, for each.'
            )
        if not all(np.isfinite(one).all() for one in boxes):
            raise ValueError(
                f'{self.path} got a box with a number that is not finite: give x1, y1, '
                'x2, y2 in pixels of the clip.'
            )
        return boxes

    def reset(self, stream: Optional[Hashable] = None) -> None:
        """Forget a stream, or all of them."""
        if stream is None:
            self._kept.clear()
        else:
            self._kept.pop(stream, None)

    def set_aside(self) -> None:
        """Put the present memory away and go on with an empty one."""
        self._aside.append(self._kept)
        self._kept = {}

    def restore(self) -> None:
        """Drop the present memory and take back the one set aside last."""
        if not self._aside:
            raise RuntimeError('No memory was set aside: call set_aside() first.')
        self._kept = self._aside.pop()

    def snapshot(self) -> dict[Hashable, Kept]:
        """What is remembered now, by stream, for :meth:`load_snapshot`. No copy."""
        return dict(self._kept)

    def load_snapshot(self, kept: dict[Hashable, Kept]) -> None:
        """Replace the memory by what :meth:`snapshot` gave."""
        self._kept = dict(kept)

    def plain(self, kept: Kept) -> dict[str, Any]:
        """What is remembered of a stream as plain values and arrays."""
        names = (about['name'] for about in self._memory['inputs'])
        # What numpy() gives may be the memory itself.
        values = (value.numpy()[0].copy() for value in kept.memory)
        memory = dict(zip(names, values))
        return dict(time=kept.time, clips=kept.clips, memory=memory)

    def kept_of(self, plain: dict[str, Any]) -> Kept:
        """From what :meth:`plain` gave.

        Raises:
            ValueError: If it is of another model.
        """
        memory = {name: np.asarray(x) for name, x in plain['memory'].items()}
        shapes = {name: list(x.shape) for name, x in memory.items()}
        own = {about['name']: about['shape'] for about in self._memory['inputs']}
        if shapes != own or not 0 <= plain['clips'] <= self.horizon:
            raise ValueError(
                f'The memory that was saved is of another model than {self.path}: load '
                'what this model saved.'
            )
        values = (
            self._on_device(memory[name][None].astype(self._dtype)) for name in own
        )
        return Kept(plain['time'], plain['clips'], tuple(values))

    def state_dict(self) -> dict[str, list]:
        """All streams as plain lists, numbers, strings and arrays."""
        kept = self._kept.items()
        return dict(streams=[dict(stream=k, **self.plain(v)) for k, v in kept])

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Replace the memory by what :meth:`state_dict` gave.

        Raises:
            ValueError: If it is something else, or that of another model.
        """
        entries = state.get('streams')
        if entries is None:
            raise ValueError(
                "The state has no 'streams': give what state_dict() of an OnnxModel "
                'returned.'
            )
        self._kept = {entry['stream']: self.kept_of(entry) for entry in entries}


def find_onnxruntime() -> Any:
    """The package.

    Raises:
        ImportError: If it is not installed; the message says what to do.
    """
    # Not above: who imports this package need not have it.
    try:
        return importlib.import_module('onnxruntime')
    except ImportError as error:
        raise ImportError(
            f'Running an exported model needs onnxruntime ({error}): pip install '
            'onnxruntime, or onnxruntime-gpu for CUDA.'
        ) from None


def _session(ort: Any, path: str, providers: Optional[Providers], options: Any) -> Any:
    if not os.path.isfile(path):
        raise FileNotFoundError(f'There is no file {path}: check its path.')
    known = ort.get_available_providers()
    if providers is None:
        own = ('CUDAExecutionProvider', 'CPUExecutionProvider')
        providers = [name for name in own if name in known]
    if isinstance(providers, str):
        providers = [providers]
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in known:
            raise ValueError(
                f'providers has {name!r}, which this onnxruntime lacks (it has '
                f'{", ".join(known)}): install one that has it, or take another.'
            )
    try:
        return ort.InferenceSession(path, options, providers=list(providers))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        remedy = 'export the model anew'
        if 'opset' in reason.lower() or 'ir version' in reason.lower():
            remedy = f'install a newer onnxruntime than {ort.__version__}'
        raise ValueError(
            f'{path} cannot be run by onnxruntime {ort.__version__} ({reason}): '
            f'{remedy}.'
        ) from error


def _metadata(path: str, session: Any) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ValueError(
            f'{path} has no metadata of memvit_mm, so its memory and classes are not '
            'known: make it with tools/deployment/export_onnx.py.'
        )
    about = json.loads(text)
    if about['format'] > FORMAT:
        raise ValueError(
            f'{path} was made by memvit_mm {about["version"]}, and this one is older: '
            'install that one.'
        )
    return about
