"""Every bundle's network in other programs: TorchScript and ONNX compute the same."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from bundle_files import config_files, each_bundle, each_of, workflow
from monai.bundle import ConfigParser, ckpt_export, onnx_export

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.networks.med3d import PADDING_LOGIT
from med3d_ext.tools.cli import main
from med3d_ext.tools.export import _difference, export

pytestmark = [pytest.mark.usefixtures("clean_process"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def out(bundle, weights, folders, tmp_path):
    """Exports the bundle of the test with its random weights."""

    def make(name, **options):
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
    return torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))


@each_bundle
@pytest.mark.parametrize("writer", ["ours", "monai's"])
def test_a_torchscript_archive_computes_the_same_and_carries_its_configs(
    bundle, writer, out, folders, weights, network, image, tmp_path
):
    """Ours needs no other file: preprocessing, inferer and postprocessing can be built from it."""
    path, kept = tmp_path / "model.ts", {"metadata.json": "", "inference.json": ""}
    metadata, config = config_files(bundle, "metadata", "inference")
    if writer == "ours":
        out("model.ts")
    else:
        ckpt_export("network_def", str(path), str(weights), metadata, config, **folders)
    exported = torch.jit.load(path, _extra_files=kept).eval()
    with torch.inference_mode():
        torch.testing.assert_close(exported(image), network(image))
    assert json.loads(kept["metadata.json"]) == read_json(metadata)
    content = json.loads(kept["inference.json"])
    assert content["network_name"] == "resnet10"
    if writer == "ours":
        assert str(tmp_path) not in json.dumps(content)
        parser = ConfigParser(content)
        assert all(parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "postprocessing"))


@each_bundle
@pytest.mark.parametrize("writer", ["ours", pytest.param("monai's", marks=pytest.mark.slow)])
def test_an_onnx_model_computes_the_same(bundle, writer, out, folders, weights, network, image, tmp_path):
    """Ours for any batch; what MONAI's own command writes for the shape that it was traced with."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    if writer == "ours":
        out("model.onnx")
    else:
        shape = {"input_shape": list(image.shape), "use_trace": True, "converter_kwargs": {"dynamo": False}}
        (config,) = config_files(bundle, "inference")
        onnx_export("network_def", str(path), str(weights), config_file=config, **shape, **folders)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(found), network(image), rtol=0, atol=1e-3)
    if writer == "ours":
        assert (session.get_inputs()[0].name, session.get_outputs()[0].name) == ("image", "pred")


@each_of("lits_fine")
@pytest.mark.parametrize("part", ["coarse", "fine"])
def test_each_stage_of_the_cascade_can_be_had_alone(bundle, part, out, network, image):
    exported = torch.jit.load(str(out("stage.ts", part=part))).eval()
    with torch.inference_mode():
        torch.testing.assert_close(exported(image), getattr(network, part)(image))


@each_of("lits_fine")
def test_the_cascade_runs_on_its_exported_network(bundle, out, network, folders):
    exported = torch.jit.load(str(out("model.ts"))).eval()
    inferer = workflow(bundle, "inference", **folders).parser.get_parsed_content("inferer")
    scan = torch.randn(1, 1, 48, 40, 36, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(inferer(inputs=scan, network=exported), inferer(inputs=scan, network=network))


@each_of("lits_coarse")
def test_the_command_reports_how_well_the_file_agrees_and_leaves_nothing_else(
    bundle, weights, folders, tmp_path, capsys
):
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["export", str(bundle), str(tmp_path / "model.ts"), "--ckpt_dir", folders["ckpt_dir"]]) == 0
    assert "for an image of 1 x 1 x 32 x 32 x 32" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} - before == {"model.ts"}


@each_of("lits_coarse")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("model.pt", {}, "out must end with .ts or .onnx"),
        ("taken.ts", {}, "--overwrite"),
        ("model.ts", {"part": "middle"}, "part must be one of encoder, head"),
        ("model.ts", {"netwrk_name": "resnet18"}, "did you mean 'network_name'"),
        ("model.ts", {"network_name": "resnet18"}, "is of another network"),
        ("model.onnx", {}, "pip install onnx onnxruntime"),
    ],
)
def test_a_mistake_is_refused_and_nothing_is_written(bundle, name, options, words, out, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_onnx(name, *rest):
        if name == "onnx":
            raise ImportError("no onnx", name="onnx")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    (tmp_path / "taken.ts").write_bytes(b"mine")
    with pytest.raises(InputError, match=words):
        out(name, **options)
    assert (tmp_path / "taken.ts").read_bytes() == b"mine"
    assert not (tmp_path / "model.ts").exists() and not (tmp_path / "model.onnx").exists()


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
