"""Tables as people save them, or refused in one sentence; and what a case is called."""

from __future__ import annotations

import pytest

from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name, read_table


def test_rows_come_with_their_line_and_without_outer_spaces(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeff x , name\r\n 1.5, upper left \r\n\r\n2\r\n"a,b",c,more\r\n'.encode())
    rows = [(2, {"x": "1.5", "name": "upper left"}), (4, {"x": "2", "name": ""}), (5, {"x": "a,b", "name": "c"})]
    assert read_table(path, ["x"]) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'x'; its first line must name x, y"),
        (b"x,z\n1,2\n", "has no column 'y'"),
        (b"x,y\n", "has no rows"),
        (b"x,y\n\xff\xfe,1\n", "is not a table in UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_such_table_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_table(path, "xy")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/imagesTr/liver_1.nii.gz", "liver_1.nii.gz"),
        ("/data/s0007/ct.nii.gz", "s0007"),
        ("/data/s0007/mri.nii", "s0007"),
        ("/data/patient 3/lgemri.nrrd", "patient 3"),
        ("ct.nii.gz", "ct.nii.gz"),
        ("", ""),
    ],
)
def test_a_case_is_called_after_its_file_or_after_its_folder_where_all_files_have_one_name(path, name):
    assert case_name(path) == name
