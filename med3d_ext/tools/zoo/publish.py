"""The verb ``zoo publish``: what a GitHub release or a Hugging Face repository consists of, as folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.facts import FACTS
from med3d_ext.io.files import read_json, scratch_folder
from med3d_ext.tools.bundle_folder import METADATA, find_bundle
from med3d_ext.tools.zoo.describe import render
from med3d_ext.tools.zoo.pack import digest, pack_staged
from med3d_ext.tools.zoo.stage import check_bundle, stage

FORMS = ("github", "huggingface")
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

    OUT/github/NAME_vVERSION has the files of a release, SHA256SUMS and RELEASE_NOTES.md; OUT/huggingface/NAME is a
    repository with its model card.

    Args:
        bundle: a bundle's folder or name; it is checked as by `zoo pack`.
        out: where the folders are written.
        form: github, huggingface or both.
        weights: as for `zoo pack`.
        url: the future address of the release's files; then large_files.yml is written, too, which replaces the weights
            in a pull request to MONAI's model zoo.
        overwrite: replace existing folders.
    """
    forms = FORMS if form == "both" else (form,)
    if not set(forms) <= set(FORMS):
        raise InputError(f"--form must be github, huggingface or both, got '{form}'.")
    source = find_bundle(bundle)
    name = source.resolve().name
    release = f"{name}_v{check_bundle(source)}"
    targets = {form: Path(out) / form / {"github": release, "huggingface": name}[form] for form in forms}
    for target in targets.values():
        if target.exists() and not overwrite:
            raise InputError(f"'{target}' exists; give another folder or --overwrite.")
    with scratch_folder(Path(out) / release) as scratch:
        staged = stage(source, scratch / "staged", weights)
        folders = {"github": scratch / "release", "huggingface": staged}
        if "github" in forms:
            _write_release(staged, folders["github"], release, url)
        if "huggingface" in forms:
            (staged / "README.md").write_text(_render("model_card.md", staged), encoding="utf-8")
            (staged / ".gitattributes").write_text(LARGE_FILES)
        for form, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            os.rename(folders[form], target)
    return "\n".join(f"'{target}': {', '.join(sorted(os.listdir(target)))}" for target in targets.values())


def _write_release(staged: Path, folder: Path, release: str, url: str | None) -> None:
    """The files of a release, named by bundle and version, since a release may hold several bundles."""
    pack_staged(staged, folder)
    for name in ("model.pt", "model.safetensors", "card.json", FACTS):
        shutil.copyfile(staged / "models" / name, folder / f"{release}_{name}")
    sums = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.suffix != ".sha256"}
    (folder / "SHA256SUMS").write_text("".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()))
    notes = _render("release_notes.md", staged, release=release)
    (folder / "RELEASE_NOTES.md").write_text(notes, encoding="utf-8")
    if url is not None:
        entries = _render("large_files.yml", staged, release=release, url=url, sums=sums)
        (folder / "large_files.yml").write_text(entries, encoding="utf-8")


def _render(template: str, staged: Path, **values: Any) -> str:
    """A text from ``templates/`` that says what a staged bundle's metadata, README and card say."""
    metadata = read_json(staged / METADATA)
    formats = metadata.get("network_data_format", {})
    segments = formats.get("outputs", {}).get("pred", {}).get("format") == "segmentation"
    modality = formats.get("inputs", {}).get("image", {}).get("modality")
    return render(
        template,
        name=staged.name,
        metadata={"name": staged.name, "description": "", "intended_use": "", **metadata},
        card={"cases": {}, **read_json(staged / "models" / "card.json")},
        readme=(staged / "docs" / "README.md").read_text(encoding="utf-8").strip(),
        data_license=(staged / "docs" / "data_license.txt").read_text(encoding="utf-8").strip(),
        pipeline="image-segmentation" if segments else "image-classification",
        tags=["monai", "medical", "3d", "med3d", *([modality.lower()] if modality else [])],
        **values,
    )
