"""Races and erasure on a Cluster of real nodes: pytest finds these by their names in this module."""

# ruff: noqa: F401

from __future__ import annotations

import test_erasure
import test_races
from cluster_suite import thinned
from memory_contract import EPHEMERAL
from test_cluster import nodes, raw, redis_url
from test_erasure import (
    blocking,
    search,
    search_blocking,
    test_nothing_is_left,
    test_the_command_line_leaves_nothing,
    test_twenty_writers_and_a_fold,
)
from test_races import (
    crowd,
    forker,
    test_both_colours_side_by_side,
    test_fifty_triggers_from_four_processes_are_one_fold,
    test_folds_appends_clearings_and_rebuilds_at_once_in_tasks,
    test_folds_appends_clearings_and_rebuilds_at_once_in_threads,
    test_forks_in_the_middle_of_calls,
    test_the_same_append_from_several_processes_has_one_effect,
    test_writers_in_four_processes_fold_each_range_once,
)

pytest_plugins = ("memory_fixtures",)

test_sixty_four_threads_on_one_session = thinned(test_races.test_sixty_four_threads_on_one_session, mode=[EPHEMERAL])
test_a_clearing_that_was_killed_is_finished_by_the_next_one = thinned(
    test_erasure.test_a_clearing_that_was_killed_is_finished_by_the_next_one, state=["unlogged"]
)
test_cleared_in_the_middle = thinned(
    test_erasure.test_cleared_in_the_middle, work=["rebuild", "append", "fold"], state=["copied", "unlogged"]
)
test_cleared_in_the_middle_without_a_log = thinned(
    test_erasure.test_cleared_in_the_middle_without_a_log, work=["append", "fold"]
)
test_others_in_the_middle_of_a_clearing = thinned(
    test_erasure.test_others_in_the_middle_of_a_clearing, work=["append", "turn"], state=["copied", "unlogged"]
)
