"""Broken inputs over all bundles and verbs: a row each.

A row says what is broken, who breaks it, what is typed, which file or key the sentence must name, and the exit code. No
row pins the sentence. Paths are relative to the row's own folder, which holds ``data`` of the row's kind before it is
broken and, where it is typed, ``own``, a trained bundle of the classes a and b; ``{bundles}`` is the folder of all.
"""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tiny
import torch
from commands import MED3D, MONAI
from dicom_files import write_series
from lidc_files import Chest

Maker = Callable[[Path], Any]


@dataclass(frozen=True)
class Row:
    """One broken input.

    Args:
        title: what is broken.
        words: the command, as typed after ``python -m med3d_ext`` or, with ``run`` first, ``monai.bundle``.
        names: what the sentence must name.
        make: breaks things in the folder. Defaults to nothing: the command itself is wrong.
        kind: which data the folder begins with.
        code: the exit code. Defaults to 2 for med3d_ext and 1 for monai.bundle; it is 1 for faulty cases.
    """

    title: str
    words: str
    names: Sequence[str]
    make: Maker = lambda folder: None
    kind: str = "liver"
    code: int | None = None

    @property
    def module(self) -> str:
        """Whose command line it is."""
        return MONAI if self.words.startswith("run ") else MED3D

    @property
    def expected(self) -> int:
        """The exit code."""
        return self.code if self.code is not None else {MED3D: 2, MONAI: 1}[self.module]


KINDS: dict[str, Maker] = {
    "liver": lambda folder: tiny.decathlon(folder / "data", cases=3),
    "lung": lambda folder: tiny.decathlon(folder / "data", cases=3, labels=("background", "lung")),
    "organs": lambda folder: tiny.decathlon(folder / "data" / "Organ", 3, ("background", "a", "b"), "MRI"),
    "own": lambda folder: tiny.decathlon(folder / "data", 3, ("background", "a", "b"), "MRI"),
    "nodules": lambda folder: tiny.nodules(folder / "data"),
    "scans": lambda folder: tiny.images(folder / "data"),
    "nothing": lambda folder: None,
}
IMAGE, LABEL = "data/imagesTr/case_1.nii.gz", "data/labelsTr/case_1.nii.gz"


def write(name: str, content: str | bytes | Any) -> Maker:
    """A file of text, bytes, or JSON."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))

    return make


def cut(name: str, share: float = 0.5) -> Maker:
    """The first part of a file."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int(share * (folder / name).stat().st_size)]
    )


def flip(name: str, place: float = 0.5) -> Maker:
    """One byte of a file changed."""

    def make(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(place * len(content))] ^= 0xFF
        (folder / name).write_bytes(bytes(content))

    return make


def remove(name: str) -> Maker:
    """A file that is gone."""
    return lambda folder: (folder / name).unlink()


