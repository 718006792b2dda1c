"""Blocks of rows of a bounded size, so that memory does not grow with the number of images."""

from collections.abc import Iterator

NUMBERS = 2**18  # in a block; larger blocks exceed the processor's caches and are slower


def blocks(count: int, width: int, numbers: int = NUMBERS) -> Iterator[slice]:
    """Divide rows into consecutive blocks.

    Parameters
    ----------
    count : int, from 0
        Number of rows.
    width : int, from 0
        Numbers in a row.
    numbers : int, from 1
        Numbers that a block holds at most. A longer row makes a block of its own.

    Yields
    ------
    slice
        Rows of a block.

    Examples
    --------
    >>> list(blocks(5, 10, 20))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, numbers // max(width, 1))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
