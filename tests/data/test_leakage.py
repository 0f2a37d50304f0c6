from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from med3d_ext.data.leakage import leakage, unseen
from med3d_ext.errors import InputError


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def case(name: str, **more: str) -> dict[str, str]:
    return {"image": f"{name}.nii.gz", "domain": "liver", "sha256": digest(name), **more}


@pytest.fixture
def card(tmp_path: Path) -> str:
    return write(tmp_path / "card.json", {"cases": {"training": [case("a"), case("b")], "validation": [case("c")]}})


def test_a_test_case_that_was_trained_on_is_told_and_ends_with_1(tmp_path: Path, card: str, capsys) -> None:
    datalist = write(tmp_path / "list.json", {"training": [case("b")], "test": [case("x"), case("a"), case("c")]})
    with pytest.raises(SystemExit) as end:
        leakage(card, datalist)
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "LEAK  test: a.nii.gz is a.nii.gz (training, liver)"
    assert lines[2] == "LEAK  test: c.nii.gz is c.nii.gz (validation, liver)"
    assert lines[0] == "seen  training: b.nii.gz is b.nii.gz (training, liver)"
    assert lines[3] == "of 3 test cases, the weights have seen 2; of 1 other cases, 1"


def test_a_list_without_test_cases_is_one_test_set(tmp_path: Path, card: str) -> None:
    datalist = write(tmp_path / "list.json", {"training": [case("a")]})
    with pytest.raises(SystemExit):
        leakage(card, datalist)


def test_digests_that_the_list_lacks_are_those_of_the_files(tmp_path: Path, card: str) -> None:
    (tmp_path / "renamed.nii.gz").write_text("a")
    (tmp_path / "other.nii.gz").write_text("other")
    seen = write(tmp_path / "seen.json", {"test": ["./renamed.nii.gz"]})
    unseen = write(tmp_path / "unseen.json", {"test": [{"image": "other.nii.gz"}]})
    with pytest.raises(SystemExit):
        leakage(card, seen)
    assert leakage(card, unseen) == "of 1 test cases, the weights have seen 0; of 0 other cases, 0"


@pytest.mark.parametrize(
    ("card_content", "list_content", "message"),
    [
        ({"epochs": 3}, {"test": [case("a")]}, "card.json' is not a card.json"),
        ({"cases": {"training": [{"image": "a"}]}}, {"test": [case("a")]}, "states no sha256 of 'a'"),
        ({"cases": {}}, {"train": []}, "list.json' lists no cases"),
        ({"cases": {}}, {"test": [{"label": "a"}]}, "entry without 'image' under 'test'"),
        ({"cases": {}}, {"test": ["none.nii"]}, "none.nii.*does not exist"),
    ],
)
def test_files_that_are_something_else_are_refused_by_name(tmp_path: Path, card_content, list_content, message) -> None:
    card, datalist = write(tmp_path / "card.json", card_content), write(tmp_path / "list.json", list_content)
    with pytest.raises(InputError, match=message):
        leakage(card, datalist)


def item(name: str) -> dict[str, str]:
    return {"image": f"/data/{name}.nii.gz", "sha256": digest(name)}


def test_an_evaluation_on_seen_cases_is_refused_with_the_reason(tmp_path: Path, card: str) -> None:
    weights = tmp_path / "model.pt"
    unknown = [item("x"), item("y"), {"image": "/data/z.nii.gz"}]
    assert unseen(unknown, weights) == unknown
    with pytest.raises(InputError, match=r"2 of 3 test cases were seen .* 'a.nii.gz' among them; give the seed, folds"):
        unseen([item("x"), item("a"), item("c")], weights)


def test_training_cases_may_be_evaluated_as_such_and_weights_without_a_card_too(tmp_path: Path, card: str) -> None:
    assert unseen([item("a")], tmp_path / "model.pt", split="training") == [item("a")]
    assert unseen([item("a")], tmp_path / "elsewhere" / "model.pt") == [item("a")]
