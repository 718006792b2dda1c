"""Tests that share a run stay in one process: the groups of conftest reach pytest-xdist."""

import pytest


def test_the_group_is_part_of_the_name(request):
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("not distributed by groups (-n 2 --dist loadgroup)")
    assert request.node.nodeid.endswith("@test_processes")
