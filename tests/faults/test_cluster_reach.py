"""What the suite does on a Cluster: every test that uses a Redis runs there too, or is named here with the reason.

Read from the source: a test uses a Redis whose fixtures reach one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent.parent
REDIS = {"redis_url", "private_servers"}
ALL = ("*",)


@dataclass
class Module:
    """What a test module says, and what it takes from others: by its name here, where it is written and how."""

    fixtures: dict[str, set[str]] = field(default_factory=dict)
    tests: dict[str, set[str]] = field(default_factory=dict)
    taken: dict[str, tuple[str, str]] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)


def needs(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the fixtures a function asks for: by argument, by mark, or while it runs."""
    found = {arg.arg for arg in (*function.args.args, *function.args.kwonlyargs)}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("getfixturevalue", "usefixtures")):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return found


def parsed(path: Path) -> Module:
    module = Module()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(ast.unparse(mark).partition("(")[0] == "pytest.fixture" for mark in node.decorator_list):
                module.fixtures[node.name] = needs(node)
            elif node.name.startswith("test"):
                module.tests[node.name] = needs(node)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                if name.name == "*":
                    module.whole.append(node.module)
                else:
                    module.taken[name.asname or name.name] = node.module, name.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target, value = node.targets[0].id, ast.unparse(node.value)
            if target == "pytest_plugins":
                module.plugins = list(ast.literal_eval(node.value))
            elif value.startswith("thinned("):
                source, _, test = value.removeprefix("thinned(").partition(",")[0].partition(".")
                module.taken[target] = source, test
    return module


MODULES = {path.stem: parsed(path) for path in sorted([*TESTS.glob("*.py"), *TESTS.glob("faults/*.py")])}


