"""Schedules of memory: which earlier clips a layer reads, compressed how."""

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple, Optional

# Types without parameters, and so without gradient: a clip is consolidated when it is
# seen, and not kept as it was until it is read.
CONSOLIDATED = ('kmeans', 'coreset', 'random')
# What each type of level takes besides its ages.
OPTIONS = {
    'pool': {'stride', 'kernel', 'tokens'},
    'keep': {'tokens'},
    **dict.fromkeys(CONSOLIDATED, {'tokens', 'seed'}),
}


class MemoryLevel(NamedTuple):
    """Some of the earlier clips that a layer reads, all compressed in one way.

    A schedule is a sequence of levels, from fine to coarse. In a config each is a dict:
    ``memory_levels=[dict(type='pool', ages=(2, 4), stride=(4, 2, 2)), dict(type='pool',
    ages=range(5, 33), tokens=2)]``.
    """

    type: str
    """'pool': learned pooling, with ``stride`` or to ``tokens``. 'kmeans', 'coreset',
    'random': ``tokens`` of the clip, without parameters (see :mod:`.consolidation`).
    'keep': no compression."""
    ages: tuple[int, ...]
    """How many clips back they are, newest first; each clip is in one level only."""
    stride: Optional[tuple[int, int, int]] = None
    """Of 'pool': stride of a depthwise convolution over T, H, W (MeMViT, sec. 4.1)."""
    kernel: tuple[int, int, int] = (7, 3, 3)
    """Of 'pool' with ``stride``: the convolution's kernel."""
    tokens: Optional[int] = None
    """Of 'pool': the keys that a clip is reduced to, whatever its size. Of 'kmeans',
    'coreset' and 'random': at most so many keys, 128 by default. Of 'keep': at most so
    many, the first ones; None for all."""
    seed: int = 0
    """Of 'kmeans', 'coreset' and 'random': what they draw is the same for a seed."""


Schedule = tuple[MemoryLevel, ...]


def published_levels(
    length: int,
    gap: int,
    stride: Sequence[int] = (4, 2, 2),
    kernel: Sequence[int] = (7, 3, 3),
) -> Schedule:
    """The published schedule (MeMViT, arXiv 2201.08383, sec. 4.2), one level.

    Args:
        length (int): Earlier clips to read, at least 1.
        gap (int): Steps between them.
        stride (sequence[int]): Stride of the compression.
        kernel (sequence[int]): Its kernel.

    Raises:
        ValueError: If a value is out of range.

    Examples:
        >>> published_levels(length=2, gap=2)[0].ages
        (2, 4)
    """
    if length < 1:
        raise ValueError(
            f'memory_length={length} must be at least 1; for a model without memory '
            'set memory_layers=().'
        )
    if gap < 1:
        raise ValueError(
            f'memory_gap={gap} must be at least 1: the clip that many steps back is '
            'the newest one attended.'
        )
    if min(*kernel, *stride) < 1 or any(k % 2 == 0 for k in kernel):
        raise ValueError(
            f'compress_kernel={tuple(kernel)} must be odd and compress_stride='
            f'{tuple(stride)} at least 1 on each axis.'
        )
    ages = tuple(gap * number for number in range(1, length + 1))
    return (MemoryLevel('pool', ages, tuple(stride), tuple(kernel)),)


