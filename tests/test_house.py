"""What the package loads and imports: the core no tool, and no library that only tools need."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import med3d_ext

PACKAGE = Path(med3d_ext.__file__).parent
BUNDLES = Path(__file__).parents[1] / "bundles"
CORE = sorted(path for path in PACKAGE.rglob("*.py") if "tools" not in path.relative_to(PACKAGE).parts)
OF_TOOLS = {"pandas", "sklearn", "jinja2", "pooch", "huggingface_hub"}

LOADED = """
import json, sys
import monai.bundle
before = set(sys.modules)
bundle, images, weights, folder = sys.argv[1:]
sys.path.insert(1, bundle)
parser = monai.bundle.ConfigParser()
parser.read_config(f"{bundle}/configs/inference.json")
parser.read_meta(f"{bundle}/configs/metadata.json")
parser.update({"dataset_dir": images, "ckpt_dir": weights, "output_dir": folder})
for name in ("network_def", "evaluator"):
    parser.get_parsed_content(name)
print(json.dumps(sorted(name for name in set(sys.modules) - before if name.startswith("med3d_ext"))))
"""


@pytest.fixture
def weights(tmp_path: Path):
    """A folder with the facts of a domain and random weights: what every inference reads."""
    domain = {
        "classes": {"0": "background", "1": "target"},
        "channel": 0,
        "label_map": {"0": 0, "1": 1},
        "spacing_median": [1.0, 1.0, 1.0],
        "spacing_mean": [1.0, 1.0, 1.0],
        "spatial_size": [32, 32, 32],
        "coarse_size": [32, 32, 32],
        "intensity_range": [-125.0, 275.0],
        "hu_window": [-125.0, 250.0],
        "cube_mm": 32.0,
        "cases": [],
    }
    (tmp_path / "facts.json").write_text(json.dumps({"domains": {"liver": domain}}))
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pt")
    return tmp_path


@pytest.mark.parametrize("bundle", sorted(path.name for path in BUNDLES.iterdir()))
def test_inference_on_images_of_a_user_loads_no_tool(bundle, weights, tmp_path, nifti):
    import numpy as np

    images = tmp_path / "images"
    images.mkdir()
    nifti(images / "ct.nii.gz", np.zeros((8, 8, 8), np.float32))
    copy = shutil.copytree(
        BUNDLES / bundle, tmp_path / bundle, ignore=shutil.ignore_patterns("weights", "eval", "models")
    )
    arguments = [str(copy), str(images), str(weights), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = json.loads(done.stdout.strip().splitlines()[-1])
    assert "med3d_ext.transforms.load" in loaded
    assert [name for name in loaded if name.startswith("med3d_ext.tools")] == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_core_module_imports_a_tool_or_a_library_of_tools_at_its_top(path):
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    tools = {name for name in found if name.startswith("med3d_ext.tools")}
    assert path.name == "__main__.py" or not tools
    assert not {name.partition(".")[0] for name in found} & OF_TOOLS


def test_help_and_mistakes_load_neither_torch_nor_monai():
    code = """
import sys
from med3d_ext.tools import cli
assert cli.main(["--help"]) == 0 and cli.main(["predikt"]) == 2
assert not {"torch", "monai", "numpy"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_predict_imports_nothing_that_no_segmentation_uses_and_leaves_it_to_others(tmp_path):
    for name in ("mlflow", "clearml", "sklearn", "pandas"):  # as if they were installed
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OURS = True\n")
    code = """
import sys
from med3d_ext.tools.cli import FOR_OTHERS, VERBS
predict = VERBS["predict"].load()
loaded = [name for name in FOR_OTHERS if name in sys.modules]
assert loaded == [], loaded
import mlflow, matplotlib.pyplot
assert mlflow.OURS
import monai.handlers
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
