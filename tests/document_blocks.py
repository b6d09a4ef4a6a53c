"""Every block of the four documents that programs are written after, and how one is run.

The text of a block is kept as it stands in its document (``documents/``). Two things are changed when it runs: the
module of an import, by ``MODULES``, and the address ``redis://localhost:6379``, which becomes that of the tests' Redis
with the same database number. ``REDIS_URL`` is set for what reads it.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

DOCUMENTS = Path(__file__).parent / "documents"

MODULES = {
    "arshai.core.interfaces.imemorymanager": "contract_engine.working_memory",
    "arshai.core.interfaces.iagent": "contract_engine.working_memory",
    "arshai.memory.memory_types": "contract_engine.working_memory",
    "arshai.memory.working_memory.in_memory_manager": "contract_engine.working_memory",
    "arshai.memory.working_memory.redis_memory_manager": "contract_engine.working_memory",
    "arshai.agents.working_memory": "contract_engine.working_memory",
    "arshai.agents.hub.working_memory": "contract_engine.working_memory",
    ".plugin_interface": "contract_engine.plugins.memory_manager.plugin_interface",
    # A provider on the internet: a model that runs here stands for it.
    "arshai.core.interfaces.illm": "local_models",
    "arshai.llms.openai": "local_models",
}

RUNS = "runs"
SHELL = "shell commands"
PACKAGES = "names of packages"


@dataclass(frozen=True)
class Tests:
    """A block of tests, run by pytest: so many pass."""

    __test__ = False

    count: int


BLOCKS: dict[str, tuple[tuple[str, str | Tests], ...]] = {
    "plugin": (
        ("01_plugin_interface", RUNS),
        ("02_test_memory_manager", Tests(3)),
        ("03_dependencies", PACKAGES),
        ("04_example_usage", RUNS),
    ),
    "reference": (
        ("01_interface_compliance", RUNS),
        ("02_memory_input_structure", RUNS),
        ("03_basic_memory_operations", RUNS),
        ("04_agent_integration", RUNS),
        ("05_custom_memory_implementation", RUNS),
        ("06_ttl_management", RUNS),
        ("07_memory_compression", RUNS),
        ("08_memory_versioning", RUNS),
        ("09_unit_testing", Tests(3)),
        ("10_integration_testing", Tests(2)),
        ("11_performance_testing", Tests(1)),
    ),
    "redis": (
        ("01_installation", SHELL),
        ("02_local_development", SHELL),
        ("03_local_development", SHELL),
        ("04_redis_cloud_managed", SHELL),
        ("05_aws_elasticache", SHELL),
        ("06_self_hosted_redis_cluster", SHELL),
        ("07_environment_configuration", SHELL),
        ("08_simple_example", RUNS),
        ("09_with_agent", RUNS),
        ("10_connection_options", RUNS),
        ("11_ttl_configuration", RUNS),
        ("12_store_memory", RUNS),
        ("13_retrieve_memory", RUNS),
        ("14_update_memory", RUNS),
        ("15_delete_memory", RUNS),
        ("16_multi_process_deployment", RUNS),
        ("17_connection_pooling", RUNS),
        ("18_error_handling", RUNS),
        ("19_check_redis_contents", SHELL),
        ("20_monitor_memory_usage", RUNS),
        ("21_cleanup_utilities", RUNS),
        ("22_batch_operations", RUNS),
        ("23_connection_reuse", RUNS),
        ("24_unit_testing_with_redis_mock", Tests(1)),
        ("25_integration_testing", Tests(1)),
        ("26_migration_from_in_memory", RUNS),
        ("27_connection_refused", SHELL),  # marked as Python there: one line for a shell, under two comments
        ("28_authentication_failed", RUNS),
        ("29_wrong_database", RUNS),
        ("30_memory_full", SHELL),
        ("31_security", SHELL),
    ),
    "in_memory": (
        ("01_installation", SHELL),
        ("02_simple_example", RUNS),
        ("03_with_agent", RUNS),
        ("04_ttl_time_to_live", RUNS),
        ("05_memory_types", RUNS),
        ("06_store_memory", RUNS),
        ("07_retrieve_memory", RUNS),
        ("08_update_memory", RUNS),
        ("09_delete_memory", RUNS),
        ("10_multi_conversation_management", RUNS),
        ("11_custom_memory_structure", RUNS),
        ("12_memory_cleanup", RUNS),
        ("13_unit_testing", Tests(2)),
        ("14_integration_testing", Tests(1)),
        ("15_migration_to_production", RUNS),
    ),
}

FOLLOWS = {
    "redis/13_retrieve_memory": "redis/12_store_memory",
    "redis/14_update_memory": "redis/12_store_memory",
    "redis/15_delete_memory": "redis/12_store_memory",
    "in_memory/07_retrieve_memory": "in_memory/06_store_memory",
    "in_memory/08_update_memory": "in_memory/06_store_memory",
    "in_memory/09_delete_memory": "in_memory/06_store_memory",
}
"""Blocks that go on where an earlier one of their document has left off."""

_IMPORT = re.compile(r"^( *from )([\w.]+)( import )", re.MULTILINE)
_ADDRESS = "redis://localhost:6379"


def names(*kinds: type | str) -> list[str]:
    """Return ``document/block`` of all blocks whose disposition is one of these, or of one of these types."""
    return [
        f"{document}/{name}"
        for document, blocks in BLOCKS.items()
        for name, kind in blocks
        if kind in kinds or type(kind) in kinds
    ]


def source(name: str) -> str:
    """Return a block as it stands in its document."""
    return (DOCUMENTS / f"{name}.py").read_text("utf-8")


def runnable(name: str, redis_url: str) -> str:
    """Return a block with its imports and its address of Redis changed, and nothing else."""
    text = _IMPORT.sub(lambda found: found[1] + MODULES.get(found[2], found[2]) + found[3], source(name))
    parts = urlsplit(redis_url)
    return text.replace(_ADDRESS, f"{parts.scheme}://{parts.netloc}")


def run(text: str, namespace: dict[str, Any]) -> None:
    """Run a block as the main program of its own; ``await`` may stand outside functions, as it does in a notebook."""
    code = compile(text, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, namespace))
    else:
        exec(code, namespace)
