"""Snapshots: the fixed case, at the chosen epochs, in radiological view."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from med3d_ext.handlers.snapshots import ValidationSnapshots, snapshot


def item(case: str = "a.nii.gz", affine: np.ndarray | None = None) -> dict[str, torch.Tensor]:
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    image = MetaTensor(torch.zeros(1, 6, 5, 4), affine=torch.as_tensor(affine), meta={"filename_or_obj": f"/d/{case}"})
    label, prediction = torch.zeros(1, 6, 5, 4), torch.zeros(1, 6, 5, 4)
    image[0, 1, 3, 2], label[0, 1:3, 3, 2], prediction[0, 4, 0, 2] = 7, 2, 1
    return {"image": image, "label": label, "pred": prediction}


def validate(handler: ValidationSnapshots, epoch: int, batches: list[list[dict]]) -> None:
    """What MONAI's evaluator does in a validation after ``epoch``."""
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    engine.state.iteration, engine.state.epoch, engine.state.max_epochs = 0, epoch - 1, epoch
    engine.run(batches, max_epochs=epoch)


def test_the_first_case_is_kept_at_the_chosen_epochs(tmp_path) -> None:
    handler = ValidationSnapshots(str(tmp_path / "new"), [1, 4])
    for epoch in (1, 2, 4):
        validate(handler, epoch, [[item("a.nii.gz")], [item("b.nii.gz")]])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["epoch_0001.npz", "epoch_0004.npz", "new"]
    with np.load(tmp_path / "new" / "epoch_0004.npz") as kept:
        assert str(kept["case"]) == "a.nii.gz"


def test_the_slice_is_the_labels_in_radiological_view() -> None:
    kept = snapshot(*(item()[key] for key in ("image", "label", "pred")))
    assert kept["image"].shape == (5, 6)  # rows are y, columns x
    assert kept["image"].dtype == np.float16
    # to the left in the picture is the patient's right: x runs backwards
    assert np.argwhere(kept["image"] == 7).tolist() == [[3, 4]]
    assert np.argwhere(kept["label"] == 2).tolist() == [[3, 3], [3, 4]]
    assert np.argwhere(kept["prediction"]).tolist() == [[0, 1]]
    assert kept["aspect"] == 2.0


def test_one_hot_classes_give_the_same_as_their_map() -> None:
    one = item()
    classes = {key: torch.nn.functional.one_hot(one[key][0].long(), 3).movedim(-1, 0) for key in ("label", "pred")}
    kept, other = snapshot(one["image"], one["label"], one["pred"]), snapshot(one["image"], **_named(classes))
    for key in ("label", "prediction"):
        np.testing.assert_array_equal(kept[key], other[key])


def _named(classes: dict) -> dict:
    return {"label": classes["label"], "prediction": classes["pred"]}


@pytest.mark.parametrize("key", ["label", "pred"])
def test_a_classifier_leaves_no_snapshots(tmp_path, key) -> None:
    validate(ValidationSnapshots(str(tmp_path), [1]), 1, [[{**item(), key: torch.tensor([1.0, 0.0])}]])
    assert not list(tmp_path.iterdir())


def test_what_is_not_decollated_leaves_no_snapshots(tmp_path) -> None:
    engine = Engine(lambda engine, batch: {"pred": batch})
    ValidationSnapshots(str(tmp_path), [1]).attach(engine)
    engine.run([1], max_epochs=1)
    assert not list(tmp_path.iterdir())
