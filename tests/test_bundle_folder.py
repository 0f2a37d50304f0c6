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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lits_corse", "There is no bundle 'lits_corse'; the nearest is 'lits_coarse' in 'bundles'"),
        ("bundles/lits_corse", "There is no bundle 'bundles/lits_corse'; the nearest is 'lits_coarse'"),
        ("elsewhere/lits_coarse", "There is no bundle 'elsewhere/lits_coarse'"),
        ("2024", "There is no bundle '2024'; the nearest is '"),
        ("lits_folder", "'lits_folder' is not a bundle, it has no configs/metadata.json; the nearest"),
    ],
)
def test_what_is_no_bundle_is_refused_with_the_nearest(make, tmp_path, monkeypatch, name, message) -> None:
    make("work/bundles/lits_coarse")
    (tmp_path / "work" / "lits_folder").mkdir()
    with pytest.raises(InputError, match=message):
        find_bundle(name)
    monkeypatch.setattr(bundle_folder, "PACKAGE", tmp_path / "site-packages" / "med3d_ext")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="give the path of a bundle's folder"):
        find_bundle(name)
