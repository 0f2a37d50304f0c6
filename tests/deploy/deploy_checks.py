"""MONAI Deploy's bundle operator, really run: the same voxels as ``monai.bundle run`` on the same DICOM series.

Opt-in, for it needs an environment of its own (``make deploy-test``): pytest does not collect a file of this name
unless it is named. The interpreter of that environment is ``DEPLOY_PYTHON``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "label")]

from dicom_files import write_series  # noqa: E402
from patients import BRANCH, KINDS, REPOSITORY, install_bundle, phantom_patients, run_bundle, train  # noqa: E402

PYTHON = os.environ.get("DEPLOY_PYTHON", str(REPOSITORY / ".venv-deploy" / "bin" / "python"))
APPLICATION = Path(__file__).with_name("application.py")
# Their random or released weights find nothing in a phantom, and two empty maps are always equal.
TRAINED = {
    "lung_segmentation": ("--epochs", 12, "--spatial_size", "[32,32,32]"),
    "pretrain_3dseg8": ("--epochs", 12, "--domains", BRANCH, "--learning_rate", 0.02),
}
TURN = np.deg2rad(10)
OBLIQUE = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_operator_gives_the_voxels_of_the_command_line(name, tmp_path):
    data, images = phantom_patients(name, tmp_path / "phantoms")
    if name in TRAINED:
        bundle = install_bundle(name, tmp_path / "bundles")
        train(bundle, data, tmp_path / "run", *TRAINED[name])
    else:
        bundle = packed_bundle(name, tmp_path)
    series = series_of(next((images / "imagesTr").glob("*.nii.gz")), tmp_path / "studies" / "patient")
    run_bundle(bundle, "inference", "--dataset_dir", series, "--output_dir", tmp_path / "command")
    expected = nibabel.load(next((tmp_path / "command").glob("*.nii.gz")))
    deployed = deploy(bundle, series, tmp_path / "deployed.npz")
    assert np.asarray(expected.dataobj).any(), "an empty label map shows nothing"
    np.testing.assert_array_equal(deployed["labels"], np.asarray(expected.dataobj))
    np.testing.assert_allclose(deployed["affine"], expected.affine, atol=1e-3)


def packed_bundle(name, folder):
    """The bundle as it is shared: with its released weights, or random ones where none are released."""
    options = [] if (REPOSITORY / "bundles" / name / "weights").is_dir() else ["--weights", "random"]
    words = [sys.executable, "-m", "med3d_ext", "zoo", "pack", REPOSITORY / "bundles" / name, folder / "zips", *options]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    shutil.unpack_archive(next((folder / "zips").glob("*.zip")), folder / "bundles")
    return folder / "bundles" / name


def series_of(image, folder):
    """The voxels of an image as a DICOM series of an oblique scan."""
    volume = nibabel.load(image)
    voxels = np.asarray(volume.dataobj)
    stored = np.round(voxels * (1000 / max(abs(voxels.max()), 1000))).astype(np.int16)
    across, _, along = nibabel.affines.voxel_sizes(volume.affine)
    # SDK 4.0.0 exchanges the spacing of rows and columns in its affine, so that only square pixels can be compared.
    return write_series(folder, stored, (across, across, along), (5.0, -7.0, 30.0), OBLIQUE)


def deploy(bundle, series, result):
    """The application's label map; ``PYTHONPATH`` is how it finds the bundle's package and the bundle itself."""
    environment = {**os.environ, "PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1"}
    words = [PYTHON, APPLICATION, bundle, series, result]
    done = subprocess.run(list(map(str, words)), cwd=result.parent, env=environment, capture_output=True, text=True)
    assert result.is_file(), done.stdout[-2000:] + done.stderr[-4000:]
    return np.load(result)
