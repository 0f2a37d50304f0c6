"""Readers fed by hypothesis: a verb ends with its result or with a sentence, soon, in little memory.

``TORTURE_FUZZ_SECONDS`` is the time of each reader: 120 by default, 600 in ``make fuzz``. hypothesis prints an example
that fails in its shortest form.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from med3d_ext.__main__ import main  # noqa: E402

SECONDS = float(os.environ.get("TORTURE_FUZZ_SECONDS", "120"))
SEED = int(os.environ.get("TORTURE_SEED", "0"))
CPU_SECONDS = 10  # of one example
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
MEMORY = 1 << 30  # more than before the test, bytes


@pytest.fixture
def fuzz(place: Path, record_property: Any) -> Callable[[st.SearchStrategy, Callable[[Path, Any], None]], None]:
    """Runs a check on examples until the time is over, each in an empty folder, within bounds of time and memory."""

    def fuzz(strategy: st.SearchStrategy, check: Callable[[Path, Any], None]) -> None:
        logging.disable()  # nibabel reports each oddity
        typed("--help")
        importlib.import_module("monai.bundle")  # seconds that are no example's
        end, count = time.monotonic() + SECONDS, 0
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
        try:
            while time.monotonic() < end:
                count += _round(strategy, check, place / "example", end, SEED + count)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            logging.disable(logging.NOTSET)
        record_property("examples", count)
        record_property("minutes", round(SECONDS / 60, 2))

    return fuzz


def _round(strategy: st.SearchStrategy, check: Callable, folder: Path, end: float, number: int) -> int:
    count, failed = 0, False

    @seed(number)
    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=PHASES)
    @given(strategy)
    def run(example: Any) -> None:
        nonlocal count, failed
        if time.monotonic() > end and not failed:  # what failed is made smaller first
            return
        count += 1
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begin = time.process_time()
        try:
            check(folder, example)
            assert time.process_time() - begin < CPU_SECONDS, "it takes too long"
        except BaseException:
            failed = True
            raise

    run()
    return max(count, 1)


def typed(*words: object) -> str:
    """Type a verb: it ends with exit code 0, 1 or 2, and any exception but its own is the test's."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
    assert code in (0, 1, 2), (code, err.getvalue())
    if code == 2:
        lines = [line for line in err.getvalue().splitlines() if line.strip()]
        assert lines and len(lines[-1]) < 2000, "no sentence, or a page of them"
    return out.getvalue() + err.getvalue()


