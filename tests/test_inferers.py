"""The cascade and its stages against boxes by hand: networks that threshold, volumes without two equal voxels."""

from __future__ import annotations

import logging
import types

import pytest
import torch
from composed_networks import aspp_network
from monai.data import MetaTensor
from monai.data.utils import decollate_batch, list_data_collate
from torch import nn

from med3d_ext.errors import InputError
from med3d_ext.inferers import CascadeInferer, StageInferer
from med3d_ext.networks import Segmenter, TwoStageSegmenter
from med3d_ext.transforms.sampling import ResampleToGridd

SHAPE = (20, 18, 16)
COARSE, FINE = 0.8, 0.4


class Threshold(nn.Module):
    """Logits (1 - x, x - shift, ...) with foreground where x > level; remembers what it saw."""

    def __init__(self, level: float, classes: int = 2) -> None:
        super().__init__()
        self.level, self.classes, self.seen = level, classes, []

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        self.seen.append(x)
        return torch.cat([torch.full_like(x, self.level)] + [x - each for each in range(self.classes - 1)], 1) * gain


def two_stages(classes: int = 2) -> TwoStageSegmenter:
    return TwoStageSegmenter(Threshold(COARSE), Threshold(FINE, classes))


def volume(found=None, mask=None, shape=SHAPE) -> torch.Tensor:
    """1 x 1 x shape: noise under 0.2, over FINE in the box ``mask``, over COARSE in the box ``found``; no two alike."""
    x = torch.linspace(0, 0.2, int(torch.tensor(shape).prod())).reshape(1, 1, *shape)
    for box, value in ((mask, 0.5), (found, 0.4)):
        if box is not None:
            x[(..., *[slice(*each) for each in box])] += value
    return x


def inferer(margin_mm: float = 2.0, **options) -> CascadeInferer:
    return CascadeInferer(margin_mm, **{"coarse_size": SHAPE, **options})


def with_spacing(x: torch.Tensor, *spacing: float) -> MetaTensor:
    return MetaTensor(x, affine=torch.diag(torch.tensor([*spacing, 1.0])))


INNER = ((8, 12), (6, 11), (7, 9))


def test_the_fine_network_sees_the_coarse_box_with_its_margin_and_nothing_else():
    net, x, cascade = two_stages(), volume(INNER, INNER), inferer()
    x[..., 0, 0, 0] = 0.95  # only the largest coarse component counts
    cascade(x, types.SimpleNamespace(module=net))  # as DistributedDataParallel wraps it
    assert [each.shape for each in net.coarse.seen] == [x.shape]
    assert len(net.fine.seen) == 1
    assert torch.equal(net.fine.seen[0], x[..., 6:14, 4:13, 5:11])
    cascade(x, net)
    ((box, affine),) = cascade.regions  # the latest call's
    assert [each.tolist() for each in box] == [[6, 4, 5], [14, 13, 11]]
    assert affine.tolist() == torch.eye(4).tolist()


def test_the_margin_is_in_mm_along_each_axis_of_an_oblique_affine():
    turned = torch.eye(4)
    turned[:3, :3] = torch.tensor([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]]) * torch.tensor([1.0, 2.0, 5.0])
    net, x = two_stages(), volume(INNER, INNER)
    inferer(3.5)(MetaTensor(x, affine=turned), net)
    assert torch.equal(net.fine.seen[0], x[..., 4:16, 4:13, 6:10])


def test_the_logits_are_those_of_the_crop_and_certain_background_outside():
    net, x = two_stages(classes=3), volume(INNER, INNER)
    logits = inferer()(x, net)
    crop = (..., slice(6, 14), slice(4, 13), slice(5, 11))
    assert logits.shape == (1, 3, *SHAPE)
    assert torch.equal(logits[crop], Threshold(FINE, 3)(x[crop]))
    outside = torch.ones(SHAPE, dtype=torch.bool)
    outside[crop] = False
    assert torch.equal(logits.softmax(1)[:, 0][:, outside], torch.ones(1, int(outside.sum())))
    assert torch.equal(logits.argmax(1)[0] > 0, x[0, 0] > FINE)