def read_levels(levels: Sequence[Mapping[str, Any]]) -> Schedule:
    """Read ``memory_levels`` of a config.

    Args:
        levels (sequence[dict]): From fine to coarse, with the fields of
            :class:`MemoryLevel`.

    Raises:
        ValueError: If a level cannot be; the message says which and why.

    Examples:
        >>> fine, coarse = read_levels(
        ...     [
        ...         dict(type='pool', ages=(2, 4), stride=(4, 2, 2)),
        ...         dict(type='pool', ages=(1, 3, *range(5, 33)), tokens=2),
        ...     ]
        ... )
        >>> coarse.ages[:4], coarse.tokens
        ((1, 3, 5, 6), 2)
    """
    if not isinstance(levels, (list, tuple)):
        raise ValueError(
            f'memory_levels={levels!r} must be a list of dicts, one per level.'
        )
    schedule: list[MemoryLevel] = []
    taken: set[int] = set()
    for number, given in enumerate(levels):
        try:
            level = _read_level(given)
            twice = taken.intersection(level.ages)
            if twice:
                raise ValueError(
                    f'ages has {min(twice)}, which another level reads: each clip '
                    'belongs to one level'
                )
        except ValueError as error:
            raise ValueError(f'memory_levels[{number}]: {error}.') from None
        taken.update(level.ages)
        schedule.append(level)
    if not schedule:
        raise ValueError(
            'memory_levels is empty: name a level, or leave it out for the default '
            'schedule; for no memory set memory_layers=() of the backbone and '
            'memory_length=0 of ActorMemoryHead.'
        )
    for number, level in enumerate(schedule):
        source = source_of(schedule, number)
        if level.stride and source is not None and not _has_grid(schedule, source):
            raise ValueError(
                f'memory_levels[{number}]: a level with stride pools a grid, and level '
                f'{source} before it leaves none: give it tokens instead.'
            )
    return tuple(schedule)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _read_level(given: Any) -> MemoryLevel:
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r} is no level: use dict(type='pool', ages=..., ...)")
    kind = given.get('type')
    if kind not in list(OPTIONS):
        raise ValueError(f'type={kind!r} is not known: use one of {sorted(OPTIONS)}')
    unknown = set(given) - OPTIONS[kind] - {'type', 'ages'}
    if unknown:
        raise ValueError(
            f'type={kind!r} does not take {sorted(unknown)}, only ages and '
            f'{sorted(OPTIONS[kind])}'
        )
    ages = given.get('ages', ())
    several = isinstance(ages, (Sequence, Set)) and len(ages) > 0
    if not several or not all(map(_is_count, ages)) or len(set(ages)) < len(ages):
        raise ValueError(
            f'ages={ages!r} must be different numbers of clips back, 1 or more, such '
            'as (2, 4) or range(5, 33)'
        )
    stride, kernel, tokens = (given.get(n) for n in ('stride', 'kernel', 'tokens'))
    for name, value in (('stride', stride), ('kernel', kernel)):
        if value is not None and not (
            isinstance(value, (list, tuple))
            and len(value) == 3
            and all(map(_is_count, value))
        ):
            raise ValueError(
                f'{name}={value!r} must be three whole numbers (T, H, W), 1 or more'
            )
    if kernel and any(k % 2 == 0 for k in kernel):
        raise ValueError(f'kernel={tuple(kernel)} must be odd on each axis')
    if tokens is not None and not _is_count(tokens):
        raise ValueError(f'tokens={tokens!r} must be a whole number, 1 or more')
    if kind == 'pool' and (stride is None) == (tokens is None):
        raise ValueError(
            "type='pool' needs either stride, such as (4, 2, 2), or tokens, such as 2"
        )
    if kernel and not stride:
        raise ValueError('kernel belongs to stride: leave it out')
    if kind in CONSOLIDATED and tokens is None:
        tokens = 128
    level = MemoryLevel(kind, tuple(sorted(ages)), tokens=tokens)
    if given.get('seed') is not None:
        level = level._replace(seed=_seed(given['seed']))
    if stride:
        level = level._replace(stride=tuple(stride))
    if kernel:
        level = level._replace(kernel=tuple(kernel))
    return level


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f'seed={value!r} must be a whole number, 0 or more')
    return value


def _has_grid(schedule: Sequence[MemoryLevel], number: int) -> bool:
    """Whether what a level leaves of a clip has places in T, H and W."""
    level, source = schedule[number], source_of(schedule, number)
    if level.type == 'keep' and not level.tokens:
        return source is None or _has_grid(schedule, source)
    return level.stride is not None


def levels_of_layer(schedule: Schedule, layer: int) -> Schedule:
    """The schedule of one layer: each draws other tokens."""
    return tuple(level._replace(seed=level.seed + layer) for level in schedule)


def clips_text(ages: Sequence[int]) -> str:
    """Shorten a list of clips.

    Examples:
        >>> clips_text((1, 3, 5, 6, 7, 8)), clips_text((2, 4))
        ('1, 3, 5 to 8', '2, 4')
    """
    runs: list[list[int]] = []
    for age in ages:
        if runs and age == runs[-1][-1] + 1:
            runs[-1].append(age)
        else:
            runs.append([age])
    parts = ((f'{r[0]} to {r[-1]}',) if len(r) > 2 else map(str, r) for r in runs)
    return ', '.join(text for part in parts for text in part)


def source_of(schedule: Sequence[MemoryLevel], number: int) -> Optional[int]:
    """The level whose clips a level compresses; None for clips as they were written.

    It is the next finer level that has read the clip before.

    Examples:
        >>> fine = MemoryLevel('pool', (2, 4), (4, 2, 2))
        >>> source_of([fine, MemoryLevel('pool', (5, 6, 7), tokens=2)], 1)
        0
        >>> source_of([fine, MemoryLevel('pool', (1, 3, 5), tokens=2)], 1) is None
        True
    """
    first = schedule[number].ages[0]
    finer = range(number - 1, -1, -1)
    return next((i for i in finer if schedule[i].ages[0] < first), None)
