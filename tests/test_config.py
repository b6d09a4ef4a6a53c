"""Settings: checked when they are made, frozen afterwards, read from the environment in one place."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from types import MappingProxyType
from typing import Any

import pytest

from contract_engine.memory import ConfigurationError, MemoryConfig, MemoryManager, SessionLimits
from contract_engine.memory.config import psycopg_url


def test_the_documented_defaults() -> None:
    config = MemoryConfig()
    assert config.limits.as_dict() == {
        "summary_trigger_tokens": 3000,
        "max_buffer_tokens": 4000,
        "max_buffer_messages": 30,
    }
    assert (config.buffer_ttl_seconds, config.summary_ttl_seconds) == (6 * 3600, 24 * 3600)
    assert (config.breaker_failure_threshold, config.breaker_recovery_seconds) == (5, 60.0)
    assert config.redis_pool_size == 20
    assert config.redis_url == "redis://localhost:6379/0"
    assert config.database_url is None
    assert not config.is_durable


def test_the_budget_of_a_summary_grows_with_the_root_of_what_is_folded_up_to_its_cap() -> None:
    config = MemoryConfig()
    assert [config.summary_budget(folded) for folded in (0, 30, 100, 225, 400, 10**9)] == [
        800,
        800,
        800,
        1200,
        1600,
        1600,
    ]
    budgets = [config.summary_budget(folded) for folded in range(1000)]
    assert budgets == sorted(budgets)


def test_whoever_sets_only_the_cap_of_a_summary_gets_it_throughout() -> None:
    config = MemoryConfig(max_summary_tokens=200)
    assert {config.summary_budget(folded) for folded in (0, 100, 101, 5000)} == {200}


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("1", True), ("TRUE", True), ("off", False), ("0", False)])
def test_a_switch_in_the_environment(text: str, value: bool) -> None:
    assert MemoryConfig.from_env({"CONTRACT_MEMORY_READABLE_SUMMARIES": text}).readable_summaries is value


def test_a_switch_is_yes_or_no() -> None:
    with pytest.raises(ConfigurationError) as refused:
        MemoryConfig.from_env({"CONTRACT_MEMORY_READABLE_SUMMARIES": "perhaps"})
    assert refused.value.field == "CONTRACT_MEMORY_READABLE_SUMMARIES"
    with pytest.raises(ConfigurationError) as refused:
        MemoryConfig(readable_summaries="yes")  # type: ignore[arg-type]  # the point of the test
    assert refused.value.field == "readable_summaries"


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        MemoryConfig().tenant = "other"  # type: ignore[misc]  # the point of the test
    with pytest.raises(FrozenInstanceError):
        SessionLimits().max_buffer_tokens = 1  # type: ignore[misc]  # the point of the test


def test_urls_are_in_no_repr() -> None:
    config = MemoryConfig(redis_url="redis://:hunter2@h:1/0", database_url="postgresql://u:hunter3@h/d")
    assert "hunter" not in repr(config)
    assert "hunter" not in str(config)


WHOLE = [
    "summary_tokens",
    "max_summary_tokens",
    "buffer_ttl_seconds",
    "summary_ttl_seconds",
    "max_message_bytes",
    "redis_pool_size",
    "database_pool_size",
    "breaker_failure_threshold",
]
SECONDS = [
    "redis_timeout_seconds",
    "database_timeout_seconds",
    "breaker_recovery_seconds",
    "database_breaker_recovery_seconds",
    "fold_lease_seconds",
]
TEXTS = ["redis_url", "tenant", "key_prefix", "model"]


def test_every_setting_is_checked_by_a_test_here() -> None:
    assert {item.name for item in fields(MemoryConfig)} == {
        *WHOLE,
        *SECONDS,
        *TEXTS,
        "database_url",
        "limits",
        "readable_summaries",
    }


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "7", None, 2**31, float("nan")], ids=repr)
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryConfig(**{name: value})  # type: ignore[arg-type]  # the point of the test
    assert caught.value.field == name


@pytest.mark.parametrize("value", [0, -0.1, True, "1", None, float("nan"), float("inf")], ids=repr)
@pytest.mark.parametrize("name", SECONDS)
def test_seconds_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryConfig(**{name: value})  # type: ignore[arg-type]  # the point of the test
    assert caught.value.field == name


@pytest.mark.parametrize("value", ["", None, 7], ids=repr)
@pytest.mark.parametrize("name", TEXTS)
def test_texts_must_be_texts(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryConfig(**{name: value})  # type: ignore[arg-type]  # the point of the test
    assert caught.value.field == name


@pytest.mark.parametrize("value", ["a/b", "a{b", "a}b", "a:b", "a b", "a\n", "é", "x" * 65], ids=repr)
@pytest.mark.parametrize("name", ["tenant", "key_prefix"])
def test_parts_of_keys_are_plain(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryConfig(**{name: value})  # type: ignore[arg-type]  # a str for a str
    assert caught.value.field == name


def test_the_three_limits_are_checked() -> None:
    for name in SessionLimits().as_dict():
        for value in (0, -1, True, 1.0, "1", None, 2**31):
            with pytest.raises(ConfigurationError) as caught:
                SessionLimits(**{name: value})  # type: ignore[arg-type]  # the point of the test
            assert caught.value.field == name
    with pytest.raises(ConfigurationError, match="summary_trigger_tokens"):
        SessionLimits(summary_trigger_tokens=4001)
    assert SessionLimits(summary_trigger_tokens=4000).summary_trigger_tokens == 4000


def test_changes_leave_the_rest_as_it_is() -> None:
    limits = SessionLimits().with_changes(MappingProxyType({"max_buffer_messages": 5}))
    assert limits.as_dict() == SessionLimits().as_dict() | {"max_buffer_messages": 5}
    assert SessionLimits().with_changes({}) == SessionLimits()


def test_a_lower_cap_takes_the_trigger_with_it_but_a_trigger_above_the_cap_is_refused() -> None:
    assert SessionLimits().with_changes({"max_buffer_tokens": 100}).summary_trigger_tokens == 100
    with pytest.raises(ConfigurationError) as caught:
        SessionLimits().with_changes({"max_buffer_tokens": 100, "summary_trigger_tokens": 101})
    assert caught.value.field == "summary_trigger_tokens"


@pytest.mark.parametrize("changes", [{"max_messages": 3}, {7: 3}, {"": 3}, {None: 1}], ids=repr)
def test_unknown_limits_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="unknown setting"):
        SessionLimits().with_changes(changes)


@pytest.mark.parametrize("changes", [None, [], "max_buffer_tokens", 7], ids=repr)
def test_changes_must_be_a_dict(changes: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SessionLimits().with_changes(changes)
    assert caught.value.field == "config"


def test_an_empty_environment_gives_the_defaults() -> None:
    assert MemoryConfig.from_env({}) == MemoryConfig()


def test_redis_is_addressed_by_parts_or_by_url() -> None:
    assert MemoryConfig.from_env({"REDIS_HOST": "r", "REDIS_PORT": "1", "REDIS_DB": "2"}).redis_url == "redis://r:1/2"
    with_password = MemoryConfig.from_env({"REDIS_PASSWORD": "p@ss/w:rd"}).redis_url
    assert with_password == "redis://:p%40ss%2Fw%3Ard@localhost:6379/0"
    both = {"REDIS_URL": "redis://u:3/4", "REDIS_HOST": "r"}
    assert MemoryConfig.from_env(both).redis_url == "redis://u:3/4"


def test_postgres_is_addressed_by_parts_or_by_url() -> None:
    parts = {
        "POSTGRES_HOST": "p",
        "POSTGRES_PORT": "1",
        "POSTGRES_DB": "d",
        "POSTGRES_USER": "u",
        "POSTGRES_PASSWORD": "a@b/c",
    }
    assert MemoryConfig.from_env(parts).database_url == "postgresql+psycopg://u:a%40b%2Fc@p:1/d"
    assert MemoryConfig.from_env({"POSTGRES_HOST": "p"}).database_url == "postgresql+psycopg://postgres@p:5432/postgres"
    both = parts | {"DATABASE_URL": "postgres://x/y"}
    assert MemoryConfig.from_env(both).database_url == "postgresql+psycopg://x/y"
    # Without a host there is no database, whatever else is set.
    assert MemoryConfig.from_env({"POSTGRES_DB": "d"}).database_url is None


def test_every_other_setting_has_a_variable() -> None:
    config = MemoryConfig.from_env(
        {
            "CONTRACT_MEMORY_TENANT": "acme",
            "CONTRACT_MEMORY_MAX_BUFFER_MESSAGES": "7",
            "CONTRACT_MEMORY_REDIS_TIMEOUT_SECONDS": "0.25",
            "CONTRACT_MEMORY_BUFFER_TTL_SECONDS": "60",
        }
    )
    assert (config.tenant, config.limits.max_buffer_messages) == ("acme", 7)
    assert (config.redis_timeout_seconds, config.buffer_ttl_seconds) == (0.25, 60)


@pytest.mark.parametrize("name", WHOLE + SECONDS + ["tenant", "key_prefix", "model", *SessionLimits().as_dict()])
def test_the_variable_of_each_setting_is_known(name: str) -> None:
    value = "3" if name != "model" else "gpt-4"
    config = MemoryConfig.from_env({f"CONTRACT_MEMORY_{name.upper()}": value})
    found = getattr(config.limits if name in SessionLimits().as_dict() else config, name)
    assert str(found) in (value, "3.0")


def test_a_misspelt_or_wrong_variable_raises_with_its_name() -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryConfig.from_env({"CONTRACT_MEMORY_TENNANT": "x"})
    assert caught.value.field == "CONTRACT_MEMORY_TENNANT"
    with pytest.raises(ConfigurationError) as caught:
        MemoryConfig.from_env({"CONTRACT_MEMORY_REDIS_POOL_SIZE": "many"})
    assert caught.value.field == "CONTRACT_MEMORY_REDIS_POOL_SIZE"


def test_arguments_win_over_the_environment() -> None:
    env = {"CONTRACT_MEMORY_TENANT": "acme", "DATABASE_URL": "postgresql://h/d"}
    config = MemoryConfig.from_env(env, tenant="other", database_url=None)
    assert config.tenant == "other"
    assert not config.is_durable


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_forms_of_a_database_url(scheme: str) -> None:
    assert psycopg_url(f"{scheme}://u:p@h:1/d?sslmode=require") == "postgresql+psycopg://u:p@h:1/d?sslmode=require"


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite://", "h/d", "", "postgresql+asyncpg://h/d"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryConfig(database_url=url)
    assert caught.value.field == "database_url"


def test_a_refused_database_url_does_not_show_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryConfig(database_url="mysql://user:hunter2@h/d")
    assert "hunter2" not in str(caught.value)


def test_a_manager_takes_settings_by_name_and_limits_by_place() -> None:
    manager = MemoryManager(100, 200, max_buffer_messages=3, tenant="acme", database_url=None)
    assert manager.config.tenant == "acme"
    assert manager.config.limits == SessionLimits(
        summary_trigger_tokens=100, max_buffer_tokens=200, max_buffer_messages=3
    )
    assert manager.summary_trigger_tokens == 100


def test_a_manager_refuses_wrong_settings_when_it_is_made() -> None:
    with pytest.raises(ConfigurationError):
        MemoryManager(0)
    with pytest.raises(ConfigurationError):
        MemoryManager(max_buffer_tokens=5, summary_trigger_tokens=6)
    with pytest.raises(ConfigurationError):
        MemoryManager(tenant="a/b")
    for given in ({}, {"config": MemoryConfig()}):
        with pytest.raises(ConfigurationError) as caught:
            MemoryManager(**given, tenannt="a")  # type: ignore[arg-type]  # one of them is a config
        assert caught.value.field == "tenannt"


def test_a_refused_redis_url_is_a_configuration_error() -> None:
    manager = MemoryManager(redis_url="http://localhost", database_url=None)
    with pytest.raises(ConfigurationError) as caught:
        manager.get_context("s")
    assert caught.value.field == "redis_url"
