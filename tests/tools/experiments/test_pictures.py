"""What is drawn: the means and bands of the curves, the same case in every arm at the same epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from experiment_stubs import arm_result

from med3d_ext.tools.experiments.engine import ArmResult
from med3d_ext.tools.experiments.figures import Curve
from med3d_ext.tools.experiments.report import draw_curves, draw_overlays

pyplot = pytest.importorskip("matplotlib.pyplot")


def test_a_curve_is_the_mean_of_its_seeds_in_a_band(tmp_path, monkeypatch) -> None:
    from matplotlib.axes import Axes

    lines, bands = [], []
    plot, fill = Axes.plot, Axes.fill_between
    monkeypatch.setattr(Axes, "plot", lambda s, *a, **k: (lines.append((*a, k["label"])), plot(s, *a, **k))[1])
    monkeypatch.setattr(Axes, "fill_between", lambda s, *a, **k: (bands.append(a), fill(s, *a, **k))[1])
    curves = {
        "scratch_0.01": Curve(np.array([5, 10]), [0, 1], np.array([[[0.1, 0.2]], [[0.3, 0.6]]])),
        "med3d": Curve(np.array([5, 10]), [0], np.array([[[0.5, 0.9]]])),
    }
    panel = ("all", "dice", curves, {"level": 0.4, "reference": "scratch_0.01"})
    draw_curves(tmp_path / "curves.png", [[panel]])
    (x, mean, label), (_, alone, other) = lines
    assert x.tolist() == [5, 10]
    np.testing.assert_allclose(mean, [0.2, 0.4])
    np.testing.assert_allclose(alone, [0.5, 0.9])
    assert (label, other) == ("scratch_0.01 (2 seeds)", "med3d (1 seed)")
    assert len(bands) == 1, "one seed has no band"
    np.testing.assert_allclose(bands[0][1:], [[0.1, 0.2], [0.3, 0.6]])
    assert pyplot.imread(tmp_path / "curves.png").std() > 0


def save(folder: Path, epochs, case: str = "a.nii") -> ArmResult:
    (folder / "snapshots").mkdir(parents=True)
    label = np.zeros((12, 10), np.uint8)
    label[3:9, 2:6] = 1
    for epoch in epochs:
        prediction = np.roll(label, epoch, axis=1)
        arrays = {"image": label.astype(np.float16), "label": label, "prediction": prediction}
        np.savez(folder / "snapshots" / f"epoch_{epoch:04d}.npz", **arrays, aspect=1.5, case=case)
    return arm_result(folder.name, folder=folder)


def test_overlays_show_the_epochs_that_all_arms_have(tmp_path, monkeypatch) -> None:
    from matplotlib.axes import Axes

    titles, contours = [], []
    contour, title = Axes.contour, Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda s, text, **k: (titles.append(text), title(s, text, **k))[1])
    monkeypatch.setattr(Axes, "contour", lambda s, m, **k: (contours.append((m, k["colors"])), contour(s, m, **k))[1])
    results = [save(tmp_path / "scratch_0.01", (1, 2, 4)), save(tmp_path / "med3d", (2, 4))]
    assert draw_overlays(tmp_path / "overlays.png", results)
    assert titles == [f"{arm}, epoch {epoch}" for epoch in (2, 4) for arm in ("scratch_0.01", "med3d")]
    assert [color for _, color in contours] == ["lime", "red"] * 4
    np.testing.assert_array_equal(contours[1][0], np.roll(contours[0][0], 2, axis=1))
    assert pyplot.imread(tmp_path / "overlays.png").std() > 0


def test_an_empty_and_a_full_prediction_are_drawn_without_contour(tmp_path) -> None:
    result = save(tmp_path / "scratch_0.01", (1,))
    path = tmp_path / "scratch_0.01" / "snapshots" / "epoch_0001.npz"
    for value in (0, 1):
        with np.load(path) as content:
            arrays = {**content, "prediction": np.full((12, 10), value, np.uint8)}
        np.savez(path, **arrays)
        assert draw_overlays(tmp_path / "overlays.png", [result])


def test_other_cases_or_no_snapshots_are_not_laid_side_by_side(tmp_path) -> None:
    first, other = save(tmp_path / "a", (1, 2)), save(tmp_path / "b", (1, 2), case="b.nii")
    assert not draw_overlays(tmp_path / "overlays.png", [first, other])
    assert not draw_overlays(tmp_path / "overlays.png", [first, save(tmp_path / "c", ())])
    assert not (tmp_path / "overlays.png").exists()
