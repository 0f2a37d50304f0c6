"""What an inference of nodules takes: cubes, or scans with points in the world; a point outside is named."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from med3d_ext.data.nodules_to_classify import NodulesToClassify, read_points
from med3d_ext.errors import InputError

AFFINE = np.array([[-2.0, 0, 0, 100], [0, 1, 0, -20], [0, 0, 3, 50], [0, 0, 0, 1]])  # x from 61 to 101 mm, RAS
SHAPE = (20, 30, 25)


@pytest.fixture
def scan(nifti, tmp_path):
    return nifti(tmp_path / "scans" / "ct.nii.gz", np.zeros(SHAPE, np.int16), AFFINE)


@pytest.fixture
def table(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "points.csv"
        path.write_text(text)
        return str(path)

    return write


# Cubes


def test_each_image_of_a_folder_is_a_cube(nodule_folder, nifti, tmp_path):
    source = nodule_folder(ratings=(1, 5))
    assert [item["image"].rpartition("/")[2] for item in NodulesToClassify(str(source)).items] == [
        "n0.nii.gz",
        "n1.nii.gz",
    ]
    assert NodulesToClassify(str(source / "images")).items == NodulesToClassify(str(source)).items
    assert len(NodulesToClassify(str(source / "images" / "n1.nii.gz")).items) == 1


def test_a_damaged_cube_is_skipped_and_counted_only_where_the_user_says_so(nodule_folder, caplog):
    source = nodule_folder(ratings=(1, 5, 2))
    path = source / "images" / "n1.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])
    with caplog.at_level(logging.WARNING):
        found = NodulesToClassify(str(source), skip_bad=True)
    assert len(found.items) == 2 and len(found.skipped) == 1 and str(path) in found.skipped[0]
    assert any("skipped: " in record.message for record in caplog.records)


def test_without_a_folder_phantoms_are_announced(nodule_folder, monkeypatch, caplog):
    source = nodule_folder(ratings=(1, 5))
    monkeypatch.setattr("med3d_ext.tools.phantoms.dataset.phantom_dataset", lambda kind: source)
    with caplog.at_level(logging.WARNING):
        assert len(NodulesToClassify(None).items) == 2
    assert any("generated phantoms" in record.message for record in caplog.records)


# Points


def test_points_become_centers_in_ras_with_their_names(scan, table):
    points = table("name,x,y,z\nupper,90,-10,60\n,65.5,0,70\n")
    (item,) = NodulesToClassify(str(scan), points).items
    assert item == {"image": str(scan), "centers": [[90, -10, 60], [65.5, 0, 70]], "names": ["upper", "2"]}
    assert NodulesToClassify(str(scan.parent), points).items == [item]


def test_points_of_dicom_are_mirrored(scan, table):
    points = table("x, y, z\n-90, 10, 60\n")
    (item,) = NodulesToClassify(str(scan), points, point_space="LPS").items
    assert item["centers"] == [[90, -10, 60]]
    with pytest.raises(InputError, match="with --point_space LPS it would be inside"):
        NodulesToClassify(str(scan), points)


def test_a_point_outside_is_refused_by_name_or_skipped_and_counted(scan, table):
    points = table("name,x,y,z\nin,90,-10,60\nfar,90,-10,600\n")
    with pytest.raises(InputError, match="point 'far' .line 3 of .*points.csv'. is outside .*ct.nii.gz'; correct"):
        NodulesToClassify(str(scan), points)
    found = NodulesToClassify(str(scan), points, skip_bad=True)
    assert found.items[0]["names"] == ["in"] and len(found.skipped) == 1 and "'far'" in found.skipped[0]
    with pytest.raises(InputError, match="all of .*points.csv' was skipped"):
        NodulesToClassify(str(scan), table("x,y,z\n0,0,0\n"), skip_bad=True)


def test_the_edge_of_the_outermost_voxels_still_belongs_to_the_image(scan, table):
    for x, inside in ((100.9, True), (101.1, False), (61.1, True), (60.9, False)):
        found = NodulesToClassify(str(scan), table(f"x,y,z\n{x},0,60\n90,0,60\n"), skip_bad=True)
        assert len(found.items[0]["centers"]) == 1 + inside, x


def test_many_points_of_a_scan_are_cut_into_items(scan, table):
    found = NodulesToClassify(str(scan), table("x,y,z\n" + "90,-10,60\n" * 37))
    assert [len(item["centers"]) for item in found.items] == [16, 16, 5]


def test_with_several_scans_each_point_names_its_own(scan, nifti, table):
    other = nifti(scan.parent / "other.nii.gz", np.zeros(SHAPE, np.int16), AFFINE)
    found = NodulesToClassify(str(scan.parent), table("image,x,y,z\nother.nii.gz,90,0,60\nct.nii.gz,80,0,60\n"))
    assert [(item["image"], item["centers"]) for item in found.items] == [
        (str(other), [[90, 0, 60]]),
        (str(scan), [[80, 0, 60]]),
    ]
    with pytest.raises(InputError, match="needs a column 'image'.*there are 2"):
        NodulesToClassify(str(scan.parent), table("x,y,z\n90,0,60\n"))
    with pytest.raises(InputError, match="point '1' .* names the image 'lost.nii', which is not among"):
        NodulesToClassify(str(scan.parent), table("image,x,y,z\nlost.nii,90,0,60\n"))


def test_formats_that_itk_reads_and_series_folders_are_scans_too(scan, table, tmp_path, monkeypatch):
    import itk

    volume = itk.image_from_array(np.zeros((25, 30, 20), np.int16))
    volume.SetOrigin([-100.0, 20.0, 50.0])  # LPS: x from -100 to -81, y from 20 to 49
    itk.imwrite(volume, str(tmp_path / "scan.nrrd"))
    points = table("x,y,z\n-90,30,60\n")
    assert NodulesToClassify(str(tmp_path / "scan.nrrd"), points, "LPS").items[0]["centers"] == [[90, -30, 60]]
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").touch()
    assert NodulesToClassify(str(series)).items == [{"image": str(series)}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n", "has no column 'z'; its first line must name x, y, z"),
        ("x,y,z\n", "has no rows"),
        ("name,x,y,z\na,1,2,three\n", "point 'a' .line 2 of .* a coordinate that is not a number"),
        ("x,y,z\n1,2,nan\n", "point '1' .* not a number"),
        ("x,y,z\n1,2\n", "point '1' .* not a number"),
    ],
)
def test_a_table_without_points_is_refused(text, message, table):
    with pytest.raises(InputError, match=message):
        read_points(table(text))


def test_an_unknown_space_and_a_missing_table_are_refused(scan, tmp_path):
    with pytest.raises(InputError, match="point_space must be one of RAS, LPS, got 'ras'"):
        NodulesToClassify(str(scan), point_space="ras")
    with pytest.raises(InputError, match="nowhere.csv' cannot be read"):
        NodulesToClassify(str(scan), str(tmp_path / "nowhere.csv"))
