"""Every bundle's network in other programs: TorchScript and ONNX compute the same."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from bundle_files import BUNDLES, config_files, workflow
from monai.bundle import ConfigParser, onnx_export

from med3d_ext.errors import InputError
from med3d_ext.networks.med3d import PADDING_LOGIT
from med3d_ext.tools.cli import main
from med3d_ext.tools.export import _difference, export

pytestmark = [pytest.mark.usefixtures("clean_process"), pytest.mark.filterwarnings("ignore")]
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
FINE = next(bundle for bundle in BUNDLES if bundle.name == "lits_fine")
COARSE = next(bundle for bundle in BUNDLES if bundle.name == "lits_coarse")


@pytest.fixture
def out(weights, folders, tmp_path):
    """Exports the bundle of the test with its random weights."""

    def make(bundle, name, **options):
        export(str(bundle), str(tmp_path / name), **{**options, "ckpt_dir": folders["ckpt_dir"]})
        return tmp_path / name

    return make


@pytest.fixture
def network(bundle, folders, weights):
    """The network with its weights."""
    made = workflow(bundle, "inference", **folders).network_def
    made.load_state_dict(torch.load(weights, weights_only=True))
    return made.eval()


@pytest.fixture
def image():
    return torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))


@each_bundle
def test_a_torchscript_archive_computes_the_same(bundle, out, network, image):
    exported = torch.jit.load(str(out(bundle, "model.ts"))).eval()
    with torch.inference_mode():
        torch.testing.assert_close(exported(image), network(image))


@each_bundle
def test_the_archives_config_needs_no_file_beside_it(bundle, out, tmp_path):
    kept = {"metadata.json": "", "inference.json": ""}
    torch.jit.load(str(out(bundle, "model.ts")), _extra_files=kept)
    assert json.loads(kept["metadata.json"]) == ConfigParser.load_config_file(bundle / "configs" / "metadata.json")
    config = json.loads(kept["inference.json"])
    assert str(tmp_path) not in json.dumps(config)
    parser = ConfigParser(config)
    for name in ("preprocessing", "inferer", "postprocessing"):
        assert parser.get_parsed_content(name) is not None


@each_bundle
def test_an_onnx_model_computes_the_same_for_any_batch(bundle, out, network):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = out(bundle, "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = network(batch).numpy()
    (found,) = session.run(["pred"], {"image": batch.numpy()})
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.slow
@each_bundle
def test_monais_own_command_writes_an_onnx_model_that_computes_the_same(
    bundle, folders, weights, network, image, tmp_path
):
    onnxruntime = pytest.importorskip("onnxruntime")
    (config,) = config_files(bundle, "inference")
    path = str(tmp_path / "monai.onnx")
    shape = {"input_shape": list(image.shape), "use_trace": True, "converter_kwargs": {"dynamo": False}}
    onnx_export("network_def", path, str(weights), config_file=config, **shape, **folders)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = network(image).numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("bundle", [FINE], ids=["lits_fine"])
@pytest.mark.parametrize("part", ["coarse", "fine"])
def test_each_stage_of_the_cascade_can_be_had_alone(bundle, part, out, network, image):
    exported = torch.jit.load(str(out(bundle, "stage.ts", part=part))).eval()
    with torch.inference_mode():
        torch.testing.assert_close(exported(image), getattr(network, part)(image))


@pytest.mark.parametrize("bundle", [FINE], ids=["lits_fine"])
def test_the_cascade_runs_on_its_exported_network(bundle, out, network, folders):
    exported = torch.jit.load(str(out(bundle, "model.ts"))).eval()
    inferer = workflow(bundle, "inference", **folders).parser.get_parsed_content("inferer")
    scan = torch.randn(1, 1, 48, 40, 36, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(inferer(inputs=scan, network=exported), inferer(inputs=scan, network=network))


each_coarse = pytest.mark.parametrize("bundle", [COARSE], ids=["lits_coarse"])


@each_coarse
def test_the_command_tells_how_well_the_file_agrees_and_leaves_nothing_else(bundle, weights, folders, tmp_path, capsys):
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["export", str(bundle), str(tmp_path / "model.ts"), "--ckpt_dir", folders["ckpt_dir"]]) == 0
    assert "for an image of 1 x 1 x 32 x 32 x 32" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} - before == {"model.ts"}


@each_coarse
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("model.pt", {}, "out must end with .ts or .onnx"),
        ("taken.ts", {}, "--overwrite"),
        ("model.ts", {"part": "middle"}, "part must be one of encoder, head"),
        ("model.ts", {"netwrk_name": "resnet18"}, "did you mean 'network_name'"),
        ("model.ts", {"network_name": "resnet18"}, "is of another network"),
    ],
)
def test_a_mistake_is_refused_and_nothing_is_written(bundle, name, options, words, out, tmp_path):
    (tmp_path / "taken.ts").write_bytes(b"mine")
    with pytest.raises(InputError, match=words):
        out(bundle, name, **options)
    assert (tmp_path / "taken.ts").read_bytes() == b"mine"
    assert not (tmp_path / "model.ts").exists()


def test_an_export_that_differs_is_refused():
    network, image = torch.nn.Conv3d(1, 2, 1), torch.ones(1, 1, 2, 2, 2)
    with torch.no_grad():
        right = network(image)
    assert _difference(right, network, image) == 0
    with pytest.raises(InputError, match="differs from the network"):
        _difference(right + 1, network, image)
    with pytest.raises(InputError, match="the export gives"):
        _difference(right[:, :1], network, image)
    padded = torch.full((1, 3, 2, 2, 2), PADDING_LOGIT)  # channels that a branch does not have excuse nothing
    padded[:, :2] = 1.0
    with pytest.raises(InputError, match="differs from the network"):
        _difference(padded + 0.01, torch.nn.Identity(), padded)


@each_coarse
def test_without_the_packages_for_onnx_the_repair_is_named(bundle, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="pip install onnx onnxruntime"):
        out(bundle, "model.onnx")
