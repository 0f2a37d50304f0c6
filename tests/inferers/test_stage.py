"""One stage alone: the same networks as in the cascade's tests, on whole volumes."""

from __future__ import annotations

import pytest
import torch
from test_cascade import FINE, INNER, SHAPE, Threshold, two_stages, volume, with_spacing

from med3d_ext.inferers import StageInferer


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
