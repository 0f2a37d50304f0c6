"""Overlays: the right slice in the right orientation, both contours in their color."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from med3d_ext.handlers.overlay import OverlayImage, draw_overlay, ras_order, slice_through, to_radiological

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


def test_prediction_is_red_and_label_green(tmp_path):
    image, prediction, _ = scan()
    label = prediction.roll((4, 4, 2), (1, 2, 3))
    draw_overlay(tmp_path / "sub" / "a.png", image, prediction, label)
    assert colored(tmp_path / "sub" / "a.png", "red") > 50 and colored(tmp_path / "sub" / "a.png", "green") > 50


def test_without_a_label_or_without_any_prediction_there_is_a_picture(tmp_path):
    image, prediction, _ = scan()
    draw_overlay(tmp_path / "a.png", image, prediction)
    assert colored(tmp_path / "a.png", "red") > 50 and colored(tmp_path / "a.png", "green") == 0
    draw_overlay(tmp_path / "b.png", image, prediction * 0)
    assert colored(tmp_path / "b.png", "red") == 0


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
    np.testing.assert_array_equal(to_radiological(volume, torch.as_tensor(affine)), expected)
    assert ras_order(torch.as_tensor(affine)).tolist() == [2, 0, 1]


def test_the_slice_is_the_one_with_the_most_foreground():
    mask = np.zeros((6, 8, 10), bool)
    mask[2, 3:6, 4] = True
    mask[4, 5, 7] = True
    assert slice_through(mask) == [2, 5, 4]
    assert slice_through(mask & False) == [3, 4, 5]


@pytest.fixture
def engine(nifti, tmp_path):
    """An evaluator's state after a batch whose images stand on another grid than their files."""

    def make(cases: int, rank: int = 0) -> SimpleNamespace:
        image, prediction, label = scan()
        batch = []
        for number in range(cases):
            file = nifti(tmp_path / "images" / f"case_{number}.nii.gz", image[0].numpy())
            seen = MetaTensor(torch.zeros(1, 4, 4, 4), meta={"filename_or_obj": str(file)})
            batch.append({"image": seen, "label": label})
        state = SimpleNamespace(batch=batch, output=[{"pred": prediction}] * cases, rank=rank)
        return SimpleNamespace(state=state)

    return make


def test_the_first_cases_get_a_picture_named_after_their_file(engine, tmp_path):
    handler = OverlayImage(str(tmp_path / "out"), maximum=2)
    handler.draw_batch(engine(3))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["overlay_case_0.png", "overlay_case_1.png"]
    assert colored(tmp_path / "out" / "overlay_case_0.png", "red") > 50


def test_other_processes_draw_nothing(engine, tmp_path):
    OverlayImage(str(tmp_path / "out")).draw_batch(engine(1, rank=1))
    assert not (tmp_path / "out").exists()


def test_it_draws_from_monais_evaluator_at_each_run(engine, tmp_path):
    from monai.data import DataLoader
    from monai.engines import SupervisedEvaluator

    image, _, label = scan()
    image.meta["filename_or_obj"] = engine(1).state.batch[0]["image"].meta["filename_or_obj"]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader([{"image": image, "label": label}], batch_size=1),
        network=torch.nn.Threshold(0.9, 0.0),
        val_handlers=[OverlayImage(str(tmp_path / "out"), maximum=1)],
    )
    for _ in range(2):
        evaluator.run()
        (path,) = (tmp_path / "out").iterdir()
        assert path.name == "overlay_case_0.png" and colored(path, "green") > 20
        path.unlink()
