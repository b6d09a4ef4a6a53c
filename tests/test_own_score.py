"""The project's own measure of summaries: what the page tells of the shipped conversations is what is measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROLLING = 0.97
"""What summaries that are folded again and again keep at least, of what one made at once keeps."""


def test_the_page_tells_what_is_kept_of_the_shipped_conversations() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "own_score.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True)
    measured = json.loads(done.stdout)
    page = (ROOT / "docs" / "summaries.md").read_text("utf-8")
    row = re.search(r"^\| the shipped conversations.*\|(.*)\|(.*)\|(.*)\|$", page, re.MULTILINE)
    assert row is not None
    assert [one["max_tokens"] for one in measured] == [200, 400, 800]
    assert [f"{one['kept']:.3f}".lstrip("0") for one in measured] == [told.strip() for told in row.groups()]
    for one in measured:
        assert one["needed"] > 100
        assert one["kept"] > 10 * one["floor"], "far more than what any two conversations have in common"
        assert one["rolling"] >= ROLLING
