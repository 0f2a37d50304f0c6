"""Weights as they are released: small, of the same bytes each time, and read by plain ``torch.load``."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from med3d_ext.errors import InputError
from med3d_ext.io.facts import FACTS, facts_path, read_facts, write_facts
from med3d_ext.io.files import read_json, write_atomically, write_json
from med3d_ext.weights.files import read_checkpoint

MANTISSA_BITS = 8  # bfloat16 has 7, float16 10; the two that are left out compress away
PRECISION = f"convolutions rounded to {MANTISSA_BITS} bits of mantissa, all else as trained"
BESIDE = (FACTS, "card.json")
"""What is next to a weights file and belongs to it: what inference reads, and the cases that the weights have seen."""

EARLIEST = (1980, 1, 1, 0, 0, 0)  # a zip knows no earlier time


def release(file: str, out: str, *, overwrite: bool = False) -> str:
    """Write weights as small as the released ones, with their facts.json and card.json next to them.

    Args:
        file: a state dict or a checkpoint that contains one; its facts.json and card.json are next to it.
        out: the new file, `.pt`, such as bundles/NAME/weights/model.pt.
        overwrite: replace existing files.
    """
    source = Path(file)
    state, _ = read_checkpoint(source)
    there = {FACTS: facts_path(source.parent) is not None, "card.json": source.with_name("card.json").is_file()}
    beside = [name for name in BESIDE if there[name]]
    target = check_target(out, overwrite, beside)
    content = released_bytes(state)
    for name in beside if source.resolve().parent != target.resolve().parent else []:
        if name == FACTS:
            write_facts(target.parent, read_facts(source.parent))
        else:
            write_json(target.with_name(name), {**read_json(source.with_name(name)), "precision": PRECISION})
    with write_atomically(target) as stream:
        stream.write(content)
    lacking = [f"'{source.with_name(name)}' is missing: put it there" for name in BESIDE if name not in beside]
    before, after = source.stat().st_size / 1e6, len(content) / 1e6
    return "\n".join([f"'{target}': {after:.1f} MB, from {before:.1f} MB; {PRECISION}", *lacking])


def check_target(out: str, overwrite: bool, beside: Sequence[str] = BESIDE) -> Path:
    """The path of a new weights file.

    Raises:
        InputError: it has another suffix than ``.pt``; or it, or a file that would be written next to it, exists and
            ``overwrite`` is False.
    """
    target = Path(out)
    if target.suffix != ".pt":
        raise InputError(f"out must end with .pt, got '{out}'.")
    for path in (target, *(target.with_name(name) for name in beside)):
        if path.exists() and not overwrite:
            raise InputError(f"'{path}' exists; give another folder or --overwrite.")
    return target


def released_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A file of ``torch.save`` with rounded convolutions, every tensor once, and compressed records.

    ``torch.load(..., weights_only=True)`` reads it as any other, though not with ``mmap=True``. The same values under
    the same names give the same bytes (with one version of torch and zlib).

    Args:
        state: tensors by name.
    """
    plain, stream = io.BytesIO(saved({name: rounded(tensor) for name, tensor in state.items()})), io.BytesIO()
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(stream, "w") as new:
        for record in old.namelist():
            new.writestr(zipfile.ZipInfo(record, EARLIEST), old.read(record), zipfile.ZIP_DEFLATED, compresslevel=9)
    return stream.getvalue()


def rounded(tensor: Tensor) -> Tensor:
    """A convolution's weights in float16, rounded to the nearest with 8 bits of mantissa; all else as it is.

    The relative error is at most 2^-9 (below 2^-16 the absolute one is at most 2^-24). Vectors, BatchNorm's among them,
    are few and keep their precision, and so does a tensor with values beyond float16.
    """
    is_convolution = tensor.is_floating_point() and tensor.dim() > 2
    if not is_convolution or tensor.abs().max() > torch.finfo(torch.float16).max:
        return tensor
    dropped = 23 - MANTISSA_BITS  # of the 23 bits of a float32
    bits = tensor.float().contiguous().view(torch.int32)
    half = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)  # ties go to the even neighbor
    return (((bits + half) >> dropped) << dropped).view(torch.float32).half()


def saved(state: Mapping[str, Tensor]) -> bytes:
    """A file of ``torch.save``, each different tensor stored once: equal ones share it.

    Args:
        state: tensors by name, on any device.
    """
    stored: dict[tuple, Tensor] = {}
    tensors = {}
    for name, tensor in state.items():
        # Cloned: a view would drag along the whole storage that it looks into.
        value = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        key = (value.dtype, tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes())
        tensors[name] = stored.setdefault(key, value)
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()
