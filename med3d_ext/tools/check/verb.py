"""The verb ``check``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from med3d_ext.run.one_line import input_error_message
from med3d_ext.tools.bundle_folder import COMMANDS, Bundle
from med3d_ext.tools.check import ERROR, OK, WARNING, Finding, error
from med3d_ext.tools.check.configs import check_classes, check_files, check_ids, check_options, check_versions
from med3d_ext.tools.check.inputs import check_data, check_initial_weights, check_shapes, check_weights
from med3d_ext.tools.check.resources import check_resources


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
    text = "\n".join([*map(str, findings), counts(findings)])
    if any(finding.level == ERROR for finding in findings):
        print(text)
        raise SystemExit(1)
    return text


def check_bundle(bundle: Bundle) -> list[Finding]:
    """All findings. What rests on readable configs is left out where they are not."""
    path = list(sys.path)
    sys.path.insert(1, str(bundle.folder))  # as a run does: a bundle may carry modules of its own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI's remarks on files that are read in any case
            findings = gather("files", check_files, bundle)
            is_readable = all(finding.level != ERROR for finding in findings)
            findings += gather("options", check_options, bundle)
            if not is_readable:
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
            return findings + data + gather("resources", check_resources, bundle, is_good)
    finally:
        sys.path[:] = path


def gather(topic: str, check: Callable[..., Iterable[Finding]], *arguments: Any) -> list[Finding]:
    """The findings of one check; what it raises is its last finding, so that the other checks still speak."""
    findings: list[Finding] = []
    try:
        findings.extend(check(*arguments))
    except Exception as fault:  # a config may hold anything
        root: BaseException = fault
        while root.__cause__ is not None:  # MONAI names the component and keeps the reason as the cause
            root = root.__cause__
        texts = [" ".join(str(one).split())[:300] or type(one).__name__ for one in (fault, root)]
        both = texts[0] if root is fault or texts[1] in texts[0] else f"{texts[0]} {texts[1]}"
        findings.append(error(topic, input_error_message(fault) or both))
    return findings


def counts(findings: Sequence[Finding]) -> str:
    """The last line."""
    found = {level: sum(finding.level == level for finding in findings) for level in (OK, WARNING, ERROR)}
    words = [f"{n} {level}{'s' * (level != OK and n != 1)}" for level, n in found.items()]
    return ", ".join(words)
