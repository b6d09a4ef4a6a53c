"""What lies around the managers on a Cluster: the session store, retention, archives, dual writing, and the law.

Left out are tests of the database alone, and those that stop a server.
"""

# ruff: noqa: F401, F811

from __future__ import annotations

from typing import Any

import pytest
import redis
from crash_matrix import DATABASE, Interposition
from dual_stores import contents, log_alone, open_store
from legacy_stores import ListStore
from memory_contract import Backend, redis_values, say, talk
from redis_topologies import Cluster, waited_for
from test_archive import (
    archive,
    elsewhere,
    test_a_session_that_is_there_is_left_alone,
    test_a_session_with_everything,
    test_several_sessions_in_one_stream,
    test_what_waits_in_redis_is_in_it,
)
from test_cluster import nodes, raw, redis_url, sessions_by_node
from test_conservation import hold
from test_dual_write_retention import (
    manager,
    test_a_purged_session_owes_nothing,
    test_a_session_that_is_replaced_owes_nothing_of_its_life_before,
    test_an_archive_has_what_is_still_owed_and_not_that_it_is,
    test_an_erased_session_owes_nothing_and_the_report_says_so,
    test_an_import_for_both_replaces_what_was_owed_and_needs_a_legacy_store,
    test_what_is_imported_for_both_is_in_both_in_every_phase,
    test_what_is_imported_is_history_and_what_follows_is_relayed,
)
from test_retention import (
    test_a_dry_run_and_a_limit,
    test_a_key_that_is_left_is_found_whatever_the_session_is_called,
    test_a_reader_of_the_erased_session_leaves_no_key,
    test_a_session_that_is_touched_meanwhile_loses_nothing_of_what_was_said_since,
    test_an_erasure_reports_what_was_there_and_that_nothing_is,
    test_messages_that_wait_in_redis_are_a_touch,
    test_the_pattern_of_a_session_matches_no_other,
    test_what_is_begun_anew_meanwhile_is_not_taken_for_what_is_left,
    test_what_is_old_goes_from_both_servers_and_the_rest_stays,
)
from test_session_store import (
    test_a_manager_notices_what_was_logged_past_it,
    test_an_object_of_the_log_that_is_no_swisper_context_is_readable_by_the_manager,
    test_the_log_keeps_what_was_folded,
)

pytest_plugins = ("memory_fixtures", "dual_write_fixtures")


@pytest.mark.parametrize("mode", ["durable", "ephemeral"])
def test_the_law_on_a_cluster(redis_url: str, database_url: str, mode: str, raw: redis.Redis) -> None:
    assert hold(redis_url, database_url if mode == "durable" else None, raw, histories=15) >= 15


def test_an_erasure_searches_every_primary(backend: Backend, nodes: Cluster, raw: Any) -> None:
    """Sessions of each node in one call, and on each a key of theirs that no erasure knows of."""
    manager = backend.open()
    by_node = sessions_by_node(backend, nodes)
    names = [name for group in by_node.values() for name in group]
    for name in names:
        manager.add_messages(name, talk(3))
    extra = {group[0]: backend.keys(group[0]).buffer.removesuffix("buffer") + "extra" for group in by_node.values()}
    for key in extra.values():
        raw.set(key, "left", ex=600)
    pattern = f"contract:{{{backend.tenant}/*"
    assert all(redis_values(server.client, pattern) for server in nodes.primaries), "not every node holds some"
    reports = manager.retention.erase(names)
    assert {report["session_id"]: report["left_keys"] for report in reports} == {
        name: [extra[name]] if name in extra else [] for name in names
    }
    there = [key for server in nodes.primaries for key in redis_values(server.client, pattern)]
    assert sorted(key.decode() for key in there) == sorted(extra.values())
    for key in extra.values():
        raw.delete(key)
    assert not any(report["left_keys"] for report in manager.retention.erase(names))


def test_a_dual_write_gives_both_stores_every_message(blocking: Backend, nodes: Cluster, legacy: ListStore) -> None:
    names = [name for group in sessions_by_node(blocking, nodes).values() for name in group]
    with open_store(blocking, legacy) as both:
        for number in range(1, 13):
            for name in names:
                assert both.add_chat_message(name, say(number))
        assert both.settle()
        for name in names:
            assert both.get_chat_history(name) == talk(12)
            assert legacy.contents(name) == contents(talk(12))
            assert both.memory_manager.get_context(name)["source"] == "redis"


def test_what_waits_on_a_node_is_relayed_first_while_another_is_dead(
    blocking: Backend, nodes: Cluster, legacy: ListStore
) -> None:
    by_node = {port: names[0] for port, names in sessions_by_node(blocking, nodes, each=1).items()}
    dead = nodes.primaries[0]
    lost = by_node.pop(dead.port)
    with open_store(blocking, legacy) as both, open_store(blocking, legacy) as other:
        both.append(lost, say(1))
        outage = Interposition(both.memory_manager, away=DATABASE)
        for name in by_node.values():
            both.append(name, say(1))
        outage.remove()
        dead.kill()
        try:
            for name in by_node.values():
                log_alone(other, name, say(2))
            assert other.relay_once() == 1 + len(by_node), "as many as were owed when it began"
            assert other.settle()
        finally:
            dead.start()
    assert legacy.contents(lost) == contents(talk(1))
    for name in by_node.values():
        assert legacy.contents(name) == contents(talk(2))
    assert waited_for(nodes.is_ok)
