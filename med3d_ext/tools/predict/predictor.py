"""A bundle's inference, built once and run on one image after the other."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.handlers import CheckpointLoader

from med3d_ext.errors import InputError
from med3d_ext.io.label_maps import SourceValues, smallest_type
from med3d_ext.run.options import check_options
from med3d_ext.run.overrides import split_id
from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.transforms.load import LoadVolumed

# What `predict` itself decides: the images, where results go, and that the evaluator is built for every image anew.
_OWN = {"bundle_root", "dataset_dir", "output_dir", "dataset"}


@dataclass(frozen=True)
class LabelMap:
    """A label map on its image's own grid."""

    labels: np.ndarray  # values (X, Y, Z), uint8, or uint16 where one needs it: those of the training's label files
    affine: np.ndarray  # voxel index to RAS+ mm (4, 4)


class BundlePredictor:
    """Run a segmentation bundle's ``inference.json`` on single images; the weights are read once.

    Each image goes through what ``monai.bundle run`` would take it through: the preprocessing, a MONAI evaluator with
    the bundle's inferer and the postprocessing. Only the files are not written: ``SaveImaged`` is left out.

    Args:
        bundle: the bundle's folder.
        device: device to run on. Defaults to None: the bundle's choice.
        overrides: new values of the config by id, as ``monai.bundle run`` takes them.
        meanwhile: begins, in another thread, what can be done while the network is loaded.

    Attributes:
        names: label value to name, background left out.
        sources: label value to the values of the training's label files that it stands for.
        weights: the file that the network was loaded from.
        version: the bundle's version.

    Raises:
        InputError: the folder has no ``inference.json``, the bundle does not segment, an override matches nothing, or
            there are no weights or they do not fit.
    """

    def __init__(
        self,
        bundle: Path,
        device: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        meanwhile: Callable[[], Any] | None = None,
    ) -> None:
        self.bundle = bundle
        parser = _parser(Bundle(bundle, overrides), device)
        if meanwhile is not None:
            # MONAI goes through sys.modules once, for its components; an import by another thread would break that.
            parser.locator.get_component_module_name("")
            meanwhile()
        metadata, build = parser["_meta_"], parser.get_parsed_content
        output = metadata.get("network_data_format", {}).get("outputs", {}).get("pred", {})
        if output.get("format", "segmentation") != "segmentation":
            raise InputError(
                f"'{bundle}' gives {output['format']}, no label map; run `python -m monai.bundle run --config_file "
                f"{(bundle / 'configs' / 'inference.json').as_posix()} --dataset_dir FOLDER` instead."
            )
        sys.path.insert(1, str(bundle))  # as `monai.bundle run` does: a bundle may carry code of its own
        build("initialize", default=None)
        self._make: Callable[..., Any] = build("evaluator")
        self.transform: Any = build("dataset").transform
        self.version = str(metadata.get("version", ""))
        names = build("label_names", default=None)
        names = output.get("channel_def", {}) if names is None else names
        self._values = SourceValues.of(names, build("label_values", default=None))
        self.names, self.sources = self._values.names, self._values.sources
        self.weights = self._load_weights()

    def __call__(self, image: str) -> LabelMap:
        """Segment one image: a file, or the folder of a DICOM series.

        Raises:
            InputError: the image is refused.
            RuntimeError: the bundle's result is not a label map on the image's grid.
        """
        loader = DataLoader(Dataset([{"image": image}], self.transform), batch_size=1, num_workers=0)
        # An engine that was stopped by an error would skip the next image, so that each image has its own.
        evaluator = self._make(val_data_loader=loader)
        evaluator.logger.setLevel(logging.CRITICAL)  # the caller reports errors
        try:
            evaluator.run()
            pred, source = evaluator.state.output[0]["pred"], evaluator.state.batch[0]["image"].meta
            if pred.ndim != 4 or pred.shape[0] != 1:
                raise RuntimeError(f"postprocessing must end with a label map (1, X, Y, Z), got {tuple(pred.shape)}")
            affine, own = (np.asarray(each, dtype=float) for each in (source["original_affine"], pred.affine.cpu()))
            found, shape = tuple(pred.shape[1:]), tuple(int(size) for size in source["spatial_shape"])
            if found != shape or not np.allclose(affine, own, atol=1e-3):
                raise RuntimeError(f"postprocessing must lead back to the image's grid {shape}, got {found}")
            labels = pred.as_tensor()[0].cpu().numpy()
            # One byte for each voxel: a whole-body CT has 200 million.
            return LabelMap(self._values(labels.astype(smallest_type(labels.max()), copy=False)), affine)
        finally:
            # The engine and its handlers refer to each other and would keep the volumes until the next collection.
            evaluator.state.batch = evaluator.state.output = None

    def read_with(self, reader: Any) -> None:
        """Let the bundle take its images from a reader; see :class:`med3d_ext.transforms.LoadVolumed`."""
        for each in self.transform.transforms:
            if isinstance(each, LoadVolumed):
                each.store = reader

    @property
    def channel(self) -> int | str | None:
        """The channel of a 4D image that the bundle takes, or `all`."""
        return next((each.channel for each in self.transform.transforms if hasattr(each, "channel")), None)

    def _load_weights(self) -> Path:
        """Load the weights now; later engines find them in the network."""
        handlers = self._make.keywords.get("val_handlers") or []  # type: ignore[attr-defined]
        loaders = [each for each in handlers if isinstance(each, CheckpointLoader)]
        if not loaders:
            raise InputError(f"inference.json of '{self.bundle}' loads no weights; add a CheckpointLoader to it.")
        self._make.keywords["val_handlers"] = [each for each in handlers if each not in loaders]  # type: ignore[attr-defined]
        engine = self._make()
        engine.logger.setLevel(logging.WARNING)
        for loader in loaders:
            loader.logger = engine.logger
            try:
                loader(engine)
            except (RuntimeError, OSError, ValueError, KeyError) as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(
                    f"The weights '{loader.load_path}' do not fit inference.json ({reason}); give the options of their "
                    "training, for example --network_name."
                ) from error
        return Path(loaders[0].load_path)


def _parser(bundle: Bundle, device: str | None) -> ConfigParser:
    if not (bundle.folder / "configs" / "inference.json").is_file():
        raise InputError(f"'{bundle.folder}' has no configs/inference.json; it cannot segment.")
    for name in bundle.overrides:
        if split_id(name)[0] in _OWN:
            raise InputError(
                f"predict sets {split_id(name)[0]} itself; leave --{name} out and give INPUT and --output."
            )
    bundle.refuse_unknown("inference")
    check_options({} if device is None else {"device": device})
    chosen = {} if device is None else {"device": f"$torch.device('{device}')"}
    parser = bundle.config("inference", **chosen, **{"dataset::data": [], "evaluator::_mode_": "callable"})
    post = "postprocessing::transforms"
    if post in parser:

        def saves(step: Any) -> bool:
            """Whether a transform, or the one that ``@id`` refers to, writes files."""
            if isinstance(step, str) and step[:1] == "@":
                step = parser.get(step[1:])
            target = str(step.get("_target_", "")) if isinstance(step, dict) else ""
            return target.rpartition(".")[2] in ("SaveImaged", "SaveImage")

        parser.update({post: [each for each in parser[post] if not saves(each)]})
    return parser
