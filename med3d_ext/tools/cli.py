"""``python -m med3d_ext <verb>``: a table of verbs; fire reads the arguments of the one that was typed.

A verb is a plain function: its annotations and docstring are its command line and its help. Its module is imported
when the verb is typed, so that help and mistakes answer at once. What it returns is printed.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import logging
import os
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from med3d_ext.errors import FaultyCases, InputError
from med3d_ext.run.one_line import user_message

PROGRAM = "python -m med3d_ext"

KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("a switch without a value", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    int | None: ("a whole number", (int, type(None))),
    float | None: ("a number", (int, float, type(None))),
}


# What MONAI imports if it is installed, seconds in all, and no segmentation of an image uses.
FOR_OTHERS = ("mlflow", "clearml", "sklearn", "pandas", "transformers", "matplotlib.pyplot")


@dataclass(frozen=True)
class Verb:
    """Where a verb's function lies (``module:function``) and what it does, in one line.

    A ``lean`` verb imports MONAI as if :data:`FOR_OTHERS` were not installed; later imports of these are as usual.
    """

    target: str
    summary: str
    lean: bool = False

    def load(self) -> Callable[..., Any]:
        module, _, function = self.target.partition(":")
        hidden: dict[str, Any] = dict.fromkeys([name for name in FOR_OTHERS if self.lean and name not in sys.modules])
        sys.modules.update(hidden)  # None: Python's own way to say that there is no such module
        try:
            return getattr(importlib.import_module(module), function)
        finally:
            for name in hidden:
                del sys.modules[name]


VERBS = {
    "prepare": Verb("med3d_ext.tools.layouts.prepare:prepare", "read, check and split a data set"),
    "phantoms": Verb("med3d_ext.tools.phantoms.dataset:phantom_dataset", "generate patients to try things on"),
    "new-bundle": Verb("med3d_ext.tools.new_bundle:new_bundle", "write a bundle for your own labeled volumes"),
    "report": Verb("med3d_ext.tools.report:report", "put a run on one page: figures, curves, overlays, origin"),
    "rerun": Verb("med3d_ext.tools.rerun:rerun", "repeat a recorded training and compare the two"),
    "check": Verb("med3d_ext.tools.check.verb:check", "what would go wrong in a run, before it begins"),
    "benchmark": Verb("med3d_ext.tools.benchmark:benchmark", "estimate how long a training takes on this machine"),
    "leakage": Verb("med3d_ext.data.leakage:leakage", "list the cases of a datalist that weights have seen"),
    "compare": Verb(
        "med3d_ext.tools.experiments.compare:compare", "train from scratch and from other weights, and compare"
    ),
    "predict": Verb("med3d_ext.tools.predict.verb:predict", "turn images into label maps and volumes", lean=True),
    "export": Verb("med3d_ext.tools.export:export", "write network and weights as TorchScript or ONNX"),
    "evaluate": Verb("med3d_ext.tools.evaluate:evaluate", "compare label maps with the truth"),
    "weights inspect": Verb("med3d_ext.tools.weights:inspect", "show what a weights file contains"),
    "weights join": Verb("med3d_ext.tools.weights:join", "write both networks of the LiTS cascade to one file"),
    "weights convert": Verb("med3d_ext.tools.weights:convert", "turn any known weights file into a flat encoder"),
    "weights release": Verb("med3d_ext.tools.weights:release", "make weights as small as the released ones"),
    "zoo describe": Verb("med3d_ext.tools.zoo.describe:describe", "describe released weights in metadata and README"),
    "zoo pack": Verb("med3d_ext.tools.zoo.pack:pack", "pack a bundle as a zip archive that runs anywhere"),
    "zoo index": Verb("med3d_ext.tools.zoo.fetch:index", "list a folder of archives in models/model_info.json"),
    "zoo publish": Verb(
        "med3d_ext.tools.zoo.pack:publish", "prepare the folders of a GitHub release and a Hugging Face repository"
    ),
    "zoo fetch": Verb("med3d_ext.tools.zoo.fetch:fetch", "fetch a bundle from a folder or an address, and check it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: the words after the program's name. Defaults to those of the process.

    Returns:
        exit code: 0, or 2 after a mistake in the command line or in what it names; such a mistake is one line on
        stderr, without a traceback (``--debug`` shows it). 1 when cases of a data set are faulty; each is a line. 130
        after Ctrl-C.
    """
    words = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    debug = "--debug" in words
    try:
        _run([word for word in words if word != "--debug"])
        sys.stdout.flush()  # at the process's end a closed pipe could no longer be told from a fault
        return 0
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        message = None if debug else user_message(error)  # MONAI wraps what goes wrong in its components
        if message is None:
            raise
        print(message, file=sys.stderr)
        return 1 if isinstance(error, FaultyCases) else 2


