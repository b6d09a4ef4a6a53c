"""Drains beside those who go on, on a Cluster of real nodes: pytest finds these by their names in this module."""

# ruff: noqa: F401

from __future__ import annotations

from test_cluster import nodes, redis_url
from test_draining_meanwhile import (
    test_a_drain_that_another_has_overtaken_logs_all_it_owes,
    test_calls_end_while_others_go_on_in_redis,
)

pytest_plugins = ("memory_fixtures",)
