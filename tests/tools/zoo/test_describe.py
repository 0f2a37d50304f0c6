"""The texts of bundles with released weights against what `zoo describe` writes from their cards and records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from med3d_ext.tools import cli
from med3d_ext.tools.zoo.describe import SECTION, describe, digest_of

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"
RECORDS = {
    "lits_fine": ("lits_fine_cascade", "lits_fine_coarse", "lits_fine_sliding"),
    "pretrain_3dseg8": ("pretrain_released",),
}
TEXTS = ("configs/metadata.json", "docs/README.md")
OLD = "# Tiny\n\n<!-- weights 0: -->\nDice 0.9\n<!-- end of weights -->\nThe end.\n"

each_release = pytest.mark.parametrize("name", RECORDS)


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def records_of(name: str):
    return [RESULTS / f"{record}.json" for record in RECORDS[name]]


def test_every_bundle_with_released_weights_is_described():
    assert {path.parents[1].name for path in ROOT.glob("bundles/*/weights/card.json")} == set(RECORDS)


@each_release
def test_the_committed_texts_are_those_that_card_and_records_give(name, tmp_path):
    left_out = shutil.ignore_patterns("*.pt", "eval", "models")
    copy = shutil.copytree(ROOT / "bundles" / name, tmp_path / name, ignore=left_out)
    metadata = read(copy / TEXTS[0])
    (copy / TEXTS[0]).write_text(json.dumps({**metadata, "version": "0.0.1", "eval_metrics": {"mean_dice": 1}}))
    readme = SECTION.sub("<!-- weights 0: -->\n<!-- end of weights -->\n", (copy / TEXTS[1]).read_text())
    (copy / TEXTS[1]).write_text(readme)
    describe(str(copy), *map(str, records_of(name)))
    for text in TEXTS:
        assert (copy / text).read_text() == (ROOT / "bundles" / name / text).read_text()


@each_release
def test_the_records_are_those_of_the_weights_that_are_shipped(name):
    weights = ROOT / "bundles" / name / "weights"
    card, domains = read(weights / "card.json"), read(weights / "facts.json")["domains"]
    first, *_ = records = [read(path) for path in records_of(name)]
    assert (first["seed"], first["epochs"], first["best"]) == (card["seed"], card["epochs"], card["best"])
    assert first["cases_seen"] == {split: len(card["cases"][split]) for split in ("training", "validation")}
    assert first["steps"][-1]["train"] == first["train"]
    assert {record["weights"] for record in records} == {f"bundles/{name}/weights/model.pt"}
    seen = {(case["domain"], case["image"]) for cases in card["cases"].values() for case in cases}
    assert seen.isdisjoint((case["domain"], case["case"]) for record in records for case in record["cases"])
    for step in (step for record in records for step in record.get("steps", [])):
        given = step["train"].replace("'", "")
        assert "--learning_rate" not in given or f"--learning_rate {step['learning_rate']} " in f"{given} "
        assert ("DiceCELoss" in given) == step["loss"].startswith("Dice")
        assert "--epochs" not in given or f"--epochs {step['epochs']} " in f"{given} "
    if len(domains) == 1:
        assert first["steps"][-1]["grid"] == next(iter(domains.values()))["spatial_size"]


def test_weights_other_than_the_described_ones_are_shared_without_figures(tiny, tmp_path):
    (tiny / TEXTS[1]).write_text(OLD)
    card = read(tiny / "weights" / "card.json")
    (tiny / TEXTS[0]).write_text(json.dumps({**read(tiny / TEXTS[0]), "eval_metrics": {"mean_dice": 0.9}}))
    assert cli.main(["zoo", "publish", str(tiny), str(tmp_path / "out"), "--form", "huggingface"]) == 0
    shared = tmp_path / "out" / "huggingface" / "tiny_segmentation"
    readme = (shared / TEXTS[1]).read_text()
    assert "0.9" not in readme
    assert readme.endswith("<!-- end of weights -->\nThe end.\n")
    assert "- training cases: 1 (x 1)" in readme
    assert read(shared / TEXTS[0])["eval_metrics"] == {}
    assert (tiny / TEXTS[1]).read_text() == OLD
    (tiny / TEXTS[1]).write_text(OLD.replace("weights 0", f"weights {digest_of(card)}"))
    assert cli.main(["zoo", "publish", str(tiny), str(tmp_path / "new"), "--form", "huggingface"]) == 0
    assert "Dice 0.9" in (tmp_path / "new" / "huggingface" / "tiny_segmentation" / TEXTS[1]).read_text()


def test_a_readme_without_the_comments_is_refused_and_nothing_is_written(tiny, tmp_path, capsys):
    before = (tiny / TEXTS[0]).read_bytes()
    (tmp_path / "record.json").write_text(
        json.dumps(
            {"version": "0.3.0", "change": "new", "test": {"domains": {"x": {"val_mean_dice": {"n": 1, "mean": 1}}}}}
        )
    )
    (tiny / "weights" / "facts.json").write_text('{"domains": {"x": {"spatial_size": [8, 8, 8]}, "y": {}}}')
    assert cli.main(["zoo", "describe", str(tiny), str(tmp_path / "record.json")]) == 2
    assert "README.md' lacks the lines '<!-- weights 0: -->'" in capsys.readouterr().err
    assert (tiny / TEXTS[0]).read_bytes() == before
    (tmp_path / "record.json").write_text("{}")
    assert cli.main(["zoo", "describe", str(tiny), str(tmp_path / "record.json")]) == 2
    assert "the first record must hold version, change and test" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lits_coarse", "lung_segmentation", "nodule_classification"])
def test_the_figures_of_bundles_without_weights_are_those_of_the_results_page(name):
    rows = [row for row in (ROOT / "bundles" / name / TEXTS[1]).read_text().splitlines() if row.startswith("|")]
    assert len(rows) > 3
    assert set(rows) <= set((ROOT / "docs" / "results.md").read_text().splitlines())
