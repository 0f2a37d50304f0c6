"""The verb ``predict``: images of any format through a bundle, one after the other, whatever becomes of one."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.files import sha256
from med3d_ext.run.one_line import heard_warnings, input_error_message
from med3d_ext.tools.bundle_folder import find_bundle
from med3d_ext.tools.predict.cases import Case, collect_cases
from med3d_ext.tools.predict.dicom_seg import need_highdicom, write_dicom_seg
from med3d_ext.tools.predict.predictor import BundlePredictor, LabelMap
from med3d_ext.tools.predict.results import Origin, check_result, is_done, volumes, write_results
from med3d_ext.tools.predict.summary import Outcome, Summary
from med3d_ext.transforms.load import is_dicom_input, load_volume

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

    A case that fails does not stop the others. The exit code is 0 when every case has its result, 1 when one has not,
    2 when nothing was begun. A case that has its result is left out, so that the same command resumes after a stop.

    Args:
        bundle: a bundle's name or the path of its folder.
        inputs: images (.nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, DICOM of several frames), folders of them in any depth,
            or folders of DICOM series.
        output: folder for the results.
        overwrite: replace results that are there.
        dicom_seg: write a DICOM segmentation, too, where the input is a DICOM series (needs highdicom).
        device: as cpu or cuda:0. Defaults to the bundle's choice: a GPU if there is one.
        options: further options of the bundle's inference.json, as `--network_name resnet50`.
    """
    if not inputs:
        raise InputError("predict: INPUT is missing; give images, folders of images or folders of DICOM series.")
    if dicom_seg:
        need_highdicom()
    cases, without = collect_cases(inputs)
    folder = _output_folder(output, cases)
    options = _parsed(options)
    predictor = BundlePredictor(find_bundle(bundle), device, options)
    origin = Origin(predictor.bundle.resolve().name, predictor.version, sha256(predictor.weights), options)
    run = Run(predictor, origin, folder, overwrite, dicom_seg)
    summary = Summary(folder / "summary.json", {**asdict(origin), **run.merged}, len(cases) + len(without))
    for path, reason in without.items():
        summary.add(Outcome(path, "failed", reason))
    for case in _progress(cases):
        outcome = run.outcome(case)
        summary.add(outcome)
        left = timedelta(seconds=round(summary.seconds_left))
        logger.info(f"[{len(summary.outcomes)}/{summary.total}, {left} left] {outcome}")
    if summary.of("failed"):
        print(summary)
        raise SystemExit(1)
    return str(summary)


@dataclass(frozen=True)
class Run:
    """What the cases of one call share."""

    predictor: BundlePredictor
    origin: Origin
    output: Path
    overwrite: bool
    dicom_seg: bool

    @property
    def merged(self) -> dict[str, Any]:
        """Which values of the training's label files each value stands for, as `evaluate` reads it."""
        return {"label_values": {str(value): found for value, found in self.predictor.sources.items()}}

    def outcome(self, case: Case) -> Outcome:
        """Segment a case, unless its result is there, and tell what became of it."""
        try:
            if not self.overwrite and is_done(self.output, case, self.origin, self._is_wanted_in_dicom(case)):
                return Outcome(case.name, "skipped")
            return self._segment(case)
        except Exception as error:  # whatever it is, the other cases have a right to their results
            reason = input_error_message(error)
            if reason is None:
                logger.debug(f"{case.name} failed", exc_info=True)
                reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            return Outcome(case.name, "failed", reason)

    def _segment(self, case: Case) -> Outcome:
        begin = time.monotonic()
        with heard_warnings() as heard:
            result = self.predictor(case.image)
            image = load_volume(case.image, self.predictor.channel)
            is_scaled = check_result(result, image, case)
        labels = volumes(result, self.predictor.names, is_scaled)
        names = {int(value): label["name"] for value, label in labels.items()}
        seconds = round(time.monotonic() - begin, 2)
        facts = {**self.origin.of(case), **self.merged, "labels": labels, "warnings": heard, "seconds": seconds}
        segmentation = self._segmentation(case, result, names)
        write_results(self.output, case, result, image, names, facts, segmentation, self.predictor.sources)
        return Outcome(case.name, "done", "", seconds, labels, tuple(heard))

    def _is_wanted_in_dicom(self, case: Case) -> bool:
        return self.dicom_seg and is_dicom_input(case.image)

    def _segmentation(self, case: Case, result: LabelMap, names: dict[int, str]) -> Callable[[Path], None] | None:
        """What writes the DICOM segmentation, where one is wanted."""
        if not self._is_wanted_in_dicom(case):
            return None
        return lambda path: write_dicom_seg(
            path, result.labels, names, case.image, self.origin.bundle, self.origin.version
        )


def _parsed(options: dict[str, Any]) -> dict[str, Any]:
    """Options as values: all words arrive as text, because INPUT is text."""
    from fire.parser import DefaultParseValue

    return {name: DefaultParseValue(value) if isinstance(value, str) else value for name, value in options.items()}


def _output_folder(output: str, cases: Sequence[Case]) -> Path:
    folder = Path(output).expanduser()
    if any(Path(case.image).parent == folder.resolve() for case in cases):
        raise InputError(f"--output must be another folder than that of the images, got '{output}'.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output '{output}' cannot be made ({error.strerror}); give another folder.") from error
    return folder


def _progress(cases: Sequence[Case]) -> Iterator[Case]:
    """The cases; on a terminal with a bar, above which stands what is logged."""
    if not sys.stderr.isatty():
        yield from cases
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm():
        yield from tqdm(cases, unit="case", dynamic_ncols=True)
