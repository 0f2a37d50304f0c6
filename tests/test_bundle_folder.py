from __future__ import annotations

from pathlib import Path

import pytest

import med3d_ext.tools.bundle_folder as bundle_folder
from med3d_ext.errors import InputError
from med3d_ext.tools.bundle_folder import find_bundle

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def make(tmp_path: Path, monkeypatch):
    """Makes bundles in a folder; the commands run in ``tmp_path/work``."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def make(folder: str) -> Path:
        configs = tmp_path / folder / "configs"
        configs.mkdir(parents=True)
        (configs / "metadata.json").write_text("{}")
        return configs.parent

    return make


def test_a_folder_is_its_bundle(make) -> None:
    folder = make("anywhere/mine")
    assert find_bundle(folder) == folder
    assert find_bundle("../anywhere/mine") == Path("../anywhere/mine")


def test_a_name_is_looked_for_in_bundles_of_the_working_folder_first(make) -> None:
    make("work/bundles/lits_coarse")
    assert find_bundle("lits_coarse") == Path("bundles/lits_coarse")


def test_a_name_is_looked_for_beside_the_package(make) -> None:
    assert find_bundle("lits_coarse") == REPOSITORY / "bundles" / "lits_coarse"


def test_a_packed_bundle_finds_itself(make, monkeypatch) -> None:
    packed = make("unpacked/lits_coarse")
    monkeypatch.setattr(bundle_folder, "PACKAGE", packed / "med3d_ext")
    assert find_bundle("lits_coarse") == packed


def test_a_folder_of_that_name_that_is_no_bundle_does_not_hide_the_bundle(make, tmp_path) -> None:
    make("work/bundles/lits_coarse")
    (tmp_path / "work" / "lits_coarse").mkdir()
    assert find_bundle("lits_coarse") == Path("bundles/lits_coarse")


@pytest.mark.parametrize("name", ["lits_corse", "bundles/lits_corse", "2024"])
def test_an_unknown_bundle_is_refused_with_the_nearest(make, name) -> None:
    make("work/bundles/lits_coarse")
    with pytest.raises(InputError) as caught:
        find_bundle(name)
    message = str(caught.value)
    assert f"There is no bundle '{name}'; the nearest is '" in message
    assert "\n" not in message
    assert name == "2024" or "nearest is 'lits_coarse' in 'bundles'" in message


def test_a_path_is_not_taken_for_the_name_at_its_end(make) -> None:
    make("work/bundles/lits_coarse")
    with pytest.raises(InputError, match="There is no bundle 'elsewhere/lits_coarse'"):
        find_bundle("elsewhere/lits_coarse")


def test_a_folder_without_metadata_is_named_as_such(make, tmp_path) -> None:
    (tmp_path / "work" / "lits_corse").mkdir()
    with pytest.raises(InputError, match="'lits_corse' is not a bundle, it has no configs/metadata.json; the nearest"):
        find_bundle("lits_corse")


def test_without_any_bundle_a_path_is_asked_for(make, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bundle_folder, "PACKAGE", tmp_path / "site-packages" / "med3d_ext")
    with pytest.raises(InputError, match="give the path of a bundle's folder"):
        find_bundle("lits_coarse")
