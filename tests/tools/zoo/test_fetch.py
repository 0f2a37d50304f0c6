from __future__ import annotations

import hashlib
import http.server
import json
import os
import stat
import sys
import threading
import zipfile
from functools import partial

import pytest
import torch
import yaml

from med3d_ext.tools import cli
from med3d_ext.tools.zoo.fetch import index

NAME = "tiny_segmentation"
ZIP = f"{NAME}_v0.2.0.zip"


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path.startswith("/short/"):  # a connection that breaks
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"PK\x03\x04")
        elif self.path.startswith("/error/"):
            self.send_error(500)
        else:
            super().do_GET()


@pytest.fixture
def zoo(zoo):
    index(str(zoo))
    return zoo


@pytest.fixture
def serve():
    servers = []

    def start(folder):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fetch(tmp_path):
    """Runs the verb with an output folder of its own: ``fetch(source, name, ...)``."""

    def run(source, *words, name=NAME):
        words = map(str, ("--source", source, "--output", run.out, *words))
        return cli.main(["zoo", "fetch", name, *words])

    run.out = tmp_path / "out" / "deep"
    return run


@pytest.fixture
def refused(fetch, capsys):
    """What a refused fetch says, after checking that it left nothing behind."""

    def run(*words, **options):
        assert fetch(*words, **options) == 2
        assert not fetch.out.exists()
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    return run


def version_of(folder):
    return json.loads((folder / "configs" / "metadata.json").read_text())["version"]


