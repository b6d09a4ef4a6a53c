"""PostgreSQL away beside a Cluster of real nodes, which all of these tests share."""

# ruff: noqa: F401, F811

from __future__ import annotations

from collections.abc import Iterator

import pytest
from memory_contract import ASYNC
from redis_topologies import Cluster
from servers import PrivateServers
from test_cluster import nodes, redis_url
from test_database_away import (
    Away,
    _away,
    blocking,
    test_a_drain_ends_while_others_go_on,
    test_a_drain_that_failed_keeps_nobody_from_the_next,
    test_a_drain_that_is_killed_is_finished_by_the_next,
    test_a_drain_that_the_clearing_overtakes_logs_nothing,
    test_a_session_goes_on_and_is_logged_afterwards,
    test_a_stopped_database_costs_its_deadline_and_then_nothing,
    test_a_summary_of_an_erased_life_covers_nothing_of_the_next,
    test_an_id_has_one_effect_across_the_outage,
    test_an_id_of_the_log_that_redis_has_forgotten,
    test_clearing_takes_what_waits_with_it,
    test_kill_9_in_the_middle_of_a_drain,
    test_many_drain_at_once,
    test_reading_is_enough_to_have_it_logged,
    test_rounds_of_a_drain_follow_each_other,
    test_rounds_of_two_drains_that_take_turns_keep_the_order,
    test_the_command_drains_every_session,
    test_the_list_outlives_the_buffer_and_the_buffer_the_list,
    test_turns_and_batches_go_on_too,
    test_what_came_before_may_not_be_known,
    test_what_is_logged_behind_what_waits_is_in_every_copy,
    test_what_redis_took_long_after_a_message_was_logged_comes_behind_it,
    test_what_was_acknowledged_first_is_logged_first,
    test_what_was_cleared_is_not_begun_again,
    test_what_was_logged_meanwhile_tears_no_batch_and_comes_before_nothing_that_waited,
    test_where_the_list_alone_is_gone_nobody_takes_what_is_left,
    test_whoever_was_told_that_messages_wait_does_not_call_an_answer_without_them_complete,
    test_writers_that_return_at_once,
)

from contract_engine.embedded import EmbeddedServers


class BesideCluster(EmbeddedServers):
    """A PostgreSQL to harm, beside a Cluster."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis=False, durable=False)
        self._redis_url = redis_url

    @property
    def redis_url(self) -> str:
        return self._redis_url


@pytest.fixture(scope="module")
def beside(nodes: Cluster) -> Iterator[BesideCluster]:
    """One for all: whoever harms it brings it back."""
    with BesideCluster(nodes.url) as servers:
        yield servers


@pytest.fixture
def private_servers(beside: BesideCluster) -> PrivateServers:
    def start(*, redis: bool = True, postgres: bool = True, migrate: bool = True) -> EmbeddedServers:
        assert redis
        assert postgres
        assert migrate
        beside.start()  # where a test has left it dead
        return beside

    return start


@pytest.fixture
def away(private_servers: PrivateServers, tenant: str) -> Iterator[Away]:
    """In asyncio: ``blocking`` is the other colour."""
    yield from _away(private_servers, ASYNC, tenant)
