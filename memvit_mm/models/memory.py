"""ClipMemory: what is remembered of each stream's last clips. The only state."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union
from weakref import WeakValueDictionary

import torch
from mmaction.registry import MODELS
from mmdet.registry import MODELS as MMDET_MODELS
from torch import Tensor

from memvit_mm.structures import Stream

from .kernels.fused_attention import is_transforming
from .layer_memory import KeyValue, LayerMemories, LayerWrites, MemorySpec, PastClips

# Streams that were forgotten to make room, of which it is known.
FORGOTTEN = 1024


def steps_back(length: int, gap: int) -> list[int]:
    """Which earlier clips are attended, oldest first (MeMViT, sec. 4.2).

    Examples:
        >>> steps_back(length=2, gap=2)
        [4, 2]
    """
    return [gap * i for i in range(length, 0, -1)]


@dataclass
class KeptLayer:
    """What is kept of one clip at one layer, without gradient."""

    key: Tensor
    """[tokens, C]."""
    value: Tensor
    """[tokens, C]; the same tensor as ``key`` where a layer keeps one thing."""
    compressed: bool = False
    grid: tuple[int, ...] = ()
    """T, H, W of the keys before compression; () where they have no place."""

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors; ``value`` is None where it is the key."""
        value = None if self.value is self.key else self.value
        return dict(
            key=self.key, value=value, compressed=self.compressed, grid=self.grid
        )

    @classmethod
    def of(cls, state: dict[str, Any]) -> 'KeptLayer':
        """From what :meth:`state_dict` gave."""
        value = state['key'] if state['value'] is None else state['value']
        return cls(state['key'], value, state['compressed'], tuple(state['grid']))


@dataclass
class KeptClip:
    """What is kept of one clip."""

    time: Union[int, float]
    """In the unit of ``metainfo['timestamp']``; only its order matters."""
    layers: dict[str, KeptLayer] = field(default_factory=dict)