def archive(folder, entries, name=ZIP):
    """An archive with its checksum beside it."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as file:
        for entry, content in entries:
            file.writestr(entry, content)
    (folder / f"{name}.sha256").write_text(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n")
    return folder


def of_bundle(zoo, *more, without=()):
    """The entries of a good archive and more."""
    with zipfile.ZipFile(zoo / ZIP) as file:
        kept = [(entry, file.read(entry)) for entry in file.infolist() if entry.filename not in without]
    return [*kept, *more]


@pytest.mark.parametrize("served", [False, True])
def test_the_newest_version_arrives_whole_from_a_folder_or_an_address(served, zoo, serve, fetch, capsys):
    assert fetch(serve(zoo) if served else zoo) == 0
    assert f"{NAME} 0.2.0, sha1 and sha256 as published" in capsys.readouterr().out
    assert os.listdir(fetch.out) == [NAME]
    with zipfile.ZipFile(zoo / ZIP) as file:
        for entry in file.infolist():
            assert (fetch.out / entry.filename).read_bytes() == file.read(entry)


@pytest.mark.parametrize("words", [("--version", "0.1.0"), ()])
def test_a_version_is_named_by_option_or_with_the_bundle(words, zoo, fetch):
    assert fetch(zoo, *words, name=NAME if words else f"{NAME}_v0.1.0") == 0
    assert version_of(fetch.out / NAME) == "0.1.0"


def test_without_an_index_the_checksum_beside_the_archive_counts(zoo, serve, fetch, refused):
    (zoo / "models" / "model_info.json").unlink()
    url = serve(zoo)
    assert "has no models/model_info.json; say which --version" in refused(url)
    for source, words in ((url, ("--version", "0.2.0")), (f"{url}/{ZIP}", ()), (zoo, ()), (zoo / ZIP, ())):
        assert fetch(source, *words) == 0
        assert version_of(fetch.out / NAME) == "0.2.0"
        for path in sorted(fetch.out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        fetch.out.rmdir()


def test_the_model_zoos_own_index_has_sha1_alone(zoo, serve, fetch, refused):
    url = serve(zoo)
    path = zoo / "models" / "model_info.json"
    entries = {
        key: {"checksum": entry["checksum"], "source": f"{url}/{key}.zip"}
        for key, entry in json.loads(path.read_text()).items()
    }
    path.write_text(json.dumps(entries))
    for file in zoo.glob("*.sha256"):
        file.unlink()
    assert fetch(url) == 0
    entries[f"{NAME}_v0.1.0"]["checksum"] = "0" * 40
    path.write_text(json.dumps(entries))
    os.rename(fetch.out, fetch.out.with_name("before"))
    assert f"must have the sha1 {'0' * 40}, it has" in refused(url, "--version", "0.1.0")


def test_an_existing_folder_stays_as_it_is(zoo, fetch, capsys):
    (fetch.out / NAME).mkdir(parents=True)
    assert fetch(zoo) == 2
    assert "exists and stays as it is; give another --output" in capsys.readouterr().err
    assert os.listdir(fetch.out / NAME) == []


@pytest.mark.parametrize("served", [False, True])
def test_one_changed_byte_is_refused(served, zoo, serve, refused):
    content = bytearray((zoo / ZIP).read_bytes())
    content[len(content) // 2] ^= 1
    (zoo / ZIP).write_bytes(content)
    source = serve(zoo) if served else zoo
    assert "must have the sha256" in refused(source)
    (zoo / "models" / "model_info.json").unlink()
    assert "must have the sha256" in refused(source, "--version", "0.2.0")


def test_a_wrong_checksum_is_refused_wherever_it_stands(zoo, refused):
    assert f"must have the sha256 {'0' * 64}, it has" in refused(zoo, "--sha256", "0" * 64)
    path = zoo / "models" / "model_info.json"
    entries = json.loads(path.read_text())
    for key in ("sha256", "checksum"):
        changed = {**entries[f"{NAME}_v0.2.0"], key: "0" * 40}
        path.write_text(json.dumps({**entries, f"{NAME}_v0.2.0": changed}))
        assert f"{'0' * 40}, it has" in refused(zoo)


def test_an_archive_without_a_checksum_needs_one_by_hand(zoo, fetch, refused):
    (zoo / f"{ZIP}.sha256").unlink()
    assert "has no checksum next to it; give its --sha256" in refused(zoo / ZIP)
    assert fetch(zoo / ZIP, "--sha256", hashlib.sha256((zoo / ZIP).read_bytes()).hexdigest().upper()) == 0


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f"{NAME}/../../evil.txt", "would be written outside the bundle's folder"),
        ("../evil.txt", "would be written outside the bundle's folder"),
        ("ABSOLUTE", "would be written outside the bundle's folder"),
        (f"{NAME}\\..\\..\\evil.txt", "would be written outside the bundle's folder"),
        ("C:/evil.txt", "would be written outside the bundle's folder"),
        ("other/evil.txt", f"is not in the one folder '{NAME}'"),
        ("evil.txt", f"is not in the one folder '{NAME}'"),
        (f"{NAME}/LICENSE", "is there twice"),
        (f"{NAME}/docs/LINK", "is a link"),
        (f"{NAME}/models/extra.pkl", "is a plain pickle"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_an_entry_that_may_do_harm_is_refused(entry, said, zoo, refused, tmp_path):
    inside = zipfile.ZipInfo("x")
    inside.filename = entry.replace("ABSOLUTE", str(tmp_path / "evil.txt"))  # the constructor would clean it
    inside.external_attr = ((stat.S_IFLNK if "LINK" in entry else stat.S_IFREG) | 0o777) << 16
    source = archive(tmp_path / "evil", of_bundle(zoo, (inside, "evil")))
    before = set(tmp_path.rglob("*"))
    assert said in refused(source)
    assert set(tmp_path.rglob("*")) == before


def test_a_damaged_archive_and_one_that_is_none_are_refused(zoo, refused, tmp_path):
    for content in (b"<html>not found</html>", b"", (zoo / ZIP).read_bytes()[:-100]):
        (tmp_path / ZIP).write_bytes(content)
        assert "is damaged" in refused(tmp_path / ZIP, "--sha256", hashlib.sha256(content).hexdigest())
    content = bytearray((zoo / ZIP).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / ZIP).write_bytes(content)
    assert "is damaged" in refused(tmp_path / ZIP, "--sha256", hashlib.sha256(content).hexdigest())
    source = archive(tmp_path / "clash", of_bundle(zoo, (f"{NAME}/LICENSE/file", "x")))
    assert "is damaged" in refused(source)


def test_an_archive_larger_than_the_disk_is_refused(zoo, refused, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("med3d_ext.tools.zoo.fetch.shutil.disk_usage", lambda folder: free)
    assert "unpacks to" in refused(zoo)


@pytest.mark.parametrize("name", ["model.pt", "more.ckpt"])
def test_code_in_weights_is_named_and_never_run(name, zoo, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": torch.ones(1)}, "extra": Code()}, tmp_path / name)
    inside = f"{NAME}/models/{name}"
    source = archive(tmp_path / "evil", of_bundle(zoo, (inside, (tmp_path / name).read_bytes()), without=(inside,)))
    assert refused(source).startswith(f"'models/{name}' holds code (posix.mkdir), which is never run")
    assert not (tmp_path / "ran").exists()


def test_only_an_address_needs_the_package_that_downloads(zoo, serve, fetch, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert 'needs the package pooch; `pip install "med3d-ext[tools]"`' in refused(serve(zoo))
    assert fetch(zoo) == 0


def test_what_a_source_has_not_is_named_with_what_it_has(zoo, serve, refused, tmp_path):
    assert f"has no 'other'; it has {NAME}_v0.1.0, {NAME}_v0.2.0." in refused(zoo, name="other")
    assert "has no version 0.9.0 of tiny_segmentation; it has 0.1.0, 0.2.0." in refused(zoo, "--version", "0.9.0")
    assert "--source must be a folder or an address" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no tiny_segmentation_vVERSION.zip and no models" in refused(tmp_path / "empty")
    assert "there is no" in refused(serve(tmp_path / "empty"), "--version", "0.1.0", "--sha256", "0" * 64)
    assert "name must be a bundle's" in refused(zoo, name="../x")
    assert "disagree; give one of them" in refused(zoo, "--version", "0.1.0", name=f"{NAME}_v0.2.0")
    (zoo / "models" / "model_info.json").write_text("[]")
    assert "is not a zoo's index" in refused(zoo)


def test_a_server_that_fails_or_breaks_off_leaves_nothing(zoo, serve, refused):
    url = serve(zoo)
    sha256 = ("--sha256", "0" * 64)
    assert "99996 more expected" in refused(f"{url}/short/{ZIP}", *sha256)
    assert "cannot be fetched (500 Server Error" in refused(f"{url}/error/{ZIP}", *sha256)
    assert "check address and network" in refused(f"http://127.0.0.1:9/{ZIP}", *sha256)


def test_an_archive_that_is_no_bundle_of_this_version_or_has_a_broken_list_is_refused(zoo, refused, tmp_path):
    source = archive(tmp_path / "a", [(f"{NAME}/file.txt", "x")])
    assert "contains no bundle" in refused(source)
    source = archive(tmp_path / "b", of_bundle(zoo), name=f"{NAME}_v0.3.0.zip")
    assert "says that it is version 0.2.0, not 0.3.0" in refused(source, "--version", "0.3.0")
    name = f"{NAME}/large_files.yml"
    for text in ("[1, 2", "just text", "large_files: [text]"):
        source = archive(tmp_path / "c", of_bundle(zoo, (name, text), without=(name,)))
        assert "'large_files.yml' is not a list of large files" in refused(source)


@pytest.fixture
def outside(zoo, tmp_path, serve):
    """An archive whose weights lie elsewhere: ``make(**changes)`` of the list's entry."""

    def make(**changes):
        folder = tmp_path / "outside"
        inside = f"{NAME}/models/model.pt"
        with zipfile.ZipFile(zoo / ZIP) as file:
            content = file.read(inside)
        folder.mkdir(exist_ok=True)
        (folder / "weights.pt").write_bytes(content)
        entry = {
            "path": "models/model.pt",
            "url": f"{serve(folder)}/weights.pt",
            "hash_val": hashlib.sha256(content).hexdigest(),
            "hash_type": "sha256",
            **changes,
        }
        lists = (f"{NAME}/large_files.yml", yaml.safe_dump({"large_files": [entry]}))
        return archive(folder, of_bundle(zoo, lists, without=(inside, lists[0])))

    return make


