"""What a bundle's metadata, README and card say, as the texts that hosts show."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from med3d_ext.io.files import read_json
from med3d_ext.tools.zoo.checks import METADATA


def model_card(bundle: Path) -> str:
    """The README of a Hugging Face repository: the front matter that the hub reads, then the bundle's own README.

    Args:
        bundle: the bundle's folder as it is shared.
    """
    readme = (bundle / "docs" / "README.md").read_text(encoding="utf-8").strip()
    return f"---\n{_front_matter(bundle)}---\n\n{readme}\n\n## These weights\n\n{facts(bundle)}\n{_hub(bundle)}"


def release_notes(bundle: Path) -> str:
    """The text of a GitHub release: what changed, what the weights are, how to get them.

    Args:
        bundle: the bundle's folder as it is shared.
    """
    metadata = read_json(bundle / METADATA)
    version, name = metadata["version"], bundle.name
    data = (bundle / "docs" / "data_license.txt").read_text(encoding="utf-8").strip()
    return "\n".join(
        [
            f"# {metadata.get('name', name)} {version}\n",
            f"{metadata['changelog'][version]}\n",
            f"{metadata.get('description', '')}. {metadata.get('intended_use', '')}\n",
            f"## Weights\n\n{facts(bundle)}",
            "## Use\n\n```",
            f"python -m monai.bundle download --name {name} --url <this release>/{name}_v{version}.zip --bundle_dir .",
            f"python -m monai.bundle run --config_file {name}/configs/inference.json --dataset_dir <folder of images>",
            "```\n\n`sha256sum --check SHA256SUMS` checks the files.\n",
            f"## Data\n\n```\n{data}\n```\n",
        ]
    )


def facts(bundle: Path) -> str:
    """What the card beside the weights says of them, as a list."""
    card = read_json(bundle / "models" / "card.json")
    lines = [f"- network: `{card.get('network')}`"]
    if "weights" in card:
        lines.append(f"- **{card['weights']}**")
    else:
        lines.append(f"- started from: `{card.get('init')}`, {card.get('epochs')} epochs, seed {card.get('seed')}")
    if card.get("best"):
        best = {name: value for name, value in card["best"].items() if name != "epoch"}
        figures = ", ".join(f"{name} {value:.3f}" for name, value in best.items())
        lines.append(f"- on the validation cases, by which the epoch was chosen: {figures}")
    for part, cases in card.get("cases", {}).items():
        counts = Counter(case.get("domain") for case in cases)
        each = ", ".join(f"{domain} {count}" for domain, count in counts.items())
        lines.append(f"- {part.replace('_', ' ')} cases: {len(cases)}" + (f" ({each})" if each else ""))
    if "precision" in card:
        lines.append(f"- {card['precision']}")
    lines.append("- `models/card.json` lists the SHA-256 of every image that they have seen")
    return "\n".join(lines) + "\n"


def _front_matter(bundle: Path) -> str:
    """YAML of plain keys; a JSON text is a YAML text, too, and needs no rules of its own for quotes."""
    metadata = read_json(bundle / METADATA)
    formats = metadata.get("network_data_format", {})
    segments = formats.get("outputs", {}).get("pred", {}).get("format") == "segmentation"
    modality = formats.get("inputs", {}).get("image", {}).get("modality")
    values: dict[str, Any] = {
        "license": "other",  # the code's is Apache 2.0; data behind the weights have terms of their own
        "license_name": "apache-2.0-and-data-terms",
        "license_link": "docs/data_license.txt",
        "library_name": "monai",
        "pipeline_tag": "image-segmentation" if segments else "image-classification",
        "tags": ["monai", "medical", "3d", "med3d", *([modality.lower()] if modality else [])],
        "description": metadata.get("description", ""),
    }
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def _hub(bundle: Path) -> str:
    name = bundle.name
    get = f"python -m monai.bundle download --name {name} --source huggingface_hub --repo <owner>/{name} --bundle_dir ."
    return f"\n## From this hub\n\n```\n{get}\n```\n\nIt needs `pip install huggingface_hub`.\n"
