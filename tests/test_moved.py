"""Configs of version 0.1: refused with the new names, and rewritten to the same networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pydoc import locate

import pytest
import torch
from composed_networks import aspp_network, lung_network
from monai.bundle import ConfigParser

from med3d_ext.errors import InputError
from med3d_ext.run.moved import MOVED, refuse_moved, renewed
from med3d_ext.tools.cli import main

OLD = {
    "network_name": "resnet18",
    "output_stride": 16,
    "widths": [8, 4],
    "initial": {"_target_": "med3d_ext.networks.pretrained.find_weights", "bundle_root": "."},
    "network_def": {
        "_target_": "med3d_ext.networks.LungSegmenter",
        "_desc_": "lung",
        "network_name": "@network_name",
        "in_channels": 1,
        "num_classes": 3,
        "output_stride": "@output_stride",
    },
    "cascade": {
        "fine": {"_target_": "med3d_ext.networks.DenseASPPSegmenter", "num_classes": 2, "widths": "@widths"},
    },
    "run": [{"_target_": "med3d_ext.bundle.StartRun"}, "$print('ran')"],
}


@pytest.mark.parametrize("old", MOVED)
def test_every_old_name_is_refused_with_the_new_one_wherever_it_is(old):
    with pytest.raises(InputError, match=MOVED[old].replace(".", r"\.")):
        refuse_moved({"a": [{"b": {"_target_": old}}]}, "train.json")
    assert renewed({"a": {"_target_": old}})["a"]["_target_"] == MOVED[old]
    assert locate(MOVED[old]) is not None


def test_networks_become_encoder_decoder_and_head_with_the_same_tensors():
    parser = ConfigParser(renewed(OLD))
    for name, wanted in (
        ("network_def", lung_network("resnet18", 1, 3, 16)),
        ("cascade::fine", aspp_network(num_classes=2, widths=(8, 4))),
    ):
        network = parser.get_parsed_content(name)
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        assert shapes == {key: value.shape for key, value in wanted.state_dict().items()}
    with torch.inference_mode():
        lung = parser.get_parsed_content("network_def").eval()
        assert lung(torch.zeros(1, 1, 17, 20, 9)).shape == (1, 3, 17, 20, 9)
    assert parser.get_parsed_content("cascade::fine").dropout.p == 0.1
    assert renewed(renewed(OLD)) == renewed(OLD)


def test_a_run_of_an_old_config_stops_and_update_repairs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = tmp_path / "own"
    (bundle / "configs").mkdir(parents=True)
    old = {"imports": ["$import sys"], "run": OLD["run"]}
    (bundle / "configs" / "train.json").write_text(json.dumps(old))
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0", "changelog": {"0.1.0": "first"}}))
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs" / "train.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "med3d_ext.run.StartRun" in done.stderr and "ran" not in done.stdout.split("\n")
    assert main(["new-bundle", "--update", str(bundle)]) == 0
    assert "train.json" in capsys.readouterr().out
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ran" in done.stdout.split("\n"), done.stderr[-500:]
    assert main(["new-bundle", str(bundle), "--update"]) == 0
    assert "nothing that has moved" in capsys.readouterr().out
