"""The record of all trials, and the choice between the short and the long form."""

from pathlib import Path

import pytest

from faults.record import Record

TABLE = Path(__file__).resolve().parents[2] / "results" / "faults.csv"
SHORT, LONG = Record(), Record()


@pytest.fixture
def record(request):
    """Counts a trial; those of the long form go into the table."""
    return LONG if request.node.get_closest_marker("long") else SHORT


def pytest_sessionfinish():
    """Write the table as it was found, also where a test has failed."""
    if LONG.counts:
        LONG.write(TABLE)


def pytest_terminal_summary(terminalreporter):
    """Say how much was tried."""
    for name, found in (("short", SHORT), ("long", LONG)):
        if found.counts:
            total = sum(found.counts.values())
            terminalreporter.write_line(f"faults, {name} form: {total:,} trials")