def test_the_coarse_network_gets_its_own_grid_and_its_box_is_rounded_outwards():
    x = torch.zeros(1, 1, 15, 20, 8)
    x[..., 6:9, 8:12, 2:6] = 1.0  # coarse voxels of 3 x 2 x 1
    net = two_stages()
    inferer(0.0, coarse_size=[5, 10, 8], maximum_growths=0)(x, net)
    assert net.coarse.seen[0].shape == (1, 1, 5, 10, 8)
    assert torch.equal(net.fine.seen[0], x[..., 6:9, 8:12, 2:6])
    x[..., 7:12, 8:12, 2:6] = 1.0  # of coarse voxels 3.75 long only the third, 7.5 to 11.25, has its center here
    uneven = two_stages()
    inferer(0.0, coarse_size=[4, 10, 8], maximum_growths=0)(x, uneven)
    assert torch.equal(uneven.fine.seen[0], x[..., 7:12, 8:12, 2:6])


def test_the_coarse_network_sees_what_training_sees():
    net, x = two_stages(), with_spacing(volume(INNER, INNER), 1, 2, 3)
    inferer(coarse_size=[7, 30, 16])(x, net)
    trained = ResampleToGridd("image", [7, 30, 16])({"image": x[0]})["image"]
    torch.testing.assert_close(net.coarse.seen[0][0], trained.as_tensor(), atol=1e-5, rtol=0)


def test_the_coarse_box_has_no_voxel_more_by_rounding_errors():
    x = torch.zeros(1, 1, 10, 36, 10)
    x[..., :27, :] = 1.0  # 21 of 28 coarse voxels; 21 * (36 / 28) is more than 27 in floating point
    net = two_stages()
    inferer(0.0, coarse_size=[10, 28, 10], maximum_growths=0)(x, net)
    assert net.fine.seen[0].shape[3] == 27


def test_a_region_at_the_volume_faces_is_cut_there_and_does_not_grow():
    corner = ((0, 3), (0, 4), (13, 16))
    net, x = two_stages(), volume(corner, corner)
    inferer()(x, net)
    assert len(net.fine.seen) == 1
    assert torch.equal(net.fine.seen[0], x[..., 0:5, 0:6, 11:16])


def test_a_fine_mask_at_a_face_moves_only_that_face_until_it_is_inside(caplog):
    caplog.set_level(logging.INFO)
    net, x = two_stages(), volume(INNER, ((8, 17), (6, 11), (7, 9)))
    logits = inferer()(x, net)
    assert [tuple(each.shape[2:]) for each in net.fine.seen] == [(8, 9, 6), (10, 9, 6), (14, 9, 6)]
    assert torch.equal(net.fine.seen[-1], x[..., 6:20, 4:13, 5:11])  # by the margin, then by twice that
    assert torch.equal(logits.argmax(1)[0] > 0, x[0, 0] > FINE)
    assert caplog.text.count("it grows") == 2


@pytest.mark.parametrize(("last", "region"), [(14, 12), (15, 16)])  # 2 voxels off the face at 16, then 1
def test_a_fine_mask_nearer_than_half_the_margin_to_a_face_moves_it_too(last, region):
    net, x = two_stages(), volume(INNER, ((8, last), (6, 11), (7, 9)))
    inferer(4.0)(x, net)
    assert [each.shape[2] for each in net.fine.seen] == ([12] if region == 12 else [12, 16])


def test_growth_reaches_the_first_faces_too():
    net, x = two_stages(), volume(INNER, ((8, 12), (3, 11), (7, 9)))
    inferer()(x, net)
    assert torch.equal(net.fine.seen[-1], x[..., 6:14, 2:13, 5:11])


def test_growth_ends_with_a_warning_and_the_last_result(caplog):
    net, x = two_stages(), volume(INNER, ((8, 20), (6, 11), (7, 9)))
    logits = inferer(0.0, maximum_growths=2)(x, net)
    assert [each.shape[2] for each in net.fine.seen] == [4, 6, 8]  # by one voxel, then two, though the margin is 0
    assert "reaches a face of the region of interest after 2 growths" in caplog.text
    assert int((logits.argmax(1) > 0).sum()) == 7 * 5 * 2


def test_without_a_coarse_result_the_whole_volume_runs_once(caplog):
    net, x = two_stages(), volume(None, ((8, 20), (0, 11), (7, 9)))
    logits = inferer()(x, net)
    assert len(net.fine.seen) == 1 and torch.equal(net.fine.seen[0], x)
    assert torch.equal(logits, Threshold(FINE)(x))
    assert "The coarse network found nothing" in caplog.text
    assert not inferer()(volume(), two_stages()).argmax(1).any()  # nothing anywhere is an empty map


