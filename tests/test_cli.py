from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest
import torch

from med3d_ext.errors import InputError
from med3d_ext.networks.resnet import ResNetEncoder
from med3d_ext.tools import cli
from med3d_ext.weights.files import read_checkpoint


@pytest.fixture
def calls(monkeypatch):
    """A verb that writes down how it was called."""
    calls = []

    def verb(
        file: str,
        output: str | None = None,
        *rest: str,
        number: int = 3,
        share: float | None = None,
        as_json: bool = False,
    ):
        """Do something.

        Args:
            file: which file.
        """
        calls.append((file, output, rest, number, share, as_json))
        if file == "broken":
            raise RuntimeError("broken")
        if file == "wrapped":
            raise RuntimeError("a component failed") from InputError("'wrapped' is wrong; give another.")
        if file == "wrong":
            raise InputError("'wrong' is wrong; give another.")

    monkeypatch.setitem(sys.modules, "a_module_of_verbs", types.SimpleNamespace(verb=verb))
    monkeypatch.setitem(cli.VERBS, "some verb", cli.Verb("a_module_of_verbs:verb", "something"))
    return calls


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["a"], ("a", None, (), 3, None, False)),
        (["2024"], ("2024", None, (), 3, None, False)),
        (["--as_json", "a"], ("a", None, (), 3, None, True)),
        (["--as-json", "a"], ("a", None, (), 3, None, True)),
        (["-a", "a"], ("a", None, (), 3, None, True)),
        (["--as_json=False", "a"], ("a", None, (), 3, None, False)),
        (["a", "--output", "1e5", "--number", "7", "--share=1"], ("a", "1e5", (), 7, 1, False)),
        (["a", "b", "c", "[1,2]", "--share", "0.5"], ("a", "b", ("c", "[1,2]"), 3, 0.5, False)),
    ],
)
def test_words_arrive_as_typed(words, call, calls):
    assert cli.main(["some", "verb", *words]) == 0
    assert calls == [call]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "file"),
        (["a", "--jsom"], "--jsom"),
        (["a", "--number", "ten"], "--number must be a whole number, got 'ten'"),
        (["a", "--as_json=maybe"], "--as_json must be a switch without a value, got 'maybe'"),
        (["a", "--share=x"], "--share must be a number, got 'x'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(words, named, calls, capsys):
    assert cli.main(["some", "verb", *words]) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.startswith("some verb: ")
    assert message.count("\n") == 1
    assert calls == []


@pytest.mark.parametrize("file", ["wrong", "wrapped"])
def test_an_input_error_is_the_message_alone_and_another_keeps_its_traceback(file, calls, capsys):
    assert cli.main(["some", "verb", file]) == 2
    assert capsys.readouterr() == ("", f"'{file}' is wrong; give another.\n")
    with pytest.raises(RuntimeError, match="broken"):
        cli.main(["some", "verb", "broken"])


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_of_a_verb_comes_from_its_docstring(word, calls, capsys):
    assert cli.main(["some", "verb", word]) == 0
    text = capsys.readouterr().out
    assert "python -m med3d_ext some verb FILE" in text
    assert "which file." in text
    assert calls == []


def test_help_lists_every_verb_and_a_group_alone_its_own(calls, capsys):
    for words in ([], ["--help"]):
        assert cli.main(words) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in cli.VERBS)
    assert cli.main(["weights"]) == 0
    text = capsys.readouterr().out
    assert "weights inspect" in text and "some verb" not in text


@pytest.mark.parametrize(
    ("words", "nearest"),
    [(["weights", "inspekt"], "weights inspect"), (["weigths"], "weights "), (["some"], None)],
)
def test_an_unknown_verb_is_named_with_the_nearest(words, nearest, capsys):
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert f"There is no verb '{' '.join(words)}'" in message
    assert nearest is None or f"the nearest is '{nearest}" in message


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_exists_and_its_help_works(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    assert "SYNOPSIS" in capsys.readouterr().out


def test_the_module_runs_and_its_exit_code_tells(tmp_path):
    result = subprocess.run([sys.executable, "-m", "med3d_ext", "nonsense"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("There is no verb 'nonsense'")


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory):
    path = tmp_path_factory.mktemp("kinetics") / "2018.pth"
    state = {f"module.{name}": value for name, value in ResNetEncoder("resnet10", in_channels=3).state_dict().items()}
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"arch": "resnet-10", "epoch": 1, "optimizer": {}, "state_dict": state}, path)
    return path