def reaches_redis(name: str, module: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a fixture, as a module sees it, is or needs one of a Redis."""
    if name in REDIS:
        return True
    found = MODULES[module]
    if name in seen or "nodes" in found.fixtures:
        return False
    for where in (module, *found.plugins, *found.whole, "conftest"):
        there = MODULES[where]
        if name in there.fixtures:
            return any(reaches_redis(one, module, seen | {name}) for one in there.fixtures[name])
        if name in there.taken and there.taken[name][0] in MODULES:
            return reaches_redis(there.taken[name][1], there.taken[name][0], seen)
    return False


def using_redis() -> Iterator[tuple[str, str]]:
    """Yield module and name of every test that uses a Redis, where it is written."""
    for name, module in MODULES.items():
        if not name.startswith(("test_cluster", "test_sentinel")):
            for test, fixtures in module.tests.items():
                if any(reaches_redis(one, name) for one in fixtures):
                    yield name, test


def on_a_cluster() -> Iterator[tuple[str, str]]:
    """Yield module and name of every test that a module of the Cluster takes."""
    for name, module in MODULES.items():
        if name.startswith("test_cluster"):
            yield from module.taken.values()
            for source in module.whole:
                yield from ((source, test) for test in MODULES[source].tests)


LEFT_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "It is about the one server that it harms or asks, or the way to it. Nodes are harmed in test_cluster.": {
        "test_cancellation": ALL,
        "test_database_away": (
            "test_a_drain_that_is_cancelled_leaves_it_known_that_messages_wait",
            "test_with_both_away_nothing_is_acknowledged",
        ),
        "test_degraded": ALL,
        "test_embedded": ALL,
        "test_eviction": ALL,
        "test_flushed_redis": ALL,
        "test_half_open": ALL,
        "test_health": ALL,
        "test_killed_in_flight": ALL,
        "test_memory_integration": ALL,
        "test_memory_manager": ("test_a_batch_that_does_not_fit_leaves_no_key_without_a_deadline",),
        "test_metrics_server": ALL,
        "test_network": ALL,
        "test_network_breaks": ALL,
        "test_pool_exhausted": ALL,
        "test_races": ("test_parent_and_forked_children_go_on",),
        "test_recall_index": ALL,
        "test_redis_routing": ALL,
        "test_round_trips": ALL,
        "test_runtime": ALL,
        "test_server_faults": ALL,
        "test_stampede": ALL,
        "test_tasks_under_faults": ALL,
        "test_top": ALL,
        "test_top_on_servers": ALL,
        "test_versions": ALL,
        "test_waiting_messages": ALL,
    },
    "What a command prints and asks for; what differs on a Cluster is in test_cli_topologies.": {
        "test_cli": ALL,
        "test_commands_away": ALL,
        "test_documents": ALL,
        "test_database_away": ("test_the_command_shows_how_far_it_is_on_a_terminal",),
        "test_interrupted_commands": ALL,
        "test_killed_commands": ALL,
        "test_long_commands": ALL,
        "test_migration_commands": ALL,
        "test_migration_progress": ALL,
        "test_migration_runbook": ALL,
        "test_operations_page": ALL,
        "test_packaging": ALL,
        "test_progress_bars": ALL,
    },
    "PostgreSQL and a legacy store have all of it; the copy in Redis is that of any append.": {
        "test_backfill": ALL,
        "test_backfill_faults": ALL,
        "test_backfill_reads": ALL,
        "test_backfill_sources": ALL,
        "test_dual_write": ALL,
        "test_dual_write_doubt": ALL,
        "test_dual_write_faults": ALL,
        "test_dual_write_waiting": ALL,
        "test_dual_write_watched": ALL,
        "test_draining_meanwhile": (
            "test_an_import_and_a_relay_that_takes_note_wait_for_no_ring",
            "test_a_relay_holds_no_session_for_as_long_as_all_of_them_take_to_be_logged",
            "test_a_relay_that_another_drain_overtakes_keeps_the_order",
            "test_a_session_that_is_never_done_keeps_no_other_waiting",
            "test_a_session_that_was_given_back_comes_after_those_that_are_due",
            "test_two_drains_put_nothing_before_what_a_relay_has_read",
            "test_where_what_waits_cannot_be_logged_the_sessions_are_given_back",
        ),
        "test_erasing_meanwhile": ALL,
        "test_legacy_calls": ALL,
        "test_legacy_object": ALL,
        "test_legacy_store": ALL,
        "test_migrations": ALL,
        "test_moving_in": ALL,
        "test_outbox_plans": ALL,
        "test_parity_check": ALL,
        "test_reading_meanwhile": ALL,
        "test_relaying": ALL,
        "test_relaying_meanwhile": ALL,
        "test_relaying_together": ALL,
        "test_retention_faults": ALL,
        "test_shadow_reads": ALL,
    },
    "Those that reach Redis are in test_cluster_services; the others are about the log, or its arguments.": {
        "test_archive": ALL,
        "test_conservation": ALL,
        "test_readable_summaries": ALL,
        "test_retention": ALL,
        "test_session_store": ALL,
    },
    "It refuses a Cluster, or has no test but one there: test_plugin_faults.": {
        "test_encryption": ALL,
        "test_plugin": ALL,
        "test_plugin_faults": ALL,
        "test_plugin_limits": ALL,
        "test_redis_memory_manager": ALL,
        "test_sql_memory_faults": ALL,
        "test_ttl_strategy": ALL,
        "test_working_memory": ALL,
        "test_working_memory_agent": ALL,
        "test_working_memory_bounds": ALL,
        "test_working_memory_races": ALL,
        "test_wrapper_stacks": ALL,
    },
    "What is asked of a model, or told of a call: it does not matter where a key lies.": {
        "test_hooks": ALL,
        "test_metrics": ALL,
        "test_model_in_a_session": ALL,
        "test_model_summarizer": ALL,
        "test_provider_packages": ALL,
        "test_retrying": ALL,
        "test_tracing": ALL,
    },
    "It is refused before Redis is asked, or is about a text.": {
        "test_buffer_store": ("test_other_limits_are_refused",),
        "test_memory_manager": (
            "test_a_batch_is_a_list",
            "test_a_batch_refuses_with_the_same_class_as_one_message",
            "test_a_summary_may_grow_with_what_is_folded",
            "test_bad_message_ids_are_refused",
            "test_bad_messages_are_refused_and_nothing_is_written",
            "test_bad_session_ids_are_refused_everywhere",
            "test_summaries_for_people_keep_whole_phrases",
            "test_wrong_context_objects_are_refused_and_nothing_is_written",
            "test_wrong_limits_are_refused_and_nothing_is_written",
        ),
        "test_summary_store": ("test_bad_summaries_are_refused", "test_other_limits_are_refused"),
    },
    "It takes too long: the faults are put above the client, or others of its kind are there.": {
        "test_concurrency": ("test_sixteen_threads_on_one_session", "test_two_processes_on_one_session"),
        "test_crash_interruptions": ALL,
        "test_crash_matrix": ALL,  # test_cluster_crashes has each operation in one state
        "test_database_away": (
            "test_a_session_that_cannot_be_logged_keeps_no_other_waiting",
            "test_writers_through_a_minute_of_outage",
        ),
        "test_memory_manager": ("test_a_message_of_sixteen_megabytes_comes_back_word_for_word",),
        "test_memory_performance": ALL,
        "test_races": ("test_many_sessions_in_four_processes",),
    },
}
"""By reason; ``ALL`` stands for what a module has, now and later, that does not run on a Cluster."""


def test_what_uses_a_redis_runs_on_a_cluster_too_or_is_named_here() -> None:
    left = set(using_redis()) - set(on_a_cluster())
    named = {(module, test) for modules in LEFT_OUT.values() for module, tests in modules.items() for test in tests}
    of_all = {module for module, test in named if (test,) == ALL}
    missing = sorted((module, test) for module, test in left - named if module not in of_all)
    assert not missing, "have a test_cluster_ module take them, or say here why not"
    idle = {(module, test) for module, test in named if module not in of_all} - left
    assert not idle, "they run on a Cluster, or are gone"
    assert of_all <= {module for module, _ in left}, "all of a module named here runs on a Cluster, or is gone"


def test_what_runs_on_a_cluster_is_found() -> None:
    """The two lists are not empty for want of looking: some of each, by each of the ways there are."""
    assert {
        ("test_memory_manager", "test_health"),  # by name
        ("test_pins", "test_pinning_twice_is_pinning_once"),
        ("test_erasure", "test_cleared_in_the_middle"),  # some of its parameters
    } <= set(on_a_cluster())
    assert {
        ("test_races", "test_many_sessions_in_four_processes"),  # by an argument
        ("test_server_faults", "test_redis_stopped_for_ten_seconds_under_load"),  # by a fixture that needs one
        ("test_documents", "test_the_python_of_the_readme_runs_as_written"),
        ("test_crash_matrix", "test_an_effect_fails"),  # by a fixture of a plugin
    } <= set(using_redis())
