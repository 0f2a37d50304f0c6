"""A MONAI Deploy application: a DICOM series through a bundle's folder; the label map and its affine into one file.

``python application.py BUNDLE SERIES RESULT.npz``, in the environment of ``make deploy-test``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator


class SaveArray(Operator):
    """The end of the chain."""

    def __init__(self, fragment: Any, *args: Any, file: Path, **options: Any) -> None:
        self.file = file
        super().__init__(fragment, *args, **options)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        image = op_input.receive("pred")
        labels = np.swapaxes(image.asnumpy(), 0, 2)  # an Image holds (slice, y, x)
        np.savez(self.file, labels=labels, affine=np.asarray(image.metadata()["original_affine"]))


class SegmentSeries(Application):
    """Loader, selector, volume, bundle, file."""

    def __init__(self, bundle: Path, series: Path, result: Path) -> None:
        self.bundle, self.series, self.result = bundle, series, result
        super().__init__()

    def compose(self) -> None:
        once = CountCondition(self, 1)
        loader = DICOMDataLoaderOperator(self, once, input_folder=self.series, name="loader")
        selector = DICOMSeriesSelectorOperator(self, rules="", name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        segment = MonaiBundleInferenceOperator(
            self,
            app_context=AppContext({}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=self.bundle,
            name="segment",
        )
        save = SaveArray(self, file=self.result, name="save")
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, segment, {("image", "image")})
        self.add_flow(segment, save, {("pred", "pred")})


if __name__ == "__main__":
    SegmentSeries(*(Path(word).resolve() for word in sys.argv[1:])).run()
