"""ClipMemory: the keys and values that are kept of each stream's last clips."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Optional, Union
from weakref import WeakValueDictionary

import torch
from mmaction.registry import MODELS
from mmdet.registry import MODELS as MMDET_MODELS

from memvit_mm.structures import Stream

from .layers import MemorySpec
from .step import KeptClip, LoadedLayer, MemoryStep
from .table import Plan

# Number of streams that were forgotten to make room of which the memory knows.
FORGOTTEN = 1024


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
        dtype (str | torch.dtype, optional): In which keys and values are kept. None:
            as the model writes them, which under autocast on a GPU is float32;
            'bfloat16' takes half of that.

    Examples:
        >>> import torch
        >>> from memvit_mm.models.memory.layers import KeyValue, MemorySpec, Written
        >>> from memvit_mm.models.memory.layers import LevelSpec
        >>> memory = ClipMemory()
        >>> level = LevelSpec(ages=(1,), source=0, form=0, tokens=3)
        >>> specs = {'layer0': MemorySpec(channels=4, tokens=3, levels=(level,))}
        >>> for time in (0, 1):
        ...     step = memory.step([Stream('a'), Stream('b')], [time, time])
        ...     past = step.read(specs, like=torch.zeros(1))['layer0'][0]
        ...     print(past.valid.squeeze(1).tolist())
        ...     clip = torch.rand(2, 3, 4)  # [B, tokens, C]
        ...     step.write({'layer0': Written(KeyValue(clip, clip))})
        ...     step.commit()
        [False, False]
        [True, True]
        >>> memory.num_bytes  # 2 clips x keys and values x 3 tokens x 4 channels x 4
        192
        >>> memory.reset('a')
        >>> memory.streams
        [Stream(video='b', view=0, run=0, epoch=0)]
    """

    def __init__(
        self, max_streams: int = 64, dtype: Union[str, torch.dtype, None] = None
    ) -> None:
        if max_streams < 1:
            raise ValueError(f'max_streams={max_streams} must be at least 1.')
        known = (torch.float32, torch.bfloat16, torch.float16)
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype is not None and found not in known:
            raise ValueError(
                f"dtype={dtype!r} of ClipMemory must be 'float32', 'bfloat16' or "
                "'float16', or None for what the model writes."
            )
        self.max_streams = max_streams
        self.dtype = found
        self._clips: OrderedDict[Stream, list[KeptClip]] = OrderedDict()
        self._aside: list = []
        self._warned: set = set()
        self._owners: WeakValueDictionary = WeakValueDictionary()
        # As long as a clip or a step has them.
        self._plans: WeakValueDictionary[tuple, Plan] = WeakValueDictionary()
        # The times of their last clips.
        self._forgotten: OrderedDict[Stream, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Streams are open with this memory, not with a copy of it.
        hidden = ('_owners', '_plans')
        state = {k: v for k, v in self.__dict__.items() if k not in hidden}
        state['_aside'] = [kept[:2] for kept in self._aside]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._owners = WeakValueDictionary()
        self._plans = self._plans_of(self._clips)
        self._aside = [
            (clips, forgotten, self._plans_of(clips))
            for clips, forgotten in self._aside
        ]

    @staticmethod
    def _plans_of(kept: dict[Stream, list[KeptClip]]) -> WeakValueDictionary:
        plans = (clip.plan for clips in kept.values() for clip in clips)
        return WeakValueDictionary({plan.key: plan for plan in plans if plan})

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
        """Bytes of what is remembered, also of what is set aside.

        The tensors that hold it have a row of zeros more, and as many rows as were ever
        in use at once since they were last empty.
        """
        kept = [self._clips, *(clips for clips, *_ in self._aside)]
        clips = [clip for part in kept for clips in part.values() for clip in clips]
        layers = (layer for clip in clips for layer in clip.loaded.values())
        loaded = {id(x): x.nbytes for layer in layers for x in layer.tensors}
        plans = {clip.plan for clip in clips if clip.plan is not None}
        return sum(loaded.values()) + sum(plan.num_bytes for plan in plans)

    def step(self, streams: Sequence[Stream], times: Sequence[Any]) -> MemoryStep:
        """Begin one clip for each of some streams; nothing changes before its commit.

        Args:
            streams (sequence[Stream]): One per row of the batch.
            times (sequence[int | float]): When each row's clip is, any ordered number.

        Returns:
            MemoryStep: Reads the past and writes the present.

        Raises:
            ValueError: If two rows are of one stream, or if the batch, with the streams
                that are open, has more streams than ``max_streams``.
        """
        if len(set(streams)) < len(streams):
            raise ValueError(
                f'A step holds two clips of one stream, of {list(streams)}: clips of a '
                'stream need a step each, in time order.'
            )
        self._check_room(streams)
        pasts = [self._past_of(stream, time) for stream, time in zip(streams, times)]
        return MemoryStep(
            self.put, self.plan_of, self.warn_once, list(streams), list(times), pasts
        )

    def plan_of(self, specs: dict[str, MemorySpec]) -> Plan:
        """Where clips of these layers are kept; :class:`MemoryStep` asks for it."""
        plan = self._plans.get(tuple(specs.items()))
        if plan is None:
            plan = Plan(specs, self.dtype)
            self._plans[plan.key] = plan
        return plan

    def _past_of(self, stream: Stream, time: Any) -> list[KeptClip]:
        """The clips before this one; none if it is not later than the last of them."""
        past = list(self._clips.get(stream, ()))
        if past and time <= past[-1].time:
            self._warn_order(stream, time, past[-1].time)
            return []
        if time > self._forgotten.get(stream, time):
            self._warn_room(stream, time)
        return past

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
            "type='SequentialClipSampler') in the dataloader, add 'stream' (with "
            "datasets that are not of memvit_mm: 'sample_idx') to the meta_keys of "
            'PackActionInputs for training, and call reset_memory() before a video '
            'begins again. (Said once.)',
        )

    def warn_once(self, kind: str, message: str) -> None:
        """Warn the first time that something of this kind happens."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)

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
        # What comes is kept apart, and its tensors go with it.
        self._aside.append((self._clips, self._forgotten, self._plans))
        self._clips, self._forgotten = OrderedDict(), OrderedDict()
        self._plans = WeakValueDictionary()

    def restore(self) -> None:
        """Drop the present memory and take back the one set aside last.

        Raises:
            RuntimeError: If nothing was set aside.
        """
        if not self._aside:
            raise RuntimeError('No memory was set aside: call set_aside() first.')
        self._clips, self._forgotten, self._plans = self._aside.pop()

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
                        loaded={
                            k: LoadedLayer.of(v) for k, v in clip['layers'].items()
                        },
                    )
                    for clip in entry['clips']
                ],
            )
            for entry in state['streams']
        )
        self._forgotten.clear()

    def put(self, stream: Stream, clips: list[KeptClip]) -> None:
        """Replace what is kept of a stream; :meth:`MemoryStep.commit` calls it."""
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
