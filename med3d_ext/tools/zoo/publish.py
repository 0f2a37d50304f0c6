"""The verb ``zoo publish``: what a GitHub release or a Hugging Face repository consists of, as folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from med3d_ext.errors import InputError
from med3d_ext.tools.bundle_folder import find_bundle
from med3d_ext.tools.zoo.archive import digest
from med3d_ext.tools.zoo.checks import check_version
from med3d_ext.tools.zoo.model_card import model_card, release_notes
from med3d_ext.tools.zoo.pack import pack_staged
from med3d_ext.tools.zoo.stage import stage

FORMS = ("github", "huggingface")
NOTES, SUMS = "RELEASE_NOTES.md", "SHA256SUMS"
LARGE_FILES = "*.pt filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def publish(
    bundle: str,
    out: str,
    *,
    form: str = "both",
    weights: str | None = None,
    url: str | None = None,
    overwrite: bool = False,
) -> str:
    """Prepare folders to upload; nothing is sent anywhere.

    OUT/github/NAME_vVERSION holds the files of a release, SHA256SUMS and RELEASE_NOTES.md; OUT/huggingface/NAME is a
    repository with its model card.

    Args:
        bundle: a bundle's folder or name; it is checked as by `zoo pack`.
        out: where the folders are written.
        form: github, huggingface or both.
        weights: as for `zoo pack`.
        url: the address under which the release's files will lie; large_files.yml, which a pull request to MONAI's
            model zoo has in place of the weights, is then written beside them.
        overwrite: replace existing folders.
    """
    forms = FORMS if form == "both" else (form,)
    if not set(forms) <= set(FORMS):
        raise InputError(f"--form must be github, huggingface or both, got '{form}'.")
    source = find_bundle(bundle)
    release = f"{source.resolve().name}_v{check_version(source)}"
    targets = {
        "github": Path(out) / "github" / release,
        "huggingface": Path(out) / "huggingface" / source.resolve().name,
    }
    for name in forms:
        if targets[name].exists() and not overwrite:
            raise InputError(f"'{targets[name]}' exists; give another folder or --overwrite.")
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=out) as scratch:
        staged = stage(source, Path(scratch) / "staged", weights)
        if "github" in forms:
            _write_release(staged, Path(scratch) / "release", release, url)
            _move(Path(scratch) / "release", targets["github"])
        if "huggingface" in forms:
            (staged / "README.md").write_text(model_card(staged), encoding="utf-8")
            (staged / ".gitattributes").write_text(LARGE_FILES)
            _move(staged, targets["huggingface"])
    return "\n".join(f"'{targets[name]}': {', '.join(sorted(os.listdir(targets[name])))}" for name in forms)


def _write_release(staged: Path, folder: Path, release: str, url: str | None) -> None:
    """The files of a release, named by bundle and version, since a release may hold several bundles."""
    pack_staged(staged, folder)
    for name in ("model.pt", "model.safetensors", "card.json", "fingerprint.json"):
        shutil.copyfile(staged / "models" / name, folder / f"{release}_{name}")
    sums = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.suffix != ".sha256"}
    (folder / SUMS).write_text("".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()))
    (folder / NOTES).write_text(release_notes(staged), encoding="utf-8")
    if url is not None:
        entries = [_large_file(name, f"{release}_{name}", url, sums) for name in ("model.pt", "model.safetensors")]
        (folder / "large_files.yml").write_text("large_files:\n" + "".join(entries))


def _large_file(name: str, asset: str, url: str, sums: dict[str, str]) -> str:
    values = {"path": f"models/{name}", "url": f"{url.rstrip('/')}/{asset}", "hash_val": sums[asset]}
    lines = [f'{key}: "{value}"' for key, value in {**values, "hash_type": "sha256"}.items()]
    return "  - " + "\n    ".join(lines) + "\n"


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    os.rename(source, target)
