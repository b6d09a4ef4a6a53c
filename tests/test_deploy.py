"""What is deployed beside the library: rules, dashboard and runbook agree with each other and with the list of metrics.

Where ``promtool`` is on the PATH it judges the rules too and runs their own tests; the expressions are parsed and the
shape is checked without it. The header of the test report says which it was.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules.yml"
RULES_TEST = PROMETHEUS / "rules_test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.py"
OPERATIONS = ROOT / "docs" / "operations.md"

SCRAPED = {"job", "instance"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
GROUP_FIELDS = {"name", "interval", "rules"}
RULE_FIELDS = {"record": {"record", "expr"}, "alert": {"alert", "expr", "for", "labels", "annotations"}}


class Use(NamedTuple):
    """A metric as an expression names it, and the labels it is chosen by."""

    metric: str
    labels: set[str]


def series() -> dict[str, set[str]]:
    """Return every series of the list of metrics with the labels it may have."""
    found: dict[str, set[str]] = {"up": set(SCRAPED)}
    for line in (PROMETHEUS / "metrics.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, kind, *labels = line.split()
        for suffix in SUFFIXES[kind]:
            found[name + suffix] = SCRAPED | set(labels) | ({"le"} if suffix == "_bucket" else set())
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> dict[str, set[str]]:
    """Return every recorded series with the labels its name promises, which are those of its aggregation."""
    return {rule["record"]: set(rule["record"].split(":")[0].split("_")) for rule in rules() if "record" in rule}


def uses(expression: str) -> list[Use]:
    """Return what an expression selects; raises ValueError where it is no PromQL."""
    found: list[Use] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(Use(node.name or "", {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", DASHBOARD)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dashboard", made)
        spec.loader.exec_module(made)
    return made


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = module().dashboard()["panels"]
    return found


def panel_expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*")


def promtool(*arguments: str) -> None:
    """Run promtool where there is one."""
    if program := shutil.which("promtool"):
        done = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_have_the_shape_prometheus_demands() -> None:
    document = yaml.safe_load(RULES.read_text("utf-8"))
    assert set(document) == {"groups"}
    names = [group["name"] for group in document["groups"]]
    assert len(names) == len(set(names)) == 2
    for group in document["groups"]:
        assert set(group) <= GROUP_FIELDS
        promql_parser.parse_duration(group["interval"])
        for rule in group["rules"]:
            kind = next(iter(rule))
            assert set(rule) <= RULE_FIELDS[kind], rule
            assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", rule[kind])
            if "for" in rule:
                promql_parser.parse_duration(rule["for"])
    titles = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(titles) == len(set(titles))
    promtool("check", "rules", RULES.name)
    promtool("check", "config", "prometheus.yml")


def test_the_rules_pass_their_own_tests() -> None:
    """Every alert has a case in which it fires and one in which it does not; it takes promtool to evaluate them."""
    document = yaml.safe_load(RULES_TEST.read_text("utf-8"))
    fires: set[str] = set()
    is_silent: set[str] = set()
    annotations = {rule["alert"]: rule["annotations"]["runbook"] for rule in alerts()}
    for case in document["tests"]:
        for check in case["alert_rule_test"]:
            (fires if check["exp_alerts"] else is_silent).add(check["alertname"])
            for expected in check["exp_alerts"]:
                assert expected["exp_annotations"]["runbook"] == annotations[check["alertname"]]
    assert fires == is_silent == set(annotations)
    promtool("test", "rules", RULES_TEST.name)


@pytest.mark.parametrize("source", ["rules", "dashboard"])
def test_every_metric_that_is_named_is_in_the_list(source: str) -> None:
    known = series() | recorded()
    expressions = [rule["expr"] for rule in rules()] if source == "rules" else list(panel_expressions())
    assert len(expressions) >= 20
    for expression in expressions:
        found = uses(expression)
        assert found, f"{expression} selects nothing"
        for use in found:
            assert use.metric in known, f"{use.metric} is neither in metrics.txt nor recorded"
            assert use.labels <= known[use.metric], f"{use.metric} has no label {use.labels - known[use.metric]}"


def test_every_metric_of_the_list_is_used() -> None:
    expressions = [*(rule["expr"] for rule in rules()), *panel_expressions()]
    used = {re.sub("_(bucket|count|sum)$", "", use.metric) for expression in expressions for use in uses(expression)}
    listed = {re.sub("_(bucket|count|sum)$", "", name) for name in series()}
    assert listed == used - set(recorded())


@pytest.mark.parametrize("broken", ["sum(rate(x[5m])", "rate(x)", "x{a=b}", "sum by job (x)", "x > > 1"])
def test_what_is_no_promql_is_found(broken: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        uses(broken)


def test_the_metrics_of_both_sides_of_an_expression_are_found() -> None:
    found = uses('sum by (a) (rate(b{c="d"}[5m])) / on (a) (e offset 1h > 0) unless histogram_quantile(0.5, f)')
    assert found == [Use("b", {"c"}), Use("e", set()), Use("f", set())]


@pytest.mark.parametrize("alert", alerts(), ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"] in ({"severity": "warning"}, {"severity": "critical"})
    assert alert["annotations"]["summary"]
    page, anchor = alert["annotations"]["runbook"].split("#")
    assert (ROOT / page) == OPERATIONS
    assert anchor == alert["alert"].lower()
    chapter = re.search(
        rf"^### {alert['alert']}\n(.*?)(?=^#|\Z)", OPERATIONS.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert chapter, f"docs/operations.md has no chapter {alert['alert']}"
    for part in ("Means:", "Look at:", "Do:"):
        assert part in chapter[1], f"{alert['alert']} lacks {part}"


def test_the_runbook_has_no_alert_that_is_not_there() -> None:
    chapters = re.findall(r"^### (Memory\w+)$", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    assert chapters == [rule["alert"] for rule in alerts()]


def test_the_dashboard_is_what_its_program_writes() -> None:
    """Where it fails, ``python deploy/grafana/dashboard.py`` brings the file up to date."""
    assert (DASHBOARD.with_suffix(".json")).read_text("utf-8") == module().text()


def test_the_jobs_of_the_dashboard_are_all_who_serve_any_of_it() -> None:
    """The exporter of the command line has no operations, and is a job like the others."""
    (jobs,) = [one for one in module().dashboard()["templating"]["list"] if one["name"] == "job"]
    found = re.fullmatch(r'label_values\({__name__=~"(.+)"}, job\)', jobs["query"]["query"])
    assert found
    names = {name for name in series() if name != "up"}
    assert names == {name for name in [*names, "up", "redis_memory_used_bytes"] if re.fullmatch(found[1], name)}


def test_the_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    found = panels()
    assert [panel["id"] for panel in found] == list(range(1, len(found) + 1))
    for panel in found:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_example_asks_under_the_name_the_rules_know() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    assert config["rule_files"] == [RULES.name]
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert f'up{{job="{jobs.pop()}"}}' in RULES.read_text("utf-8")
    assert not jobs
