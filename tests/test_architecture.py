"""The shape of the package: what may import what, how long a module may be, what stands where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from contract_engine.memory import _scripts

PACKAGE = Path(str(resources.files("contract_engine")))
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)

# From the ground up. A module may import from its own line and the lines above it.
LAYERS = (
    "errors",
    "hooks closing durations",
    "_observed",
    "daemon config keys untold call_window circuit_state circuit_settings circuit_listeners circuit_timer"
    " circuit_probes",
    "encodings encodings.measurement token_counter exchange mending swisper_context circuit_guard circuit_control"
    " circuit_breaker",
    "models serializer",
    "archive summary_entries",
    "legacy_messages history_alignment",
    "parity",
    "summarizers summarizers.request summarizers.sentences summarizers.salience summarizers.facts summarizers.form"
    " summarizers.units summarizers.notes summarizers.phrases summarizers.wishes summarizers.extractive"
    " summarizers.merging"
    " summarizers.transcript summarizers.languages summarizers.evidence summarizers.names"
    " summarizers.answer summarizers.gate summarizers.prompt summarizers.chat_model summarizers.openai_answer"
    " summarizers.openai_transport summarizers.openai_chat summarizers.model_stats summarizers.model",
    "packaging packaging.parts packaging.turns packaging.notes packaging.budget packaging.merging packaging.openai_chat"
    " packaging.anthropic_messages packaging.gemini_contents packaging.langchain_json packaging.package",
    "terms ranking",
    "_effects",
    "_scripts _tables",
    "_layout _log _log_transactions _log_summaries _log_drain _log_pins _log_recall _log_retention _log_archive"
    " _log_outbox _log_relays _log_phases intake",
    "_log_backfill _legacy_table",
    "_legacy_flows",
    "_runtime _runtime.failures _runtime.places _runtime.redis_steps _runtime.redis_topology"
    " _runtime.redis_conversation"
    " _runtime.redis_connections _runtime.redis_routing _runtime.redis_cluster _runtime.redis_sentinel"
    " _runtime.redis_transport _runtime.database_connections _runtime.database _runtime.background"
    " _runtime.observing _runtime.checkup _runtime.legacy_calls _runtime.relay_worker _runtime.runner",
    "deletions",
    "message_log session_cache telling",
    "legacy_store legacy_redis",
    "legacy_source",
    "recall",
    "folding",
    "refining",
    "phrase_search",
    "assignment",
    "unlogged",
    "sessions",
    "rebuilding contexts archiving",
    "erasing",
    "buffer_store summary_store session_store pins retention",
    "log_writer",
    "backfill bringing",
    "_manager_flows",
    "health",
    "_manager_health",
    "_manager_base",
    "watched metrics tracing",
    "manager async_manager",
    "phases outbox legacy relaying shadow_reads dual_writing _migration_base migration migration_control legacy_object",
)
HEIGHT = {name: height for height, line in enumerate(LAYERS) for name in line.split()}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE / "memory").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def memory_modules() -> list[Path]:
    return [path for path in (PACKAGE / "memory").rglob("*.py") if name_of(path)]


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node


def test_every_module_of_the_memory_has_a_layer() -> None:
    assert {name_of(path) for path in memory_modules()} == set(HEIGHT)


@pytest.mark.parametrize("path", memory_modules(), ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    mine = name_of(path)
    prefix = "contract_engine.memory."
    for module, _ in imports(ast.parse(path.read_text("utf-8"))):
        name = module.removeprefix(prefix)
        if module.startswith(prefix) and name in HEIGHT:
            assert HEIGHT[name] <= HEIGHT[mine], f"{mine} imports {name}, which stands above it"


def test_the_memory_knows_nothing_of_what_is_built_on_it() -> None:
    for path in memory_modules():
        for module, _ in imports(ast.parse(path.read_text("utf-8"))):
            assert not module.startswith("contract_engine.") or module.startswith("contract_engine.memory"), path


# The same for working_memory; a line may also import what FROM_THE_MEMORY names.
WORKING_LAYERS = (
    "models interfaces",
    "records",
    "errors layers stores",
    "patterns intake",
    "selection settings stored_records",
    "front",
    "manager",
    "wrapping",
    "compression encryption versions retrying auditing",
    "ttl_strategy",
    "expiring_entries redis_pool redis_store sql_store",
    "in_memory_manager redis_memory_manager sql_memory_manager",
    "environment",
    "agent",
)
WORKING_HEIGHT = {name: height for height, line in enumerate(WORKING_LAYERS) for name in line.split()}
FROM_THE_MEMORY = frozenset(
    [
        "errors", "serializer", "terms", "ranking", "keys", "config", "hooks", "_runtime.failures",
        "_runtime.places", "_runtime.database_connections", "daemon",
    ]
)  # fmt: skip


def working_modules() -> list[Path]:
    return sorted(path for path in (PACKAGE / "working_memory").glob("*.py") if path.stem != "__init__")


def test_every_module_of_the_working_memory_has_a_layer() -> None:
    assert {path.stem for path in working_modules()} == set(WORKING_HEIGHT)


@pytest.mark.parametrize("path", working_modules(), ids=lambda path: path.stem)
def test_imports_of_the_working_memory_point_one_way(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("contract_engine"):
            continue
        module = str(node.module)
        if module == "contract_engine.working_memory":  # some modules of it
            names = [alias.name for alias in node.names]
        elif module.startswith("contract_engine.working_memory."):
            names = [module.removeprefix("contract_engine.working_memory.")]
        else:
            assert module.removeprefix("contract_engine.memory.") in FROM_THE_MEMORY, f"{path.stem}: {module}"
            continue
        for name in names:
            assert WORKING_HEIGHT[name] <= WORKING_HEIGHT[path.stem], f"{path.stem} imports {name}, which stands above"


def test_only_stores_and_who_opens_them_touch_clients_and_engines() -> None:
    for path in working_modules():
        for module, _ in imports(ast.parse(path.read_text("utf-8"))):
            if module.split(".")[0] in ("redis", "sqlalchemy", "psycopg", "sqlite3"):
                assert re.match("(redis|sql)_(store|memory_manager)$|redis_pool$", path.stem), f"{path.stem}: {module}"


def test_scripts_of_the_working_memory_state_their_keys_and_name_every_key() -> None:
    scripts = sorted((PACKAGE / "working_memory" / "lua").glob("*.lua"))
    assert [path.stem for path in scripts] == ["exchange", "expire"]
    for path in scripts:
        header, code = re.match(r"((?:--.*\n)+)(.*)", path.read_text("utf-8"), re.DOTALL).groups()  # type: ignore[union-attr]
        assert all(f"-- {word}" in header for word in ("KEYS", "ARGV", "Answer")), path
        assert not re.search(r"'(KEYS|SCAN|FLUSHALL|FLUSHDB)'|unpack\(|KEYS\[\w+\]\s*\.\.|\.\.\s*KEYS", code), path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_decoders_are_made_with_their_module(path: Path) -> None:
    """msgspec 0.22 ends a process in which two threads at once make what it knows of nested types."""
    for function in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and (name := ast.unparse(call.func)).startswith("msgspec."):
                    assert not name.endswith(".Decoder"), ast.unparse(call)
                    assert all(keyword.arg != "type" for keyword in call.keywords), ast.unparse(call)


def test_there_are_at_most_three_broad_excepts_and_each_says_why() -> None:
    found = []
    for path in MODULES:
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            if re.search(r"except( \(?(Base)?Exception\)?)?( as \w+)?:", line):
                found.append(f"{path.relative_to(PACKAGE)}:{number}")
                assert "# " in line + lines[number], f"{found[-1]} catches everything without saying why"
    assert 1 <= len(found) <= 3, found


def test_only_the_runtime_touches_clients_and_engines() -> None:
    allowed = {
        "_runtime",
        "_log",
        "_log_transactions",
        "_log_drain",
        "_log_pins",
        "_log_summaries",
        "_log_recall",
        "_log_retention",
        "_log_archive",
        "_log_backfill",
        "_legacy_table",
        "_log_outbox",
        "_log_relays",
        "_log_phases",
        "_tables",
        "_effects",
        "message_log",
        "config",
    }  # config: it only parses URLs
    for path in memory_modules():
        if name_of(path).split(".")[0] in allowed:
            continue
        for module, _ in imports(ast.parse(path.read_text("utf-8"))):
            assert module.split(".")[0] not in ("redis", "sqlalchemy", "psycopg", "hiredis"), f"{path}: {module}"


def test_await_stands_only_in_the_runtime_and_in_one_line_shells() -> None:
    # Those who talk to a language model are called by the runtime as a whole, and are no part of a flow.
    allowed = {
        "circuit_guard",
        "daemon",
        *(f"summarizers.{name}" for name in ("chat_model", "openai_transport", "model")),
    }
    for path in memory_modules():
        if name_of(path).startswith("_runtime") or name_of(path) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef):
                code = [
                    statement
                    for statement in node.body
                    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant)
                ]
                lines = sum((statement.end_lineno or 0) - statement.lineno + 1 for statement in code)
                assert lines <= 2, f"{path.name}: {node.name} is more than a shell"


def test_packages_hold_imports_and_names_only() -> None:
    for path in (PACKAGE / "memory").rglob("__init__.py"):
        if path.parent.name == "encodings":  # the data files' own loader
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            # What not every program needs is imported when it is asked for, and known to type checkers before.
            is_late = ast.unparse(node).startswith(("if TYPE_CHECKING:\n", "def __getattr__(name: str) -> Any:\n"))
            is_name = isinstance(node, ast.ImportFrom | ast.Assign | ast.Expr)
            assert is_name or is_late, f"{path}: {ast.unparse(node)[:60]}"


def test_each_script_is_called_with_the_arguments_its_header_states() -> None:
    """KEYS and the fixed ARGV of the header comment, against what the Python call sends."""
    from contract_engine.memory.keys import session_keys

    keys = session_keys("p", "t", "s")
    calls = {
        "append": _scripts.append_call(
            keys, epoch=1, revision=0, first_seq=1, at_ms=1, buffer_ttl=1, summary_ttl=1, ticket=1, ticket_ttl=1,
            lease_ms=1, messages=(),
        ),
        "append_unlogged": _scripts.append_unlogged_call(
            keys, buffer_ttl=1, summary_ttl=1, limits="1,1,1", expected_seq=0, message_id=b"", is_relayed=False,
            messages=(),
        ),
        "assign": _scripts.assign_call(
            keys, at_ms=1, ttl=1, ticket=1, settings="fold,1,1,1,1", message_id=b"", messages=()
        ),
        "claim": _scripts.claim_call(keys, ticket=1, ticket_ttl=1, seen=b""),
        "install": _scripts.install_call(
            keys, ticket=1, header=b"", buffer_ttl=1, summary_ttl=1, summary=b"", elements=(),
        ),
        "commit": _scripts.commit_call(
            keys, epoch=1, revision=1, version=1, new_revision=1, watermark=1, buffer_ttl=1, summary_ttl=1, summary=b"",
            history_entry=b"", history_length=1, at_ms=1,
        ),
        "configure": _scripts.configure_call(keys, epoch=1, at_ms=1, ttl=1, limits="1,1,1", changes={}),
        "release": _scripts.release_call(keys.fold, lease_token=1),
        "lease": _scripts.lease_call(keys.fold, lease_token=1, lease_ms=1),
        "drained": _scripts.drained_call(keys, count=0, first=b"", last=b""),
        "forget": _scripts.forget_call(keys),
        "waiting": _scripts.waiting_call(keys, most_messages=1, most_bytes=1, newest=b""),
        "pin": _scripts.pin_call(keys, epoch=1, revision=1, version=1, ttl=1, summary=b""),
        "drop": _scripts.drop_call(keys),
        "discard": _scripts.discard_call(keys, seen=b""),
    }  # fmt: skip
    assert set(calls) == {script.name for script in _scripts.ALL_SCRIPTS}
    for script in _scripts.ALL_SCRIPTS:
        header = re.split(r"\n(?!--)", script.source)[0]
        stated_keys = re.search(r"-- KEYS(.*)", header)
        stated_args = re.search(r"-- ARGV(.*?)(?=-- Answer|$)", header, re.DOTALL)
        assert stated_keys, script.name
        assert stated_args, script.name
        words = calls[script.name].words
        assert words[0] == max(map(int, re.findall(r"  (\d+) ", stated_keys[1] + " "))), script.name
        numbers = {int(number) for number in re.findall(r"(?:^|  | and  ?)(\d+) ", stated_args[1])}
        assert len(words) - 1 - words[0] == max(numbers, default=0), script.name


def test_scripts_name_every_key_and_never_unpack_without_bound() -> None:
    for script in _scripts.ALL_SCRIPTS:
        code = re.sub(r"--.*", "", script.source)
        assert not re.search(r"'(KEYS|SCAN|FLUSHALL|FLUSHDB)'", code)
        assert "unpack(" not in code
        assert not re.search(r"KEYS\[\d\]\s*\.\.|\.\.\s*KEYS", code), "keys are never made inside a script"


def test_importing_and_constructing_opens_no_connection() -> None:
    code = """
