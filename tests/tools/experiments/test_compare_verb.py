"""The command line of ``compare``: what is typed arrives as meant, mistakes are one line."""

from __future__ import annotations

import json

import pytest

from med3d_ext.tools import cli
from med3d_ext.tools.experiments.compare import parse_list

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def run(make, bundle, encoder, monkeypatch, capsys, tmp_path):
    """Runs the verb in ``tmp_path`` on prepared data in a folder whose name is a number."""
    (tmp_path / "split_of_mine").rename(tmp_path / "split2024")
    (tmp_path / "2024").symlink_to(tmp_path / "split2024")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["compare", *words])
        return code, *capsys.readouterr()

    return run


def test_the_whole_command_by_the_bundles_name(run, encoder, tmp_path) -> None:
    words = ["small", "--inits", f"scratch,med3d={encoder}", "--seeds", "0", "--dataset_dir", "split2024"]
    code, out, err = run(*words, "--output", "1e3", "--epochs", "2", "--shares", "0.5", "--batch_size", "4")
    assert code == 0, err
    record = json.loads((tmp_path / "1e3" / "comparison.json").read_text())
    assert record["options"] == {"batch_size": 4, "dataset_dir": "split2024", "epochs": 2}
    assert (record["seeds"], record["shares"]) == ([0], [0.5])
    assert "# Comparison: small" in out
    assert out.endswith("figures are in 1e3\n")
    assert len(list((tmp_path / "1e3").rglob("model.pt"))) == 3


def test_without_output_it_is_written_inside_the_bundle(run, bundle) -> None:
    code, _, err = run("bundles/small", "--drop_weights", "--inits=scratch", "--dataset_dir=split2024")
    assert code == 0, err
    assert (bundle / "eval" / "compare" / "comparison.json").is_file()
    assert not list(bundle.rglob("model.pt"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small"], "compare: "),
        (["smal", "--inits", "scratch"], "There is no bundle 'smal'; the nearest is 'small'"),
        (["small", "--inits", "scratch", "--seeds", "a"], "compare: --seeds must be whole numbers, as 0,1,2, got 'a'."),
        (["small", "--inits", "scratch,", "--seeds", "0,,1"], "compare: --seeds must be whole numbers"),
        (["small", "--inits", ""], "compare: --inits must be joined by commas, as scratch,med3d"),
        (["small", "--inits", "scratch", "--shares", "half"], "compare: --shares must be numbers, as 0.25,1.0"),
        (["small", "--inits", "scratch", "--folds", "five"], "compare: --folds must be a whole number, got 'five'."),
        (["small", "--inits", "scratch", "--epochs", "1.5"], "compare: --epochs must be a whole number, got 1.5."),
        (["small", "--inits", "scratch", "--spatial_siz", "32"], "override 'spatial_siz' matches no id of train.json"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(run, runner, words, message) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert runner.calls == []


@pytest.mark.parametrize("text", ["0,1,2", "[0,1,2]", "(0, 1, 2)", "0,1,2,", " 0, 1,2"])
def test_a_list_may_be_typed_in_several_ways(text) -> None:
    assert parse_list("seeds", text, int) == [0, 1, 2]
    assert parse_list("inits", "['scratch','a=b/c.pt']", str) == ["scratch", "a=b/c.pt"]