def edit(name: str, change: Callable[[dict], Any]) -> Maker:
    """JSON with a change."""

    def make(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        changed = change(content)
        (folder / name).write_text(json.dumps(content if changed is None else changed))

    return make


def voxels(name: str, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = tiny.AFFINE) -> Maker:
    """An image with other voxels."""
    return lambda folder: tiny.save(folder / name, change(np.asarray(nibabel.load(folder / name).dataobj)), affine)


def header(name: str, **fields: Any) -> Maker:
    """An image with other header fields, written as they are."""

    def make(folder: Path) -> None:
        content = bytearray(gzip.decompress((folder / name).read_bytes()))
        stored = nibabel.Nifti1Header(bytes(content[:348]), check=False)
        for key, value in fields.items():
            stored[key] = value
        content[:348] = stored.binaryblock
        (folder / name).write_bytes(gzip.compress(bytes(content)))

    return make


def several(*makers: Maker) -> Maker:
    """One after the other."""
    return lambda folder: [make(folder) for make in makers]


def entry(change: Callable[[dict], Any], name: str = "data/dataset.json") -> Maker:
    """The second training case of a list changed."""
    return edit(name, lambda content: content["training"].__setitem__(1, change(dict(content["training"][1]))))


class Code:
    """A pickle that would make a file named ``ran``."""

    def __reduce__(self) -> tuple:
        return open, ("ran", "w")


def weights(name: str, content: Any) -> Maker:
    """A file of ``torch.save``."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / name)

    return make


def own_weights(change: Callable[[dict], Any]) -> Maker:
    """The trained bundle's weights changed."""

    def make(folder: Path) -> None:
        path = folder / "own/models/model.pt"
        state = torch.load(path, weights_only=True)
        changed = change(state)
        path.unlink()  # it is a link to weights that all rows share
        torch.save(state if changed is None else changed, path)

    return make


def unlinked(name: str, maker: Maker) -> Maker:
    """``maker`` on a copy of a file that is a hard link."""

    def make(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        maker(folder)

    return make


def nothing_finite(state: dict) -> None:
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = torch.full_like(state[name], float("nan"))


def dicom(folder: Path, name: str = "series", **options: Any) -> Path:
    """A DICOM series of six slices."""
    stored = np.random.default_rng(0).integers(0, 1000, (16, 16, 6)).astype(np.int16)
    return write_series(folder / name, stored, **options)


def lidc_xml(text: str) -> Maker:
    """A scan with a file of readings."""

    def make(folder: Path) -> None:
        Chest(shape=(24, 24, 10)).write(folder / "data" / "scan")
        write("data/scan/reading.xml", text)(folder)

    return make


def two_label_maps(folder: Path) -> None:
    """A prediction beside its label."""
    shutil.copytree(folder / "data/labelsTr", folder / "pred")


XML = '<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov">{}</LidcReadMessage>'
HEAD = "<ResponseHeader><SeriesInstanceUid>1.2.3</SeriesInstanceUid></ResponseHeader>"
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    + "]><LidcReadMessage>&a11;</LidcReadMessage>"
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><LidcReadMessage>&x;</LidcReadMessage>'
)

TRAIN = "run --config_file {bundles}/%s/configs/train.json --dataset_dir data --epochs 1 --init scratch"
TRAIN += " --spatial_size [32,32,32] --batch_size 1 --output_dir out --ckpt_dir out"
LITS, FINE, LUNG = TRAIN % "lits_coarse", TRAIN % "lits_fine", TRAIN % "lung_segmentation"
PRETRAIN, NODULES = TRAIN % "pretrain_3dseg8", TRAIN % "nodule_classification"
OWN = "run --config_file own/configs/train.json --dataset_dir data --epochs 1 --init scratch --spatial_size [32,32,32]"
OWN += " --batch_size 1 --output_dir out --ckpt_dir out"
INFER = "run --config_file own/configs/inference.json --output_dir out --dataset_dir "
EVALUATE = (
    "run --config_file ['own/configs/train.json','own/configs/evaluate.json'] --dataset_dir data --output_dir out"
)
EVALUATE += " --ckpt_dir own/models --spatial_size [32,32,32]"
PREPARE = "prepare lits data --output out"
SEGMENT = "predict own data --output out"

PREPARE_ROWS = [
    Row("source missing", "prepare lits nowhere --output out", ["nowhere"], kind="nothing"),
    Row("source a file", "prepare lits data/dataset.json --output out", ["dataset.json"]),
    Row("source empty", PREPARE, ["data"], lambda folder: (folder / "data").mkdir(), "nothing"),
    Row("kind unknown", "prepare liver data --output out", ["liver"]),
    Row("option of another kind", "prepare lits data --output out --folds 3", ["folds"]),
    Row("window no numbers", "prepare lits data --output out --hu_window low,high", ["hu_window"]),
    Row("window upside down", "prepare lits data --output out --hu_window 250,-200", ["hu_window"]),
    Row("seed a word", "prepare lits data --output out --seed one", ["seed"]),
    Row("seed negative", "prepare lits data --output out --seed -1", ["seed"]),
    Row("output a file", "prepare lits data --output out", ["out"], write("out", "text")),
    Row("list empty", PREPARE, ["dataset.json"], write("data/dataset.json", "")),
    Row("list cut", PREPARE, ["dataset.json"], cut("data/dataset.json")),
    Row("list binary", PREPARE, ["dataset.json"], write("data/dataset.json", b"\xff\xfe\0\1")),
    Row("list an array", PREPARE, ["dataset.json"], write("data/dataset.json", [1])),
    Row("list nested 100,000 deep", PREPARE, ["dataset.json"], write("data/dataset.json", "[" * 100_000)),
    Row("list without training", PREPARE, ["training"], edit("data/dataset.json", lambda d: d.pop("training") and d)),
    Row("training a number", PREPARE, ["training"], edit("data/dataset.json", lambda d: {**d, "training": 3})),
    Row("labels missing", PREPARE, ["labels"], edit("data/dataset.json", lambda d: d.pop("labels") and d)),
    Row("labels no numbers", PREPARE, ["labels"], edit("data/dataset.json", lambda d: {**d, "labels": {"x": "y"}})),
    Row("labels a list of a list", PREPARE, ["labels"], edit("data/dataset.json", lambda d: {**d, "labels": [[0]]})),
    Row("entry without label", PREPARE, ["dataset.json"], entry(lambda e: {"image": e["image"]})),
    Row("entry image a number", PREPARE, ["dataset.json", "image"], entry(lambda e: {**e, "image": 7})),
    Row("entry image null", PREPARE, ["dataset.json", "image"], entry(lambda e: {**e, "image": None})),
    Row("entry label a list", PREPARE, ["dataset.json", "label"], entry(lambda e: {**e, "label": [e["label"]]})),
    Row("entry image a folder", PREPARE, ["imagesTr"], entry(lambda e: {**e, "image": "./imagesTr"}), code=1),
    Row("image missing", PREPARE, ["imagesTr/case_1"], remove(IMAGE), code=1),
    Row("image empty", PREPARE, ["imagesTr/case_1"], write(IMAGE, b""), code=1),
    Row("image text", PREPARE, ["imagesTr/case_1"], write(IMAGE, "no image " * 300), code=1),
    Row("image cut", PREPARE, ["imagesTr/case_1"], cut(IMAGE), code=1),
    Row("image cut by a byte", PREPARE, ["imagesTr/case_1"], cut(IMAGE, 0.9999), code=1),
    Row("image with a flipped byte", PREPARE, ["imagesTr/case_1"], flip(IMAGE), code=1),
    Row("image with a flipped checksum", PREPARE, ["imagesTr/case_1"], flip(IMAGE, 0.99995), code=1),
    Row("image of one slice", PREPARE, ["imagesTr/case_1"], voxels(IMAGE, lambda v: v[:, :, :1]), code=1),
    Row("image of two dimensions", PREPARE, ["imagesTr/case_1"], voxels(IMAGE, lambda v: v[:, :, 0]), code=1),
    Row("image 4D", PREPARE, ["imagesTr/case_1"], voxels(IMAGE, lambda v: np.stack([v, v], -1)), code=1),
    Row("image with NaN", PREPARE, ["imagesTr/case_1"], voxels(IMAGE, lambda v: np.where(v > 800, np.nan, v)), code=1),
    Row("image infinite", PREPARE, ["imagesTr/case_1"], voxels(IMAGE, lambda v: np.where(v > 800, np.inf, v)), code=1),
    Row("image complex", PREPARE, ["imagesTr/case_1"], voxels(IMAGE, lambda v: v + 1j * np.ones_like(v)), code=1),
    Row(
        "image with a negative dimension",
        PREPARE,
        ["imagesTr/case_1"],
        header(IMAGE, dim=[3, -24, 22, 20, 1, 1, 1, 1]),
        code=1,
    ),
    Row(
        "image of 2^45 voxels",
        PREPARE,
        ["imagesTr/case_1"],
        header(IMAGE, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        code=1,
    ),
    Row("image with an unknown type", PREPARE, ["imagesTr/case_1"], header(IMAGE, datatype=9999), code=1),
    Row("label missing", PREPARE, ["labelsTr/case_1"], remove(LABEL), code=1),
    Row("label cut", PREPARE, ["labelsTr/case_1"], cut(LABEL), code=1),
    Row("label of another shape", PREPARE, ["labelsTr/case_1"], voxels(LABEL, lambda v: v[:-1]), code=1),
    Row("label of another class", PREPARE, ["labelsTr/case_1"], voxels(LABEL, lambda v: v * 3), code=1),
    Row("label negative", PREPARE, ["labelsTr/case_1"], voxels(LABEL, lambda v: -v.astype(np.int16)), code=1),
    Row("label a fraction", PREPARE, ["labelsTr/case_1"], voxels(LABEL, lambda v: v * 0.6), code=1),
    Row("label empty", PREPARE, ["labelsTr/case_1"], voxels(LABEL, lambda v: v * 0), code=1),
    Row(
        "label elsewhere",
        PREPARE,
        ["labelsTr/case_1"],
        voxels(LABEL, lambda v: v, tiny.AFFINE + np.eye(4, k=3) * 60),
        code=1,
    ),
    Row("lung without a lung", "prepare lung data --output out", ["data"], kind="liver"),
    Row("lung of five classes", "prepare lung data --output out --num_classes 5", ["num_classes"], kind="lung"),
    Row("lung in 99 folds", "prepare lung data --output out --folds 99", ["folds"], kind="lung"),
    Row("fold beyond", "prepare nodules data --output out --folds 3 --fold 3", ["fold"], kind="nodules"),
    Row("fold of none", "prepare nodules data --output out --fold 1", ["fold"], kind="nodules"),
    Row("cube of 0 mm", "prepare nodules data --output out --cube_mm 0", ["cube_mm"], kind="nodules"),
    Row("ties unknown", "prepare nodules data --output out --ties maybe", ["ties"], kind="nodules"),
    Row("domain unknown", "prepare 3dseg8 data --output out --domains Kidney", ["Kidney"], kind="organs"),
    Row(
        *("domains.json unknown key", "prepare 3dseg8 data --output out", ["domains.json", "size"]),
        *(write("data/domains.json", {"Organ": {"size": 3}}), "organs"),
    ),
    Row(
        *("domains.json sizes a word", "prepare 3dseg8 data --output out", ["spatial_size"]),
        *(write("data/domains.json", {"Organ": {"spatial_size": "large"}}), "organs"),
    ),
    Row(
        *("domains.json merges words", "prepare 3dseg8 data --output out", ["merge"]),
        *(write("data/domains.json", {"Organ": {"merge": {"a": "b"}}}), "organs"),
    ),
    Row(
        "domains.json cut",
        "prepare 3dseg8 data --output out",
        ["domains.json"],
        write("data/domains.json", "{"),
        "organs",
    ),
]
TABLE = "data/nodules.csv"
NODULE_ROWS = [
    Row("table missing", "prepare nodules data --output out", ["data"], remove(TABLE), "nodules"),
    Row("table empty", "prepare nodules data --output out", ["nodules.csv"], write(TABLE, ""), "nodules"),
    Row("table binary", "prepare nodules data --output out", ["nodules.csv"], write(TABLE, b"\0\xff" * 99), "nodules"),
    Row(
        "table without rows",
        "prepare nodules data --output out",
        ["nodules.csv"],
        write(TABLE, "nodule,malignancy\n"),
        "nodules",
    ),
    Row(
        "table without rating",
        "prepare nodules data --output out",
        ["malignancy"],
        write(TABLE, "nodule,scan\nn0,0\n"),
        "nodules",
    ),
    Row(
        "rating 9",
        "prepare nodules data --output out",
        ["nodules.csv"],
        write(TABLE, "nodule,malignancy\nn0,9\nn1,5\n"),
        "nodules",
        code=1,
    ),
    Row(
        "rating NaN",
        "prepare nodules data --output out",
        ["nodules.csv"],
        write(TABLE, "nodule,malignancy\nn0,nan\nn1,5\n"),
        "nodules",
        code=1,
    ),
    Row(
        "nodule twice",
        "prepare nodules data --output out",
        ["n0"],
        write(TABLE, "nodule,malignancy\nn0,1\nn0,5\n"),
        "nodules",
    ),
    Row(
        "nodule outside",
        "prepare nodules data --output out",
        ["nodules.csv"],
        write(TABLE, "nodule,malignancy\n../../n0,1\nn1,5\n"),
        "nodules",
        code=1,
    ),
    Row(
        "one class",
        "prepare nodules data --output out",
        ["malignant"],
        write(TABLE, "nodule,malignancy\nn0,1\nn1,1\n"),
        "nodules",
    ),
    Row(
        "cube missing",
        "prepare nodules data --output out",
        ["n1.nii.gz"],
        remove("data/images/n1.nii.gz"),
        "nodules",
        code=1,
    ),
    Row(
        "cube cut", "prepare nodules data --output out", ["n1.nii.gz"], cut("data/images/n1.nii.gz"), "nodules", code=1
    ),
    Row(
        "mask of another shape",
        "prepare nodules data --output out",
        ["masks/n1"],
        voxels("data/masks/n1.nii.gz", lambda v: v[1:], np.eye(4)),
        "nodules",
        code=1,
    ),
    Row("billion laughs", "prepare lidc data --output out", ["reading.xml"], lidc_xml(LAUGHS), "nothing"),
    Row("entity from a file", "prepare lidc data --output out", ["reading.xml"], lidc_xml(OUTSIDE), "nothing"),
    Row("XML cut", "prepare lidc data --output out", ["reading.xml"], lidc_xml(XML.format(HEAD)[:-9]), "nothing"),
    Row("XML of no series", "prepare lidc data --output out", ["reading.xml"], lidc_xml(XML.format("")), "nothing"),
    Row(
        "XML of a missing series",
        "prepare lidc data --output out",
        ["reading.xml"],
        lidc_xml(XML.format(HEAD.replace("1.2.3", "9.9.9"))),
        "nothing",
    ),
    Row("XML without readings", "prepare lidc data --output out", ["data"], lidc_xml(XML.format(HEAD)), "nothing"),
    Row(
        "LIDC without XML",
        "prepare lidc data --output out",
        ["data"],
        lambda f: Chest(shape=(24, 24, 10)).write(f / "data"),
        "nothing",
    ),
]
PREDICT_ROWS = [
    Row("bundle unknown", "predict nobody data --output out", ["nobody"], kind="scans"),
    Row(
        "bundle without weights",
        "predict {bundles}/lung_segmentation data --output out",
        ["lung_segmentation"],
        kind="scans",
    ),
    Row("input missing", "predict own nowhere --output out", ["nowhere"], kind="scans"),
    Row("input forgotten", "predict own --output out", ["INPUT"], kind="scans"),
    Row("output forgotten", "predict own data", ["output"], kind="scans"),
    Row("output the images' folder", "predict own data --output data", ["output"], kind="scans"),
    Row("output a file", SEGMENT, ["out"], write("out", "text"), "scans"),
    Row("option unknown", SEGMENT + " --network_nam resnet10", ["network_name"], kind="scans"),
    Row("device unknown", SEGMENT + " --device tpu", ["tpu"], kind="scans"),
    Row("device missing", SEGMENT + " --device cuda:7", ["cuda:7"], kind="scans"),
    Row("network of another depth", SEGMENT + " --network_name resnet18", ["model.pt"], kind="scans"),
    Row("network unknown", SEGMENT + " --network_name resnet11", ["resnet11"], kind="scans"),
    Row("weights cut", SEGMENT, ["model.pt"], unlinked("own/models/model.pt", cut("own/models/model.pt")), "scans"),
    Row(
        "weights empty",
        SEGMENT,
        ["model.pt"],
        unlinked("own/models/model.pt", write("own/models/model.pt", b"")),
        "scans",
    ),
    Row(
        "weights code",
        SEGMENT,
        ["model.pt"],
        unlinked("own/models/model.pt", write("own/models/model.pt", pickle.dumps(Code()))),
        "scans",
    ),
    Row("weights code in an archive", SEGMENT, ["model.pt"], own_weights(lambda s: {"a": Code()}), "scans"),
    Row("weights not finite", SEGMENT, ["model.pt"], own_weights(nothing_finite), "scans"),
    Row("weights of less", SEGMENT, ["model.pt"], own_weights(lambda s: dict(list(s.items())[:-2])), "scans"),
    Row("weights of more", SEGMENT, ["model.pt"], own_weights(lambda s: {**s, "more": torch.zeros(3)}), "scans"),
    Row("facts missing", SEGMENT, ["facts.json"], remove("own/models/facts.json"), "scans"),
    Row("facts cut", SEGMENT, ["facts.json"], cut("own/models/facts.json"), "scans"),
    Row("facts without domains", SEGMENT, ["facts.json"], write("own/models/facts.json", {}), "scans"),
    Row("facts a list", SEGMENT, ["facts.json"], write("own/models/facts.json", {"domains": [1]}), "scans"),
    Row("metadata cut", SEGMENT, ["metadata.json"], cut("own/configs/metadata.json"), "scans"),
    Row("inference cut", SEGMENT, ["inference.json"], cut("own/configs/inference.json"), "scans"),
    Row("inference missing", SEGMENT, ["inference.json"], remove("own/configs/inference.json"), "scans"),
    Row(
        "all inputs broken",
        SEGMENT,
        ["scan_0", "scan_1", "scan_2"],
        several(*(cut(f"data/scan_{n}.nii.gz") for n in range(3))),
        "scans",
        1,
    ),
    Row(
        "series with a gap", "predict own series --output out", ["series"], lambda f: dicom(f, skip=(3,)), "nothing", 1
    ),
    Row(
        "series with a cut slice",
        "predict own series --output out",
        ["series"],
        lambda f: cut("series/2.dcm")(dicom(f).parent),
        "nothing",
        1,
    ),
    Row("infer: nothing there", INFER + "nowhere", ["nowhere"], kind="scans"),
    Row("infer: empty folder", INFER + "empty", ["empty"], lambda f: (f / "empty").mkdir(), "scans"),
    Row("infer: image cut", INFER + "data", ["scan_1"], cut("data/scan_1.nii.gz"), "scans"),
    Row(
        "infer: image with NaN", INFER + "data", ["scan_1"], voxels("data/scan_1.nii.gz", lambda v: v * np.nan), "scans"
    ),
    Row(
        "infer: weights cut",
        INFER + "data",
        ["model.pt"],
        unlinked("own/models/model.pt", cut("own/models/model.pt")),
        "scans",
    ),
    Row("infer: facts missing", INFER + "data", ["facts.json"], remove("own/models/facts.json"), "scans"),
    Row("infer: option unknown", INFER + "data --devices cpu", ["device"], kind="scans"),
]
TRAIN_ROWS = [
    Row("data missing", LITS.replace("data ", "nowhere "), ["nowhere"]),
    Row("option unknown", LITS + " --epoch 3", ["epochs"]),
    Row("option nested unknown", LITS + " --train::trainer::max_epoch 3", ["max_epoch"]),
    Row("epochs 0", LITS + " --epochs 0", ["epochs"]),
    Row("epochs negative", LITS + " --epochs -1", ["epochs"]),
    Row("epochs a fraction", LITS + " --epochs 1.5", ["epochs"]),
    Row("epochs a word", LITS + " --epochs ten", ["epochs"]),
    Row("epochs without a value", LITS + " --epochs", ["epochs"]),
    Row("batch 0", LITS + " --batch_size 0", ["batch_size"]),
    Row("learning rate negative", LITS + " --learning_rate -0.1", ["learning_rate"]),
    Row("learning rate NaN", LITS + " --learning_rate nan", ["learning_rate"]),
    Row("grid of two axes", LITS.replace("[32,32,32]", "[32,32]"), ["spatial_size"]),
    Row("grid of 0", LITS.replace("[32,32,32]", "[0,32,32]"), ["spatial_size"]),
    Row("grid of words", LITS.replace("[32,32,32]", "large"), ["spatial_size"]),
    Row("workers negative", LITS + " --num_workers -1", ["num_workers"]),
    Row("interval 0", LITS + " --val_interval 0", ["val_interval"]),
    Row("share 0", LITS + " --share 0", ["share"]),
    Row("share 2", LITS + " --share 2", ["share"]),
    Row("seed a word", LITS + " --seed abc", ["seed"]),
    Row("device missing", LITS + " --device cuda:0", ["cuda"]),
    Row("resume maybe", LITS + " --resume maybe", ["resume"]),
    Row("network unknown", LITS + " --network_name resnet11", ["resnet11"]),
    Row("stride 7", LITS + " --output_stride 7", ["output_stride"]),
    Row("window upside down", LITS + " --hu_window [250,-200]", ["hu_window"]),
    Row("output a file", LITS, ["out"], write("out", "text")),
    Row("init missing", LITS + " --init nowhere.pt", ["nowhere.pt"]),
    Row("init empty", LITS + " --init w.pt", ["w.pt"], write("w.pt", b"")),
    Row("init code", LITS + " --init w.pt", ["w.pt"], write("w.pt", pickle.dumps(Code()))),
    Row("init of something else", LITS + " --init w.pt", ["w.pt"], weights("w.pt", {"a": torch.zeros(3)})),
    Row("init no tensors", LITS + " --init w.pt", ["w.pt"], weights("w.pt", {"a": 1})),
    Row("kinetics without a file", LITS + " --init kinetics", ["kinetics"]),
    Row("image cut", LITS, ["imagesTr/case_1"], cut(IMAGE)),
    Row("label of another shape", LITS, ["labelsTr/case_1"], voxels(LABEL, lambda v: v[1:])),
    Row("negatives missing", LITS + " --negatives nowhere", ["nowhere"]),
    Row("cut share 3", LITS + " --cut_share 3", ["cut_share"]),
    Row("fine: image cut", FINE, ["imagesTr/case_1"], cut(IMAGE)),
    Row("fine: label empty", FINE, ["labelsTr/case_1"], voxels(LABEL, lambda v: v * 0)),
    Row("lung: list cut", LUNG, ["dataset.json"], cut("data/dataset.json"), "lung"),
    Row("lung: label a fraction", LUNG, ["labelsTr/case_1"], voxels(LABEL, lambda v: v * 0.3), "lung"),
    Row("pretrain: no domain", PRETRAIN, ["data"], lambda f: shutil.rmtree(f / "data/Organ"), "organs"),
    Row(
        "pretrain: label of another class",
        PRETRAIN,
        ["case_1"],
        voxels("data/Organ/" + LABEL[5:], lambda v: v * 4),
        "organs",
    ),
    Row("pretrain: branch unknown", PRETRAIN + " --branch Spleen", ["Spleen"], kind="organs"),
    Row("pretrain: clip negative", PRETRAIN + " --max_gradient_norm -1", ["max_gradient_norm"], kind="organs"),
    Row("pretrain: accumulate 0", PRETRAIN + " --accumulate 0", ["accumulate"], kind="organs"),
    Row("nodules: table cut", NODULES, ["nodules.csv"], write(TABLE, "nodule"), "nodules"),
    Row("nodules: folds 1", NODULES + " --folds 1", ["folds"], kind="nodules"),
    Row("nodules: fold beyond", NODULES + " --folds 3 --fold 5", ["fold"], kind="nodules"),
    Row("state cut", OWN, ["training_state.pt"], write("out/training_state.pt", b"PK\3\4" + bytes(999)), "own"),
    Row("state of something else", OWN, ["training_state.pt"], weights("out/training_state.pt", {"a": 1}), "own"),
    Row("state code", OWN, ["training_state.pt"], weights("out/training_state.pt", {"epoch": Code()}), "own"),
    Row(
        "prepared facts without domains",
        OWN.replace("data ", "prepared "),
        ["facts.json"],
        several(write("prepared/datalist.json", {"training": []}), write("prepared/facts.json", {"domains": {}})),
        "own",
    ),
    Row(
        "prepared facts missing",
        OWN.replace("data ", "prepared "),
        ["facts.json"],
        write("prepared/datalist.json", {"training": []}),
        "own",
    ),
    Row("test: weights missing", EVALUATE.replace("own/models", "nowhere"), ["nowhere"], kind="own"),
    Row(
        "test: weights code",
        EVALUATE,
        ["model.pt"],
        unlinked("own/models/model.pt", write("own/models/model.pt", pickle.dumps(Code()))),
        "own",
    ),
    Row("test: split unknown", EVALUATE + " --split tests", ["split"], kind="own"),
    Row("test: image cut", EVALUATE, ["imagesTr/case_1"], cut(IMAGE), "own"),
]
VERB_ROWS = [
    Row("verb unknown", "predit own data --output out", ["predict"], kind="nothing"),
    Row("evaluate: prediction missing", "evaluate nowhere data/labelsTr", ["nowhere"]),
    Row(
        "evaluate: nothing matches",
        "evaluate pred data/labelsTr",
        ["pred"],
        lambda f: tiny.save(f / "pred/x.nii.gz", np.zeros((4, 4, 4), np.uint8)),
    ),
    Row("evaluate: classes garbled", "evaluate pred data/labelsTr --classes liver=", ["classes"], two_label_maps),
    Row(
        "evaluate: tolerance negative",
        "evaluate pred data/labelsTr --tolerance_mm -1",
        ["tolerance_mm"],
        two_label_maps,
    ),
    Row(
        "evaluate: prediction cut",
        "evaluate pred data/labelsTr",
        ["pred/case_1"],
        several(two_label_maps, cut("pred/case_1.nii.gz")),
        code=1,
    ),
    Row(
        "evaluate: other grid",
        "evaluate pred data/labelsTr",
        ["pred/case_1"],
        several(two_label_maps, voxels("pred/case_1.nii.gz", lambda v: v, np.eye(4))),
        code=1,
    ),
    Row(
        "evaluate: fractions",
        "evaluate pred data/labelsTr",
        ["pred/case_1"],
        several(two_label_maps, voxels("pred/case_1.nii.gz", lambda v: v * 0.4)),
        code=1,
    ),
    Row(
        "evaluate: list cut", "evaluate pred list.json", ["list.json"], several(two_label_maps, write("list.json", "{"))
    ),
    Row(
        "evaluate: list with a number",
        "evaluate pred list.json",
        ["list.json"],
        several(two_label_maps, write("list.json", {"training": [{"image": 1, "label": 2}]})),
    ),
    Row(
        "evaluate: output a file",
        "evaluate pred data/labelsTr --output out",
        ["out"],
        several(two_label_maps, write("out", "text")),
    ),
    Row("check: bundle unknown", "check nobody", ["nobody"], kind="nothing"),
    Row("compare: without scratch", "compare own --inits med3d --dataset_dir data", ["scratch"], kind="own"),
    Row("compare: seeds words", "compare own --inits scratch --seeds one --dataset_dir data", ["seeds"], kind="own"),
    Row("compare: option unknown", "compare own --inits scratch --epoch 1 --dataset_dir data", ["epoch"], kind="own"),
    Row("compare: data missing", "compare own --inits scratch --dataset_dir nowhere", ["nowhere"], kind="own"),
    Row(
        "compare: weights missing",
        "compare own --inits scratch,nowhere.pt --dataset_dir data",
        ["nowhere.pt"],
        kind="own",
    ),
    Row("compare: share 0", "compare own --inits scratch --shares 0 --dataset_dir data", ["share"], kind="own"),
    Row("leakage: card missing", "leakage nowhere.json data/dataset.json", ["nowhere.json"]),
    Row(
        "leakage: card of something else",
        "leakage card.json data/dataset.json",
        ["card.json"],
        write("card.json", {"a": 1}),
    ),
    Row(
        "leakage: card without hashes",
        "leakage card.json data/dataset.json",
        ["card.json"],
        write("card.json", {"cases": {"training": [{"image": "x"}]}}),
    ),
    Row(
        "leakage: cases a number",
        "leakage card.json data/dataset.json",
        ["card.json"],
        write("card.json", {"cases": {"training": 3}}),
    ),
    Row(
        "leakage: list empty",
        "leakage card.json list.json",
        ["list.json"],
        several(write("card.json", {"cases": {}}), write("list.json", {})),
    ),
    Row("inspect: missing", "weights inspect nowhere.pt", ["nowhere.pt"], kind="nothing"),
    Row("inspect: a folder", "weights inspect data", ["data"]),
    Row("inspect: text", "weights inspect w.pt", ["w.pt"], write("w.pt", "text"), "nothing"),
    Row("inspect: code", "weights inspect w.pt", ["w.pt"], write("w.pt", pickle.dumps(Code())), "nothing"),
    Row("inspect: old code", "weights inspect w.pt", ["w.pt"], write("w.pt", pickle.dumps(Code(), 0)), "nothing"),
    Row("inspect: code in an archive", "weights inspect w.pt", ["w.pt"], weights("w.pt", Code()), "nothing"),
    Row(
        "inspect: safetensors cut",
        "weights inspect w.safetensors",
        ["w.safetensors"],
        write("w.safetensors", b"\xff" * 40),
        "nothing",
    ),
    Row(
        "inspect: safetensors short",
        "weights inspect w.safetensors",
        ["w.safetensors"],
        write("w.safetensors", b"\1"),
        "nothing",
    ),
    Row("inspect: a tensor", "weights inspect w.pt", ["w.pt"], weights("w.pt", torch.zeros(3)), "nothing"),
    Row("convert: ending", "weights convert own/models/model.pt w.bin", ["w.bin"], kind="own"),
    Row("convert: exists", "weights convert own/models/model.pt w.pt", ["w.pt"], write("w.pt", "mine"), "own"),
    Row("convert: no channel", "weights convert own/models/model.pt w.pt --in_channels 0", ["in_channels"], kind="own"),
    Row(
        "convert: of something else",
        "weights convert v.pt w.pt",
        ["v.pt"],
        weights("v.pt", {"a": torch.zeros(3)}),
        "nothing",
    ),
    Row("release: ending", "weights release own/models/model.pt w.bin", ["w.bin"], kind="own"),
    Row("release: missing", "weights release nowhere.pt w.pt", ["nowhere.pt"], kind="nothing"),
    Row("join: not a cascade", "weights join own/models/model.pt own/models/model.pt w.pt", ["model.pt"], kind="own"),
    Row("export: ending", "export own w.bin", ["w.bin"], kind="own"),
    Row(
        "export: weights cut",
        "export own w.ts",
        ["model.pt"],
        unlinked("own/models/model.pt", cut("own/models/model.pt")),
        "own",
    ),
    Row("export: option unknown", "export own w.ts --netwrk_name resnet18", ["network_name"], kind="own"),
    Row("export: option without effect", "export own w.ts --network resnet18", ["network"], kind="own"),
    Row(
        "compare: config cut",
        "compare own --inits scratch --dataset_dir data",
        ["train.json"],
        cut("own/configs/train.json"),
        "own",
    ),
    Row(
        "benchmark: config missing",
        "benchmark own --dataset_dir data",
        ["train.json"],
        remove("own/configs/train.json"),
        "own",
    ),
    Row(
        "benchmark: metadata missing",
        "benchmark own --dataset_dir data",
        ["metadata.json"],
        remove("own/configs/metadata.json"),
        "own",
    ),
    Row("benchmark: too few", "benchmark own --iterations 1 --dataset_dir data", ["iterations"], kind="own"),
    Row("benchmark: data missing", "benchmark own --dataset_dir nowhere", ["nowhere"], kind="own"),
    Row("report: no run", "report data", ["data"]),
    Row("report: run cut", "report own", ["run.json"], cut("own/eval/run.json"), "own"),
    Row("rerun: missing", "rerun nowhere.json", ["nowhere.json"], kind="nothing"),
    Row("rerun: of something else", "rerun r.json", ["r.json"], write("r.json", {"a": 1}), "nothing"),
    Row(
        "rerun: another command",
        "rerun r.json",
        ["r.json"],
        write("r.json", {"command": "rm -rf x", "status": "completed", "folder": "."}),
        "nothing",
    ),
    Row("new bundle: name", "new-bundle a/b --dataset_dir data", ["a/b"], kind="own"),
    Row("new bundle: exists", "new-bundle own --dataset_dir data", ["own"], kind="own"),
    Row("new bundle: data missing", "new-bundle x --dataset_dir nowhere", ["nowhere"], kind="nothing"),
    Row("new bundle: list cut", "new-bundle x --dataset_dir data", ["dataset.json"], cut("data/dataset.json"), "liver"),
    Row(
        "new bundle: background alone",
        "new-bundle x --dataset_dir data",
        ["dataset.json"],
        edit("data/dataset.json", lambda d: {**d, "labels": {"0": "background"}}),
    ),
    Row("phantoms: kind", "phantoms brain --folder out", ["brain"], kind="nothing"),
    Row("phantoms: cases", "phantoms lits --folder out --cases 0", ["cases"], kind="nothing"),
    Row("phantoms: full folder", "phantoms lits --folder data --cases 1", ["data"]),
    Row("pack: bundle unknown", "zoo pack nobody out", ["nobody"], kind="nothing"),
    Row("pack: weights not finite", "zoo pack own out", ["model.pt"], own_weights(nothing_finite), "own"),
    Row("pack: weights missing", "zoo pack own out --weights nowhere.pt", ["nowhere.pt"], kind="own"),
    Row(
        "pack: version without a line",
        "zoo pack own out",
        ["changelog"],
        edit("own/configs/metadata.json", lambda d: {**d, "version": "9.9.9"}),
        "own",
    ),
    Row("index: empty", "zoo index data", ["data"]),
    Row("index: archive cut", "zoo index zoo", ["x_v0.1.0.zip"], write("zoo/x_v0.1.0.zip", b"PK\3\4"), "nothing"),
    Row("publish: form", "zoo publish own out --form paper", ["form"], kind="own"),
    Row("fetch: source missing", "zoo fetch x --source nowhere", ["nowhere"], kind="nothing"),
    Row(
        "fetch: without a checksum",
        "zoo fetch x --source zoo",
        ["x_v0.1.0.zip"],
        write("zoo/x_v0.1.0.zip", b"PK\3\4"),
        "nothing",
    ),
    Row(
        "fetch: another checksum",
        "zoo fetch x --source zoo",
        ["x_v0.1.0.zip"],
        several(write("zoo/x_v0.1.0.zip", b"PK\3\4"), write("zoo/x_v0.1.0.zip.sha256", "0" * 64 + "  x_v0.1.0.zip\n")),
        "nothing",
    ),
    Row("fetch: name", "zoo fetch ../x --source zoo", ["../x"], kind="nothing"),
    Row(
        "fetch: index cut",
        "zoo fetch x --source zoo",
        ["model_info.json"],
        write("zoo/models/model_info.json", "{"),
        "nothing",
    ),
    Row("fetch: nobody answers", "zoo fetch x --source http://127.0.0.1:9", ["127.0.0.1:9"], kind="nothing"),
]
ROWS = [*PREPARE_ROWS, *NODULE_ROWS, *PREDICT_ROWS, *TRAIN_ROWS, *VERB_ROWS]
