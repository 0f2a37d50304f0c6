"""The verbs ``zoo pack`` and ``zoo publish``: a bundle as it is shared, checked, with this package and its weights."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import med3d_ext
from med3d_ext.errors import InputError
from med3d_ext.io.facts import FACTS, read_facts, write_facts
from med3d_ext.io.files import read_json, scratch_folder, write_atomically, write_json
from med3d_ext.tools.bundle_folder import METADATA, Bundle, find_bundle
from med3d_ext.tools.weights import EARLIEST, saved
from med3d_ext.tools.zoo.describe import forget_figures, render
from med3d_ext.weights.files import digest, fit, read_checkpoint, write_state

logger = logging.getLogger("med3d_ext.zoo")

INFERENCE = "configs/inference.json"
NEEDED = ("LICENSE", METADATA, INFERENCE, "configs/train.json", "docs/README.md")
PACKAGE = Path(med3d_ext.__file__).parent
SHARED = ("LICENSE", "configs", "docs", "large_files.yml", "scripts")
"""What is taken of a bundle's folder; runs write anywhere else in it."""
KNOWN = {*SHARED, "weights", "models", "eval", PACKAGE.name, "__pycache__"}
RANDOM = "random"
CARD = "med3d_ext.handlers.card.WeightsCard"
PHANTOMS = 4  # cases: enough for every bundle to have one of each split
FORMS = ("github", "huggingface")
LARGE_FILES = "*.pt filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"

# Where people and sites keep their files; in an address on the web a host's name comes before such a path.
PERSONAL_PATH = (
    r"(?<![\w.~-])/(?:home|Users|root|work|workspace|scratch|mnt|media)/[\w.]+|\b[A-Za-z]:[\\/]{1,2}Users[\\/]{1,2}\w+"
)


def pack(bundle: str, out: str, *, weights: str | None = None, overwrite: bool = False) -> str:
    """Write NAME_vVERSION.zip, which runs anywhere without this repository, and its SHA-256 next to it.

    The bundle is checked first. The archive contains one folder: configs, docs, this package, the weights as
    models/model.pt and models/model.safetensors, and what inference reads with them. Packing the same bundle again
    gives the same bytes.

    Args:
        bundle: a bundle's folder or name.
        out: the folder for the archive.
        weights: a weights file, or random. Defaults to the bundle's weights/model.pt, or else its models/model.pt.
        overwrite: replace an archive of this version that has different content.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _pack(_stage(find_bundle(bundle), Path(scratch), weights), Path(out), overwrite)


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
        staged = _stage(source, scratch / "staged", weights)
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
    _pack(staged, folder)
    for name in ("model.pt", "model.safetensors", "card.json", FACTS):
        shutil.copyfile(staged / "models" / name, folder / f"{release}_{name}")
    sums = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.suffix != ".sha256"}
    (folder / "SHA256SUMS").write_text("".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()))
    texts = {"RELEASE_NOTES.md": _render("release_notes.md", staged, release=release)}
    if url is not None:
        texts["large_files.yml"] = _render("large_files.yml", staged, release=release, url=url, sums=sums)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


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


def _pack(staged: Path, out: Path, overwrite: bool = False) -> str:
    """Write the archive of a staged folder and its SHA-256 next to it; returns what was written, in a line.

    Order, times and permissions do not depend on the machine: equal files give equal bytes (with one version of zlib).
    """
    path = out / f"{staged.name}_v{check_bundle(staged)}.zip"
    new = staged.parent / path.name
    with zipfile.ZipFile(new, "w") as archive:
        for name in sorted(file.relative_to(staged).as_posix() for file in staged.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(f"{staged.name}/{name}", EARLIEST)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3  # Unix, wherever it is written
            archive.writestr(entry, (staged / name).read_bytes(), zipfile.ZIP_DEFLATED)
    sha256 = digest(new)
    if path.exists() and digest(path) != sha256 and not overwrite:
        raise InputError(
            f"'{path}' exists with other content; raise the version in configs/metadata.json, or --overwrite."
        )
    with open(new, "rb") as old, write_atomically(path) as target:
        shutil.copyfileobj(old, target)
    with write_atomically(path.with_name(f"{path.name}.sha256"), "w") as target:
        target.write(f"{sha256}  {path.name}\n")  # the form that `sha256sum --check` reads
    return f"'{path}': {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256}"


def _stage(bundle: Path, folder: Path, weights: str | None) -> Path:
    """Write a bundle into an empty ``folder`` as it is shared, checked; returns its folder there, of the same name.

    The weights become ``models/model.pt`` and ``model.safetensors``. Their tensors are float32 whatever the file holds:
    every tool that reads state dicts expects it, and the archive makes rounded values as small as half precision.
    """
    check_bundle(bundle)
    staged = folder / bundle.resolve().name
    (staged / "models").mkdir(parents=True)
    for source in (*(bundle / name for name in SHARED), PACKAGE):
        if source.is_dir():
            ignored = shutil.ignore_patterns(".*", "__pycache__", "*.pyc")
            shutil.copytree(source, staged / source.name, ignore=ignored)
        elif source.is_file():
            shutil.copyfile(source, staged / source.name)
    for path in (staged / "configs").glob("*.json"):
        path.write_text(json.dumps(read_json(path), indent=4) + "\n", encoding="utf-8")
    if weights == RANDOM:
        state, said = _random_weights(staged), "random weights"
    else:
        path = _weights_of(bundle, weights)
        state, said = read_checkpoint(path)[0], f"'{path}'"
        card = path.with_name("card.json")
        if not card.is_file():
            raise InputError(f"'{card}' is missing: it belongs to '{path}'; put it there.")
        shutil.copyfile(card, staged / "models" / card.name)
        write_facts(staged / "models", read_facts(path.parent))
    full = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    (staged / "models" / "model.pt").write_bytes(saved(full))
    write_state(full, staged / "models" / "model.safetensors")
    forget_figures(staged, read_json(staged / "models" / "card.json"))
    logger.info(f"weights: {said}")
    left = [path.name for path in bundle.iterdir() if path.name not in KNOWN and path.name[0] != "."]
    if left:
        logger.info(f"left out: {', '.join(sorted(left))}")
    check_paths(staged)
    check_network(staged, said)
    return staged


def _weights_of(bundle: Path, weights: str | None) -> Path:
    if weights is not None:
        if not Path(weights).expanduser().is_file():
            raise InputError(f"--weights must be a file or {RANDOM}, and '{weights}' is not a file.")
        return Path(weights).expanduser()
    for path in (bundle / "weights" / "model.pt", bundle / "models" / "model.pt"):
        if path.is_file():
            return path
    raise InputError(
        f"'{bundle}' has neither weights/model.pt nor models/model.pt; train it, or give --weights FILE or {RANDOM}."
    )


def _random_weights(staged: Path) -> dict[str, Tensor]:
    """What a training on phantoms would start from, with the facts and the card that it would write."""
    from med3d_ext.tools.phantoms.dataset import phantom_dataset

    parser = Bundle(staged).config("train")
    handlers = parser.get("train")["handlers"]
    numbers = [number for number, handler in enumerate(handlers) if handler.get("_target_") == CARD]
    if not numbers:
        raise InputError(f"train.json has no {CARD} among its handlers, so {RANDOM} weights have no card; add it.")
    card = f"train::handlers::{numbers[0]}"
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng():
        torch.manual_seed(0)
        data = phantom_dataset(parser.get("data")["kind"], f"{scratch}/phantoms", PHANTOMS)
        folders = {"output_dir": f"{scratch}/eval", "ckpt_dir": str(staged / "models"), "dataset_dir": str(data)}
        parser.update({**folders, "init": "scratch", f"{card}::evaluator": None})
        writer = parser.get_parsed_content(card)
        writer.write_facts(None)
        writer.write_card(SimpleNamespace(state=SimpleNamespace(epoch=0)))
        state = parser.get_parsed_content("network_def").state_dict()
    path = staged / "models" / "card.json"
    never = {"weights": "random: never trained", "cases": {"training": [], "validation": []}}
    write_json(path, {**read_json(path), **never})
    return state


def check_name(name: str) -> None:
    """Raise InputError if downloaders would not understand a bundle's name."""
    if "_v" in name or not re.fullmatch(r"\w+", name):
        raise InputError(f"a bundle's name must be letters, digits and _ without '_v', got '{name}'; rename it.")


