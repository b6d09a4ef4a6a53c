"""The legacy store of a program, found by the name a user gives."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from contract_engine.memory import ConfigurationError


def find_legacy_store(place: str) -> Any:
    """Return the object at ``package.module:name``; what can be called without arguments is called to make it.

    The working directory is looked through too.
    """
    module_name, separator, name = place.partition(":")
    if not separator or not module_name or not name:
        raise ConfigurationError("legacy", f"expected package.module:name, got {place!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError("legacy", f"cannot be imported: {exc}; give package.module:name") from exc
    store = found
    if inspect.isclass(found) or not hasattr(found, "add_chat_message"):
        try:
            store = found()
        except TypeError as exc:
            raise ConfigurationError("legacy", f"{place} cannot be called without arguments: {exc}") from exc
    return store
