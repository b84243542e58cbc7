"""Schedules of memory: which earlier clips a layer reads."""


def ages_of(length: int, gap: int) -> tuple[int, ...]:
    """The published schedule (MeMViT, arXiv 2201.08383, sec. 4.2).

    Args:
        length (int): Earlier clips to read; 0 for none.
        gap (int): Steps between them.

    Returns:
        tuple[int, ...]: Ages of the clips that are read, in clips before the present
        one, newest first.

    Examples:
        >>> ages_of(length=2, gap=2)
        (2, 4)
    """
    return tuple(gap * number for number in range(1, length + 1))


def check_length_and_gap(length: int, gap: int) -> None:
    """Refuse a ``memory_length`` or ``memory_gap`` that reads nothing.

    Raises:
        ValueError: If one of them is below 1.
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
