from __future__ import annotations

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from monai.apps import DecathlonDataset
from prepared_folders import domains_of
from tiny_domains import write_domain

from med3d_ext.errors import InputError
from med3d_ext.tools.layouts.prepare import prepare_3dseg8
from med3d_ext.tools.layouts.prepare_3dseg8 import download_tasks

TASKS = ("Task04_Hippocampus", "Task09_Spleen")


class Handler(SimpleHTTPRequestHandler):
    """A file server that keeps a list of what was asked for."""

    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        self.asked.append(self.path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of two tasks' archives, served as MONAI's address of the Decathlon."""
    served = tmp_path / "served"
    served.mkdir()
    for seed, task in enumerate(TASKS):
        write_domain(tmp_path / "made" / task, 2, seed=seed)
        with tarfile.open(served / f"{task}.tar", "w") as archive:
            archive.add(tmp_path / "made" / task, task)
    Handler.asked = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served)))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    for task in TASKS:
        url = f"http://127.0.0.1:{http.server_address[1]}/{task}.tar"
        digest = hashlib.md5((served / f"{task}.tar").read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(DecathlonDataset.resource, task, url)
        monkeypatch.setitem(DecathlonDataset.md5, task, digest)
    yield served
    http.shutdown()
    http.server_close()


def test_chosen_tasks_are_fetched_and_prepared(server: Path, tmp_path: Path) -> None:
    prepare_3dseg8(tmp_path / "src", tmp_path / "out", domains="spleen,hippocampus", download=True)
    domains = domains_of(tmp_path / "out")
    assert sorted(domains) == sorted(TASKS)
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == sorted(TASKS)


def test_a_task_that_is_there_is_not_fetched(server: Path, tmp_path: Path) -> None:
    (tmp_path / "src" / TASKS[0]).mkdir(parents=True)
    download_tasks(tmp_path / "src", TASKS)
    assert {path.strip("/") for path in Handler.asked} == {f"{TASKS[1]}.tar"}
    assert not any((tmp_path / "src" / TASKS[0]).iterdir())


def test_a_damaged_archive_leaves_nothing_and_the_next_call_fetches_it_anew(server: Path, tmp_path: Path) -> None:
    archive = server / f"{TASKS[1]}.tar"
    good = archive.read_bytes()
    archive.write_bytes(good[:-2000])
    with pytest.raises(InputError, match="Task09_Spleen cannot be fetched from http://127.0.0.1"):
        download_tasks(tmp_path / "src", TASKS[1:])
    assert not (tmp_path / "src" / TASKS[1]).exists()
    archive.write_bytes(good)
    download_tasks(tmp_path / "src", TASKS[1:])
    assert (tmp_path / "src" / TASKS[1] / "dataset.json").is_file()


def test_an_archive_that_is_not_served_is_refused_with_its_address(server: Path, tmp_path: Path) -> None:
    (server / f"{TASKS[0]}.tar").unlink()
    with pytest.raises(InputError, match=r"Task04_Hippocampus.tar \(.*404"):
        download_tasks(tmp_path / "src", TASKS[:1])
