"""Progress as a reader sees it: on the screen of a terminal, and line by line elsewhere."""

import io
import os
import subprocess
import sys

import pytest
from conftest import HOUSE

from covid_lab.progress import Progress, tracked


class Terminal(io.StringIO):
    """A screen of some columns, on which text wraps as on a real one."""

    def __init__(self, columns):
        super().__init__()
        self.columns, self.rows, self.place = columns, [""], 0

    def isatty(self):
        return True

    def write(self, text):
        for sign in text:
            if sign == "\r":
                self.place = 0
                continue
            if sign == "\n" or self.place == self.columns:
                self.rows.append("")
                self.place = 0
            if sign != "\n":
                row = self.rows[-1]
                self.rows[-1] = row[: self.place] + sign + row[self.place + 1 :]
                self.place += 1
        return len(text)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def work(progress, clock, seconds, what="images read", total=100):
    """Report every item of a stage that takes so many seconds."""
    for done in range(total + 1):
        clock.now = clock.now + (seconds / total if done else 0)
        progress(what, done, total)


def test_a_terminal_shows_one_line_that_says_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    screen, clock = Terminal(60), Clock()
    progress = Progress(screen, clock)
    for done, now in ((0, 100), (20, 110), (90, 145)):
        clock.now = now
        progress("images read", done, 100)
    assert [row.rstrip() for row in screen.rows] == ["images read: 90 of 100, 2.0 per s, 5 s left"]
    clock.now = 150
    progress("images read", 100, 100)
    assert [row.rstrip() for row in screen.rows] == [
        "images read: 100 of 100 in 50 s, 2.0 per s",
        "",
    ]


def test_a_narrow_terminal_wraps_nothing_and_every_stage_has_its_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    screen, clock = Terminal(24), Clock()
    progress = Progress(screen, clock)
    work(progress, clock, 20, "a stage with a long name")
    clock.now += 1
    progress("left unfinished", 0, 10)
    clock.now += 1
    progress("left unfinished", 5, 10)
    work(progress, clock, 3, "last")
    shown = [row.rstrip() for row in screen.rows]
    assert shown == [
        "a stage with a long nam",
        "left unfinished: 5 of 1",
        "last: 100 of 100 in 3 s",
        "",
    ]


@pytest.mark.parametrize(
    ("seconds", "fewest", "most"), [(1, 1, 1), (60, 5, 14), (3600, 60, 85), (36000, 600, 640)]
)
def test_a_log_has_whole_lines_and_not_many(seconds, fewest, most):
    log, clock = io.StringIO(), Clock()
    work(Progress(log, clock), clock, seconds, total=7200)
    text = log.getvalue()
    assert "\r" not in text
    assert fewest <= len(text.splitlines()) <= most
    assert text.splitlines()[-1].startswith("images read: 7,200 of 7,200 in ")


def test_the_rate_counts_from_the_first_call():
    log, clock = io.StringIO(), Clock()
    progress = Progress(log, clock)
    progress("images", 50, 100)  # 50 came from the cache
    clock.now += 100
    progress("images", 60, 100)
    assert log.getvalue() == "images: 60 of 100, 10 s each, 7 min left\n"


def test_tracked_yields_everything(capsys):
    assert list(tracked("abc", "letters")) == ["a", "b", "c"]
    assert list(tracked(iter("abc"), "again", total=3)) == ["a", "b", "c"]
    assert list(tracked([], "nothing")) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["letters: 3 of 3", "again: 3 of 3"]
    with pytest.raises(TypeError, match="total"):
        next(tracked(iter("abc"), "letters"))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals on Windows")
def test_a_real_terminal_gets_one_line(tmp_path):
    import pty

    source = "from covid_lab.progress import tracked\nlist(tracked(range(9), 'numbers'))"
    screen, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    subprocess.run([sys.executable, "-c", source], stdout=terminal, env=environment, check=True)
    os.close(terminal)
    written = os.read(screen, 10000).decode()
    os.close(screen)
    assert written.startswith("\rnumbers: 9 of 9 in 0 s, ")
    assert written.count("\n") == 1