def edits(content: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some cut, changed, repeated or put in."""
    place = st.integers(0, len(content))
    piece = st.one_of(
        st.binary(max_size=20), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"-1", b"9" * 30, b"nan", b"<", b'"'])
    )

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        changed = content
        for start, length, new in changes:
            changed = changed[:start] + new + changed[start + length :]
        return changed

    return st.lists(st.tuples(place, st.one_of(st.integers(0, 16), place), piece), min_size=1, max_size=4).map(apply)


WORDS = ["", ".", "..", "/", "~", "nan", "-1", "$1", "@x", "\0", "a/b", "../../x", "\u202e", "é", "0", "1" * 400]
TEXT = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where a JSON value can be changed."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def changed(content: Any) -> st.SearchStrategy[str]:
    """JSON with values of its own replaced, removed or renamed; now and then no JSON at all."""

    def apply(changes: list[tuple[tuple, str, Any]]) -> str:
        value = deepcopy(content)
        for path, how, new in changes:
            if not path:
                value = new if how == "replace" else value
                continue
            node = value
            with contextlib.suppress(KeyError, IndexError, TypeError):
                for key in path[:-1]:
                    node = node[key]
                if how == "remove":
                    del node[path[-1]]
                elif how == "rename" and isinstance(node, dict):
                    node[str(new)] = node.pop(path[-1])
                else:
                    node[path[-1]] = new
        return json.dumps(value)

    change = st.tuples(
        st.sampled_from(places(content)), st.sampled_from(["replace", "replace", "remove", "rename"]), VALUE
    )
    broken = edits(json.dumps(content).encode()).map(lambda text: text.decode(errors="replace"))
    return st.one_of(st.lists(change, min_size=1, max_size=3).map(apply), broken)


XML = """<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>
<SeriesInstanceUid>1.2.3</SeriesInstanceUid></ResponseHeader><readingSession><unblindedReadNodule><noduleID>1</noduleID>
<characteristics><subtlety>5</subtlety><malignancy>3</malignancy></characteristics><roi><imageZposition>-1.5</imageZposition>
<imageSOP_UID>1.2.3.4</imageSOP_UID><inclusion>TRUE</inclusion><edgeMap><xCoord>3</xCoord><yCoord>4</yCoord></edgeMap>
<edgeMap><xCoord>9</xCoord><yCoord>4</yCoord></edgeMap></roi></unblindedReadNodule></readingSession></LidcReadMessage>"""
NUMBERS = ["3", "1e999", "-1", "0x10", "nan", "9" * 400, "", "1_0", "٣", "3.5", "inf"]


def laughs(depth: int, width: int) -> str:
    """Entities that would be width^depth times as long."""
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * width}">' for n in range(1, depth + 1))
    return (
        f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a0 "ha">{entities}]><LidcReadMessage>&a{depth};</LidcReadMessage>'
    )


def nested(depth: int) -> str:
    return "<LidcReadMessage>" + "<roi>" * depth + "</roi>" * depth + "</LidcReadMessage>"


def numbers(values: list[str]) -> str:
    text = XML
    for old, new in zip((">3<", ">4<", ">-1.5<", ">5<"), values):
        text = text.replace(old, f">{new}<")
    return text


XMLS = st.one_of(
    edits(XML.encode()),
    st.lists(st.sampled_from(NUMBERS), min_size=4, max_size=4).map(lambda values: numbers(values).encode()),
    st.builds(laughs, st.integers(1, 30), st.integers(1, 30)).map(str.encode),
    st.integers(1, 20_000).map(lambda depth: nested(depth).encode()),
    st.sampled_from(["utf-16", "utf-32", "latin-1"]).map(lambda code: XML.replace("UTF-8", code).encode(code)),
)


def test_readings_of_lidc(fuzz):
    def check(folder: Path, content: bytes) -> None:
        (folder / "data").mkdir()
        (folder / "data" / "reading.xml").write_bytes(content)
        text = typed("prepare", "lidc", folder / "data", "--output", folder / "out")
        assert "root:" not in text

    fuzz(XMLS, check)


def test_lists_of_cases(fuzz, tmp_path_factory):
    source = tiny.decathlon(tmp_path_factory.mktemp("fuzz") / "data", 2, shape=(12, 12, 12))

    def check(folder: Path, text: str) -> None:
        shutil.copytree(source, folder / "data")
        (folder / "data" / "dataset.json").write_text(text, errors="replace")
        typed("prepare", "lits", folder / "data", "--output", folder / "out")
        assert not (folder / "out" / "datalist.json").exists() or json.loads(
            (folder / "out" / "datalist.json").read_text()
        )

    fuzz(changed(json.loads((source / "dataset.json").read_text())), check)


CARD = {
    "network": "x",
    "cases": {"training": [{"image": "a.nii", "domain": "x", "sha256": "0" * 64}], "validation": []},
}
LIST = {
    "training": [{"image": "a.nii", "sha256": "0" * 64}],
    "test": [{"image": "b.nii", "label": "c", "sha256": "1" * 64}],
}


def test_cards_and_datalists(fuzz):
    def check(folder: Path, texts: tuple[str, str]) -> None:
        for name, text in zip(("card.json", "list.json"), texts):
            (folder / name).write_text(text, errors="replace")
        typed("leakage", folder / "card.json", folder / "list.json")

    fuzz(st.one_of(*(st.tuples(*pair) for pair in _one_changed(CARD, LIST))), check)


def _one_changed(first: Any, second: Any) -> list[tuple[st.SearchStrategy, st.SearchStrategy]]:
    good = [st.just(json.dumps(value)) for value in (first, second)]
    return [(changed(first), good[1]), (good[0], changed(second))]


DOMAINS = {"Organ": {"spatial_size": [32, 32, 32], "merge": {"2": 1}, "intensity_range": [-100, 200], "channel": 0}}


def test_settings_of_domains(fuzz, tmp_path_factory):
    source = tiny.decathlon(tmp_path_factory.mktemp("fuzz") / "data" / "Organ", 2, shape=(12, 12, 12)).parent

    def check(folder: Path, text: str) -> None:
        shutil.copytree(source, folder / "data")
        (folder / "data" / "domains.json").write_text(text, errors="replace")
        typed("prepare", "3dseg8", folder / "data", "--output", folder / "out")

    fuzz(changed(DOMAINS), check)


INDEX = {"x_v0.1.0": {"checksum": "0" * 40, "sha256": "0" * 64, "source": "x_v0.1.0.zip"}}


def test_indices_of_zoos(fuzz):
    def check(folder: Path, text: str) -> None:
        (folder / "zoo" / "models").mkdir(parents=True)
        (folder / "zoo" / "models" / "model_info.json").write_text(text, errors="replace")
        if "://" in text:
            return  # an address of somebody's
        typed("zoo", "fetch", "x", "--source", folder / "zoo", "--output", folder / "out")
        assert not (folder / "out" / "x").exists()

    fuzz(changed(INDEX), check)


TABLE = "nodule,scan,malignancy,patient\nn0,0,1,a\nn1,1,5,b\nn2,2,3;4;5,c\n"
CELL = st.one_of(st.sampled_from([*WORDS, *NUMBERS, "n0", "1;5", "5;;", '"', "n0\nn1"]), st.text(max_size=5))


def test_tables_of_nodules(fuzz, tmp_path_factory):
    source = tiny.nodules(tmp_path_factory.mktemp("fuzz") / "data", 3, edge=8)
    rows = st.lists(st.lists(CELL, max_size=5), max_size=5)
    table = rows.map(lambda rows: "nodule,scan,malignancy\n" + "\n".join(",".join(row) for row in rows))

    def check(folder: Path, content: bytes) -> None:
        shutil.copytree(source, folder / "data")
        (folder / "data" / "nodules.csv").write_bytes(content)
        typed("prepare", "nodules", folder / "data", "--output", folder / "out")

    fuzz(st.one_of(edits(TABLE.encode()), table.map(lambda text: text.encode(errors="replace"))), check)


def weight_files() -> list[tuple[str, bytes]]:
    """A small state dict in each format."""
    from safetensors.torch import save

    state = {f"layer{n}.weight": torch.arange(8.0).reshape(2, 4) for n in range(3)}
    files = [(".safetensors", save(state))]
    for new in (True, False):
        content = io.BytesIO()
        torch.save(state, content, _use_new_zipfile_serialization=new)
        files.append((".pt", content.getvalue()))
    return files


def test_weights(fuzz):
    choices = [edits(content).map(lambda text, end=end: (end, text)) for end, content in weight_files()]
    noise = st.tuples(st.sampled_from([".pt", ".pth", ".safetensors"]), st.binary(max_size=400))

    def check(folder: Path, file: tuple[str, bytes]) -> None:
        path = folder / f"w{file[0]}"
        path.write_bytes(file[1])
        typed("weights", "inspect", path)

    fuzz(st.one_of(*choices, noise), check)


FIELDS = {
    "dim": st.lists(st.integers(-3, 40), min_size=8, max_size=8),
    "datatype": st.sampled_from(
        [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 77]
    ),
    "bitpix": st.integers(0, 128),
    "pixdim": st.lists(st.floats(width=32), min_size=8, max_size=8),
    "vox_offset": st.floats(width=32),
    "scl_slope": st.floats(width=32),
    "scl_inter": st.floats(width=32),
    "qform_code": st.integers(-1, 9),
    "sform_code": st.integers(-1, 9),
    "srow_x": st.lists(st.floats(width=32), min_size=4, max_size=4),
    "srow_z": st.lists(st.floats(width=32), min_size=4, max_size=4),
    "quatern_b": st.floats(width=32),
    "magic": st.sampled_from([b"n+1", b"ni1", b"n+2", b""]),
    "sizeof_hdr": st.sampled_from([348, 540, 0, 1543569408]),
}
HEADERS = st.fixed_dictionaries({}, optional=FIELDS)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_headers_of_images(kind, fuzz, tmp_path_factory):
    source = tmp_path_factory.mktemp("fuzz")
    tiny.decathlon(source / "data", 2, shape=(12, 12, 12))
    name = f"{kind}sTr/case_1.nii"
    content = nibabel.load(source / "data" / f"{name}.gz").to_bytes()

    def check(folder: Path, fields: dict[str, Any]) -> None:
        shutil.copytree(source / "data", folder / "data")
        stored = nibabel.Nifti1Header(content[:348], check=False)
        with np.errstate(all="ignore"):
            for key, value in fields.items():
                stored[key] = value
        path = folder / "data" / name
        path.with_name(path.name + ".gz").unlink()
        path.write_bytes(stored.binaryblock + content[348:])
        text = (folder / "data" / "dataset.json").read_text()
        (folder / "data" / "dataset.json").write_text(text.replace(f"{name}.gz", name))
        typed("prepare", "lits", folder / "data", "--output", folder / "out")
        typed("evaluate", path, source / "data" / "labelsTr" / "case_1.nii.gz")

    fuzz(HEADERS, check)


VOXELS = st.tuples(
    st.sampled_from(
        ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64", "int64", "uint64", "complex64"]
    ),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from([0, 1, 2, 0.5, -1, 255, 1e30, float("nan"), float("inf")]),
    st.lists(st.floats(-10, 10), min_size=12, max_size=12),
)


def test_shapes_types_and_affines(fuzz, tmp_path_factory):
    source = tiny.decathlon(tmp_path_factory.mktemp("fuzz") / "data", 2, shape=(6, 6, 6))

    def check(folder: Path, example: tuple[str, list[int], float, list[float]]) -> None:
        dtype, shape, value, affine = example
        shutil.copytree(source, folder / "data")
        with np.errstate(all="ignore"):
            voxels = np.full(shape, value).astype(dtype)
        matrix = np.vstack([np.reshape(affine, (3, 4)), [0, 0, 0, 1]])
        try:
            nibabel.save(
                nibabel.Nifti1Image(voxels, matrix, dtype=voxels.dtype), folder / "data/imagesTr/case_1.nii.gz"
            )
        except (ValueError, nibabel.spatialimages.HeaderDataError):
            return  # nibabel writes no such file
        typed("prepare", "lits", folder / "data", "--output", folder / "out")
        for kind in ("imagesTr", "labelsTr"):
            typed("evaluate", folder / "data/imagesTr/case_1.nii.gz", folder / "data" / kind / "case_1.nii.gz")

    fuzz(VOXELS, check)
