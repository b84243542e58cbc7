"""Which earlier clips move the features of this one: one of them is changed."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from memvit_mm.datasets.clip_recipe import read_recipe
from memvit_mm.models.memory import MemorySpec
from memvit_mm.models.memory.schedule import clips_text

from .complexity import clip_shape

# Frames per second of the videos that seconds are told for.
FPS = 30.0


class LevelReach(NamedTuple):
    """What is read directly at one level of a schedule."""

    part: str
    """'features' or 'people'."""
    ages: tuple[int, ...]
    """Clips back, newest first."""
    tokens: tuple[int, int]
    """Keys of one clip and layer, the fewest and the most of all layers."""


@dataclass
class ReceptiveField:
    """How many clips back a change still reaches, and which are read directly."""

    features: list[int]
    """Clips back that move the backbone's features; 0 is the clip itself."""
    actors: Optional[list[int]]
    """The same for the scores of people; None without a detector."""
    levels: list[LevelReach] = field(default_factory=list)
    """What is read directly, level by level."""
    clip_seconds: Optional[float] = None
    """What one clip spans; None if the config does not say."""
    stride_seconds: Optional[float] = None
    """From one clip to the next."""

    def span(self, clips: Sequence[int]) -> Optional[float]:
        """Seconds from the first frame of the farthest clip to the last of this one."""
        if self.clip_seconds is None or self.stride_seconds is None:
            return None
        return self.clip_seconds + max(clips, default=0) * self.stride_seconds

    def to_dict(self) -> dict[str, Any]:
        """The figures as numbers, lists and dicts."""
        return dict(
            features=self.features,
            actors=self.actors,
            levels=[level._asdict() for level in self.levels],
            clip_seconds=self.clip_seconds,
            stride_seconds=self.stride_seconds,
            features_span_seconds=self.span(self.features),
            actors_span_seconds=self.span(self.actors) if self.actors else None,
        )

    def __str__(self) -> str:
        lines = []
        for name, clips in (('features', self.features), ('people', self.actors)):
            if clips is None:
                continue
            line = f'{name} are moved by the clips {_steps(clips)} back'
            span = self.span(clips)
            if span is not None:
                line += (
                    f': {span:.1f} s, {span / self.clip_seconds:.1f} x the '
                    f'{self.clip_seconds:.1f} s of the clip itself'
                )
            lines.append(line)
        lines.append(
            f'{"read directly by":<18}{"clips back":<22}{"keys a clip and layer":<24}'
            'seconds back'
        )
        for level in self.levels:
            seconds = ''
            if self.stride_seconds is not None:
                near, far = level.ages[0], level.ages[-1]
                seconds = f'{near * self.stride_seconds:.1f}'
                if far > near:
                    seconds += f' to {far * self.stride_seconds:.1f}'
            few, many = level.tokens
            tokens = str(few) if few == many else f'{few} to {many}'
            clips = f'{clips_text(level.ages)} '
            lines.append(f'{level.part:<18}{clips:<22}{tokens:<24}{seconds}')
        return '\n'.join(lines)


def _steps(clips: Sequence[int]) -> str:
    """Shorten: 0, 2, 4, …, 32."""
    steps = {b - a for a, b in zip(clips, clips[1:])}
    if len(clips) > 5 and len(steps) == 1:
        return f'{clips[0]}, {clips[1]}, {clips[2]}, …, {clips[-1]}'
    return ', '.join(map(str, clips)) or 'none'


def receptive_field(cfg: Mapping[str, Any]) -> ReceptiveField:
    """Play one stream twice, its first clip changed the second time.

    What moves the features of clip k is then k clips back: earlier clips than the
    changed one could only pass on what they never saw. Weights are random and of the
    size that trained ones have, in double precision, so that what has come through
    every layer is not lost in rounding. Frames have at most 32 pixels a side, since
    the reach does not depend on their size.

    Args:
        cfg (Config): A config with ``model`` and, for the seconds, a test pipeline.

    Raises:
        ValueError: If the model has no memory.
    """
    model = build_model(cfg)
    lively_weights(model)
    model.double()
    channels, frames, *sides = clip_shape(cfg['model']['backbone'])
    shape = (channels, frames, *(min(side, 32) for side in sides))
    # A little further than the layers can reach.
    count = farthest(model, shape[1:]) + 3
    plain, changed = (_play(model, shape, count, change) for change in (False, True))
    features, *actors = (
        [k for k, pair in enumerate(zip(*runs)) if not torch.equal(*pair)]
        for runs in zip(zip(*plain), zip(*changed))
    )
    return ReceptiveField(
        features,
        actors[0] if actors else None,
        direct_reach(model, clip_shape(cfg['model']['backbone'])[1:]),
        *_seconds(cfg),
    )


