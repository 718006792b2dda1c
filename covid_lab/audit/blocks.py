"""What grows with the number of images is worked on in blocks of a bounded size."""

from collections.abc import Iterator

NUMBERS = 2**18  # in a block: larger ones than the processor's caches hold would be slower, too


def blocks(count: int, width: int, numbers: int = NUMBERS) -> Iterator[slice]:
    """Slices that part `count` rows of `width` numbers into blocks of at most `numbers` of them.

    A row is never parted, however long it is.
    """
    size = max(1, numbers // max(width, 1))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
