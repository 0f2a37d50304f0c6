"""Every command in the documentation names options that exist."""

from __future__ import annotations

import inspect
import json
import re
import shlex

import pytest
from bundle_files import BUNDLES, REPOSITORY, merged

from med3d_ext.tools.bundle_folder import fault_of
from med3d_ext.tools.cli import VERBS
from med3d_ext.tools.new_bundle.configs import own_configs
from med3d_ext.tools.new_bundle.plan import Plan

PAGES = [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("bundles/*/docs/*.md")]
COMMAND = re.compile(r"-m (monai\.bundle run |med3d_ext )([^`|#&\n]*)")
CONFIG = re.compile(r"(?:(\w+)/configs/)?(\w+)\.json")


def commands(page):
    """Programs and their words, each command on one line and with the variables of the page in it."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, value in re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE):
        text = text.replace(f"${name}", value)
    for program, rest in COMMAND.findall(text):
        yield program.strip(), shlex.split(rest)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Those of the checkout, and one that ``new-bundle`` writes."""
    own = tmp_path_factory.mktemp("bundles") / "my_spleen"
    (own / "configs").mkdir(parents=True)
    plan = Plan(2, [96, 96, 96], 60, 6, [72, 72, 96], 60, "two stages")
    for name, config in own_configs(REPOSITORY / "bundles", plan, "CT", 2, None).items():
        (own / "configs" / f"{name}.json").write_text(json.dumps(config))
    return [*BUNDLES, own]


def fits_a_bundle(bundles, names, configs, page):
    """Whether one of the bundles that a command may mean has all these ids."""
    meant = {bundle for bundle, _ in configs} | set(page.parts)
    files = [name for _, name in configs]
    for bundle in [bundle for bundle in bundles if bundle.name in meant] or bundles:
        if all((bundle / "configs" / f"{name}.json").is_file() for name in files):
            config = merged(bundle, *files)
            if all(fault_of(config, name, 1) is None for name in names):
                return True
    return False


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_options_of_every_documented_command_exist(page, bundles):
    for program, words in commands(page):
        names = {word.strip("[]-").partition("=")[0] for word in words if re.match(r"\[?--\w", word)} - {
            "debug",
            "help",
        }
        if program == "monai.bundle run":
            configs = [found for word in words for found in CONFIG.findall(word)] or [("", "train")]
            ids = names - {"config_file", "tracking"}
            assert fits_a_bundle(bundles, ids, configs, page), words
        elif words and words[0] not in ("VERB", "--help"):
            verb = next(verb for verb in (" ".join(words[:2]), words[0]) if verb in VERBS)
            parameters = inspect.signature(VERBS[verb].load()).parameters
            ids = names - parameters.keys()  # if the verb passes options on, those of a config
            assert not ids or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()), words
            for name in ids:
                assert any(fits_a_bundle(bundles, [name], [("", file)], page) for file in ("train", "inference")), (
                    words,
                    name,
                )
