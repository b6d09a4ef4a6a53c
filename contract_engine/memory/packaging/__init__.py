"""Contexts as the input of model APIs."""

from contract_engine.memory.packaging.package import to_messages

__all__ = ["to_messages"]