def _run(words: list[str]) -> None:
    """Run the verb that the words start with, or print the help that they ask for."""
    groups = {verb.split()[0] for verb in VERBS if " " in verb}
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in VERBS), None)
    if name is not None:
        function = VERBS[name].load()
        call = _parse(function, name, words[len(name.split()) :])
        if call is not None:
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            result = function(*call[0], **call[1])
            if result is not None:
                print(result)
    elif not words or words[0] in ("-h", "--help", "help"):
        _overview(VERBS)
    elif words[0] in groups and (len(words) == 1 or words[1] in ("-h", "--help")):
        _overview({verb: VERBS[verb] for verb in VERBS if verb.startswith(f"{words[0]} ")})
    else:
        typed = " ".join(words[: 2 if words[0] in groups else 1])
        nearest = difflib.get_close_matches(typed, VERBS, n=1, cutoff=0.0)
        raise InputError(f"There is no verb '{typed}'; the nearest is '{nearest[0]}', `{PROGRAM} --help` lists all.")


def _overview(verbs: dict[str, Verb]) -> None:
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in verbs.items()]
    hint = f"`{PROGRAM} VERB --help` shows a verb's arguments."
    print("\n".join([f"{PROGRAM} VERB [ARGUMENTS]", "", *lines, "", hint]))


def _parse(function: Callable[..., Any], name: str, words: list[str]) -> tuple[tuple, dict] | None:
    """Let fire bind ``words`` to the function's arguments without calling it; None after printing help.

    fire itself would call the function first and complain about a mistyped flag afterwards.

    Raises:
        InputError: a word fits no argument, or one is missing.
    """
    import fire
    import fire.decorators
    import fire.helptext
    import fire.parser
    import fire.trace

    if "-h" in words or "--help" in words:
        text = fire.helptext.HelpText(function, trace=fire.trace.FireTrace(function, name="@VERB"))
        print(text.replace("@VERB", f"{PROGRAM} {name}"))
        return None
    calls: list[tuple[tuple, dict]] = []

    @wraps(function)
    def record(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    hints, signature = typing.get_type_hints(function), inspect.signature(function)
    for argument, parameter in signature.parameters.items():
        # Text stays as typed where an argument is annotated so: fire would make a number of ``2024``.
        is_text = hints.get(argument) in (str, str | None)
        if parameter.kind is not parameter.VAR_POSITIONAL:
            fire.decorators.SetParseFn(str if is_text else fire.parser.DefaultParseValue, argument)(record)
        elif is_text:
            fire.decorators.SetParseFn(str)(record)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # fire would print its usage below each mistake
            fire.Fire(record, command=_close_switches(signature, words), name=name)
    except fire.core.FireExit as end:
        reason = end.trace.elements[-1].ErrorAsStr() if end.trace.HasError() else "the arguments do not fit"
        raise InputError(f"{name}: {reason}; `{PROGRAM} {name} --help` shows the arguments.") from None
    args, kwargs = calls[0]
    # A second positional word would fill the switch ``json``; ``--epochs ten`` would arrive as text.
    for argument, value in signature.bind(*args, **kwargs).arguments.items():
        rule, allowed = KINDS.get(hints.get(argument), ("", ()))
        if allowed and type(value) not in allowed:
            raise InputError(f"{name}: --{argument} must be {rule}, got {value!r}.")
    return tuple(map(_expanded, args)), {argument: _expanded(value) for argument, value in kwargs.items()}


def _close_switches(signature: inspect.Signature, words: list[str]) -> list[str]:
    """``--json FILE`` would give FILE to the switch ``json``: write it as ``--json=True FILE``."""
    initials = [name[0] for name in signature.parameters]
    switches: dict[str, str] = {}
    for name in (name for name, parameter in signature.parameters.items() if isinstance(parameter.default, bool)):
        switches |= {f"--{name}": name, f"--{name.replace('_', '-')}": name}
        if initials.count(name[0]) == 1:
            switches[f"-{name[0]}"] = name
    return [f"--{switches[word]}=True" if word in switches else word for word in words]


def _expanded(value: Any) -> Any:
    """``--output=~/x`` reaches a program as it is typed; a shell expands the word ``~/x`` alone."""
    return os.path.expanduser(os.path.expandvars(value)) if str(value).startswith(("~", "$HOME")) else value
