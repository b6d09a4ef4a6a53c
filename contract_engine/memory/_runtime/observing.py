"""What flows and effects are called, where somebody listens."""

from __future__ import annotations

from typing import Any

from contract_engine.memory._effects import (
    Command,
    LegacyCall,
    Query,
    RedisCall,
    Scan,
    Statement,
    Summarize,
    Transaction,
    WriteFacts,
)
from contract_engine.memory._observed import Observed, ObservedLegacy
from contract_engine.memory.hooks import LEGACY, MANAGER, MODEL, POSTGRES, REDIS, SUMMARIZER


def observed_flow(flow: Any) -> Observed:
    """Return what a flow is called: its function, without the underscore of a private one."""
    name = flow.__name__
    return _flows.get(name) or _flows.setdefault(name, Observed(name.lstrip("_"), MANAGER))


def observed_effect(effect: Any) -> Observed | None:
    """Return what an effect is called; None where it is no step worth telling of."""
    kind = type(effect)
    if kind is RedisCall:
        first: Command = effect.commands[0]
        return _command(first.words[0]) if first.script is None else first.script.observed
    if kind is Query:
        statement: Statement = effect.statement
        return statement.observed
    if kind is Transaction:
        return _transaction(effect.body.__qualname__)
    if kind is LegacyCall:
        return _method(effect.operation)
    return _STEPS.get(kind)


def _command(name: str) -> Observed:
    return _commands.get(name) or _commands.setdefault(name, Observed(name.lower(), REDIS))


def _transaction(body: str) -> Observed:
    """Return the function that a transaction's body is, or that it was written in, where it has no name of its own."""
    found = _bodies.get(body)
    if found is None:
        whole = body.split(".<locals>", maxsplit=1)[0]
        found = _bodies[body] = Observed(whole.rsplit(".", 1)[-1].lstrip("_"), POSTGRES)
    return found


def _method(name: str) -> Observed:
    return _methods.get(name) or _methods.setdefault(name, ObservedLegacy(name, LEGACY))


# By their names: to look up a code object is to hash all of its constants.
_flows: dict[str, Observed] = {}
_commands: dict[str, Observed] = {}
_bodies: dict[str, Observed] = {}
_methods: dict[str, Observed] = {}
_STEPS: dict[type, Observed] = {
    Scan: Observed("scan", REDIS),
    Summarize: Observed("summarize", SUMMARIZER),
    WriteFacts: Observed("write_facts", MODEL),
}
