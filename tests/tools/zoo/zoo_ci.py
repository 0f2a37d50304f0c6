"""What the continuous integration of MONAI's model zoo checks of a bundle, with MONAI's functions.

    python zoo_ci.py MODELS NAME

MODELS is a folder like the zoo's ``models``: bundles and ``model_info.json``. Each check that passed is a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def check_directory(bundle: Path) -> None:
    needed = ["configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.json"]
    assert [name for name in needed if not (bundle / name).is_file()] == []


def check_version(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    known = json.loads((bundle.parent / "model_info.json").read_text())
    assert f"{bundle.name}_v{metadata['version']}" not in known, "the version is used already"


def check_metadata(bundle: Path) -> None:
    """The schema lies where the zoo's integration puts it; without it there is nothing to compare with."""
    from monai.bundle import verify_metadata

    if (bundle / "eval" / "schema.json").is_file():
        verify_metadata(str(bundle / "configs" / "metadata.json"), str(bundle / "eval" / "schema.json"))
    else:
        print("no schema")


def check_properties(bundle: Path) -> None:
    from monai.bundle import create_workflow

    for kind in ("inference", "train"):
        workflow = create_workflow(
            workflow_type=kind,
            bundle_root=str(bundle),
            config_file=str(bundle / "configs" / f"{kind}.json"),
            logging_file=str(bundle / "configs" / "logging.conf"),
            meta_file=str(bundle / "configs" / "metadata.json"),
        )
        assert workflow.check_properties() == []


def check_shape(bundle: Path) -> None:
    from monai.bundle import verify_net_in_out

    verify_net_in_out(
        "network_def",
        str(bundle / "configs" / "metadata.json"),
        str(bundle / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )


def check_torchscript(bundle: Path) -> None:
    import torch
    from monai.bundle import ConfigParser, ckpt_export

    model, exported = bundle / "models" / "model.pt", bundle / "models" / "verify_model.ts"
    metadata, config = (str(bundle / "configs" / f"{name}.json") for name in ("metadata", "inference"))
    ckpt_export("network_def", str(exported), str(model), metadata, config, bundle_root=str(bundle))
    parser = ConfigParser()
    parser.read_config(config)
    parser.read_meta(metadata)
    parser.update({"bundle_root": str(bundle)})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(model, weights_only=True))
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(str(exported)).eval()(image), network(image))


def main(models: str, name: str) -> None:
    bundle = Path(models) / name
    sys.path[:0] = [str(bundle)]  # as there: so a bundle's own code is found
    check_directory(bundle)
    check_version(bundle)
    for check in (check_metadata, check_properties, check_shape, check_torchscript):
        check(bundle)
        print(f"passed {check.__name__}")
    import med3d_ext

    assert Path(med3d_ext.__file__).is_relative_to(bundle), med3d_ext.__file__


if __name__ == "__main__":
    main(*sys.argv[1:])