def test_weights_inspect_tells_what_a_file_holds(kinetics, capsys):
    assert cli.main(["weights", "inspect", str(kinetics)]) == 0
    text = capsys.readouterr().out
    for fact in ("kinetics (Kinetics", "resnet10", "basic, stages of 1, 1, 1, 1 blocks", "14,399,424", "float32"):
        assert fact in text
    assert cli.main(["weights", "inspect", "--json", str(kinetics)]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["network_name"], content["shortcut"], content["in_channels"]) == ("resnet10", "B", 3)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_convert_writes_what_an_encoder_loads_as_it_is(suffix, kinetics, tmp_path, capsys):
    out = tmp_path / f"encoder{suffix}"
    assert cli.main(["weights", "convert", str(kinetics), str(out)]) == 0
    assert "ResNetEncoder(name='resnet10', in_channels=1, shortcut='B')" in capsys.readouterr().out
    state, _ = read_checkpoint(out)
    ResNetEncoder("resnet10").load_state_dict(state)
    stem = torch.load(kinetics)["state_dict"]["module.conv1.weight"]
    torch.testing.assert_close(state["conv1.weight"], stem.sum(1, keepdim=True))

    assert cli.main(["weights", "convert", str(kinetics), str(out), "--in_channels", "3"]) == 2
    assert "exists; give another name or --overwrite" in capsys.readouterr().err
    assert cli.main(["weights", "convert", str(kinetics), str(out), "--in_channels", "3", "--overwrite"]) == 0
    assert torch.equal(read_checkpoint(out)[0]["conv1.weight"], stem)


def test_weights_convert_keeps_half_precision(tmp_path):
    state = {
        name: value.half() for name, value in ResNetEncoder("resnet10").state_dict().items() if "tracked" not in name
    }
    torch.save(state, tmp_path / "half.pt")
    assert cli.main(["weights", "convert", str(tmp_path / "half.pt"), str(tmp_path / "out.pt")]) == 0
    assert read_checkpoint(tmp_path / "out.pt")[0]["conv1.weight"].dtype == torch.float16


def test_weights_convert_refuses_what_is_no_whole_encoder(kinetics, tmp_path, capsys):
    state = ResNetEncoder("resnet10").state_dict()
    torch.save({name: value for name, value in state.items() if "layer4" not in name}, tmp_path / "part.pt")
    torch.save({name: value for name, value in state.items() if name != "bn1.bias"}, tmp_path / "gap.pt")
    for name, words, reason in (
        ("part.pt", [], "holds no known encoder (stages of 1, 1, 1 blocks)"),
        ("gap.pt", [], "lacks 1 tensors, bn1.bias first"),
        ("gap.pt", ["--in_channels", "0"], "--in_channels must be at least 1"),
    ):
        assert cli.main(["weights", "convert", str(tmp_path / name), str(tmp_path / "out.pt"), *words]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()


def test_the_home_folder_is_expanded_in_every_argument(calls, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.main(["some", "verb", "~/a", "--output=$HOME/b", "~/c"]) == 0
    assert calls[0][:3] == ("/home/me/a", "/home/me/b", ("/home/me/c",))


def test_a_stop_is_a_line_and_debug_shows_a_traceback(calls, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(InputError, match="'wrong' is wrong"):
        cli.main(["some", "verb", "wrong", "--debug"])
    monkeypatch.setattr(cli, "_run", stop)
    assert cli.main(["some", "verb", "a"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_reader_that_has_read_enough_ends_a_verb_without_a_traceback():
    command = [sys.executable, "-m", "med3d_ext", "--help"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes)
    process.stdout.close()
    assert process.wait(timeout=60) in (141, 0)
    assert process.stderr.read() == b""
