"""Damage under our own keys on a Cluster of real nodes, some of each kind: most care little where a key lies.

Rebuilding is here whole, as are session ids, and pins while a server is away.
"""

# ruff: noqa: F401, F403

from __future__ import annotations

import test_bad_data
import test_bad_unlogged
import test_healing
from cluster_suite import thinned
from test_bad_data import (
    test_a_lease_that_is_none_keeps_nobody_away,
    test_each_damage_beside_the_buffer_is_counted_too,
    test_noise_everywhere_over_and_over,
)
from test_cluster import nodes, raw, redis_url
from test_pins_away import *
from test_rebuilding import *
from test_session_ids import *

pytest_plugins = ("memory_fixtures",)

DAMAGES = (
    "no buffer",
    "neither",
    "connections killed",
    "header of noise",
    "an element in the middle gone",
    "summary of another version",
    "a placeholder of a writer left behind",
    "buffer is a hash",
)
test_a_reader_finds_everything = thinned(test_healing.test_a_reader_finds_everything, name=DAMAGES)
test_a_writer_goes_on = thinned(test_healing.test_a_writer_goes_on, name=DAMAGES)
test_a_session_without_a_log_goes_on = thinned(test_healing.test_a_session_without_a_log_goes_on, name=DAMAGES)
test_wrong_numbers_in_the_header_are_not_believed = thinned(
    test_healing.test_wrong_numbers_in_the_header_are_not_believed,
    name=["header field 2 is 1", "header field 3 is 0", "header field 9 is 1000000000000000"],
)

test_with_a_log_it_is_as_if_nothing_had_been_there = thinned(
    test_bad_data.test_with_a_log_it_is_as_if_nothing_had_been_there, field=["buffer", "unlogged"]
)
test_without_a_log_the_session_goes_on = thinned(
    test_bad_data.test_without_a_log_the_session_goes_on, field=["summary"]
)
test_each_damage_is_counted_by_the_read_that_meets_it = thinned(
    test_bad_data.test_each_damage_is_counted_by_the_read_that_meets_it, field=["buffer"]
)

LISTS = ("noise as a list", "cut", "b'null' as a list")
test_one_element_and_no_buffer = thinned(
    test_bad_unlogged.test_one_element_and_no_buffer, noise=[b"\xff\x00noise"], place=[-1, 0, 2]
)
test_the_list_and_not_the_buffer = thinned(test_bad_unlogged.test_the_list_and_not_the_buffer, name=LISTS)
test_the_buffer_and_not_the_list = thinned(test_bad_unlogged.test_the_buffer_and_not_the_list, name=LISTS)
test_the_lease_of_the_drain = thinned(
    test_bad_unlogged.test_the_lease_of_the_drain, name=["noise as a string", "noise as a list"]
)
test_both = thinned(test_bad_unlogged.test_both, name=LISTS)