@MMDET_MODELS.register_module()
@MODELS.register_module()
class ClipMemory:
    """The last clips' keys and values of every memory layer, per stream.

    Rows of a batch are looked up by stream, so batches may have any composition and
    any size: what a row gets depends on its own stream's past alone. A stream seen
    for the first time starts empty; so does one whose clip is not later than the
    clip before.

    It is deliberately no ``nn.Module`` and has no buffers: mmengine averages those
    over ranks, copies them into EMA models and saves them in checkpoints.

    Args:
        max_streams (int): Streams to remember at most; the least recently used goes
            first, but none that is open (:meth:`open`). Defaults to 64.

    Examples:
        >>> import torch
        >>> from memvit_mm.models.layer_memory import KeyValue, MemorySpec, Written
        >>> memory = ClipMemory()
        >>> specs = {'layer0': MemorySpec(4, 3, 3, length=1, gap=1)}
        >>> for time in (0, 1):
        ...     step = memory.step([Stream('a'), Stream('b')], [time, time])
        ...     past = step.past(specs, like=torch.zeros(1))['layer0']
        ...     print(past.valid.squeeze(1).tolist())
        ...     clip = torch.rand(2, 3, 4)  # [B, tokens, C]
        ...     step.keep({'layer0': Written(KeyValue(clip, clip))})
        ...     step.commit()
        [False, False]
        [True, True]
        >>> memory.num_bytes  # one clip each: 3 tokens x 4 channels x 4 bytes
        96
        >>> memory.reset('a')
        >>> memory.streams
        [Stream(video='b', view=0, run=0, epoch=0)]
    """

    def __init__(self, max_streams: int = 64) -> None:
        if max_streams < 1:
            raise ValueError(f'max_streams={max_streams} must be at least 1.')
        self.max_streams = max_streams
        self._clips: OrderedDict[Stream, list[KeptClip]] = OrderedDict()
        self._aside: list = []
        self._warned: set = set()
        self._owners: WeakValueDictionary = WeakValueDictionary()
        # The times of their last clips.
        self._forgotten: OrderedDict[Stream, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Streams are open with this memory, not with a copy of it.
        return {k: v for k, v in self.__dict__.items() if k != '_owners'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._owners = WeakValueDictionary()

    # ------------------------------------------------------------------- reading

    @property
    def streams(self) -> list[Stream]:
        """The streams remembered, least recently used first."""
        return list(self._clips)

    def __len__(self) -> int:
        return len(self._clips)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(streams={len(self)}, '
            f'max_streams={self.max_streams}, bytes={self.num_bytes})'
        )

    @property
    def num_bytes(self) -> int:
        """Bytes that the remembered tensors take, those set aside included."""
        storages = {}
        for streams in [self._clips, *(clips for clips, _ in self._aside)]:
            for clips in streams.values():
                for clip in clips:
                    for kept in clip.layers.values():
                        for tensor in (kept.key, kept.value):
                            storage = tensor.untyped_storage()
                            storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def step(self, streams: Sequence[Stream], times: Sequence[Any]) -> 'MemoryStep':
        """Begin one clip for each of some streams; nothing changes before its commit.

        Args:
            streams (sequence[Stream]): One per row of the batch.
            times (sequence[int | float]): When each row's clip is, any ordered number.

        Returns:
            MemoryStep: Reads the past, takes what is to be kept.

        Raises:
            ValueError: If the batch, with the streams that are open, has more streams
                than ``max_streams``.
        """
        times = list(times)
        self._check_room(streams)
        rows: dict[Stream, int] = {}
        pasts = []
        for row in sorted(range(len(streams)), key=lambda row: times[row]):
            stream = streams[row]
            past = list(self._clips.get(stream, ()))
            if stream in rows:
                self._warn_order(stream, times[row], times[rows[stream]])
                past = []
            elif past and times[row] <= past[-1].time:
                self._warn_order(stream, times[row], past[-1].time)
                past = []
            elif stream in self._forgotten and times[row] > self._forgotten[stream]:
                self._warn_room(stream, times[row])
            rows[stream] = row
            pasts.append((row, past))
        return MemoryStep(
            self,
            list(streams),
            times,
            [p for _, p in sorted(pasts, key=lambda item: item[0])],
        )

    def expect(self, streams: Sequence[Stream]) -> None:
        """Make room for a batch that will come in several steps.

        None of its streams is forgotten before the batch is through, whichever of them
        comes first.

        Raises:
            ValueError: As :meth:`step`.
        """
        self._check_room(streams)
        for stream in streams:
            if stream in self._clips:
                self._clips.move_to_end(stream)

    def _check_room(self, streams: Sequence[Stream]) -> None:
        self.check_room(len({*streams, *filter(self._is_open, self._clips)}))

    def _is_open(self, stream: Stream) -> bool:
        """Whether somebody goes on with what is remembered of a stream."""
        return bool(self._clips[stream]) and stream.video in self._owners

    def check_room(self, count: int) -> None:
        """Refuse more streams at once than ``max_streams``.

        Raises:
            ValueError: If there are.
        """
        if count > self.max_streams:
            raise ValueError(
                f'Memory is needed for {count} streams, but it keeps '
                f'max_streams={self.max_streams}: raise it in the config, '
                "model.memory=dict(type='ClipMemory', max_streams=...), or lower the "
                'batch size or the number of streams that are open at once.'
            )

    def _warn_room(self, stream: Stream, time: Any) -> None:
        self.warn_once(
            'room',
            f'The clip of {stream.video!r} at {time} starts with an empty memory: what '
            'was remembered of those before it made room for other videos. Raise '
            f"max_streams={self.max_streams} of model.memory=dict(type='ClipMemory', "
            'max_streams=...) to the number of videos (times views) that are read side '
            "by side, or set batch_sampler=dict(type='SequentialClipSampler') in the "
            'dataloader. (Said once.)',
        )

    def _warn_order(self, stream: Stream, time: Any, last: Any) -> None:
        self.warn_once(
            'order',
            f'The clip of {stream.video!r} at {time} is not later than the one before '
            f'it, at {last}: it starts with an empty memory. Memory needs the clips of '
            'a video in time order: use batch_sampler=dict('
            "type='SequentialClipSampler') in the dataloader, add 'sample_idx' to the "
            'meta_keys of PackActionInputs for training, and call reset_memory() '
            'before a video begins again. (Said once.)',
        )

    def warn_once(self, kind: str, message: str) -> None:
        """Warn the first time that something of this kind happens."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)

    # ----------------------------------------------------------------- lifecycle

    def open(self, video: Hashable, owner: Any) -> None:
        """Keep what is remembered of a video until it is reset or its owner is gone.

        Args:
            video (Hashable): The video id.
            owner (object): Who reads it. The memory does not keep it alive.
        """
        self._owners[video] = owner

    def owner(self, video: Hashable) -> Any:
        """Who opened a video last; None where nobody did who is still there."""
        return self._owners.get(video)

    def reset(self, stream: Optional[Hashable] = None) -> None:
        """Forget everything, or one :class:`Stream`, or all streams of one video id."""
        if stream is None:
            self._clips.clear()
            self._forgotten.clear()
            return
        for table in (self._clips, self._forgotten):
            for known in list(table):
                if stream == known or stream == known.video:
                    del table[known]

    def set_aside(self) -> None:
        """Put the present memory away and go on with an empty one."""
        self._aside.append((self._clips, self._forgotten))
        self._clips, self._forgotten = OrderedDict(), OrderedDict()

    def restore(self) -> None:
        """Drop the present memory and take back the one set aside last.

        Raises:
            RuntimeError: If nothing was set aside.
        """
        if not self._aside:
            raise RuntimeError('No memory was set aside: call set_aside() first.')
        self._clips, self._forgotten = self._aside.pop()

    def state_dict(self, set_aside: bool = False) -> dict[str, list]:
        """All streams as plain lists, numbers, strings and tensors.

        ``torch.save`` it, and load it with ``weights_only=True``.

        Args:
            set_aside (bool): Take the memory that was set aside first, if any was.
        """
        streams = self._aside[0][0] if set_aside and self._aside else self._clips
        return dict(
            streams=[
                dict(
                    stream=tuple(stream),
                    clips=[
                        dict(
                            time=clip.time,
                            layers={k: v.state_dict() for k, v in clip.layers.items()},
                        )
                        for clip in clips
                    ],
                )
                for stream, clips in streams.items()
            ]
        )

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Replace the memory by a saved one. Its tensors are copied."""
        state = copy.deepcopy(state)
        self._clips = OrderedDict(
            (
                Stream(*entry['stream']),
                [
                    KeptClip(
                        clip['time'],
                        {k: KeptLayer.of(v) for k, v in clip['layers'].items()},
                    )
                    for clip in entry['clips']
                ],
            )
            for entry in state['streams']
        )
        self._forgotten.clear()

    def _commit(self, stream: Stream, clips: list[KeptClip]) -> None:
        self._clips[stream] = clips
        self._clips.move_to_end(stream)
        self._forgotten.pop(stream, None)
        while len(self._clips) > self.max_streams:
            old = next(s for s in self._clips if not self._is_open(s))
            if self._clips[old]:
                self._forgotten[old] = self._clips[old][-1].time
            del self._clips[old]
            if len(self._forgotten) > FORGOTTEN:
                self._forgotten.popitem(last=False)


class MemoryStep:
    """One clip of each of some streams: read the past, keep the present, commit.

    Made by :meth:`ClipMemory.step`. Until :meth:`commit` the memory is as it was, so
    that a forward pass that fails leaves no trace.
    """

    def __init__(
        self,
        memory: ClipMemory,
        streams: list[Stream],
        times: list,
        pasts: list[list[KeptClip]],
    ) -> None:
        self.memory = memory
        self.streams = streams
        self.times = times
        self._pasts = pasts
        self._new = [KeptClip(time) for time in times]
        self._compressed: list = []
        self._specs: dict[str, MemorySpec] = {}
        self._valid: dict = {}

    def __len__(self) -> int:
        return len(self.streams)

    def past(self, specs: dict[str, MemorySpec], like: Tensor) -> LayerMemories:
        """What each layer may attend to.

        Args:
            specs (dict[str, MemorySpec]): What the layers keep and read.
            like (Tensor): Gives device and dtype.

        Returns:
            dict[str, PastClips]: By layer, one row per stream of this step.
        """
        for row in range(len(self)):
            if not self._fits(row, specs):
                self.memory.warn_once(
                    'size',
                    f'The frames of {self.streams[row].video!r} changed their size at '
                    f'{self.times[row]}: its memory starts afresh. (Said once.)',
                )
                self._pasts[row] = []
        self._specs.update(specs)
        return {name: self._past(name, spec, like) for name, spec in specs.items()}

    def _fits(self, row: int, specs: dict[str, MemorySpec]) -> bool:
        for clip in self._pasts[row]:
            for name, spec in specs.items():
                kept = clip.layers.get(name)
                if kept is not None:
                    size = spec.compressed_tokens if kept.compressed else spec.tokens
                    if kept.key.shape != (size, spec.channels):
                        return False
                    if kept.grid != spec.grid:
                        return False
        return True

    def _slot(self, row: int, name: str, back: int) -> Optional[KeptLayer]:
        """What a row's layer kept of the clip ``back`` steps before this one."""
        past = self._pasts[row]
        return past[-back].layers.get(name) if back <= len(past) else None

    def _past(self, name: str, spec: MemorySpec, like: Tensor) -> PastClips:
        slots = [
            [self._slot(row, name, back) for row in range(len(self))]
            for back in steps_back(spec.length, spec.gap)
        ]
        *older, recent = [
            self._stack(slot, tokens, spec.channels, like)
            for slot, tokens in zip(
                slots, [spec.compressed_tokens] * (spec.length - 1) + [spec.tokens]
            )
        ]
        if len(older) == 1:
            older = older[0]
        elif older:
            # slots x [B, tokens, C] -> [B, slots*tokens, C]
            older = KeyValue(*(torch.cat(part, dim=1) for part in zip(*older)))
        else:
            none = (len(self), 0, spec.channels)
            older = KeyValue(like.new_zeros(none), like.new_zeros(none))
        return PastClips(recent, older, self._filled(slots, like.device))

    def _filled(self, slots: list[list], device: torch.device) -> Tensor:
        """Which slots hold a clip: bool, [B, length]; one tensor for alike layers."""
        filled = tuple(tuple(kept is not None for kept in row) for row in zip(*slots))
        if (filled, device) not in self._valid:
            # Copying it to a GPU waits for the GPU: once, not once a layer.
            self._valid[filled, device] = torch.tensor(filled, device=device)
        return self._valid[filled, device]

    def _stack(
        self, slot: list[Optional[KeptLayer]], tokens: int, channels: int, like: Tensor
    ) -> KeyValue:
        """Rows of one slot: [B, tokens, C], zeros where there is nothing."""
        if not any(slot):
            # Two tensors, as when they are filled: torch.compile tells that apart.
            size = (len(slot), tokens, channels)
            return KeyValue(like.new_zeros(size), like.new_zeros(size))
        zeros = None if all(slot) else like.new_zeros(tokens, channels)

        def rows(part: str) -> Tensor:
            return torch.stack(
                [zeros if k is None else getattr(k, part).to(like) for k in slot]
            )

        key = rows('key')
        shared = all(kept is None or kept.key is kept.value for kept in slot)
        return KeyValue(key, key if shared else rows('value'))

    def keep(self, written: LayerWrites) -> None:
        """Take what the layers hand over. The one place where gradient ends.

        Args:
            written (dict[str, Written]): By layer, rows as in this step.

        Raises:
            RuntimeError: Inside a transform of torch.func, whose tensors mean nothing
                outside of it.
        """
        if is_transforming():
            raise RuntimeError(
                'A memory cannot be written inside torch.func (grad, vmap, jvp, ...): '
                'give the backbone the earlier clips, backbone(x, memory=...), or call '
                'the model without data samples.'
            )
        for name, new in written.items():
            grid = self._specs[name].grid
            for row, kept in enumerate(self._rows(new.current, False, grid)):
                self._new[row].layers[name] = kept
            if new.compressed is not None:
                gap = self._specs[name].gap
                for row, kept in enumerate(self._rows(new.compressed, True, grid)):
                    if self._slot(row, name, gap) is not None:
                        self._compressed.append((row, gap, name, kept))

    def _rows(
        self, pair: KeyValue, compressed: bool, grid: tuple[int, ...]
    ) -> list[KeptLayer]:
        # Each row owns its storage: a view would keep the whole batch alive.
        keys = [key.clone() for key in pair.key.detach()]
        if pair.value is pair.key:
            return [KeptLayer(key, key, compressed, grid) for key in keys]
        values = [value.clone() for value in pair.value.detach()]
        return [KeptLayer(k, v, compressed, grid) for k, v in zip(keys, values)]

    def commit(self) -> None:
        """Make this step part of the memory."""
        for row, gap, name, kept in self._compressed:
            past = self._pasts[row]
            clip = past[-gap]
            past[-gap] = KeptClip(clip.time, {**clip.layers, name: kept})
        horizon = max((s.length * s.gap for s in self._specs.values()), default=0)
        # In order of time: if a batch held two clips of a stream, the later one stays.
        for row in sorted(range(len(self)), key=lambda row: self.times[row]):
            clips = [*self._pasts[row], self._new[row]]
            self.memory._commit(self.streams[row], clips[-horizon:] if horizon else [])
