"""Write the Grafana dashboard beside this file: ``python deploy/grafana/dashboard.py``; ``--check`` compares only.

Rows of panels are laid out here, so that nobody edits coordinates. Expressions read what the rules record where it is
recorded; import ``dashboard.json`` into Grafana 10 or newer and choose the Prometheus.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = Path(__file__).with_name("dashboard.json")
COLUMNS = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OURS = 'job=~"$job"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: its title, what it means, its unit in Grafana's terms, and (expression, legend) of each line."""

    title: str
    description: str
    unit: str
    lines: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    alarm_above: float | None = None


def per_second(metric: str, *, by: str = "", matchers: str = "") -> str:
    """Return the rate of a counter over the processes of the chosen jobs."""
    return f"sum by ({by}) (rate({metric}{{{OURS}{matchers}}}[$__rate_interval]))"


def calls(*, by: str, matchers: str) -> str:
    """Return how many operations or steps end a second; those of backend ``manager`` are whole operations."""
    return per_second("memory_operation_duration_seconds_count", by=by, matchers=matchers)


def most(metric: str, *, by: str = "job", matchers: str = "") -> str:
    """Return what the processes report of one and the same thing: its largest, since a sum would count it twice."""
    return f"max by ({by}) ({metric}{{{OURS}{matchers}}})"


def of_redis(counter: str) -> str:
    """Return the rate of what Redis counts, which every process reports."""
    return f"max by (job) (rate(memory_redis_{counter}_total{{{OURS}}}[$__rate_interval]))"


def duration(percent: int) -> str:
    """Return a recorded percentile of each operation."""
    return f"job_operation:memory_operation_duration_seconds:p{percent}_5m{{{OURS}}}"