def check_bundle(bundle: Path) -> str:
    """The version of a bundle that has what every bundle has.

    Raises:
        InputError: a file is missing, the name or version is not what downloaders understand, or the changelog lacks
            the version.
    """
    missing = [name for name in NEEDED if not (bundle / name).is_file()]
    if missing:
        raise InputError(f"'{bundle}' lacks {', '.join(missing)}; a bundle that others use has them.")
    metadata = read_json(bundle / METADATA)
    version = str(metadata.get("version"))
    check_name(bundle.resolve().name)
    if not re.fullmatch(r"\d\.\d\.\d", version):  # downloaders sort versions as text
        raise InputError(f"version in '{bundle / METADATA}' must be three single digits like 0.1.0, got '{version}'.")
    if version not in metadata.get("changelog", {}):
        raise InputError(f"changelog in '{bundle / METADATA}' has no line for version {version}; add it.")
    return version


def check_paths(folder: Path) -> None:
    """Raise InputError if a text file of ``folder`` holds a path of somebody's machine."""
    home = f"|{re.escape(str(Path.home()))}" if len(Path.home().parts) > 1 else ""
    personal = re.compile(PERSONAL_PATH + home)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            start = file.read(4096)
            text = "" if b"\0" in start else (start + file.read()).decode("utf-8", "replace")
        if found := personal.search(text):
            name = path.relative_to(folder).as_posix()
            raise InputError(f"'{name}' holds a path of somebody's machine ({found[0]}); take it out.")


def check_network(bundle: Path, weights: str) -> None:
    """Raise InputError unless ``models/model.pt``, called ``weights``, is what ``inference.json``'s network loads."""
    parser = Bundle(bundle).config("inference", device=torch.device("cpu"))
    expected = parser.get_parsed_content("network_def").state_dict()
    state, _ = read_checkpoint(bundle / "models" / "model.pt")
    if faults := fit(state, expected):
        network = dict(parser.get("network_def"))
        values = {name: parser.get(value[1:], value) for name, value in network.items() if str(value).startswith("@")}
        shown = {"network": network.pop("_target_").rpartition(".")[2], **network, **values}
        arguments = ", ".join(f"{name} {value}" for name, value in shown.items() if isinstance(value, str | int))
        raise InputError(
            f"{weights} does not fit the network of {INFERENCE} ({arguments}): it {faults[0]}; give other weights or "
            "set the network's arguments there."
        )
