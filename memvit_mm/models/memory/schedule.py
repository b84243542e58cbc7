"""Schedules of memory: which earlier clips a layer reads, compressed how."""

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple, Optional

# What each type of level takes besides its ages.
OPTIONS = {'pool': {'stride', 'kernel', 'tokens'}, 'keep': {'tokens'}}


class MemoryLevel(NamedTuple):
    """Some of the earlier clips that a layer reads, all compressed in one way.

    A schedule is a sequence of levels, from fine to coarse. In a config each is a dict:
    ``memory_levels=[dict(type='pool', ages=(2, 4), stride=(4, 2, 2)), dict(type='pool',
    ages=range(5, 33), tokens=2)]``.
    """

    type: str
    """'pool': learned pooling, with ``stride`` or to ``tokens``. 'keep': no
    compression."""
    ages: tuple[int, ...]
    """How many clips back they are, newest first; each clip is in one level only."""
    stride: Optional[tuple[int, int, int]] = None
    """Of 'pool': stride of a depthwise convolution over T, H, W (MeMViT, sec. 4.1)."""
    kernel: tuple[int, int, int] = (7, 3, 3)
    """Of 'pool' with ``stride``: the convolution's kernel."""
    tokens: Optional[int] = None
    """Of 'pool': the keys that a clip is reduced to, whatever its size. Of 'keep': at
    most so many keys are kept, the first ones; None for all."""


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
    schedule: list[MemoryLevel] = []
    taken: set[int] = set()
    for number, given in enumerate(levels):
        try:
            level = _read_level(dict(given))
            twice = taken.intersection(level.ages)
            if twice:
                raise ValueError(
                    f'ages has {min(twice)}, which another level reads: each clip '
                    'belongs to one level'
                )
        except (TypeError, ValueError) as error:
            raise ValueError(f'memory_levels[{number}]: {error}.') from None
        taken.update(level.ages)
        schedule.append(level)
    if not schedule:
        raise ValueError(
            'memory_levels is empty: name a level, or set memory_layers=() for a model '
            'without memory.'
        )
    for number, level in enumerate(schedule):
        source = source_of(schedule, number)
        if level.stride and source and not schedule[source - 1].stride:
            raise ValueError(
                f'memory_levels[{number}]: a level with stride pools a grid, and level '
                f'{source - 1} before it leaves none: give it tokens instead.'
            )
    return tuple(schedule)


def _read_level(given: dict[str, Any]) -> MemoryLevel:
    kind = given.get('type')
    if kind not in OPTIONS:
        raise ValueError(f'type={kind!r} is not known: use one of {sorted(OPTIONS)}')
    unknown = set(given) - OPTIONS[kind] - {'type', 'ages'}
    if unknown:
        raise ValueError(
            f'type={kind!r} does not take {sorted(unknown)}, only ages and '
            f'{sorted(OPTIONS[kind])}'
        )
    ages = given.get('ages', ())
    if (
        not isinstance(ages, (Sequence, Set))
        or not ages
        or not all(isinstance(age, int) and age > 0 for age in ages)
        or len(set(ages)) < len(ages)
    ):
        raise ValueError(
            f'ages={ages!r} must be different numbers of clips back, 1 or more, such '
            'as (2, 4) or range(5, 33)'
        )
    level = MemoryLevel(kind, tuple(sorted(ages)))
    for name in ('stride', 'kernel'):
        if given.get(name) is not None:
            value = tuple(given[name])
            if len(value) != 3 or min(value) < 1:
                raise ValueError(f'{name}={value} must be three numbers, 1 or more')
            level = level._replace(**{name: value})
    if any(k % 2 == 0 for k in level.kernel):
        raise ValueError(f'kernel={level.kernel} must be odd on each axis')
    tokens = given.get('tokens')
    if tokens is not None and tokens < 1:
        raise ValueError(f'tokens={tokens} must be at least 1')
    level = level._replace(tokens=tokens)
    if kind == 'pool' and (level.stride is None) == (tokens is None):
        raise ValueError(
            "type='pool' needs either stride, such as (4, 2, 2), or tokens, such as 2"
        )
    return level


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


def source_of(schedule: Sequence[MemoryLevel], number: int) -> int:
    """What a level compresses: 0 for the clip as it was written, i for what level i - 1
    made of it.

    It is the next finer level that has read the clip before.

    Examples:
        >>> fine = MemoryLevel('pool', (2, 4), (4, 2, 2))
        >>> source_of([fine, MemoryLevel('pool', (5, 6, 7), tokens=2)], 1)
        1
        >>> source_of([fine, MemoryLevel('pool', (1, 3, 5), tokens=2)], 1)
        0
    """
    first = schedule[number].ages[0]
    finer = range(number - 1, -1, -1)
    return next((i + 1 for i in finer if schedule[i].ages[0] < first), 0)
