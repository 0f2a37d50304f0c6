"""What a comparison asks of a bundle's configs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from med3d_ext.data.prepare import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.run.overrides import check_overrides, split_id
from med3d_ext.weights.loading import load_encoder

# Options that a comparison sets itself, and what to type instead.
OWN = {
    "init": "--inits",
    "seed": "--seeds",
    "share": "--shares",
    "fold": "--folds",
    "output_dir": "--output",
    "ckpt_dir": "--output",
    "learning_rate": "no option: every arm has the bundle's rate for its initial weights",
    "bundle_root": "no option",
    "train::dataset::cache_dir": "no option: the arms share a cache",
}
NEEDED = ("init", "learning_rate", "seed", "epochs", "output_dir", "ckpt_dir", "dataset_dir", "data", "network_def")
# Where the paper's rates (section 4.2) stand in a bundle, and what they are where it states none.
RATES = {"initial_weights::scratch_learning_rate": 0.01, "initial_weights::pretrained_learning_rate": 0.001}


class BundleConfig:
    """``train.json`` of a bundle, with the options of a command.

    Args:
        bundle: the bundle's folder.
        options: overrides by id.

    Raises:
        InputError: an option matches no id or is set by the comparison itself; or the bundle lacks an id that a
            comparison needs.
    """

    def __init__(self, bundle: Path, options: Mapping[str, Any]) -> None:
        self.bundle = bundle
        self.train = str(bundle / "configs" / "train.json")
        self.evaluate = str(bundle / "configs" / "evaluate.json")
        for file in (self.train, self.evaluate):
            if not Path(file).is_file():
                raise InputError(f"bundle '{bundle}' has no '{file}', without which nothing can be compared.")
        self.content = ConfigParser.load_config_file(self.train)
        self.options = dict(options)
        for option in ("::".join(split_id(name)) for name in options):
            if option in OWN:
                raise InputError(f"a comparison sets {option} of each arm itself; give {OWN[option]}.")
        for name in NEEDED:
            self.require(name, "a comparison")
        check_overrides(self.content, self.options, "train.json")

    def require(self, name: str, what: str) -> None:
        """Stop where the top of ``train.json`` has no such id.

        Raises:
            InputError: it has not.
        """
        if name not in self.content:
            raise InputError(
                f"bundle '{self.bundle.name}' has no '{name}' at the top of its train.json; {what} needs it."
            )

    def parser(self, **overrides: Any) -> ConfigParser:
        """The config with the options and further overrides."""
        parser = ConfigParser()
        parser.read_config(self.train)
        parser.update({**self.options, "bundle_root": str(self.bundle), **overrides})
        return parser

    def whole_number(self, name: str) -> int:
        """The value of ``epochs`` or ``val_interval``.

        Raises:
            InputError: it is no number of epochs.
        """
        value = self.parser().get_parsed_content(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number above 0, got {value!r}.")
        return value

    def rates(self) -> list[float]:
        """The learning rates from scratch and for pretrained weights.

        Raises:
            InputError: one is no number above 0.
        """
        parser = self.parser()
        rates = []
        for name, default in RATES.items():
            rate = parser.get_parsed_content(name) if name in parser else default
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
                raise InputError(f"{name} of bundle '{self.bundle.name}' must be a number above 0, got {rate!r}.")
            rates.append(float(rate))
        return rates

    def prepare(self, output_dir: Path, fold: int | None = None) -> PreparedData:
        """The data of all arms, or of those of one fold: prepared under ``output_dir`` if need be."""
        overrides = {"output_dir": str(output_dir)} | ({} if fold is None else {"fold": fold})
        data: PreparedData = self.parser(**overrides).get_parsed_content("data")
        return data

    def check_weights(self, weights: Path, data: PreparedData, output_dir: Path) -> None:
        """Load weights once, so that those of another network stop the comparison before its first arm.

        Raises:
            InputError: they do not fit the bundle's network.
        """
        parser = self.parser(output_dir=str(output_dir), dataset_dir=str(data.folder))
        minimum = "initial_weights::minimum_share"
        share = {"minimum_share": parser.get_parsed_content(minimum)} if minimum in parser else {}
        load_encoder(parser.get_parsed_content("network_def"), weights, **share)