ROWS: dict[str, Sequence[Panel]] = {
    "At a glance": (
        Panel("Operations", "All, a second.", "ops", [(f"sum(job:memory_operations:rate5m{{{OURS}}})", "")], "stat"),
        Panel(
            "Failed",
            "Share of the operations that raised an error of ours.",
            "percentunit",
            [(f"max(job:memory_failed_operations:ratio5m{{{OURS}}})", "")],
            "stat",
            0.01,
        ),
        Panel(
            "Degraded",
            "Share of the operations that went the other way because a server was away.",
            "percentunit",
            [(f"max(job:memory_fallbacks:ratio5m{{{OURS}}})", "")],
            "stat",
            0.05,
        ),
        Panel(
            "Oldest unlogged message",
            "Redis alone keeps it until PostgreSQL is back.",
            "s",
            [(f"max({most('memory_unlogged_oldest_age_seconds')})", "")],
            "stat",
            60,
        ),
    ),
    "Operations": (
        Panel(
            "Operations by kind",
            "A second, background work included.",
            "ops",
            [(calls(by="operation", matchers=',backend="manager"'), "{{operation}}")],
        ),
        Panel(
            "Outcomes that are not ok",
            "A second; `invalid` and `cancelled` are the caller's own doing.",
            "ops",
            [(calls(by="outcome", matchers=',backend="manager",outcome!="ok"'), "{{outcome}}")],
        ),
        Panel(
            "Steps",
            "A second: round trips, statements, and what models are asked.",
            "ops",
            [(calls(by="backend", matchers=',backend!="manager"'), "{{backend}}")],
        ),
        Panel("p95", "The budget is 100 ms.", "s", [(duration(95), "{{operation}}")], alarm_above=0.1),
        Panel("p50", "Half of the calls are faster.", "s", [(duration(50), "{{operation}}")]),
    ),
    "Degraded operation": (
        Panel(
            "Circuit breakers that are not closed",
            "How many are open, half open or forced open; nothing is drawn while all are closed.",
            "short",
            [
                (
                    most(
                        "memory_circuit_breaker_state",
                        by="job, instance, name, state",
                        matchers=',state=~"open|half_open|forced_open"',
                    )
                    + " > 0",
                    "{{instance}} {{name}} {{state}}",
                )
            ],
        ),
        Panel(
            "Calls through the breakers",
            "A second.",
            "ops",
            [(per_second("memory_circuit_breaker_calls_total", by="kind"), "{{kind}}")],
        ),
        Panel(
            "Fallbacks",
            "A second, by reason.",
            "ops",
            [(per_second("memory_fallback_total", by="reason"), "{{reason}}")],
        ),
        Panel(
            "Oldest unlogged message",
            "Grows while PostgreSQL is away.",
            "s",
            [(most("memory_unlogged_oldest_age_seconds"), "{{job}}")],
            alarm_above=60,
        ),
        Panel(
            "Sessions with unlogged messages",
            "As each process knows of those it has written to.",
            "short",
            [(f"sum by (job, instance) (memory_unlogged_sessions{{{OURS}}})", "{{instance}}")],
        ),
    ),
    "Folding": (
        Panel("Folds", "A second.", "ops", [(per_second("memory_folds_total", by="job"), "{{job}}")]),
        Panel(
            "Summaries and merges",
            "A second.",
            "ops",
            [
                (per_second("memory_summaries_total", by="method"), "{{method}}"),
                (per_second("memory_summary_merges_total"), "merges"),
            ],
        ),
        Panel(
            "Tokens saved",
            "A second: by how much contexts have become smaller.",
            "short",
            [(per_second("memory_tokens_saved_total"), "tokens")],
        ),
    ),
    "Moving in: dual write": (
        Panel(
            "Outbox",
            "Messages the legacy store does not have yet.",
            "short",
            [(most("memory_outbox_messages"), "waiting"), (most("memory_outbox_parked_messages"), "parked")],
        ),
        Panel(
            "Age of the outbox",
            "Of its oldest message.",
            "s",
            [(most("memory_outbox_oldest_age_seconds"), "{{job}}")],
            alarm_above=300,
        ),
        Panel(
            "Mismatches",
            "In a quarter of an hour. Must be 0.",
            "short",
            [(f"sum by (kind) (increase(memory_dual_write_mismatch_total{{{OURS}}}[15m]))", "{{kind}}")],
            alarm_above=0,
        ),
    ),
    "Redis": (
        Panel("Memory", "Used.", "bytes", [(most("memory_redis_used_memory_bytes"), "{{job}}")]),
        Panel(
            "Keys that went",
            "A second. Expired ones are sessions at rest; evicted ones were pushed out.",
            "ops",
            [(of_redis(f"{how}_keys"), how) for how in ("evicted", "expired")],
        ),
        Panel(
            "Hits",
            "Share of the look-ups that found their key.",
            "percentunit",
            [
                (
                    f"{of_redis('keyspace_hits')} / ({of_redis('keyspace_hits')} + {of_redis('keyspace_misses')} > 0)",
                    "{{job}}",
                )
            ],
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
            | {"gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y}}
        )
        y += 1
        height = HEIGHT // 2 if row[0].kind == "stat" else HEIGHT
        width = COLUMNS // len(row)
        for number, panel in enumerate(row):
            place = {"h": height, "w": width, "x": number * width, "y": y}
            panels.append({"id": len(panels) + 1, "gridPos": place} | _panel(panel))
        y += height
    return {
        "uid": "contract-memory",
        "title": "Session memory",
        "tags": ["contract-memory"],
        "schemaVersion": 38,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource(), _jobs()]},
        "panels": panels,
    }


def text() -> str:
    """Return what stands in the file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.alarm_above is not None:
        steps.append({"color": "red", "value": panel.alarm_above})
    targets = [
        {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expression, "legendFormat": legend or "__auto"}
        for number, (expression, legend) in enumerate(panel.lines)
    ]
    custom = {} if panel.kind == "stat" or panel.alarm_above is None else {"thresholdsStyle": {"mode": "line"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": custom,
            },
            "overrides": [],
        },
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def _jobs() -> dict[str, Any]:
    return {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": 'label_values({__name__=~"memory_.+"}, job)', "refId": "jobs"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"selected": True, "text": "All", "value": "$__all"},
        "hide": 0,
    }


def main() -> int:
    """Write the file, or with ``--check`` answer 1 where it is not what this program writes."""
    if "--check" in sys.argv[1:]:
        return int(PLACE.read_text("utf-8") != text())
    PLACE.write_text(text(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
