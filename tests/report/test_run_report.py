"""The page of a run says what the run's files say, warns where they are not enough, and stands alone."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from med3d_ext.errors import InputError
from med3d_ext.tools.report import report

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
RECORD = {
    "status": "completed",
    "command": "python -m monai.bundle run --epochs 3",
    "overrides": {},
    "config": {
        "network_def": {"_target_": "med3d_ext.networks.Segmenter"},
        "network_name": "resnet10",
        "dataset_dir": "x",
    },
    "seed": 7,
    "data": {"Kidneys": {"a.nii.gz": "0", "b.nii.gz": "1"}},
    "versions": {"torch": "2.13.0"},
    "git": {"revision": "abc", "dirty": False},
    "device": {"type": "cpu"},
    "earlier": [{"status": "interrupted"}],
    "duration_seconds": 61.2,
    "epochs": 3,
    "best": {"val_mean_dice": 0.81234, "epoch": 2},
}


class Page(HTMLParser):
    """What a reader sees: rows of cells, notes, pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.notes: list[str] = []
        self.pictures: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert not self.tags, f"never closed: {self.tags}"

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "img":
            self.pictures.append(given["alt"])
        self.links += [given[name] for name in ("src", "href") if name in given]
        if tag in ("meta", "img"):
            return
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif given.get("class") == "note":
            self.notes.append("")

    def handle_endtag(self, tag):
        assert self.tags.pop() == tag

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.tags and self.tags[-1] == "p" and self.notes and not self.rows:
            self.notes[-1] += data


def write_run(folder: Path, split: str | None = "test", cases: int = 12, **changes) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**RECORD, **changes}))
    (folder / "loss.png").write_bytes(PIXEL)
    if split:
        (folder / split).mkdir()
        figure = {"n": cases, "mean": 0.91234, "interval_95": [0.9, 0.92], "minimum": 0.7}
        summary = {"split": split, "n": cases, "domains": {"Kidneys": {"val_mean_dice": figure}}}
        (folder / split / "summary.json").write_text(json.dumps(summary))
        (folder / split / "cases.csv").write_text("case,domain,val_mean_dice\n<b>.nii.gz,Kidneys,0.71239\n")
        (folder / split / "overlay_b.png").write_bytes(PIXEL)
    return folder


def page_of(folder: Path) -> Page:
    return Page(Path(report(str(folder))).read_text())


def test_figures_cases_curves_and_origin_stand_on_the_page_and_nothing_else_is_needed(tmp_path):
    page = page_of(write_run(tmp_path / "eval"))
    assert ["Kidneys", "val_mean_dice", "12", "0.912", "[0.900, 0.920]", "0.700"] in page.rows
    assert ["<b>.nii.gz", "Kidneys", "0.712"] in page.rows  # as text: a name is no markup
    assert ["best epoch", "2 (val_mean_dice 0.812 of the validation)"] in page.rows
    assert ["duration", "0:01:01"] in page.rows and ["starts", "2"] in page.rows and ["seed", "7"] in page.rows
    assert page.pictures == ["b", "loss"] and page.notes == []
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"status": "running"}, "The training is running: its figures may change, or it was killed"),
        ({"status": "failed", "error": "RAM is full"}, "The training is failed: RAM is full."),
        ({"split": None}, "There is no evaluation of the test cases yet: run train.json with evaluate.json."),
        ({"cases": 4}, "'test' has 4 cases: its intervals are too narrow to rely on."),
        ({"config": {**RECORD["config"], "dataset_dir": None}}, "generated phantoms, whose figures say nothing"),
        ({"split": "validation"}, "'validation' is the validation split, by which the weights were chosen"),
    ],
)
def test_what_makes_figures_doubtful_is_said_first(tmp_path, options, note):
    page = page_of(write_run(tmp_path / "eval", **options))
    assert any(note in said for said in page.notes), page.notes


def test_seen_cases_and_other_classes_are_the_first_that_is_said(tmp_path):
    folder = write_run(tmp_path / "eval", status="running")
    path = folder / "test" / "summary.json"
    doubts = {"seen_by_weights": ["a.nii.gz", "b.nii.gz"], "other_classes": {"Kidneys": [["liver"], ["kidney"]]}}
    path.write_text(json.dumps({**doubts, **json.loads(path.read_text())}))
    first, second, *_ = page_of(folder).notes
    assert "2 cases that the weights have seen" in first and "a.nii.gz, b.nii.gz" in first
    assert "the weights segment liver, the labels of Kidneys are kidney" in second


def test_a_bundle_means_its_eval_folder_and_a_training_that_has_just_begun_has_a_page(tmp_path, monkeypatch):
    bundle = tmp_path / "bundles" / "kidneys"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs" / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match="eval' has no run.json; train the bundle first"):
        report(str(bundle))
    folder = write_run(bundle / "eval", split=None)
    for name in ("duration_seconds", "epochs", "best"):
        begun = json.loads((folder / "run.json").read_text())
        del begun[name]
        (folder / "run.json").write_text(json.dumps({**begun, "status": "running"}))
    monkeypatch.chdir(tmp_path)
    assert Path(report("kidneys")).resolve() == folder / "report.html"
    assert ["best epoch", "not known yet"] in Page((folder / "report.html").read_text()).rows


def test_a_folder_without_a_run_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="has no run.json; give the output_dir of a training, or a bundle"):
        report(str(tmp_path))


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ({"type": "cpu", "name": "AMD EPYC", "threads": 2, "processes": 1}, "2 CPU threads, AMD EPYC"),
        ({"type": "cuda", "name": "NVIDIA A100", "threads": 8, "processes": 4}, "4 x NVIDIA A100"),
    ],
)
def test_device_initial_weights_and_one_case_are_said_for_people(tmp_path, device, words):
    folder = write_run(tmp_path / "eval", device=device)
    (folder / "initial_weights.json").write_text(json.dumps({"file": "encoder.pt", "share": 0.987}))
    summary = json.loads((folder / "test" / "summary.json").read_text())
    summary["domains"]["Kidneys"]["val_mean_dice"] |= {"n": 1, "interval_95": None}
    (folder / "test" / "summary.json").write_text(json.dumps(summary))
    rows = page_of(folder).rows
    assert ["device", words] in rows
    assert ["initial weights", "encoder.pt: 98.7% of the encoder's parameters loaded"] in rows
    assert ["Kidneys", "val_mean_dice", "1", "0.912", "-", "0.700"] in rows


def test_the_sanity_sheet_is_on_the_page_with_its_lines(tmp_path):
    folder = write_run(tmp_path / "eval")
    (folder / "sanity.png").write_bytes(PIXEL)
    (folder / "sanity.json").write_text(json.dumps({"cases": ["a"], "oddities": ["a: the label <b> is odd"]}))
    assert "sanity" in page_of(folder).pictures
    assert "<li>a: the label &lt;b&gt; is odd</li>" in (folder / "report.html").read_text()
