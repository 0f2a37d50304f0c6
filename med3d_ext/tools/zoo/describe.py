"""The verb ``zoo describe``: a bundle's texts say what its released weights are, from their card and records."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from med3d_ext.errors import InputError
from med3d_ext.io.facts import read_facts
from med3d_ext.io.files import read_json, write_atomically
from med3d_ext.tools.bundle_folder import METADATA, find_bundle

README = "docs/README.md"
SECTION = re.compile(r"<!-- weights (?P<card>\w+):.*?<!-- end of weights -->\n", re.DOTALL)
"""The generated part of a README: it begins with a digest of the card that it was written from."""


def describe(bundle: str, *records: str) -> str:
    """Write what a bundle's released weights are into its metadata and README, from their card and records.

    Fills version, changelog line, eval_metrics and grid in configs/metadata.json, and the part of docs/README.md
    between its two `weights` comments: how the weights were trained, and their figures on the test cases.

    Args:
        bundle: a bundle's folder or name; card.json and facts.json are in its weights/.
        records: files such as docs/results/NAME.json, the one with `version`, `change` and the test figures first.
    """
    folder = find_bundle(bundle)
    contents = [read_json(path) for path in records]
    if not contents or not {"version", "change", "test"} <= contents[0].keys():
        raise InputError(
            "the first record must hold version, change and test, as docs/results/lits_fine_cascade.json does."
        )
    card = read_json(folder / "weights" / "card.json")
    domains = read_facts(folder / "weights")["domains"]
    metadata = read_json(folder / METADATA)
    first = contents[0]
    metadata["version"] = first["version"]
    metadata["changelog"] = {**metadata["changelog"], first["version"]: first["change"]}
    scores: dict[str, Any] = {}  # the mean of each metric and the number of test cases; of several domains each
    for name, metrics in first["test"]["domains"].items():
        prefix = f"{name}_" if len(first["test"]["domains"]) > 1 else ""
        scores |= {f"{prefix}{metric.removeprefix('val_')}": facts["mean"] for metric, facts in metrics.items()}
        scores[f"{prefix}n"] = max(facts["n"] for facts in metrics.values())
    metadata["eval_metrics"] = scores
    if len(domains) == 1:
        (domain,) = domains.values()
        for side, name in (("inputs", "image"), ("outputs", "pred")):
            metadata["network_data_format"][side][name]["spatial_shape"] = domain["spatial_size"]
    write_section(folder, "released.md", card, records=contents, domains=domains, version=first["version"])
    text = json.dumps(metadata, indent=2, ensure_ascii=False)  # short lists on one line, as the configs are written
    short = re.compile(r"([\[{])\n *([^\[\]{}]{1,60}?)\n *([\]}])")
    text = short.sub(lambda found: found[1] + re.sub(r"\n *", " ", found[2]) + found[3], text)
    with write_atomically(folder / METADATA, "w") as file:
        file.write(text + "\n")
    return f"'{folder / METADATA}' and '{folder / README}' describe version {first['version']}."


def write_section(folder: Path, template: str, card: dict[str, Any], **values: Any) -> None:
    """Replace the part of a README that is about the weights; an InputError if it has none."""
    path = folder / README
    text = path.read_text(encoding="utf-8")
    if not SECTION.search(text):
        raise InputError(f"'{path}' lacks the lines '<!-- weights 0: -->' and '<!-- end of weights -->'; add them.")
    section = render("section.md", card=card, digest=digest_of(card), body=template, **values)
    with write_atomically(path, "w") as file:
        file.write(SECTION.sub(lambda _: section, text))


def forget_figures(folder: Path, card: dict[str, Any]) -> None:
    """Take figures out of a bundle's texts if they are those of other weights than the card's."""
    found = SECTION.search((folder / README).read_text(encoding="utf-8"))
    if found is None or found["card"] == digest_of(card):
        return
    write_section(folder, "weights.md", card)
    path = folder / METADATA
    path.write_text(json.dumps({**read_json(path), "eval_metrics": {}}, indent=4) + "\n", encoding="utf-8")


def digest_of(card: dict[str, Any]) -> str:
    """Twelve digits that differ between two cards."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:12]


def render(template: str, **values: Any) -> str:
    """A text from ``templates/``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A JSON text is a YAML text, too, and needs no rules of its own for quotes.
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.filters["counts"] = lambda cases: Counter(case.get("domain") for case in cases)
    return environment.get_template(template).render(**values)
