"""Pictures and snapshots: the right slice in radiological view, each contour in its color."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator

from med3d_ext.handlers.overlay import (
    OverlayImage,
    ValidationSnapshots,
    draw_overlay,
    slice_through,
    snapshot,
    to_radiological,
)

pyplot = pytest.importorskip("matplotlib.pyplot")


def scan(affine: np.ndarray | None = None) -> tuple[MetaTensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = MetaTensor(
        torch.rand((1, 24, 20, 16), generator=generator),
        affine=torch.as_tensor(np.eye(4) if affine is None else affine),
        meta={"filename_or_obj": "/data/liver_7.nii.gz"},
    )
    prediction, label = torch.zeros(1, 24, 20, 16), torch.zeros(1, 24, 20, 16)
    prediction[:, 4:12, 4:12, 4:12] = 1
    label[:, 14:20, 12:18, 9:15] = 1
    return image, prediction, label


def colored(path, color: str) -> int:
    """Pixels of a picture that are nearly of one of the two colors."""
    red, green, blue = (pyplot.imread(path)[..., channel] for channel in range(3))
    strong, weak = (red, green) if color == "red" else (green, red)
    return int(((strong > 0.8) & (weak < 0.3) & (blue < 0.3)).sum())


def test_prediction_is_red_and_label_green_where_there_are_such(tmp_path):
    image, prediction, _ = scan()
    shown = {"both": (prediction, prediction.roll((4, 4, 2), (1, 2, 3))), "one": (prediction,), "no": (prediction * 0,)}
    for name, maps in shown.items():
        draw_overlay(tmp_path / "new" / f"{name}.png", image, *maps)
        found = [colored(tmp_path / "new" / f"{name}.png", color) > 50 for color in ("red", "green")]
        assert found == [name != "no", name == "both"]


def test_a_mirrored_copy_gives_the_same_picture(tmp_path):
    image, prediction, label = scan(np.diag([1.0, 2, 3, 1]))
    mirror = np.diag([-1.0, -2, 3, 1])
    mirror[:2, 3] = 23, 38
    copies = [volume.flip(1, 2) for volume in (image.as_tensor(), prediction, label)]
    draw_overlay(tmp_path / "a.png", image, prediction, label)
    copy = MetaTensor(copies[0], affine=torch.as_tensor(mirror))
    draw_overlay(tmp_path / "b" / "a.png", copy, *copies[1:])
    np.testing.assert_array_equal(pyplot.imread(tmp_path / "a.png"), pyplot.imread(tmp_path / "b" / "a.png"))


def test_a_volume_turns_as_radiologists_look_at_it():
    affine = np.array([[0, 0, 1.0, 0], [-2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])  # stored axes: P, S, R
    volume = torch.arange(24.0).reshape(1, 2, 3, 4)
    expected = volume[0].flip(0, 2).permute(2, 0, 1).numpy()  # the first axis runs from the patient's right to left
    (found,), spacing = to_radiological(torch.as_tensor(affine), volume)
    np.testing.assert_array_equal(found, expected)
    assert spacing.tolist() == [1, 2, 3]


def test_the_slice_is_the_one_with_the_most_foreground():
    mask = np.zeros((6, 8, 10), bool)
    mask[2, 3:6, 4] = True
    mask[4, 5, 7] = True
    assert slice_through(mask) == [2, 5, 4]
    assert slice_through(mask & False) == [3, 4, 5]


def test_the_first_cases_get_a_picture_named_after_their_file_at_each_run(nifti, tmp_path):
    """The network saw the images on another grid than that of their files."""
    image, _, label = scan()
    items = []
    for number in range(3):
        file = nifti(tmp_path / "images" / f"case_{number}.nii.gz", image[0].numpy())
        seen = MetaTensor(image.as_tensor().clone(), meta={"filename_or_obj": str(file)})
        items.append({"image": seen, "label": label})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=1),
        network=torch.nn.Threshold(0.9, 0.0),
        val_handlers=[OverlayImage(str(tmp_path / "out"), maximum=2)],
    )
    for _ in range(2):
        evaluator.run()
        paths = sorted((tmp_path / "out").iterdir())
        assert [path.name for path in paths] == ["overlay_case_0.png", "overlay_case_1.png"]
        for path in paths:
            assert colored(path, "green") > 20
            path.unlink()


def item(case: str = "a.nii.gz", affine: np.ndarray | None = None) -> dict[str, torch.Tensor]:
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    image = MetaTensor(torch.zeros(1, 6, 5, 4), affine=torch.as_tensor(affine), meta={"filename_or_obj": f"/d/{case}"})
    label, prediction = torch.zeros(1, 6, 5, 4), torch.zeros(1, 6, 5, 4)
    image[0, 1, 3, 2], label[0, 1:3, 3, 2], prediction[0, 4, 0, 2] = 7, 2, 1
    return {"image": image, "label": label, "pred": prediction}


def validate(handler: ValidationSnapshots, epoch: int, batches: list[list[dict]]):
    """What MONAI's evaluator does in a validation after ``epoch``."""
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    engine.state.iteration, engine.state.epoch, engine.state.max_epochs = 0, epoch - 1, epoch
    engine.run(batches, max_epochs=epoch)


def test_the_first_case_is_kept_at_the_chosen_epochs(tmp_path):
    handler = ValidationSnapshots(str(tmp_path / "new"), [1, 4])
    for epoch in (1, 2, 4):
        validate(handler, epoch, [[item("a.nii.gz")], [item("b.nii.gz")]])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["epoch_0001.npz", "epoch_0004.npz", "new"]
    with np.load(tmp_path / "new" / "epoch_0004.npz") as kept:
        assert str(kept["case"]) == "a.nii.gz"


def test_the_slice_is_the_labels_in_radiological_view():
    kept = snapshot(*(item()[key] for key in ("image", "label", "pred")))
    assert kept["image"].shape == (5, 6)  # rows are y, columns x
    assert kept["image"].dtype == np.float16
    # to the left in the picture is the patient's right: x runs backwards
    assert np.argwhere(kept["image"] == 7).tolist() == [[3, 4]]
    assert np.argwhere(kept["label"] == 2).tolist() == [[3, 3], [3, 4]]
    assert np.argwhere(kept["prediction"]).tolist() == [[0, 1]]
    assert kept["aspect"] == 2.0


def test_one_hot_classes_give_the_same_as_their_map():
    one = item()
    label, prediction = (torch.nn.functional.one_hot(one[k][0].long(), 3).movedim(-1, 0) for k in ("label", "pred"))
    kept, other = snapshot(one["image"], one["label"], one["pred"]), snapshot(one["image"], label, prediction)
    for key in ("label", "prediction"):
        np.testing.assert_array_equal(kept[key], other[key])


@pytest.mark.parametrize("batch", [[{**item(), "pred": torch.tensor([1.0, 0.0])}], {"pred": torch.zeros(1)}])
def test_a_classifier_and_what_is_not_decollated_leave_no_snapshots(tmp_path, batch):
    validate(ValidationSnapshots(str(tmp_path), [1]), 1, [batch])
    assert not list(tmp_path.iterdir())
