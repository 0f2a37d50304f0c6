"""What a case is called."""

from __future__ import annotations

import pytest

from med3d_ext.io.files import case_name


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
