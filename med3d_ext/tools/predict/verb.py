"""The verb ``predict``: images of any format through a bundle, one after the other, whatever becomes of one."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from fire.parser import DefaultParseValue

from med3d_ext.data.datalists import named_images
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, sha256
from med3d_ext.io.image_files import Header, is_dicom_input, read_image
from med3d_ext.io.store import compact
from med3d_ext.run.one_line import heard_warnings, input_error_message
from med3d_ext.tools.bundle_folder import METADATA, find_bundle
from med3d_ext.tools.channels import join_cases
from med3d_ext.tools.predict.dicom_seg import need_highdicom, write_dicom_seg
from med3d_ext.tools.predict.predictor import BundlePredictor, LabelMap
from med3d_ext.tools.predict.results import Case, Origin, Outcome, Summary, is_done, volumes, write_results
from med3d_ext.transforms.load import load_volume, stated_spacing, usable_spacing

logger = logging.getLogger("med3d_ext.predict")


def predict(
    bundle: str,
    *inputs: str,
    output: str,
    overwrite: bool = False,
    dicom_seg: bool = False,
    device: str | None = None,
    **options: Any,
) -> str:
    """Segment images with a bundle: label maps on the images' own grids, pictures, and volumes in ml.

    A case that fails does not stop the others. The exit code is 0 if every case has its result, 1 if one has none,
    2 if nothing was started. Cases that have their result are skipped, so the same command resumes after a stop.

    Args:
        bundle: a bundle's name or the path of its folder.
        inputs: images (.nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, multi-frame DICOM), folders of them at any depth,
            or folders of DICOM series.
        output: folder for the results.
        overwrite: replace existing results.
        dicom_seg: also write a DICOM segmentation if the input is a DICOM series (needs highdicom).
        device: such as cpu or cuda:0. Defaults to the bundle's choice: a GPU if there is one.
        options: other options of the bundle's inference.json, such as `--network_name resnet50`.
    """
    if not inputs:
        raise InputError("predict: INPUT is missing; give images, folders of images or folders of DICOM series.")
    if dicom_seg:
        need_highdicom()
    found = find_bundle(bundle)
    image_format = read_json(found / METADATA).get("network_data_format", {}).get("inputs", {}).get("image", {})
    channels = image_format.get("num_channels", 1)
    items, without = named_images(inputs, "INPUT", channels)
    folder = Path(output).expanduser()
    if any(Path(item["image"]).parent == folder.resolve() for item in items):
        raise InputError(f"--output must be another folder than that of the images, got '{output}'.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output '{output}' cannot be made ({error.strerror}); give another folder.") from error
    # All words arrive as text, because INPUT is text.
    options = {name: DefaultParseValue(value) if isinstance(value, str) else value for name, value in options.items()}
    with ThreadPoolExecutor(1, "reader") as thread, joined_cases(items, channels, folder, without) as cases:
        reader = ReadAhead(thread)
        predictor = BundlePredictor(found, device, options, lambda: reader.begin(cases[0].image))
        predictor.read_with(reader)
        origin = Origin(predictor.bundle.resolve().name, predictor.version, sha256(predictor.weights), options)
        run = Run(predictor, origin, folder, overwrite, dicom_seg, reader)
        summary = Summary(folder / "summary.json", {**asdict(origin), **run.merged}, len(cases) + len(without))
        for path, reason in without.items():
            summary.add(Outcome(path, "failed", reason))

        def report(outcome: Outcome) -> None:
            summary.add(outcome)
            left = timedelta(seconds=round(summary.seconds_left))
            logger.info(f"[{len(summary.outcomes)}/{summary.total}, {left} left] {outcome}")

        run.all(cases, report)
    if summary.of("failed"):
        print(summary)
        raise SystemExit(1)
    return str(summary)


@contextmanager
def joined_cases(
    items: Sequence[Mapping[str, str]], channels: int, output: Path, without: dict[str, str]
) -> Iterator[list[Case]]:
    """The cases; for a network of several channels, those of a file for each are joined in the output folder."""
    if channels == 1:
        yield [Case(item["case"], item["image"]) for item in items]
        return
    scratch = output / ".channels"
    try:
        joined, faults = join_cases(items, channels, scratch)
        without |= faults
        if not joined:
            raise InputError(next(iter(faults.values())))
        yield [Case(item["case"], item["image"], item.get("source", "")) for item in joined]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class ReadAhead:
    """Reads an image while the network is busy with another one, and decodes each once for all that need it.

    Of the image that is next, and of the one at work, the voxels are kept in as few bytes as hold their values.
    """

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._found: dict[str, Future] = {}

    def begin(self, path: str) -> None:
        """Read an image that :meth:`image` will be asked for."""
        if path not in self._found:
            self._found[path] = self._thread.submit(self._read, path)

    def forget(self, path: str) -> None:
        """An image is not needed any more."""
        if path in self._found:
            self._found.pop(path).cancel()

    def image(self, path: str) -> tuple[np.ndarray, Header, list[str]]:
        """:func:`med3d_ext.io.image_files.read_image`, and its errors; the voxels are the caller's own."""
        self.begin(path)
        voxels, header, remarks = self._found[path].result()
        return np.array(voxels, dtype=np.float32, order="C"), header, remarks

    @staticmethod
    def _read(path: str) -> tuple[np.ndarray, Header, list[str]]:
        voxels, header, remarks = read_image(path)
        return compact(voxels), header, remarks


