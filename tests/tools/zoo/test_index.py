from __future__ import annotations

import hashlib
import json
import types
import zipfile

from monai.bundle import scripts

from med3d_ext.tools import cli
from med3d_ext.tools.zoo.pack import pack


def index(*words):
    return cli.main(["zoo", "index", *map(str, words)])


def listed(zoo):
    return json.loads((zoo / "models" / "model_info.json").read_text())


def test_each_version_is_listed_as_the_model_zoo_lists_it(zoo):
    assert index(zoo) == 0
    assert list(listed(zoo)) == ["tiny_segmentation_v0.1.0", "tiny_segmentation_v0.2.0"]
    for key, entry in listed(zoo).items():
        content = (zoo / f"{key}.zip").read_bytes()
        assert entry == {
            "checksum": hashlib.sha1(content).hexdigest(),
            "source": f"{key}.zip",
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def test_monai_reads_it(zoo, monkeypatch):
    assert index(zoo, "--url", "https://example.org/files/") == 0
    asked = []

    def get(url, **_):
        asked.append(url)
        return types.SimpleNamespace(text=(zoo / "models" / "model_info.json").read_text(), raise_for_status=bool)

    monkeypatch.setattr(scripts, "requests", types.SimpleNamespace(get=get))
    monkeypatch.setattr(scripts, "has_requests", True)
    assert scripts.get_all_bundles_list(repo="us/zoo", tag="main") == [("tiny_segmentation", "0.2.0")]
    found = scripts.get_bundle_info("tiny_segmentation", repo="us/zoo", tag="main")
    assert found["browser_download_url"] == "https://example.org/files/tiny_segmentation_v0.2.0.zip"
    assert set(asked) == {"https://raw.githubusercontent.com/us/zoo/main/models/model_info.json"}


def test_a_version_is_never_listed_with_other_content_unasked(zoo, tiny, change, capsys):
    index(zoo)
    before = listed(zoo)
    change(tiny / "configs" / "metadata.json", version="0.1.0")
    (tiny / "docs" / "README.md").write_text("# Other\n")
    pack(str(tiny), str(zoo), overwrite=True)
    assert index(zoo) == 2
    assert "lists tiny_segmentation_v0.1.0 with other content; raise its version" in capsys.readouterr().err
    assert listed(zoo) == before
    assert index(zoo, "--overwrite") == 0
    assert listed(zoo) != before


def test_what_is_no_bundle_is_refused(zoo, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert index(tmp_path / "empty") == 2
    assert "holds no archive NAME_vVERSION.zip" in capsys.readouterr().err
    (zoo / "tiny_segmentation_v0.1.0.zip").rename(zoo / "tiny_segmentation_v0.3.0.zip")
    assert index(zoo) == 2
    assert "tiny_segmentation_v0.3.0.zip' holds version 0.1.0; pack it again." in capsys.readouterr().err
    with zipfile.ZipFile(zoo / "tiny_segmentation_v0.3.0.zip", "w") as archive:
        archive.writestr("other/file.txt", "x")
    assert index(zoo) == 2
    assert "is not a bundle's archive" in capsys.readouterr().err
    (zoo / "tiny_segmentation_v0.3.0.zip").write_bytes(b"PK")
    assert index(zoo) == 2
    assert "tiny_segmentation_v0.3.0.zip' is damaged" in capsys.readouterr().err
    assert not (zoo / "models").exists()