@pytest.mark.parametrize(("minimum", "left"), [(0.0, 40), (0.039, 40), (0.041, 0)])
def test_a_smaller_result_than_the_minimum_counts_as_nothing(minimum, left, caplog):
    net, x = two_stages(), volume(INNER, ((8, 12), (6, 11), (7, 9)))  # 4 x 5 x 2 voxels of 1 mm
    logits = inferer(minimum_ml=minimum)(x, net)
    assert int((logits.argmax(1) > 0).sum()) == left
    assert ("found 0.0 ml, less than 0.041: the label map is empty" in caplog.text) == (left == 0)


def test_an_empty_fine_mask_does_not_grow_and_is_a_warning(caplog):
    net, x = two_stages(), volume(INNER, INNER)
    net.fine.level = 2.0
    assert not inferer()(x, net).argmax(1).any()
    assert len(net.fine.seen) == 1 and "The fine network found nothing: the label map is empty." in caplog.text


def test_without_a_coarse_grid_the_coarse_network_is_not_asked(caplog):
    net, x = two_stages(), volume(INNER, INNER)
    logits = inferer(coarse_size=None)(x, net)
    assert net.coarse.seen == [] and torch.equal(logits, Threshold(FINE)(x))
    assert "There is no trained coarse network" in caplog.text


@pytest.mark.parametrize("options", [{}, {"fine_size": [16, 18, 12]}, {"maximum_voxels": 1, "roi_size": (8, 8, 8)}])
def test_half_precision_logits_give_the_same_map(options):
    x = volume(INNER, ((8, 17), (6, 11), (7, 9)))
    whole = inferer(**options)(x, two_stages())
    half = inferer(**options, logits_dtype=torch.float16)(x, two_stages())
    assert (whole.dtype, half.dtype) == (torch.float32, torch.float16)
    assert torch.equal(half.argmax(1), whole.argmax(1))
    torch.testing.assert_close(half.float(), whole, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(64, 60, 2), (9, 9, 40)])
def test_few_slices_are_segmented_as_well(shape):
    torch.manual_seed(0)
    net = TwoStageSegmenter(Segmenter(), aspp_network(widths=(8, 4))).eval()
    cascade = CascadeInferer(coarse_size=[16, 16, 16], fine_size=[16, 16, 16], maximum_growths=1)
    with torch.no_grad():
        assert cascade(torch.randn(1, 1, *shape), net).shape == (1, 2, *shape)


def test_each_sample_of_a_batch_has_its_own_region_and_spacing():
    other = ((2, 5), (3, 6), (4, 10))
    items = [with_spacing(volume(box, box)[0], *spacing) for box, spacing in ((INNER, (1, 1, 1)), (other, (1, 2, 4)))]
    batch = list_data_collate(items)
    net = two_stages()
    logits = inferer(4.0)(batch, net)
    assert [tuple(each.shape[2:]) for each in net.fine.seen] == [(12, 13, 10), (9, 7, 8)]
    for index, item in enumerate(items):
        assert torch.equal(logits[index : index + 1], inferer(4.0)(item[None], two_stages()))
    assert torch.equal(decollate_batch(logits)[1].affine, items[1].affine)


def test_a_large_region_is_covered_by_windows():
    net, x = two_stages(), volume(INNER, INNER)
    logits = inferer(maximum_voxels=8 * 9 * 6 - 1, roi_size=(4, 4, 4), overlap=0.5)(x, net)
    assert {each.shape for each in net.fine.seen} == {(1, 1, 4, 4, 4)}
    torch.testing.assert_close(logits, inferer(maximum_voxels=8 * 9 * 6)(x, two_stages()))


def test_a_fine_size_resizes_the_region_there_and_back():
    net, x = two_stages(), volume(INNER, INNER)
    logits = inferer(fine_size=[16, 18, 12], maximum_voxels=1)(x, net)
    assert [each.shape for each in net.fine.seen] == [(1, 1, 16, 18, 12)]
    assert logits.shape == (1, 2, *SHAPE)
    mask, truth = logits.argmax(1)[0] > 0, x[0, 0] > FINE
    assert torch.equal(mask, truth)


def test_metadata_comes_back_and_a_plain_tensor_stays_plain():
    x = with_spacing(volume(INNER, INNER), 1, 2, 3)
    x.meta["filename_or_obj"] = "ct.nii"
    logits = inferer()(x, two_stages())
    assert isinstance(logits, MetaTensor) and logits.meta["filename_or_obj"] == "ct.nii"
    assert torch.equal(logits.affine, x.affine)
    assert type(inferer()(volume(INNER, INNER), two_stages())) is torch.Tensor