@dataclass(frozen=True)
class Run:
    """What the cases of one call share."""

    predictor: BundlePredictor
    origin: Origin
    output: Path
    overwrite: bool
    dicom_seg: bool
    reader: ReadAhead

    @property
    def merged(self) -> dict[str, Any]:
        """Which values of the training's label files each value stands for, as `evaluate` reads it."""
        return {"label_values": {str(value): found for value, found in self.predictor.sources.items()}}

    def all(self, cases: Sequence[Case], report: Callable[[Outcome], None]) -> None:
        """Segment all cases and report what became of each, in their order.

        While the network is busy with a case, the next image is read and the last result is written: the memory is that
        of one case, the voxels of its neighbors, and no more.
        """

        def finish(case: Case, found: Any) -> None:
            report(found if isinstance(found, Outcome) else self._guarded(self._write, case, *found))

        with ThreadPoolExecutor(1, "writer") as writer:
            following, last = self._guarded(self._begin, cases[0]), None
            for number, case in enumerate(_progress(cases), start=1):
                found = following
                following = self._guarded(self._begin, cases[number]) if number < len(cases) else None
                found = found or self._guarded(self._segment, case)
                if last is not None:
                    last.result()
                last = writer.submit(finish, case, found)
                del found
            if last is not None:
                last.result()

    def _guarded(self, work: Callable[..., Any], case: Case, *given: Any) -> Any:
        """What some work on a case gives, or its failure: the other cases have a right to their results."""
        try:
            return work(case, *given)
        except Exception as error:
            reason = input_error_message(error)
            if reason is None:
                logger.debug(f"{case.name} failed", exc_info=True)
                reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            self.reader.forget(case.image)
            return Outcome(case.name, "failed", reason)

    def _begin(self, case: Case) -> Outcome | None:
        """Have a case's image read, unless there is an outcome already."""
        if not self.overwrite and is_done(self.output, case, self.origin, self._wants_dicom(case)):
            self.reader.forget(case.image)
            return Outcome(case.name, "skipped")
        self.reader.begin(case.image)
        return None

    def _segment(self, case: Case) -> tuple[LabelMap, float, list[str]]:
        """A case's label map, the seconds, and what was warned of."""
        begin = time.monotonic()
        with heard_warnings(any_thread=False) as heard:
            result = self.predictor(case.image)
        return result, round(time.monotonic() - begin, 2), heard

    def _write(self, case: Case, result: LabelMap, seconds: float, heard: Sequence[str]) -> Outcome:
        with heard_warnings(any_thread=False) as more:
            image = load_volume(case.image, self.predictor.channel, self.reader)
            self.reader.forget(case.image)
            if not result.labels.any():
                logger.warning(f"Nothing was found in '{case.image}': its label map is empty; look at the image.")
        warnings = list(dict.fromkeys([*heard, *more]))
        labels = volumes(result, self.predictor.names, usable_spacing(stated_spacing(case.image, image.affine)))
        names = {int(value): label["name"] for value, label in labels.items()}
        facts = {**self.origin.of(case), **self.merged, "labels": labels, "warnings": warnings, "seconds": seconds}

        def segmentation(path: Path) -> None:
            write_dicom_seg(path, result.labels, names, case.image, self.origin.bundle, self.origin.version)

        dicom = segmentation if self._wants_dicom(case) else None
        write_results(self.output, case, result, image, names, facts, dicom, self.predictor.sources)
        return Outcome(case.name, "done", "", seconds, labels, tuple(warnings))

    def _wants_dicom(self, case: Case) -> bool:
        return self.dicom_seg and is_dicom_input(case.image)


def _progress(cases: Sequence[Case]) -> Iterator[Case]:
    """The cases; on a terminal with a bar below what is logged."""
    if not sys.stderr.isatty():
        yield from cases
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm():
        yield from tqdm(cases, unit="case", dynamic_ncols=True)
