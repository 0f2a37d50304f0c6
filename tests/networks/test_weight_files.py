from __future__ import annotations

import argparse
import hashlib
import http.server
import os
import pathlib
import pickle
import sys
import threading
import types
from functools import partial

import pytest
import torch

from med3d_ext.errors import InputError
from med3d_ext.weights.files import download_weights, read_checkpoint, write_state

STATE = {"conv1.weight": torch.arange(20000.0), "steps": torch.tensor(3)}


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def _sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Settings(dict):
    """As Lightning keeps a network's arguments."""


def test_a_checkpoint_of_lightning_is_read_without_its_settings(tmp_path, monkeypatch):
    module = types.ModuleType("pytorch_lightning.parsing")
    module.Settings, Settings.__module__ = Settings, module.__name__
    for name in ("pytorch_lightning", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    kept = {f"model.{name}": value for name, value in STATE.items()}
    for settings in (argparse.Namespace(rate=1, path=pathlib.Path("/x")), Settings(rate=1), {"rate": 1}):
        torch.save({"state_dict": kept, "hyper_parameters": settings, "epoch": 3}, tmp_path / "a.ckpt")
        state, keys = read_checkpoint(tmp_path / "a.ckpt")
        assert state.keys() == kept.keys() and keys == {"state_dict", "hyper_parameters", "epoch"}
        assert all(torch.equal(state[name], value) for name, value in kept.items())


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "arch": "x"},
        {"model": STATE, "epoch": 1},
        {"network": {"state_dict": STATE}},
    ],
)
def test_the_state_dict_is_found_inside_a_checkpoint(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    state, keys = read_checkpoint(tmp_path / "a.pth")
    assert state.keys() == STATE.keys()
    assert keys == (set() if content is STATE else set(content))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(zipped, share, tmp_path):
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    write_state(STATE, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(InputError, match=f"{path.name}' is damaged or cut short.*; fetch it again"):
            read_checkpoint(path)


def pickled(path):
    path.write_bytes(pickle.dumps({"state_dict": {}, "extra": Code()}, protocol=4))


@pytest.mark.parametrize(
    ("write", "meaning"),
    [
        (lambda path: None, "is not a file"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html></html>"), "is a web page"),
        (lambda path: path.write_bytes(b"some text"), "is damaged"),
        (lambda path: torch.jit.script(torch.nn.Linear(1, 1)).save(str(path)), "TorchScript archive"),
        (lambda path: torch.save({"state_dict": STATE, "extra": Code()}, path), r"holds code \(posix\.mkdir\)"),
        (pickled, "is a plain pickle"),
        *(
            (lambda path, content=content: torch.save(content, path), "holds no tensors by name")
            for content in (torch.ones(2), {"epoch": 3}, {"state_dict": {}}, {})
        ),
    ],
)
def test_what_is_no_state_dict_is_named_and_no_code_is_run(write, meaning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.pt")
    with pytest.raises(InputError, match=rf"a\.pt' {meaning}|a\.pt'.*{meaning}"):
        read_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_existing_file_is_replaced_only_when_asked(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    write_state(STATE, path)
    with pytest.raises(InputError, match="exists; give another name or --overwrite"):
        write_state({"x": torch.ones(1)}, path)
    assert read_checkpoint(path)[0].keys() == STATE.keys()
    write_state({"x": torch.ones(1)}, path, overwrite=True)
    assert list(read_checkpoint(path)[0]) == ["x"]
    with pytest.raises(InputError, match=r"must end with \.pt"):
        write_state(STATE, tmp_path / "a.onnx")


def test_a_view_is_written_without_the_rest_of_its_storage(tmp_path):
    write_state({"x": torch.zeros(1_000_000)[:10]}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save(STATE, folder / "a.pt")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", _sha256(folder / "a.pt")
        server.shutdown()


def test_a_download_is_checked_and_then_used_without_the_network(server, tmp_path):
    url, sha256 = server
    path = tmp_path / "weights" / "a.pt"
    assert download_weights(f"{url}/a.pt", path, sha256) == path
    assert torch.equal(read_checkpoint(path)[0]["conv1.weight"], STATE["conv1.weight"])
    assert download_weights("http://127.0.0.1:9/gone", path, sha256) == path
    with pytest.raises(InputError, match="does not have the sha256"):
        download_weights(f"{url}/a.pt", path, "0" * 64)


def test_a_download_that_fails_leaves_nothing_behind(server, tmp_path):
    url, sha256 = server
    folder = tmp_path / "weights"
    with pytest.raises(InputError, match="does not have the sha256"):
        download_weights(f"{url}/a.pt", folder / "a.pt", "0" * 64)
    with pytest.raises(InputError, match="could not be fetched .*404.*; fetch it by hand and give its path"):
        download_weights(f"{url}/b.pt", folder / "b.pt", sha256)
    assert list(folder.iterdir()) == []


def test_a_hub_file_needs_a_commit_and_is_checked(tmp_path, monkeypatch):
    asked = {}

    def hf_hub_download(**arguments):
        asked.update(arguments)
        arguments["local_dir"].mkdir()
        torch.save(STATE, arguments["local_dir"] / "a.pt")
        return str(arguments["local_dir"] / "a.pt")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    commit = "0123456789" * 4
    for url in ("hf://owner/name/a.pt", "hf://owner/name@main/a.pt"):
        with pytest.raises(InputError, match="with the 40 digits of a commit"):
            download_weights(url, tmp_path / "a.pt", "0" * 64)
    with pytest.raises(InputError, match="does not have the sha256"):
        download_weights(f"hf://owner/name@{commit}/sub/a.pt", tmp_path / "a.pt", "0" * 64)
    assert not (tmp_path / "a.pt").exists()
    assert (asked["repo_id"], asked["revision"], asked["filename"]) == ("owner/name", commit, "sub/a.pt")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="needs the package huggingface_hub"):
        download_weights(f"hf://owner/name@{'0' * 40}/a.pt", tmp_path / "a.pt", "0" * 64)
