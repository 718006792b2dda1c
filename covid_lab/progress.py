"""Progress in terminals, notebooks and logs: what is done, how fast, and how long the rest takes.

A terminal shows one line, which is rewritten in place and never wraps. A notebook or a log gets
whole lines, which become rarer the longer the work takes: an hour leaves about 70 of them.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TextIO

REDRAWN = 0.2  # seconds between two states of the line in a terminal
SOONEST, LATEST = 5.0, 60.0  # seconds between two lines elsewhere, at the start and at the end


class Progress:
    """Report the progress of one or several stages of work.

    Calling it with ``(what, done, total)`` says that ``done`` of ``total`` items of the stage
    ``what`` are done. The first call of a stage starts its clock; call it with 0 before the work.

    Parameters
    ----------
    stream : text stream, optional
        None: the standard output at the time of the call.
    clock : callable
        Returns seconds.

    Examples
    --------
    >>> progress = Progress()
    >>> progress("images read", 24, 24)
    images read: 24 of 24
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.stream, self.clock = stream, clock
        self.what, self.is_open, self.width = None, False, 0  # of the line in a terminal
        self.begun = self.shown = 0.0
        self.first = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report the state of a stage.

        Parameters
        ----------
        what : str
            Names the stage, such as "images read".
        done, total : int, from 0
            Items. The stage ends where they are equal.
        """
        stream, now = self.stream or sys.stdout, self.clock()
        if what != self.what:
            if self.is_open:  # the last stage was left unfinished
                stream.write("\n")
            self.what, self.begun, self.shown, self.first = what, now, now, done
            self.is_open, self.width = False, 0
        is_terminal = stream.isatty()
        if done < total and now - self.shown < self._pause(is_terminal, now):
            return
        self.shown = now
        line = f"{what}: {done:,} of {total:,}{self._pace(done, total, now - self.begun)}"
        if is_terminal:
            columns = shutil.get_terminal_size().columns - 1
            line = line[:columns]
            stream.write("\r" + line.ljust(min(self.width, columns)))
            self.is_open, self.width = True, len(line)
        else:
            stream.write(line)
        if done >= total or not is_terminal:
            stream.write("\n")
            self.is_open = False
        if done >= total:
            self.what = None
        stream.flush()

    def _pause(self, is_terminal: bool, now: float) -> float:
        return REDRAWN if is_terminal else min(max(SOONEST, (now - self.begun) / 5), LATEST)

    def _pace(self, done: int, total: int, seconds: float) -> str:
        """Return the rate and the time that is left, or that was needed, where they are known."""
        counted = done - self.first
        if counted <= 0 or seconds <= 0:
            return ""
        rate = counted / seconds
        pace = f"{rate:,.0f} per s" if rate >= 10 else f"{rate:.1f} per s"
        if rate < 1:
            pace = f"{duration(1 / rate)} each"
        if done >= total:
            return f" in {duration(seconds)}, {pace}"
        return f", {pace}, {duration((total - done) / rate)} left"


def tracked[Item](
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Item]:
    """Yield items and report how many of them are done.

    Parameters
    ----------
    items : iterable
    what : str
        Names the stage, such as "images read".
    total : int, from 0, optional
        Number of items; needed where ``items`` has no length. Nothing is reported of 0 items.
    progress : callable, optional
        Called with (what, done, total); None: a new `Progress`.

    Yields
    ------
    object
        Each item.

    Raises
    ------
    TypeError
        No ``total``, and ``items`` has no length.
    """
    if total is None:
        if not isinstance(items, Sized):
            raise TypeError(f"{what}: give the total of items that have no length")
        total = len(items)
    progress = progress or Progress()
    if total:
        progress(what, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        progress(what, done, total)


def duration(seconds: float) -> str:
    """Write a time span in the unit that suits it.

    Parameters
    ----------
    seconds : float, from 0

    Returns
    -------
    str

    Examples
    --------
    >>> duration(4.2), duration(600), duration(9000)
    ('4 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