import socket
def refuse(*_):
    raise AssertionError("a connection was opened")
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
from contract_engine.memory import *
import contract_engine.memory as memory
memory.memory_manager
memory.MemoryManager(redis_url="redis://localhost:1", database_url="postgresql://localhost:1/x")
memory.AsyncMemoryManager(redis_url="redis://localhost:1", database_url="postgresql://localhost:1/x")
memory.BufferStore(), memory.SummaryStore(), memory.PostgresSessionStore(), memory.TokenCounter()
import contract_engine.working_memory as working
working.InMemoryManager(), working.RedisWorkingMemoryManager(), working.AsyncRedisWorkingMemoryManager()
working.SQLMemoryManager("postgresql://localhost:1/x"), working.AsyncSQLMemoryManager("postgresql://localhost:1/x")
manager = memory.MemoryManager(redis_url="redis://localhost:1", database_url="postgresql://localhost:1/x")
manager.buffer_store, manager.summary_store, manager.session_store, manager.token_counter
print("opened nothing")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "opened nothing\n", done.stderr


def test_the_instance_is_not_hidden_by_a_module_of_its_name() -> None:
    import contract_engine.memory

    assert isinstance(contract_engine.memory.memory_manager, contract_engine.memory.MemoryManager)
    assert not (PACKAGE / "memory" / "memory_manager.py").exists()


def test_importing_costs_neither_alembic_nor_tiktoken_nor_rich_nor_openai() -> None:
    code = (
        "import sys, contract_engine.memory; "
        "print([name for name in ('alembic', 'tiktoken', 'rich', 'typer', 'openai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
