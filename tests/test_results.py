"""The results page against its records: every figure can be checked, and is what the cases say."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
TRANSFER = DOCS / "results" / "transfer_search.json"
RECORDS = sorted(path for path in (DOCS / "results").glob("*.json") if path != TRANSFER)
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")


def three(value: float) -> str:
    return f"{value:.3f}"


@pytest.mark.parametrize("path", RECORDS, ids=[path.stem for path in RECORDS])
def test_the_page_says_what_the_record_says(path: Path):
    assert f"results/{path.name}" in PAGE
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    for metrics in record["test"]["domains"].values():
        facts = metrics["val_mean_dice"]
        interval = facts["interval_95"] and f"[{', '.join(map(three, facts['interval_95']))}]"
        figure = f"| {facts['n']} | {three(facts['mean'])}" + (f" {interval}" if interval else "")
        assert any(figure in row for row in rows), figure


@pytest.mark.parametrize("path", RECORDS, ids=[path.stem for path in RECORDS])
def test_the_records_means_are_those_of_its_cases(path: Path):
    record = json.loads(path.read_text(encoding="utf-8"))
    for domain, metrics in record["test"]["domains"].items():
        for name, facts in metrics.items():
            values = [row[name] for row in record["cases"] if row["domain"] == domain and row[name] == row[name]]
            assert len(values) == facts["n"]
            assert sum(values) / len(values) == pytest.approx(facts["mean"], abs=2e-4)


def test_the_readme_says_what_the_records_say():
    known = set()
    for path in (DOCS / "results").rglob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for metrics in record.get("test", {}).get("domains", {}).values():
            known |= {figure_of(facts) for facts in metrics.values()}
        for result in record.get("results", []):
            known |= {figure_of(facts) for facts in result["arms"].values()}
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"\| (\d+) \| ([\d.]+ \[[\d., ]+\])", readme)
    assert len(figures) == 9
    assert set(figures) <= known


def figure_of(facts: dict) -> tuple[str, str]:
    return str(facts["n"]), f"{three(facts['mean'])} [{', '.join(map(three, facts['interval_95'] or []))}]"


def test_the_table_of_transfer_says_what_its_rows_say():
    page = (DOCS / "pretraining.md").read_text(encoding="utf-8")
    rows = json.loads(TRANSFER.read_text(encoding="utf-8"))["rows"]
    table = re.findall(r"^\| (\w+) \| (\S+) \| (\d+) \| (\d+) \| ([\d. |]+) \|$", page, re.MULTILINE)
    assert table
    for task, arm, runs, cases, figures in table:
        own = [row for row in rows if (row["task"], row["arm"]) == (task, arm)]
        means = {
            step: [row["mean"] for row in own if row["step"] == step] for step in sorted({row["step"] for row in own})
        }
        assert figures.split(" | ") == [three(sum(each) / len(each)) for each in means.values()]
        assert {len(each) for each in means.values()} == {int(runs)}
        assert len({case for row in own for case in row["dice"]}) == int(cases)


def test_the_rows_of_transfer_are_the_means_of_their_cases():
    for row in json.loads(TRANSFER.read_text(encoding="utf-8"))["rows"]:
        values = [value for case in row["dice"].values() for value in case if value is not None]
        assert sum(values) / len(values) == pytest.approx(row["mean"], abs=2e-4)


def test_every_record_is_in_a_figure_of_the_page():
    shown = set(re.findall(r"!\[[^]]+\]\(results/(?:comparisons/)?(\w+)\.png\)", PAGE))
    source = runpy.run_path(str(DOCS / "results" / "figures.py"))["FIGURES"]
    assert set(source) <= shown
    assert {record for records in source.values() for record in records} == {path.stem for path in RECORDS}
    assert all(list((DOCS / "results").rglob(f"{name}.png")) for name in shown)
