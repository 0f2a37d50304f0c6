"""The verb ``check``."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from med3d_ext.tools.bundle_folder import COMMANDS, Bundle
from med3d_ext.tools.check.configs import check_classes, check_files, check_ids, check_options
from med3d_ext.tools.check.data import check_data
from med3d_ext.tools.check.findings import ERROR, Finding, gather, summary
from med3d_ext.tools.check.network import check_initial_weights, check_shapes, check_weights
from med3d_ext.tools.check.resources import check_resources
from med3d_ext.tools.check.versions import check_versions


def check(bundle: str, *, dataset_dir: str | None = None, **overrides: Any) -> str:
    """Find what would go wrong in a run before it begins: one line per finding, exit code 1 if there is an error.

    Looks at files, options, ids, classes, versions, network, weights, data, disk, RAM and GPU memory. The data are
    prepared as a run would prepare them, into the same folder, so that the run finds it done.

    Args:
        bundle: a bundle's folder or name.
        dataset_dir: the data of the run.
        overrides: options of the run, such as `--epochs 100 --network_name resnet50`.
    """
    given = overrides if dataset_dir is None else {"dataset_dir": dataset_dir, **overrides}
    findings = check_bundle(Bundle.find(bundle, given))
    if any(finding.level == ERROR for finding in findings):
        print(summary(findings))
        raise SystemExit(1)
    return summary(findings)


def check_bundle(bundle: Bundle) -> list[Finding]:
    """All findings. What rests on readable configs is left out where they are not."""
    path = list(sys.path)
    sys.path.insert(1, str(bundle.folder))  # as a run does: a bundle may carry modules of its own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI's remarks on files that are read in any case
            findings = gather("files", check_files, bundle) + gather("options", check_options, bundle)
            if any(finding.topic == "files" and finding.level == ERROR for finding in findings):
                return findings
            for command in COMMANDS:
                findings += gather("ids", check_ids, bundle, command)
                findings += gather("classes", check_classes, bundle, command)
            findings += gather("versions", check_versions, bundle)
            findings += gather("network", check_shapes, bundle)
            findings += gather("weights", check_weights, bundle)
            findings += gather("init", check_initial_weights, bundle)
            data = gather("data", check_data, bundle)
            # What is wrong with the data has been said, and is not looked for again.
            is_good = all(finding.level != ERROR for finding in data)
            findings += data + gather("resources", check_resources, bundle, is_good)
            return findings
    finally:
        sys.path[:] = path