def direct_reach(model: nn.Module, size: Sequence[int]) -> list[LevelReach]:
    """Which clips a model reads directly.

    Args:
        model (MemoryRecognizer3D | MemoryFastRCNN): The model.
        size (sequence[int]): T, H, W of its clips.
    """
    levels = []
    for part, specs in _specs(model, size).items():
        for alike in zip(*(spec.levels for spec in specs)):
            tokens = [level.tokens for level in alike]
            reach = LevelReach(part, alike[0].ages, (min(tokens), max(tokens)))
            levels.append(reach)
    return levels


def _specs(model: nn.Module, size: Sequence[int]) -> dict[str, list[MemorySpec]]:
    """What the layers keep, of the backbone and of the attention among people."""
    specs = dict(features=list(model.backbone.memory_specs(size).values()))
    head = getattr(getattr(model, 'roi_head', None), 'shared_head', None)
    if hasattr(head, 'memory_specs'):
        specs['people'] = list(head.memory_specs().values())
    return specs


def _play(
    model: nn.Module, shape: Sequence[int], count: int, change: bool
) -> list[list[Tensor]]:
    """What :func:`feed` gives for each clip of a stream."""
    model.reset_memory()
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for number in range(count):
        clip = torch.randn(1, *shape, generator=generator).double()
        if change and number == 0:
            clip = clip.flip(-1) + 1
        outputs.append(feed(model, clip, number))
    return outputs


def build_model(cfg: Mapping[str, Any]) -> nn.Module:
    """The model of a config, with random weights, for :func:`feed`.

    Raises:
        ValueError: If it has no memory.
    """
    init_default_scope('mmaction')
    model_cfg = copy.deepcopy(ConfigDict(cfg['model']))
    model_cfg.backbone.pop('pretrained', None)
    torch.manual_seed(0)
    model = MODELS.build(model_cfg).eval()
    if not getattr(model.backbone, 'memory_layers', ()) or not hasattr(model, 'memory'):
        raise ValueError(
            'the model has no memory: its receptive field is the clip. Set '
            'model.backbone.memory_layers and use MemoryRecognizer3D or '
            'MemoryFastRCNN.'
        )
    return model


def farthest(model: nn.Module, size: Sequence[int]) -> int:
    """How many clips back the layers of a model can pass something on.

    Args:
        model (MemoryRecognizer3D | MemoryFastRCNN): The model.
        size (sequence[int]): T, H, W of its clips.
    """
    return sum(spec.ages[-1] for part in _specs(model, size).values() for spec in part)


def lively_weights(model: nn.Module) -> None:
    """Random weights of trained size: no product shrinks what passes through it, and
    no gate is closed."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            std = 0.3 if 'rel_pos' in name else parameter[0].numel() ** -0.5
            parameter.data.normal_(0, std, generator=generator)
        elif name.endswith('.gate'):
            parameter.data.normal_(0, 1, generator=generator)


def feed(model: nn.Module, clip: Tensor, number: int) -> list[Tensor]:
    """Run the next clip [1, C, T, H, W] of a stream through a model with memory.

    Returns:
        list[Tensor]: The features and, of a detector, the scores of a person.
    """
    sample = ActionDataSample()
    sample.set_metainfo(
        dict(video_id='video', timestamp=number, img_shape=tuple(clip.shape[-2:]))
    )
    detector = hasattr(model, 'roi_head')
    with torch.no_grad():
        if not detector:
            features = model(clip[:, None], [sample], mode='tensor')
            return [_joined(features)]
        height, width = clip.shape[-2:]
        box = torch.tensor([[0.1 * width, 0.1 * height, 0.8 * width, 0.9 * height]])
        sample.proposals = InstanceData(bboxes=box.to(clip))
        features, scores = model(clip, [sample], mode='tensor')
    return [_joined(features), scores.flatten()]


def _joined(features: Any) -> Tensor:
    """The features of all scales as one vector."""
    if isinstance(features, Tensor):
        return features.flatten()
    return torch.cat([_joined(part) for part in features])


def _seconds(cfg: Mapping[str, Any]) -> tuple:
    """What a clip spans and how far clips are apart, where the config says so."""
    try:
        recipe = read_recipe(cfg)
    except (ValueError, KeyError):
        return None, None
    sampler = recipe.sampler
    clip = sampler.clip_len * sampler.frame_interval / FPS
    return clip, recipe.stride or clip
