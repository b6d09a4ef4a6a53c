"""The ``contract-memory`` command: look at sessions, replay conversations, migrate, find out what is wrong."""

from contract_engine.cli.entry import main

__all__ = ["main"]