def test_large_files_are_fetched_with_their_hash(outside, fetch, capsys):
    assert fetch(outside()) == 0
    assert "sha256 as published, with models/model.pt" in capsys.readouterr().out
    assert torch.load(fetch.out / NAME / "models" / "model.pt", weights_only=True).keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hash_val": "0" * 64}, "must have the sha256"),
        ({"hash_val": ""}, "has no sha256 for 'models/model.pt'"),
        ({"hash_type": "md5"}, "has no sha256 for 'models/model.pt'"),
        ({"path": "../../model.pt"}, "would write outside the bundle"),
        ({"path": "/tmp/model.pt"}, "would write outside the bundle"),
        ({"url": "file:///etc/passwd"}, "must give 'models/model.pt' an http(s) url"),
    ],
)
def test_a_large_file_that_nobody_can_check_is_refused(changes, said, outside, refused):
    assert said in refused(outside(**changes))


def test_code_in_a_large_file_is_refused(outside, refused, tmp_path):
    outside()
    folder = tmp_path / "outside"
    torch.save({"x": Code()}, folder / "evil.pt")
    evil = {"hash_val": hashlib.sha256((folder / "evil.pt").read_bytes()).hexdigest()}
    source = outside(**evil)
    os.replace(folder / "evil.pt", folder / "weights.pt")
    assert "holds code" in refused(source)
