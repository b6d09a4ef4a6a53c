"""Seven conversations of customers with an agent that calls tools, for a first look and for tests.

They are the work of Sierra Research, from tau-bench and tau2-bench, under the MIT licence in ``LICENSE-tau-bench``.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

__all__ = ["conversations"]


def conversations() -> list[dict[str, Any]]:
    """Return the conversations as dicts of id, source, license and messages; messages in the shape of OpenAI's API."""
    text = resources.files(__name__).joinpath("conversations.jsonl").read_text(encoding="utf-8")
    # Not splitlines(): it also cuts at characters that JSON leaves unescaped inside texts.
    return [json.loads(line) for line in text.split("\n") if line]
