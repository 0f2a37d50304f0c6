"""The results page against its records: every figure can be checked, and is what the cases say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = sorted((DOCS / "results").glob("*.json"))
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
