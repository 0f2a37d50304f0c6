"""The verb ``rerun``: the command of a run's record once more, and whether the same comes out."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.run.provenance import checkout, git_state, versions
from med3d_ext.run.start import run_arguments
from med3d_ext.tools.report import RECORD

PROGRAM = ["python", "-m", "monai.bundle", "run"]


def rerun(manifest: str, *, output: str | None = None) -> str:
    """Run the command of a run.json again into another folder, and compare data, losses and figures.

    Paths in the command refer to the folder in which it was typed, which is found from the record's own place. What has
    changed since (revision, versions) is reported first. On the same CPU a training is reproduced to the last digit;
    it gets as many threads as before. The exit code is 1 if anything differs.

    Args:
        manifest: the run.json of a completed training.
        output: where the second run writes. Defaults to the folder rerun next to run.json.
    """
    path = Path(manifest).expanduser()
    record = read_json(path)
    words = _command(path, record)
    folder = Path(output).expanduser() if output else path.parent / "rerun"
    again = folder / RECORD
    if again.is_file() and read_json(again).get("status") == "completed":
        raise InputError(f"'{folder}' holds a completed run; remove it, or give another --output.")
    started_in = _working_folder(path, record, words)
    for line in _changes(record):
        print(line, file=sys.stderr)
    out = str(folder.resolve())
    command = [sys.executable, *words[1:], "--output_dir", out, "--ckpt_dir", os.path.join(out, "models")]
    threads = record.get("device", {}).get("threads")  # sums in another order end in other digits
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    done = subprocess.run(command, cwd=started_in, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    lines = list(_compared(path, again))
    if any(line.startswith("DIFFERS") for line in lines):
        print("\n".join(lines))
        raise SystemExit(1)
    return "\n".join(lines)


def _compared(first: Path, second: Path) -> Iterator[str]:
    """A line for the data, for the losses if the first run has any, and for each of its figures."""
    one, two = read_json(first), read_json(second)
    several = {"hashes of images": [_hashes(one), _hashes(two)]}
    if first.with_name("loss.csv").is_file():
        several["losses of iterations"] = [_losses(record.with_name("loss.csv")) for record in (first, second)]
    figures = {name: [value, two.get("metrics", {}).get(name)] for name, value in one.get("metrics", {}).items()}
    for what, (before, now) in {**several, **figures}.items():
        said = [len(value) if what in several else value for value in (before, now)]
        yield f"{'equal  ' if before == now else 'DIFFERS'}  {what}: {said[0]}, again {said[1]}"


def _command(path: Path, record: Mapping[str, Any]) -> list[str]:
    """The words of the recorded command, without where it wrote.

    Raises:
        InputError: the record is of an unfinished run, or of another command.
    """
    if record.get("status") != "completed":
        raise InputError(f"'{path}' is of a run that is {record.get('status')}; give the record of a completed one.")
    words = [os.path.expanduser(word) for word in shlex.split(record.get("command", ""))]
    if words[: len(PROGRAM)] != PROGRAM:
        program = " ".join(PROGRAM)
        raise InputError(f"'{path}' is of the command '{' '.join(words[:4])}'; rerun takes those of {program}.")
    return without(words, ("output_dir", "ckpt_dir"))


def without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words of a command without some options, written ``--name VALUE`` or ``--name=VALUE``."""
    kept: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in options:
            kept.append(word)
        elif not equals:
            next(remaining, None)
    return kept


def _working_folder(path: Path, record: Mapping[str, Any], words: Sequence[str]) -> Path:
    """The folder that the command was typed in: the first of those it may be in which its files are.

    Raises:
        InputError: the command's config files are in none of them.
    """
    files, _ = run_arguments(["monai/bundle/__main__.py", *words[len(PROGRAM) - 1 :]])
    candidates = [path.resolve().parent / record["from_record"]] if "from_record" in record else []
    root = checkout()
    candidates += [*([root / record.get("folder", ".")] if root else []), Path.cwd()]
    for folder in candidates:
        if all((folder / file).is_file() for file in files):
            return folder.resolve()
    raise InputError(
        f"'{path}' was written by a command on {', '.join(files)}, which is not in '{candidates[0]}' nor here; "
        "call rerun in the folder that the training was started in."
    )


def _changes(record: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was."""
    then, now = record.get("versions", {}), versions()
    yield from (f"{name} was {then[name]}, is {now.get(name)}" for name in then if then[name] != now.get(name))
    was, is_now = record.get("git") or {}, git_state() or {}
    if was.get("revision") != is_now.get("revision"):
        yield f"the revision was {was.get('revision')}, is {is_now.get('revision')}"
    if was.get("dirty"):
        yield "the run had uncommitted changes, which cannot be restored"


def _hashes(record: Mapping[str, Any]) -> list[str]:
    return sorted(str(value) for cases in (record.get("data") or {}).values() for value in cases.values())


def _losses(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row["loss"] for row in csv.DictReader(file)]
