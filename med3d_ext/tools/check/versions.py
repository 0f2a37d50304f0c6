"""Installed packages against those that the bundle was tested with."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from monai.utils.module import version_geq

from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.tools.check.findings import Finding, error, ok, warning

NAMES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
FROM = {"torch": "2.8", "monai": "1.6.1", "numpy": "1.26"}
BELOW = {"monai": "1.7"}


def check_versions(bundle: Bundle) -> Iterator[Finding]:
    """Packages that are missing or outside the range, and those older than the tested ones."""
    tested = {package: bundle.metadata[key] for key, package in NAMES.items() if key in bundle.metadata}
    tested |= bundle.metadata.get("required_packages_version", {})
    found = []
    for package, wanted in tested.items():
        try:
            have = version(package)
        except PackageNotFoundError:
            yield error("versions", f"{package} is not installed; `pip install {package}=={wanted}`.")
            continue
        fault = _fault(package, have, wanted)
        if fault is None:
            found.append(f"{package} {have}")
        else:
            yield fault
    if found:
        yield ok("versions", ", ".join(found))


def _fault(package: str, have: str, tested: str) -> Finding | None:
    oldest, limit = FROM.get(package), BELOW.get(package)
    if oldest and not version_geq(have, oldest) or limit and version_geq(have, limit):
        rule = f"from {oldest}" + (f" and below {limit}" if limit else "")
        return error("versions", f"{package} must be {rule}, got {have}; `pip install {package}=={tested}`.")
    if not version_geq(have, tested):
        return warning("versions", f"{package} {have} is older than {tested}, with which the bundle was tested.")
    return None
