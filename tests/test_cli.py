"""The command line as people and programs use it, on real servers."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from model_server import EIGHTH_OF_MAY, MESSAGES, model_server
from server_faults import waited_for
from servers import PrivateServers
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from contract_engine import demo, schema
from contract_engine.cli.app import app
from contract_engine.cli.conversations import Conversation, conversation_of, read_conversations
from contract_engine.cli.display import printable
from contract_engine.cli.replay import replay_conversation, violations
from contract_engine.cli.servers import ADDRESS_VARIABLES, HOME_VARIABLE, data_directory, own_directory
from contract_engine.cli.wording import counted
from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import ConfigurationError, InvalidInputError, MemoryConfig, MemoryManager
from contract_engine.memory.mending import stored

Command = Callable[..., "Answer"]
SECRET = "hunter2"  # stands for a password that must not be seen


class Answer:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No server is named, and started ones would keep their data in a directory of this test."""
    for name in (*ADDRESS_VARIABLES, "CONTRACT_MEMORY_TENANT", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    home = Path(tempfile.mkdtemp(prefix="contract-cli-"))
    home.chmod(0o711)  # PostgreSQL's user must pass when we are root
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    yield home
    shutil.rmtree(home)


def run(*arguments: str, answer: str = "") -> Answer:
    """Run a command in this process."""
    result = CliRunner().invoke(app, list(arguments), input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def run_process(*arguments: str) -> Answer:
    """Run a command as a program of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "contract_engine.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(params=["durable", "ephemeral"])
def command(request: pytest.FixtureRequest, redis_url: str, database_url: str, tenant: str) -> Command:
    """Run a command against the shared servers, in either mode, as a tenant of its own."""
    mode = ("--ephemeral",) if request.param == "ephemeral" else ()

    def run_there(name: str, *arguments: str, answer: str = "") -> Answer:
        servers = ("--redis-url", redis_url, "--database-url", database_url, "--tenant", tenant)
        return run(name, *servers, *mode, *arguments, answer=answer)

    return run_there


@pytest.fixture
def durable(redis_url: str, database_url: str, tenant: str) -> Command:
    """The same with a database alone."""

    def run_there(name: str, *arguments: str, answer: str = "") -> Answer:
        servers = ("--redis-url", redis_url, "--database-url", database_url, "--tenant", tenant)
        return run(name, *servers, *arguments, answer=answer)

    return run_there


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write(path: Path, *conversations: object) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in conversations), encoding="utf-8")
    return str(path)


@pytest.fixture
def chats(tmp_path: Path) -> str:
    """Two shipped conversations under names of our own: a long one that is folded, and a short one."""
    long, short = demo.conversations()[2], demo.conversations()[6]
    return write(tmp_path / "chats.jsonl", {**long, "id": "long"}, {**short, "id": "short"})


SMALL = ("--summary-trigger-tokens", "600", "--max-buffer-tokens", "900", "--max-buffer-messages", "10")


def test_replay_verifies_every_context(command: Command, chats: str) -> None:
    report = command("replay", chats, *SMALL, "--json").json
    assert report["verified"] is True
    assert report["messages"] == 72
    long, short = report["sessions"]
    assert (long["session_id"], long["messages"], long["last_seq"]) == ("long", 59, 59)
    assert len(long["folds"]) == long["summary_version"] > 3
    starts, ends = zip(*((fold["first_seq"], fold["last_seq"]) for fold in long["folds"]), strict=True)
    assert starts == (1, *(end + 1 for end in ends[:-1]))
    assert ends[-1] == long["watermark"]
    assert long["buffer"]["messages"] == 59 - long["watermark"] <= long["buffer"]["max_messages"] == 10
    assert long["context_tokens"] == long["buffer"]["tokens"] + long["summary_tokens"] < long["conversation_tokens"]
    assert long["turns"] == 29
    assert long["tokens_sent"]["context"] < long["tokens_sent"]["whole"]
    assert long["violations"] == short["violations"] == []
    assert report["tokens_sent"]["whole"] == sum(item["tokens_sent"]["whole"] for item in (long, short))


def test_replay_tells_people_what_they_want_to_know(durable: Command, chats: str) -> None:
    answer = durable("replay", chats, *SMALL)
    assert answer.code == 0
    for words in (
        "59: 1..",
        "word for word",
        "of 10 messages",
        "of 900 tokens",
        "% saved",
        "summary of 1..",
        "--full shows them",
        "verified after each of the 59 messages",
        "2, with 72 messages",
        "✓ verified: every context was summary 1..W + messages W+1..N word for word",
    ):
        assert words in answer.out
    assert "\x1b" not in answer.out
    assert "--full" not in durable("replay", chats, "--limit", "1", "--session-prefix", "again-", *SMALL).out


def test_replay_does_not_continue_a_session(durable: Command, chats: str) -> None:
    assert durable("replay", chats).code == 0
    again = durable("replay", chats)
    assert again.code == 2
    assert "'long', 'short' already hold messages" in again.err
    assert "--replace" in again.err
    assert durable("replay", chats, "--replace").code == 0
    assert durable("replay", chats, "--session-prefix", "b-").code == 0
    assert durable("show", "long", "--json").json["last_seq"] == durable("show", "b-long", "--json").json["last_seq"]


def test_replay_can_leave_nothing_behind(command: Command, chats: str) -> None:
    answer = command("replay", chats, "--clear", "--limit", "1", "--json")
    assert [item["session_id"] for item in answer.json["sessions"]] == ["long"]
    assert command("show", "long").code == 1


def test_replay_finds_a_log_that_lies(private_servers: PrivateServers, chats: str) -> None:
    servers = private_servers()
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(
            """CREATE FUNCTION lie() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 NEW.body := convert_to('{"role":"user","content":"never said"}', 'UTF8'); RETURN NEW;
               END $$"""
        )
        connection.execute(
            "CREATE TRIGGER lie BEFORE INSERT ON memory_messages FOR EACH ROW WHEN (NEW.seq = 3) EXECUTE FUNCTION lie()"
        )
    address = ("--redis-url", servers.redis_url, "--database-url", servers.database_url)
    answer = run("replay", chats, "--limit", "1", *address)
    assert answer.code == 1
    assert "✗ verification FAILED in 1 of 1 session: long" in answer.out
    assert "the log does not hold the messages that were sent" in answer.out
    told = run("replay", chats, "--limit", "1", "--replace", "--json", *address)
    assert told.code == 1
    assert told.json["verified"] is False


def test_replay_finds_another_writer(redis_url: str, database_url: str, tenant: str) -> None:
    config = MemoryConfig(redis_url=redis_url, database_url=database_url, tenant=tenant)
    conversation = Conversation("shared", [{"role": "user", "content": f"number {place}"} for place in range(3)])
    with MemoryManager(config=config) as manager:
        intruder = {"role": "user", "content": "me too"}
        report = replay_conversation(
            manager, conversation, limits={}, advance=lambda: manager.add_message("shared", intruder)
        )
    assert "after message 2: 2 messages were acknowledged, the context ends at 3" in report.violations
    assert "the log does not hold the messages that were sent" in report.violations


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"last_seq": 3}, "4 messages were acknowledged, the context ends at 3"),
        ({"watermark": 1}, "messages 2..4 are not the ones"),
        ({"buffer_messages": [{"content": "2"}, {"content": "3"}]}, "messages 3..4 are not the ones"),
        ({"complete": False}, "the summary of messages 1..2 is lost"),
        ({"buffer_info": {"message_count": 9, "total_tokens": 1, "max_messages": 8, "max_tokens": 9}}, "the cap is 8"),
        ({"buffer_info": {"message_count": 2, "total_tokens": 10, "max_messages": 8, "max_tokens": 9}}, "the cap is 9"),
        ({"buffer_info": {"message_count": 1, "total_tokens": 10, "max_messages": 8, "max_tokens": 9}}, None),
    ],
)
def test_violations_of_the_law_are_seen(change: dict[str, Any], words: str | None) -> None:
    sent = [{"content": str(seq)} for seq in (1, 2, 3, 4)]
    info = {"message_count": 2, "total_tokens": 9, "max_messages": 8, "max_tokens": 9}
    right = {"last_seq": 4, "watermark": 2, "buffer_messages": sent[2:], "complete": True, "buffer_info": info}
    found = violations(right | change, sent)
    assert (found == []) if words is None else (len(found) == 1 and words in found[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no conversation"),
        ("{not json}\n", "line 1: is not JSON"),
        ("[1]\n", "line 1: expected an object"),
        ('\n{"messages": [{}]}\n', 'line 2: "id" is missing'),
        ('{"id": "a\\u0007", "messages": [{}]}', "control character U+0007"),
        ('{"id": "a"}', '"messages" is missing'),
        ('{"id": "a", "messages": ["hello"]}', "messages[0] is not an object"),
        ('{"id": "a", "messages": [{}]}\n{"id": "a", "messages": [{}]}', "line 2: the id 'a' comes a second time"),
        ("[" * 100_000, "line 1: is not JSON"),
    ],
)
def test_files_that_hold_no_conversations_are_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError) as caught:
        read_conversations(file)
    assert words in str(caught.value)
    answer = run("replay", str(file))
    assert answer.code == 2
    assert answer.err.startswith("Error: chats.jsonl")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in run("replay", str(tmp_path / "none")).err
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is not a text in UTF-8" in run("replay", str(tmp_path / "binary")).err


def test_message_that_is_refused_is_named(durable: Command, tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    file = write(tmp_path / "chats.jsonl", {"id": "deep", "messages": [{"role": "user"}, {"content": deep}]})
    answer = durable("replay", file)
    assert answer.code == 2
    assert "'deep', message 2, message" in answer.err


def test_show_gives_the_context(command: Command, chats: str) -> None:
    assert command("replay", chats, *SMALL).code == 0
    context = command("show", "long", "--json").json
    sent = demo.conversations()[2]["messages"]
    assert context["last_seq"] == 59
    assert context["buffer_messages"] == sent[context["watermark"] :]
    seen = command("show", "long", "--full").out
    assert f"summary of 1..{context['watermark']} (version {context['summary_version']}" in seen
    assert (context["readable_summary"] or context["current_summary"]).splitlines()[-1][:40] in seen
    call = next(item for item in context["buffer_messages"] if item.get("tool_calls"))["tool_calls"][0]
    assert f"⚙ {call['function']['name']}(" in seen
    for seq in range(context["watermark"] + 1, 60):
        assert f" {seq}  " in seen


def test_show_tells_what_is_pinned(durable: Command, redis_url: str, database_url: str, tenant: str) -> None:
    config = MemoryConfig(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with MemoryManager(max_buffer_messages=6, config=config) as manager:
        manager.append("s", {"role": "user", "content": "My passport is C01X."}, message_id="passport")
        manager.pin("s", "passport")
        for number in range(12):
            manager.append("s", {"role": "user", "content": f"Message {number}."})
            manager.wait_for_folds()
    seen = durable("show", "s").out
    assert "1 of the folded messages" in seen
    assert seen.index(" 1  user") < seen.index("13  user")
    assert durable("show", "s", "--json").json["pinned_messages"][0]["message"]["content"] == "My passport is C01X."


def test_a_call_that_was_never_answered_is_replayed_and_shown(command: Command, tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": "Never mind."},
    ]
    assert command("replay", write(tmp_path / "chats.jsonl", {"id": "open", "messages": messages})).code == 0
    lines = command("show", "open").out.splitlines()
    rows = [line.split()[:2] for line in lines[lines.index(next(line for line in lines if "seq" in line)) + 1 :]]
    assert [row for row in rows if row][:3] == [["1", "assistant"], ["tool", "[synthetic:"], ["2", "user"]]


def test_show_keeps_the_terminal_safe(durable: Command, tmp_path: Path) -> None:
    content = "[bold]not markup[/bold] \x1b[31mred\x07 \u202eback"
    blocks = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    messages = [
        {"role": "user", "content": content},
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": None, "tool_calls": ["odd", {"name": "plain", "args": {"a": 1}}]},
        {"role": "user", "content": "x" * 500},
    ]
    assert durable("replay", write(tmp_path / "chats.jsonl", {"id": "odd", "messages": messages})).code == 0
    seen = durable("show", "odd").out
    assert "[bold]not markup[/bold]" in seen
    assert not {"\x1b", "\x07", "\u202e"} & set(seen)
    assert "look [image_url]" in seen
    assert '⚙ plain({"a": 1})' in seen
    assert "x…" in seen
    assert durable("show", "odd", "--full").out.count("x") > 500
    assert stored(durable("show", "odd", "--json").json) == messages


def test_printable_keeps_lines_and_replaces_what_steers() -> None:
    assert printable("a\tb\nc\x00\x9b\ud800é😀") == "a\tb\nc\ufffd\ufffd\ufffdé😀"


def test_unknown_session_is_said_to_be_none(command: Command, chats: str) -> None:
    for name in ("show", "stats"):
        answer = command(name, "nobody", "--json")
        assert (answer.code, answer.out) == (1, "")
        assert "There is no session 'nobody'" in answer.err


def test_show_names_the_latest_sessions(durable: Command, chats: str) -> None:
    durable("replay", chats)
    assert "The latest are: short, long." in durable("show", "nobody").err


@pytest.mark.parametrize("name", ["show", "stats", "clear", "replay"])
def test_missing_argument_is_named(name: str) -> None:
    answer = run(name)
    assert answer.code == 2
    assert "Missing argument" in answer.err
    assert ("FILE.jsonl" if name == "replay" else "SESSION") in answer.err


def test_empty_session_id_is_refused(durable: Command) -> None:
    answer = durable("show", "")
    assert answer.code == 2
    assert "Error: session_id: must not be empty" in answer.err


def test_tenants_see_their_own(durable: Command, chats: str) -> None:
    durable("replay", chats)
    assert durable("show", "long").code == 0
    assert durable("show", "long", "--tenant", "somebody-else").code == 1


def test_stats(command: Command, chats: str) -> None:
    command("replay", chats, *SMALL)
    facts = command("stats", "long", "--json").json
    assert facts["session_config"]["max_buffer_messages"] == 10
    assert facts["summary"]["summary_count"] == facts["summary_version"]
    assert facts["buffer"]["message_count"] == facts["last_seq"] - facts["watermark"]
    seen = command("stats", "long").out
    assert f"{facts['summary_version']} versions" in seen
    assert "max_buffer_messages 10" in seen
    assert f"policy {facts['redis_memory']['maxmemory_policy']}" in seen


def test_summaries_shows_where_versions_come_from(command: Command, chats: str) -> None:
    command("replay", chats)
    shown = command("summaries", "long")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0].split() == ["version", "when", "by", "messages", "tokens", "parent"]
    told = command("summaries", "long", "--json").json
    versions = told["versions"]
    assert len(lines) == 1 + len(versions) == 1 + told["summary_count"]
    assert told["watermark"] == versions[-1]["last_seq"]
    for line, entry in zip(lines[1:], versions, strict=True):
        words = line.split()
        assert words[0] == str(entry["version"])
        assert words[3:5] == ["extractive", f"{entry['first_seq']}..{entry['last_seq']}"]
        assert words[6:] == ([] if entry["parent"] is None else [str(entry["parent"])])
    assert versions[-1]["text"] not in shown.out
    texts = command("summaries", "long", "--text", "--limit", "1", "--as-stored").out
    assert "".join(versions[-1]["text"].split()) in "".join(texts.split())
    assert f"Older versions: {len(versions) - 1}; --limit {len(versions)} shows them." in texts


def run_together(text: str) -> str:
    """Return a text without the ends of lines that the width of a terminal makes."""
    return "".join(text.split())


def test_people_are_shown_whole_phrases_and_models_given_notes(durable: Command, chats: str) -> None:
    replayed = durable("replay", chats, "--json").json["sessions"][0]
    context = durable("show", "long", "--json").json
    stored, readable = context["current_summary"], context["readable_summary"]
    assert (replayed["summary"], replayed["readable_summary"]) == (stored, readable)
    assert "get_details_by_id(L1002)" in stored
    assert "get_details_by_id(id=L1002)" in readable
    newest = durable("summaries", "long", "--json").json["versions"][-1]
    assert (newest["text"], newest["readable_text"]) == (stored, readable)
    planned = durable("resummarize", "long", "--dry-run", "--json").json
    assert planned["readable_text"] != planned["text"]
    for arguments in (("show", "long"), ("summaries", "long", "--text"), ("resummarize", "long", "--dry-run")):
        wanted = (planned["text"], planned["readable_text"]) if arguments[0] == "resummarize" else (stored, readable)
        notes, phrases = map(run_together, wanted)
        shown = durable(*arguments).out
        assert phrases in run_together(shown)
        assert notes not in run_together(shown)
        assert "in whole phrases, from the messages; --as-stored shows" in shown
        shown = durable(*arguments, "--as-stored").out
        assert notes in run_together(shown)
        assert phrases not in run_together(shown)
        assert "whole phrases" not in shown


def test_where_there_are_no_phrases_the_notes_are_shown_and_it_is_said(
    durable: Command, chats: str, database_url: str, tenant: str, dead_port: int
) -> None:
    dead = ("--database-url", f"postgresql://postgres@127.0.0.1:{dead_port}/postgres")
    durable("replay", chats)
    stored = durable("show", "long", "--json").json["current_summary"]
    shown = durable("show", "long", *dead).out
    assert run_together(stored) in run_together(shown)
    assert "as it is stored: whole phrases are made from the log, and PostgreSQL is away" in shown
    assert durable("show", "long", *dead, "--json").json["readable_summary"] is None
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM memory_messages WHERE tenant = %s AND session_id = 'long'", [tenant])
    shown = durable("summaries", "long", "--text", "--limit", "1").out
    assert run_together(stored) in run_together(shown)
    assert "notes as stored: no message in the log says so" in shown
    durable("replay", chats, "--ephemeral", "--replace")
    shown = durable("show", "long", "--ephemeral").out
    assert "as it is stored: whole phrases are made from the log, and without a database there is none" in shown


def test_what_a_caller_wrote_is_shown_as_it_is(
    durable: Command, redis_url: str, database_url: str, tenant: str
) -> None:
    config = MemoryConfig(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with MemoryManager(config=config) as manager:
        manager.add_message("s", {"role": "user", "content": "Hello."})
        manager.summary_store.add_summary("s", "user: key of garage in drawer")
    version = durable("summaries", "s", "--json").json["versions"][0]
    assert version["readable_text"] == version["text"] == "user: key of garage in drawer"
    assert "as stored" not in durable("summaries", "s", "--text").out


def test_summaries_that_were_cleared_are_not_said_to_be_messages(
    durable: Command, redis_url: str, database_url: str, tenant: str
) -> None:
    config = MemoryConfig(redis_url=redis_url, database_url=database_url, tenant=tenant)
    with MemoryManager(max_buffer_messages=6, config=config) as manager:
        manager.add_messages("s", [{"role": "user", "content": f"Message {number}."} for number in range(12)])
        watermark = manager.get_context("s")["watermark"]
        assert watermark > 0
        assert manager.summary_store.clear_summaries("s")
    assert f"The summaries of messages 1..{watermark} were cleared" in durable("summaries", "s").out


def test_summaries_of_a_session_that_was_never_folded(command: Command, chats: str) -> None:
    command("replay", chats)
    shown = command("summaries", "short")
    assert (shown.code, shown.out) == (0, "No summary yet: all 13 messages stand word for word.\n")
    assert command("summaries", "short", "--json").json["versions"] == []


@pytest.mark.parametrize("name", ["summaries", "resummarize", "quarantine"])
def test_commands_of_summaries_name_a_session_there_is_not(durable: Command, chats: str, name: str) -> None:
    durable("replay", chats)
    answer = durable(name, "nobody", *(["1"] if name == "quarantine" else []))
    assert (answer.code, answer.out) == (1, "")
    assert "There is no session 'nobody' of tenant" in answer.err
    assert "The latest are: short, long." in answer.err


def test_resummarize_writes_a_version_from_the_log(durable: Command, chats: str) -> None:
    durable("replay", chats)
    before = durable("summaries", "long", "--json").json
    planned = durable("resummarize", "long", "--dry-run", "--as-stored")
    assert planned.code == 0
    assert f"Would write version {before['summary_count'] + 1}, of messages 1..{before['watermark']}" in planned.out
    after = durable("summaries", "long", "--json").json
    assert after | {"redis_ttl": 0} == before | {"redis_ttl": 0}  # the seconds left go down meanwhile
    done = durable("resummarize", "long", "--json")
    assert done.code == 0
    after = durable("summaries", "long", "--json").json
    newest = after["versions"][-1]
    assert (newest["version"], newest["method"], newest["parent"]) == (done.json["version"], "rebuilt", None)
    assert newest["text"] == done.json["text"] == durable("show", "long", "--json").json["current_summary"]
    assert "".join(done.json["text"].split()) in "".join(planned.out.split())
    again = durable("resummarize", "long")
    assert f"Wrote version {newest['version'] + 1}, of messages 1..{before['watermark']} by the built-in" in again.out


def test_resummarize_says_why_it_did_nothing(durable: Command, chats: str, redis_url: str) -> None:
    durable("replay", chats)
    answer = durable("resummarize", "short")
    assert (answer.code, answer.out) == (1, "")
    assert "Nothing was changed: nothing is folded yet." in answer.err
    answer = durable("resummarize", "short", "--base-url", "http://localhost:1/v1")
    assert answer.code == 2
    assert "--model" in answer.err
    answer = durable("resummarize", "short", "--model", "m", "--api-key-variable", "NO_SUCH_VARIABLE")
    assert answer.code == 2
    assert "NO_SUCH_VARIABLE" in answer.err


def test_a_missing_key_is_told_with_the_option_that_names_it(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    answer = durable("resummarize", "s", "--model", "test-model")
    assert answer.code == 2
    assert "model: no key; set OPENAI_API_KEY" in answer.err
    assert "--api-key-variable" in answer.err


def test_resummarize_has_a_model_write(durable: Command, redis_url: str, database_url: str, tenant: str) -> None:
    said = [message | {"timestamp": EIGHTH_OF_MAY} for message in MESSAGES]
    said += [{"role": "user", "content": f"And one more thing, number {number}."} for number in range(1, 5)]
    with MemoryManager(
        redis_url=redis_url, database_url=database_url, tenant=tenant, max_buffer_messages=len(said) - 1
    ) as manager:
        manager.add_messages("ana", said)
        assert manager.get_context("ana")["watermark"] == len(MESSAGES)
    with model_server("good") as server:
        model = ("--model", "test-model", "--base-url", server.url)
        planned = durable("resummarize", "ana", *model, "--dry-run")
        assert f"Would write version 2, of messages 1..{len(MESSAGES)} by test-model" in planned.out
        assert "349.90 euros" in planned.out
        assert durable("summaries", "ana", "--json").json["summary_count"] == 1
        done = durable("resummarize", "ana", *model, "--json").json
        assert (done["version"], done["model"], done["reason"]) == (2, "test-model", None)
        newest = durable("summaries", "ana", "--json").json["versions"][-1]
        assert (newest["version"], newest["method"], newest["model"]) == (2, "model", "test-model")
        assert waited_for(lambda: server.fired == {"good": 2})
    with model_server("refuses") as server:
        answer = durable("resummarize", "ana", "--model", "test-model", "--base-url", server.url)
        assert answer.code == 1
        assert waited_for(lambda: server.fired["refuses"] > 1), "it is asked about less too"
        assert "Nothing was changed" in answer.err
    assert durable("summaries", "ana", "--json").json["summary_count"] == 2


def test_quarantine_takes_versions_out_of_use(durable: Command, chats: str) -> None:
    durable("replay", chats, "--max-buffer-messages", "8")
    before = durable("summaries", "long", "--json").json
    count = before["summary_count"]
    assert count > 2
    derived = ", ".join(map(str, range(2, count + 1)))
    planned = durable("quarantine", "long", "2", "--dry-run")
    assert planned.code == 0
    assert f"Would be out of use: versions {derived}." in planned.out
    assert "from version 1 and the messages since" in planned.out
    assert durable("summaries", "long", "--json").json["quarantined"] == 0
    done = durable("quarantine", "long", "2")
    assert done.code == 0
    assert f"Out of use: versions {derived}." in done.out
    assert f"written again as version {count + 1}, from version 1" in done.out
    told = durable("summaries", "long", "--json").json
    assert (told["quarantined"], told["watermark"]) == (count - 1, before["watermark"])
    assert "quarantined" in durable("summaries", "long").out
    again = durable("quarantine", "long", "2", "--json").json
    assert (again["rebuilt"], again["is_current"]) == (None, False)
    unknown = durable("quarantine", "long", "99")
    assert (unknown.code, unknown.out) == (1, "")
    assert f"no summary version 99: it has 1 to {count + 1}" in unknown.err
    assert durable("quarantine", "long", "0").code == 2


@pytest.mark.parametrize("arguments", [("resummarize", "long"), ("quarantine", "long", "1")])
def test_without_a_database_nothing_can_be_rebuilt(
    redis_url: str, tenant: str, chats: str, arguments: tuple[str, ...]
) -> None:
    servers = ("--redis-url", redis_url, "--tenant", tenant)
    assert run("replay", chats, *servers).code == 0
    answer = run(*arguments, *servers)
    assert (answer.code, answer.out) == (2, "")
    assert "DATABASE_URL" in answer.err


def test_clear_asks_first(command: Command, chats: str) -> None:
    command("replay", chats, "--limit", "1")
    for reply, words in (("n\n", "Nothing was changed."), ("", "nobody there to ask, give --yes")):
        refused = command("clear", "long", answer=reply)
        assert refused.code == 1
        assert "Delete session 'long' and its 59 messages for good?" in refused.err
        assert words in refused.err
        assert command("show", "long").code == 0
    done = command("clear", "long", answer="y\n")
    assert done.code == 0
    assert "Cleared session 'long': 59 messages" in done.out
    assert command("show", "long").code == 1


def test_clear_without_asking(command: Command, chats: str) -> None:
    command("replay", chats, "--limit", "1")
    shown = command("clear", "long", "--dry-run", "--json")
    assert shown.json == {"session_id": "long", "cleared": False, "messages": 59, "dry_run": True}
    assert command("clear", "long", "--dry-run").out == "Would clear session 'long': 59 messages, and every summary.\n"
    done = command("clear", "long", "--yes", "--json")
    assert done.json == {"session_id": "long", "cleared": True, "messages": 59, "dry_run": False}
    again = command("clear", "long")
    assert again.code == 0
    assert "there is no session 'long'" in again.out


def test_clear_says_when_a_server_was_away(database_url: str, tenant: str, dead_port: int) -> None:
    address = ("--redis-url", f"redis://127.0.0.1:{dead_port}/0", "--database-url", database_url, "--tenant", tenant)
    answer = run("clear", "any", "--yes", *address)
    assert answer.code == 2
    assert "is not cleared everywhere (clear it again)" in answer.err


def test_without_redis_everything_goes_on(database_url: str, tenant: str, dead_port: int, chats: str) -> None:
    address = ("--redis-url", f"redis://127.0.0.1:{dead_port}/0", "--database-url", database_url, "--tenant", tenant)
    report = run("replay", chats, *SMALL, "--json", *address).json
    assert report["verified"] is True
    assert report["sessions"][0]["degraded_reads"] == 59
    shown = run("show", "long", *address)
    assert shown.code == 0
    assert "Redis is away" in shown.out
    assert "Redis" in run("stats", "long", *address).err


@pytest.mark.parametrize("name", ["show", "stats", "clear", "replay", "summaries", "resummarize"])
def test_dead_servers_are_told_in_one_line(name: str, dead_port: int, chats: str) -> None:
    address = (
        "--redis-url",
        f"redis://:{SECRET}@127.0.0.1:{dead_port}/0",
        "--database-url",
        f"postgresql://me:{SECRET}@127.0.0.1:{dead_port}/memory",
    )
    answer = run(name, chats if name == "replay" else "any", *address)
    assert answer.code == 2
    assert answer.out == ""
    using, error = answer.err.splitlines()
    assert f"Redis 127.0.0.1:{dead_port}/0, PostgreSQL 127.0.0.1:{dead_port}/memory (from the options)" in using
    assert error.startswith("Error: postgres unavailable")
    assert "Start it, or correct --database-url or DATABASE_URL" in error
    assert SECRET not in answer.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--redis-url", "localhost"), "redis_url"),
        (("--redis-url", "redis://localhost:port"), "redis_url"),
        (("--database-url", "mysql://localhost"), "database_url: scheme 'mysql' is not supported"),
        (("--database-url", "postgresql://localhost:port/db"), "database_url: not a URL"),
        (("--tenant", "a b"), "tenant: expected at most 64 letters"),
    ],
)
def test_wrong_settings_are_told_in_one_line(redis_url: str, options: tuple[str, str], words: str) -> None:
    address = () if options[0] == "--redis-url" else ("--redis-url", redis_url)
    answer = run("show", "any", *address, *options)
    assert answer.code == 2
    assert answer.err.startswith("Error: ")
    assert words in answer.err


def test_environment_names_the_servers(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, database_url: str, tenant: str, chats: str
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CONTRACT_MEMORY_TENANT", tenant)
    alone = run("replay", chats, "--limit", "1")
    assert alone.code == 0
    assert f"no database: ephemeral (from the environment); tenant {tenant}" in alone.err
    monkeypatch.setenv("DATABASE_URL", database_url)
    both = run("replay", chats, "--limit", "1", "--session-prefix", "b-")
    assert both.code == 0
    assert "PostgreSQL" in both.err
    assert f"; tenant {tenant}" in both.err


def test_limits_must_fit(chats: str) -> None:
    answer = run("replay", chats, "--summary-trigger-tokens", "500", "--max-buffer-tokens", "400")
    assert answer.code == 2
    assert "summary_trigger_tokens: 500 is above max_buffer_tokens (400)" in answer.err


def test_migrate_up_and_down(private_servers: PrivateServers) -> None:
    address = ("--database-url", private_servers(redis=False, migrate=False).database_url)
    head = schema.head()
    for _ in range(2):
        planned = run("migrate", "--dry-run", "--json", *address).json
        assert (planned["from"], planned["to"], planned["dry_run"]) == (None, None, True)
    steps = [step["revision"] for step in planned["steps"]]
    assert (len(steps), steps[-1]) == (len(list((schema.migrations_path() / "versions").glob("0*.py"))), head)
    shown = run("migrate", "--dry-run", "--revision", steps[0], *address).out
    assert f"  {steps[0]}  Sessions, messages and summaries" in shown
    assert steps[1] not in shown
    up = run("migrate", *address)
    assert up.code == 0
    assert run("migrate", "--dry-run", "--json", *address).json["steps"] == []
    back = run("migrate", "--dry-run", "--down", steps[0], "--json", *address).json
    assert [step["revision"] for step in back["steps"]] == steps[:0:-1]
    assert f"Migrated the schema: nothing → {head}." in up.out
    assert f"The schema is at {head} already." in run("migrate", *address).out
    refused = run("migrate", "--down", "base", *address, answer="n\n")
    assert refused.code == 1
    assert f"Take the schema back from {head} to base" in refused.err
    down = run("migrate", "--down", "base", "--yes", "--json", *address)
    assert (down.json["from"], down.json["to"]) == (head, None)
    again = run("migrate", "--revision", head, "--json", *address).json
    assert (again["from"], again["to"], len(again["steps"])) == (None, head, len(steps))
    assert run("migrate", "--dry-run", "--revision", "nonsense", *address).code == 2
    unknown = run("migrate", "--revision", "nonsense", *address)
    assert unknown.code == 2
    assert "Error: revision: Can't locate revision identified by 'nonsense'" in unknown.err
    assert f"this version of the package has {', '.join(steps)}" in unknown.err


def test_migrate_needs_a_database_and_one_direction(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = run("migrate", "--revision", "head", "--down", "base")
    assert both.code == 2
    assert "give one of them" in both.err
    monkeypatch.setenv("REDIS_URL", redis_url)
    none = run("migrate")
    assert none.code == 2
    assert "no database is configured; give --database-url or DATABASE_URL" in none.err


def test_migrate_tells_of_a_dead_database(dead_port: int) -> None:
    answer = run("migrate", "--database-url", f"postgresql://127.0.0.1:{dead_port}/memory")
    assert answer.code == 2
    assert "Error: postgres unavailable" in answer.err


def states(answer: Answer) -> dict[str, str]:
    return {check["check"]: check["state"] for check in answer.json["checks"]}


def finding(answer: Answer, check: str) -> dict[str, str]:
    found: dict[str, str] = next(item for item in answer.json["checks"] if item["check"] == check)
    return found


def test_doctor_finds_all_well() -> None:
    with EmbeddedServers(durable=True) as servers:
        address = ("--redis-url", servers.redis_url, "--database-url", servers.database_url)
        answer = run("doctor", "--json", *address)
        assert (answer.code, answer.json["status"], answer.json["mode"]) == (0, "ok", "durable")
        assert set(states(answer).values()) == {"ok"}
        assert "hash verified" in finding(answer, "tokens")["detail"]
        seen = run("doctor", *address)
        assert seen.code == 0
        assert "All 10 checks are well." in seen.out
        health = answer.json["health"]
        assert (health["status"], health["mode"], health["ready"]) == ("healthy", "full", True)
        assert "healthy, mode full, durable" in seen.out


def test_doctor_misses_the_schema_and_fears_for_commits(private_servers: PrivateServers) -> None:
    servers = private_servers(migrate=False)  # which run without fsync
    address = ("--redis-url", servers.redis_url, "--database-url", servers.database_url)
    answer = run("doctor", "--json", *address)
    assert answer.code == 2
    assert finding(answer, "schema")["hint"] == "run `contract-memory migrate`"
    assert finding(answer, "postgres commits")["state"] == "warn"
    run("migrate", "--database-url", servers.database_url)
    better = run("doctor", *address)
    assert better.code == 1
    assert "may lose acknowledged messages" in better.out
    assert "10 checks: 1 to look at." in better.out
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("UPDATE memory_schema_version SET version_num = '9999'")
    newer = finding(run("doctor", "--json", *address), "schema")
    assert newer["state"] == "fail"
    assert f"at 9999, this version needs {schema.head()}" in newer["detail"]


def test_doctor_sees_what_others_have_left_unlogged(
    redis_url: str, database_url: str, tenant: str, dead_port: int
) -> None:
    address = ("--redis-url", redis_url, "--database-url", database_url, "--tenant", tenant)
    assert finding(run("doctor", "--json", *address), "unlogged")["state"] == "ok"
    with MemoryManager(
        redis_url=redis_url, database_url=f"postgresql://127.0.0.1:{dead_port}/x", tenant=tenant
    ) as writer:
        for name in ("one", "two"):
            assert writer.append(name, {"role": "user", "content": "hello"}).durable is False
    answer = run("doctor", "--json", *address)
    found = finding(answer, "unlogged")
    assert (answer.code, found["state"]) == (1, "warn")
    assert "messages of 2 sessions" in found["detail"]
    assert "contract-memory drain" in found["hint"]
    assert run("drain", *address).code == 0
    assert finding(run("doctor", "--json", *address), "unlogged")["state"] == "ok"


def test_doctor_weighs_eviction_by_mode(private_servers: PrivateServers, database_url: str) -> None:
    servers = private_servers(postgres=False)
    address = ("--redis-url", servers.redis_url)
    durable = (*address, "--database-url", database_url)
    with redis.Redis.from_url(servers.redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert "nothing is evicted" in finding(run("doctor", "--json", *address), "redis memory")["detail"]
        client.config_set("maxmemory", "100mb")
        for policy, alone, logged in (
            ("allkeys-lru", "warn", "ok"),
            ("volatile-ttl", "warn", "ok"),
            ("noeviction", "ok", "warn"),
        ):
            client.config_set("maxmemory-policy", policy)
            answer = run("doctor", "--json", *address)
            assert answer.json["mode"] == "ephemeral"
            assert states(answer)["redis memory"] == alone
            assert states(run("doctor", "--json", *durable))["redis memory"] == logged
            if alone == "warn":
                assert "acknowledged messages can be evicted" in finding(answer, "redis memory")["detail"]


def test_doctor_weighs_persistence_by_mode(private_servers: PrivateServers, database_url: str) -> None:
    servers = private_servers(postgres=False)
    address = ("--redis-url", servers.redis_url)
    none = run("doctor", "--json", *address)
    assert none.code == 1
    assert "a restart of Redis loses every session" in finding(none, "redis persistence")["detail"]
    with redis.Redis.from_url(servers.redis_url) as client:
        client.config_set("save", "60 1")
        assert "snapshots alone (60 1)" in finding(run("doctor", "--json", *address), "redis persistence")["detail"]
        client.config_set("appendonly", "yes")
        answer = run("doctor", "--json", *address)
        assert (answer.code, set(states(answer).values())) == (0, {"ok"})
        client.config_set("appendfsync", "no")
        assert states(run("doctor", "--json", *address))["redis persistence"] == "warn"
        client.config_set("appendonly", "no")
    logged = run("doctor", "--json", *address, "--database-url", database_url)
    assert states(logged)["redis persistence"] == "ok"


def test_doctor_copes_with_a_server_that_tells_little(private_servers: PrivateServers) -> None:
    servers = private_servers(postgres=False)
    with redis.Redis.from_url(servers.redis_url) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "+@all", "-config")
        client.execute_command("ACL", "SETUSER", "reader", "on", f">{SECRET}", "~*", "+@read", "+info")
    port = servers.redis_url.rsplit(":", 1)[1]
    little = run("doctor", "--json", "--redis-url", f"redis://app:{SECRET}@127.0.0.1:{port}")
    assert little.code == 1
    assert "does not tell of snapshots" in finding(little, "redis persistence")["detail"]
    refused = run("doctor", "--json", "--redis-url", f"redis://reader:{SECRET}@127.0.0.1:{port}")
    assert refused.code == 2
    assert "check user, password and ACL" in finding(refused, "redis")["detail"]
    assert SECRET not in refused.out + refused.err + little.out + little.err


def test_doctor_finds_a_replica(private_servers: PrivateServers, dead_port: int) -> None:
    servers = private_servers(postgres=False)
    with redis.Redis.from_url(servers.redis_url) as client:
        client.replicaof("127.0.0.1", dead_port)
    answer = run("doctor", "--json", "--redis-url", servers.redis_url)
    assert answer.code == 2
    assert "is a replica" in finding(answer, "redis")["detail"]


def test_doctor_on_dead_ports(dead_port: int) -> None:
    address = ("--redis-url", f"redis://127.0.0.1:{dead_port}", "--database-url", f"postgresql://127.0.0.1:{dead_port}")
    answer = run("doctor", "--json", *address)
    assert (answer.code, answer.json["status"]) == (2, "fail")
    assert states(answer) == {"redis": "fail", "postgres": "fail", "tokens": "ok"}
    assert (answer.json["health"]["status"], answer.json["health"]["ready"]) == ("unhealthy", False)
    for check in ("redis", "postgres"):
        assert finding(answer, check)["hint"].startswith("start it, or correct --")
    assert "3 checks: 2 failed." in run("doctor", *address).out


def test_doctor_does_not_wait_for_servers_that_say_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        answer = run(
            "doctor",
            "--json",
            "--redis-url",
            f"redis://127.0.0.1:{port}",
            "--database-url",
            f"postgres://127.0.0.1:{port}/x",
        )
        assert time.monotonic() - started < 20
    assert answer.code == 2
    assert states(answer) == {"redis": "fail", "postgres": "fail", "tokens": "ok"}


def test_started_servers_keep_sessions_from_one_program_to_the_next(chats: str, environment: Path) -> None:
    first = run_process("replay", chats, "--limit", "1", "--json")
    assert first.code == 0
    assert first.json["verified"] is True
    assert f"(started here, data in {environment})" in first.err
    shown = run_process("show", "long")
    assert shown.code == 0
    assert "59: 1.." in shown.out
    assert "\x1b" not in shown.out + shown.err
    asked = run_process("clear", "long")
    assert asked.code == 1
    assert "give --yes" in asked.err


def test_started_servers_keep_ephemeral_sessions_apart(chats: str, environment: Path) -> None:
    first = run_process("replay", chats, "--limit", "1", "--ephemeral")
    assert first.code == 0
    assert f"no database: ephemeral (started here, data in {environment / 'ephemeral'})" in first.err
    assert run_process("show", "long", "--ephemeral").code == 0
    assert run_process("show", "long").code == 1


def test_demo_runs_for_itself(monkeypatch: pytest.MonkeyPatch, dead_port: int, environment: Path) -> None:
    # What the environment names is somebody's production; the demo leaves it alone.
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{dead_port}")
    answer = run_process("demo", "--json")
    assert answer.code == 0
    assert "started for this command alone" in answer.err
    assert answer.json["verified"] is True
    assert [item["session_id"] for item in answer.json["sessions"]] == [f"demo-{number}" for number in range(1, 8)]
    assert sum(len(item["folds"]) > 2 for item in answer.json["sessions"]) >= 5
    assert answer.json["sessions"][-1]["folds"] == []
    assert answer.json["tokens_sent"]["context"] < answer.json["tokens_sent"]["whole"] / 2
    assert list(environment.iterdir()) == []


def test_demo_can_be_kept_and_repeated(durable: Command) -> None:
    for _ in range(2):
        answer = durable("demo", "--keep")
        assert answer.code == 0
        assert "contract-memory show demo-1" in answer.out
        assert "MIT" in answer.out
    shown = durable("show", "demo-1", "--full")
    assert shown.code == 0
    assert "your user ID and reservation ID" in shown.out  # phrases for people, where notes for a model leave "and" out
    assert durable("demo").code == 0  # and without --keep they go
    assert durable("show", "demo-1").code == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_meets_an_object_being_destroyed_ends_the_program_too(number: signal.Signals, code: int) -> None:
    program = f"""
import os, time
from contract_engine.cli import app

class Dying:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        time.sleep(60)

@app.app.command()
def dying() -> None:
    Dying()
    print("went on", flush=True)
    time.sleep(60)

app.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "dying"], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (code, "went on\n"), done.stderr


@pytest.mark.parametrize(
    ("entry", "module", "number", "ending"),
    [
        (["-m", "contract_engine.cli"], "sqlalchemy", signal.SIGINT, (130, "Interrupted.\n")),
        (["-c", "from contract_engine.cli import main; main()"], "sqlalchemy", signal.SIGTERM, (143, "")),
        (["-m", "contract_engine.cli"], "pydantic", signal.SIGTERM, (143, "")),  # for the options
    ],
)
def test_a_signal_while_modules_are_imported_ends_the_program_with_one_line(
    tmp_path: Path, entry: list[str], module: str, number: signal.Signals, ending: tuple[int, str]
) -> None:
    (tmp_path / f"{module}.py").write_text("print('begun', flush=True)\nimport time\ntime.sleep(60)\n", "utf-8")
    command = [sys.executable, *entry, "show", "s"]
    path = os.pathsep.join([str(tmp_path), str(Path(schema.__file__).parents[1])])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        program.send_signal(number)
        told = program.communicate(timeout=30)[1]
    assert (program.returncode, told) == ending


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_program_leaves_in_order(
    redis_url: str, tenant: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    messages = [{"role": "user", "content": f"number {place}"} for place in range(100_000)]
    file = write(tmp_path / "endless.jsonl", {"id": "endless", "messages": messages})
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "contract_engine.cli",
        "replay",
        file,
        "--redis-url",
        redis_url,
        "--tenant",
        tenant,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Redis" in process.stderr.readline()
        with MemoryManager(redis_url=redis_url, tenant=tenant, config=MemoryConfig()) as manager:
            try:
                while not manager.get_context("endless")["last_seq"]:
                    assert process.poll() is None
                    time.sleep(0.02)
                process.send_signal(number)
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
            manager.clear_session_memory("endless")
    assert process.returncode == code, err
    assert out == ""
    told = "'endless' was stopped half way and stays as it is; --replace starts it again.\n"
    assert err == told + ("Interrupted.\n" if number == signal.SIGINT else "")


@pytest.mark.parametrize(
    "arguments", [("replay", "{chats}", "--json"), ("replay", "{chats}", "--full"), ("doctor",), ("top", "--json")]
)
def test_a_reader_that_goes_away_is_no_failure(
    chats: str, redis_url: str, tenant: str, arguments: tuple[str, ...]
) -> None:
    """As after ``| head -1``: nothing is said, and the exit code is that of a program SIGPIPE has ended."""
    given = [one.format(chats=chats) for one in arguments]
    done = unread(*given, "--redis-url", redis_url, "--ephemeral", "--tenant", tenant)
    assert done.returncode == 141, done.stderr
    assert len(done.stderr.splitlines()) == 1, "the servers, and nothing else"


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_output_is_no_failure(chats: str, redis_url: str, tenant: str, closed: int) -> None:
    command = [sys.executable, "-m", "contract_engine.cli", "replay", chats, "--json", "--redis-url", redis_url]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command, "--ephemeral", "--tenant", tenant],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert bool(done.stdout) == (closed == 2)


@pytest.mark.parametrize("arguments", [("--help",), ("phase", "--help"), ("purge", "--help"), ("--version",)])
def test_help_that_nobody_reads_is_no_failure(arguments: tuple[str, ...]) -> None:
    done = unread(*arguments)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_complaint_that_nobody_reads_is_no_failure() -> None:
    assert unread("no-such-command", is_errors=True).returncode == 141


def unread(*arguments: str, is_errors: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command with an output, or with errors, that somebody has stopped reading."""
    ours, theirs = os.pipe()
    os.close(ours)
    stdout, stderr = (subprocess.PIPE, theirs) if is_errors else (theirs, subprocess.PIPE)
    command = [sys.executable, "-m", "contract_engine.cli", *arguments]
    try:
        return subprocess.run(command, stdout=stdout, stderr=stderr, text=True, timeout=100, check=False)
    finally:
        os.close(theirs)


@pytest.mark.parametrize(
    ("number", "verb", "words"),
    [
        (0, "", "0 messages"),
        (1, "", "1 message"),
        (1, "wait", "1 message waits"),
        (1, "are", "1 message is"),
        (1, "were", "1 message was"),
        (2000, "are", "2,000 messages are"),
    ],
)
def test_numbers_agree_with_their_words(number: int, verb: str, words: str) -> None:
    assert counted(number, "message", verb) == words


def test_help_is_cheap_and_tells_the_exit_codes() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from contract_engine.cli.app import app; "
        "print(CliRunner().invoke(app, ['--help']).stdout); "
        "print([name for name in ('alembic', 'tiktoken') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    *text, loaded = done.stdout.strip().splitlines()
    assert loaded == "[]"
    words = " ".join(" ".join(text).split())
    assert "Exit codes: 0 done. 1 the answer is no" in words
    assert "141 because nobody reads its output any more" in words
    for name in ("demo", "replay", "show", "stats", "summaries", "clear", "migrate", "metrics", "doctor"):
        assert f" {name} " in words
    assert "1 if there are warnings, 2 if anything fails" in " ".join(run("doctor", "--help").out.split())


def test_help_has_panels_and_one_line_for_each_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    panels: dict[str, list[str]] = {}
    for line in run("--help").out.splitlines():
        if heading := re.match(r"╭─ (.+?) ─", line):
            lines = panels.setdefault(heading[1], [])
        elif line.startswith("│ "):
            lines.append(line[2:-1])
    del panels["Options"]
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    shown = [line.split()[0] for lines in panels.values() for line in lines]
    assert sorted(shown) == sorted(group.commands)  # each of them once, and no line is the rest of another
    assert list(panels) == [
        "Try it",
        "Look at sessions",
        "Mend a summary",
        "Keep and delete",
        "Set up and operate",
        "Move in from a legacy store",
    ]


def test_help_fills_the_lines_of_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    wrapped = 0
    for name in [*group.commands, "phase set"]:
        text = run(*name.split(), "--help").out.partition("╭")[0].splitlines()
        for line, following in itertools.pairwise(one.rstrip() for one in text):
            if line and following:
                wrapped += 1
                assert len(f"{line} {following.split()[0]}") > 79, (name, line)
    assert wrapped > len(group.commands)


def test_version() -> None:
    answer = run("--version")
    assert answer.code == 0
    assert answer.out.strip()[0].isdigit()


def test_data_directory_is_where_it_is_told_to_be() -> None:
    told = {HOME_VARIABLE: "/some/where"}
    assert data_directory(told, ephemeral=False) == Path("/some/where")
    assert data_directory(told, ephemeral=True) == Path("/some/where/ephemeral")


def test_data_directory_is_one_that_postgres_may_enter(environment: Path) -> None:
    open_place, closed = environment / "open", environment / "closed"
    open_place.mkdir(mode=0o755)
    closed.mkdir(mode=0o700)
    assert data_directory({"XDG_DATA_HOME": str(open_place)}, ephemeral=False) == open_place / "contract-memory"
    found = data_directory({"XDG_DATA_HOME": str(closed / "share")}, ephemeral=False)
    assert found == (Path("/var/lib") if os.geteuid() == 0 else closed / "share") / "contract-memory"


def test_directory_in_a_shared_place_must_be_ours(environment: Path) -> None:
    place = environment / "contract-memory-1"
    assert own_directory(place) == own_directory(place) == place
    assert stat.S_IMODE(place.stat().st_mode) & 0o022 == 0
    place.chmod(0o777)
    with pytest.raises(ConfigurationError, match="is not ours to use"):
        own_directory(place)
    (environment / "link").symlink_to("/tmp")
    (environment / "file").touch(mode=0o600)
    for name in ("link", "file"):
        with pytest.raises(ConfigurationError, match="is not ours to use"):
            own_directory(environment / name)


def test_conversation_becomes_the_session_of_its_id() -> None:
    found = conversation_of({"id": "a", "messages": [{"role": "user"}], "more": 1}, place="here", prefix="p-")
    assert found == Conversation("p-a", [{"role": "user"}])
