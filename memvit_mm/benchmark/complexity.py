"""Parameters and multiply-adds of a model, as papers state them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from mmaction.registry import MODELS
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from memvit_mm.models.heads.actor_memory import ActorMemoryHead
from memvit_mm.models.memory.layers import empty_memory


class MacCounter(TorchFunctionMode):
    """Counts the multiply-adds of the PyTorch functions called inside it.

    Counted, one multiplication and one addition together as one: linear layers,
    convolutions, matrix products and einsums, and of attention both products,
    queries x keys and weights x values. Not counted: additions of biases and residuals,
    normalization, activations, softmax, pooling by maximum or mean, RoIAlign. That is
    what "GFLOPs" means in the MViT, MViTv2 and MeMViT papers.

    Attention counts as its formula has it. Our layers fold relative positions and
    masks into extra channels of queries and keys (see
    :mod:`memvit_mm.models.relative_position`); those are a way to compute a sum and
    are left out, while the products of queries and position vectors count. So are
    products with constants (:mod:`memvit_mm.models.kernels.constants`), in place of
    which numbers could be picked out by their places.

    The functions are computed as usual, except for attention, whose output is left
    empty: run models on the 'meta' device to count without computing.

    Examples:
        >>> with MacCounter() as counter:
        ...     _ = nn.Linear(8, 4)(torch.rand(2, 5, 8))
        >>> counter.total
        320
    """

    def __init__(self) -> None:
        super().__init__()
        self._flops = FlopCounterMode(display=False)
        self._attention = self._constant = 0

    @property
    def total(self) -> int:
        """All multiply-adds so far."""
        flops = self._flops.get_total_flops() - self._constant
        return flops // 2 + self._attention

    def __enter__(self) -> 'MacCounter':
        self._flops.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._flops.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        before = self._flops.get_total_flops()
        out = func(*args, **(kwargs or {}))
        if any(getattr(x, 'is_constant', False) for x in args):
            self._constant += self._flops.get_total_flops() - before
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *args, scale=None, **kwargs):
        """[B, heads, Q, C], [B, heads, K, C] x 2 -> [B, heads, Q, C], empty."""
        # Scores are scaled by a head's own channels, which may be fewer than there are.
        channels = v.shape[-1] if scale is None else round(scale**-2)
        queries = q.shape[:-1].numel()
        self._attention += 2 * queries * k.shape[-2] * channels
        return v.new_empty(*q.shape[:-1], v.shape[-1])


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass
class Cost:
    """What a part of a model costs for one clip."""

    parameters: int
    macs: int
    """Multiply-adds."""
    stream_bytes: int = 0
    """What the memory keeps of one stream, in float32."""

    def __str__(self) -> str:
        return f'{self.parameters / 1e6:8.2f} M  {self.macs / 1e9:8.2f} G'


@dataclass
class Costs:
    """What a model costs for one clip, by part."""

    clip: tuple[int, int, int, int]
    """C, T, H, W: channels, frames, pixels."""
    backbone: Cost
    """With its memory full, if it has one."""
    without_memory: Optional[Cost] = None
    """The same backbone without memory; None if it has none."""
    memory_everywhere: Optional[int] = None
    """Parameters with memory parameters in every layer, as the published models carry
    them."""
    actors: Optional[Cost] = None
    """Attention among people, for one clip and full memory."""
    rest: int = 0
    """Parameters of everything else: the classifier."""

    def __str__(self) -> str:
        _, frames, height, width = self.clip
        lines = [
            f'One clip of {frames} frames of {height} x {width} pixels',
            f'{"":36}parameters  multiply-adds',
            f'{"backbone":36}{self.backbone}',
        ]
        if self.without_memory is not None:
            without = self.without_memory
            parameters = self.backbone.parameters / without.parameters - 1
            macs = self.backbone.macs / without.macs - 1
            every = f'{self.memory_everywhere / 1e6:8.2f} M'
            lines += [
                f'{"  without memory":36}{without}',
                f'{"  memory adds":36}{_share(parameters):>8}    {_share(macs):>8}',
                f'{"  memory parameters in every layer":36}{every}',
                f'{"  kept of a stream":36}'
                f'{self.backbone.stream_bytes / 2**20:8.1f} MB in float32',
            ]
        if self.actors is not None:
            lines.append(f'{"attention among people":36}{self.actors}')
        if self.rest:
            lines.append(f'{"classifier and others":36}{self.rest / 1e6:8.2f} M')
        return '\n'.join(lines)


def _share(value: float) -> str:
    """A part in percent; what is there is never 0.0 %."""
    return '< 0.1%' if 0 < value < 0.0005 else f'{value:.1%}'


def model_costs(model: dict, size: Optional[Sequence[int]] = None) -> Costs:
    """Parameters and multiply-adds of the model of a config.

    The classifier's multiply-adds are too few to be listed: less than 0.001 G per
    clip or box.

    Args:
        model (dict): Config of the model.
        size (sequence[int], optional): T, H, W of a clip, in frames and pixels; the
            size that the backbone is made for by default.

    Raises:
        ValueError: If there is no backbone or clips of this size do not fit it.
    """
    if 'backbone' not in model:
        raise ValueError('the config has no model.backbone to count.')
    backbone = model['backbone']
    clip = clip_shape(backbone, size)
    costs = Costs(clip, backbone_cost(backbone, clip))
    built = MODELS.build(ConfigDict(model))
    if getattr(built.backbone, 'memory_layers', ()):
        costs.without_memory = backbone_cost(dict(backbone, memory_layers=()), clip)
        everywhere = range(len(built.backbone.blocks))
        with torch.device('meta'):
            costs.memory_everywhere = count_parameters(
                MODELS.build(ConfigDict(backbone, memory_layers=everywhere))
            )
    actors = getattr(getattr(built, 'roi_head', None), 'shared_head', None)
    if isinstance(actors, ActorMemoryHead):
        costs.actors = actors_cost(actors)
    counted = costs.backbone.parameters
    counted += costs.actors.parameters if costs.actors else 0
    costs.rest = count_parameters(built) - counted
    return costs


def backbone_cost(cfg: dict, clip: Sequence[int]) -> Cost:
    """Cost of a backbone on one clip; with memory, of a clip whose memory is full.

    Nothing is computed: the backbone is built and run on the 'meta' device.

    Args:
        cfg (dict): Config of the backbone.
        clip (sequence[int]): C, T, H, W: channels, frames, pixels.

    Raises:
        ValueError: If the clip does not fit the backbone.
    """
    cfg = ConfigDict(cfg)
    cfg.pop('pretrained', None)
    with torch.device('meta'):
        backbone = MODELS.build(cfg).eval()
        x = torch.empty(1, *clip)
    try:
        # Slots are fixed in number and hidden where empty: an empty memory is as much
        # work as a full one.
        memory, kept = {}, 0
        if getattr(backbone, 'memory_layers', ()):
            memory = dict(memory=backbone.empty_memory(x))
            specs = backbone.memory_specs(clip[1:]).values()
            kept = sum(4 * spec.kept_numbers for spec in specs)
        with torch.no_grad(), MacCounter() as counter:
            backbone(x, **memory)
    except RuntimeError as error:
        sizes = ' x '.join(map(str, clip[1:]))
        raise ValueError(
            f'clips of {sizes} (frames, height, width) do not fit the backbone '
            f'({str(error).splitlines()[0]}): use larger ones.'
        ) from error
    return Cost(count_parameters(backbone), counter.total, kept)


def actors_cost(head: ActorMemoryHead) -> Cost:
    """Cost of attention among ``max_actors`` positions, with a full memory."""
    head = copy.deepcopy(head).to('meta').eval()
    x = torch.zeros(1, head.max_actors, head.in_channels, device='meta')
    past = empty_memory(head.memory_specs(), 1, x)
    with torch.no_grad(), MacCounter() as counter:
        for i, block in enumerate(head.blocks):
            x, _ = block(x, head.max_actors, past.get(f'actors{i}'))
    return Cost(count_parameters(head), counter.total)


def clip_shape(
    backbone: dict, size: Optional[Sequence[int]] = None
) -> tuple[int, int, int, int]:
    """C, T, H, W of the clips that a backbone is made for, or of another size.

    Args:
        backbone (dict): Its config.
        size (sequence[int], optional): T, H, W in frames and pixels.

    Raises:
        ValueError: If ``size`` is no size.
    """
    if size is None:
        # As MViT and as VisionTransformer call it.
        frames, pixels = (
            next((backbone[name] for name in names if name in backbone), usual)
            for names, usual in (
                (('temporal_size', 'num_frames'), 16),
                (('spatial_size', 'img_size'), 224),
            )
        )
        size = (frames, pixels, pixels)
    if len(size) != 3 or min(size) < 1:
        raise ValueError(
            f'a clip of size {tuple(size)} must be T, H, W, each at least 1.'
        )
    return (backbone.get('in_channels', 3), *size)