def test_it_works_by_keyword_and_by_position_and_passes_arguments_on():
    x = volume(INNER, INNER)
    first = inferer()(x, two_stages())
    assert torch.equal(inferer()(inputs=x, network=two_stages()), first)
    doubled = inferer()(x, two_stages(), gain=2.0)
    assert torch.equal(doubled[..., 6:14, 4:13, 5:11], first[..., 6:14, 4:13, 5:11] * 2)
    assert torch.equal(inferer()(x, two_stages(), 2.0), doubled)


def test_real_networks_run_scripted_as_they_run_in_python():
    torch.manual_seed(0)
    net = TwoStageSegmenter(Segmenter(output_stride=32), aspp_network(num_classes=3, widths=(8, 4))).eval()
    cascade = CascadeInferer(coarse_size=[16, 16, 16], maximum_growths=1)
    x = torch.randn(1, 1, 20, 17, 9)
    with torch.no_grad():
        logits = cascade(x, net)
        assert logits.shape == (1, 3, 20, 17, 9) and logits.isfinite().all()
        torch.testing.assert_close(cascade(x, torch.jit.script(net)), logits)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda net, x: delattr(net, "coarse"), InputError, "must hold the module coarse, got TwoStageSegmenter"),
        (lambda net, x: delattr(net, "fine"), InputError, "must hold the module fine, got TwoStageSegmenter"),
        (lambda net, x: x.affine.__setitem__((2, 2), 0.0), InputError, r"positive spacing, got \[1.0, 1.0, 0.0\] mm"),
        (lambda net, x: x[0], ValueError, r"must be N x C x D x H x W, got \(1, 20, 18, 16\)"),
        (lambda net, x: setattr(net.coarse, "classes", 0), ValueError, "at least 2 channels"),
    ],
)
def test_networks_and_volumes_that_do_not_fit_are_refused(change, error, words):
    net, x = two_stages(), with_spacing(volume(), 1, 1, 1)
    changed = change(net, x)
    with pytest.raises(error, match=words):
        inferer()(x if changed is None else changed, net)


# One stage alone, on whole volumes


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_one_network_sees_the_whole_volume_on_its_grid_and_the_other_nothing(stage):
    net, x = two_stages(), volume(INNER, INNER)
    logits = StageInferer(stage, [10, 9, 8])(x, net)
    other = "fine" if stage == "coarse" else "coarse"
    assert [each.shape for each in getattr(net, stage).seen] == [(1, 1, 10, 9, 8)]
    assert getattr(net, other).seen == [] and logits.shape == (1, 2, *SHAPE)


def test_on_the_volumes_own_grid_the_logits_are_the_networks():
    x = volume(INNER, INNER)
    assert torch.equal(StageInferer("fine", SHAPE)(x, two_stages()), Threshold(FINE)(x))


def test_windows_slide_over_the_volume_at_the_given_spacing():
    net, x = two_stages(), with_spacing(volume(INNER, INNER), 1.0, 2.0, 0.5)
    logits = StageInferer("fine", [8, 8, 8], spacing_mm=[1.0, 1.0, 1.0], overlap=0.5)(x, net)
    assert {each.shape[2:] for each in net.fine.seen} == {(8, 8, 8)}
    assert len(net.fine.seen) == 4 * 8 * 1  # of 20 x 36 x 8 voxels of 1 mm, every 4 voxels
    found = logits.as_tensor().argmax(1)[0].nonzero().float().mean(dim=0)
    torch.testing.assert_close(found, torch.tensor([9.5, 8.0, 7.5]), atol=0.5, rtol=0)


def test_windows_over_the_volumes_own_spacing_find_what_the_whole_finds():
    x = with_spacing(volume(INNER, INNER), 1.0, 1.0, 1.0)
    logits = StageInferer("fine", [8, 8, 8], spacing_mm=[1.0, 1.0, 1.0])(x, two_stages())
    torch.testing.assert_close(logits.as_tensor(), Threshold(FINE)(x.as_tensor()))


def test_logits_may_be_of_half_precision_and_metadata_come_back():
    x = with_spacing(volume(INNER, INNER), 1.0, 2.0, 3.0)
    logits = StageInferer("coarse", [10, 9, 8], logits_dtype=torch.float16)(torch.cat([x, x]), two_stages())
    assert logits.dtype == torch.float16 and logits.shape[0] == 2
    assert torch.equal(logits.affine, x.affine)


def test_there_are_two_stages():
    with pytest.raises(ValueError, match="stage must be coarse or fine, got 'middle'"):
        StageInferer("middle", [8, 8, 8])
