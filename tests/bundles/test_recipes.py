"""The overlays of the pretraining that depart from the paper's recipe, each for one thing."""

from __future__ import annotations

import pytest
import torch
from bundle_files import BUNDLES, config_files, merged, places, workflow
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss

from med3d_ext.tools.check.configs import wrong_components

PRETRAINING = next(bundle for bundle in BUNDLES if bundle.name == "pretrain_3dseg8")
OVERLAYS = ("dice_ce", "adamw", "intensity", "contrast")


@pytest.fixture
def parser(phantoms, tmp_path):
    """The parser of ``train.json`` with overlays and overrides, on phantoms."""

    def make(*overlays, **overrides):
        found = ConfigParser(ConfigParser.load_config_files(config_files(PRETRAINING, "train", *overlays)))
        size = {"spatial_size": [32, 32, 32], "device": "cpu", "epochs": 4, "store_dir": str(tmp_path / "store")}
        given = {"dataset_dir": str(phantoms(PRETRAINING)), **places(PRETRAINING, tmp_path), **size, **overrides}
        found.update(given)
        return found

    return make


def test_every_overlay_names_what_exists():
    for names in (*((name,) for name in OVERLAYS), OVERLAYS):
        assert wrong_components(merged(PRETRAINING, "train", *names)) == {}


def test_intensities_change_and_geometry_labels_and_the_cached_part_do_not(parser, tmp_path):
    found = []
    for overlays in ((), ("intensity",)):
        dataset = parser(*overlays).get_parsed_content("train::dataset")
        cached = sorted(path.name for path in (tmp_path / "store").rglob("*.pt"))
        found.append([dataset[number] for number in range(16)])
        assert not overlays or cached == sorted(path.name for path in (tmp_path / "store").rglob("*.pt")) != []
    same = [torch.equal(one["image"].as_tensor(), other["image"].as_tensor()) for one, other in zip(*found)]
    assert sum(same) < 8  # each step is drawn with a probability of its own, so some samples stay
    for one, other in zip(*found):
        assert torch.equal(one["label"].as_tensor(), other["label"].as_tensor())
        assert torch.equal(one["image"].affine, other["image"].affine)
        # The same picture: what is bright stays brighter than what is dark.
        assert torch.corrcoef(torch.stack([one["image"].flatten(), other["image"].flatten()]))[0, 1] > 0.8


def test_a_fifth_of_the_contrasts_is_inverted_and_the_overlay_adds_to_the_other(parser):
    both = parser("intensity", "contrast").get_parsed_content("train::intensity_transforms")
    assert len(both) == 7
    *_, bend, invert = both
    image = torch.linspace(-2, 2, 1000).reshape(1, 10, 10, 10)
    seen = []
    for seed in range(100):
        invert.set_random_state(seed=seed)
        bend.set_random_state(seed=seed)
        assert bend({"image": image})["image"].min() >= -2 and bend({"image": image})["image"].max() <= 2
        inverted = torch.as_tensor(invert({"image": image})["image"])
        assert torch.equal(inverted, image) or torch.equal(inverted, -image)
        seen.append(torch.equal(inverted, -image))
    assert 0.1 < sum(seen) / len(seen) < 0.3


def test_dice_and_cross_entropy_is_the_mean_of_each_branchs_own(parser):
    loss = parser("dice_ce").get_parsed_content("loss")
    torch.manual_seed(0)
    logits, labels = torch.randn(2, max(loss.num_classes), 4, 4, 4), torch.randint(0, 2, (2, 1, 4, 4, 4))
    own = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    each = [own(logits[[n], : loss.num_classes[n]], labels[[n]]) for n in (0, 1)]
    torch.testing.assert_close(loss(logits, labels, [0, 1]), (each[0] + each[1]) / 2)


def test_adamw_warms_up_and_falls_to_zero_and_takes_the_options_of_the_papers_sgd(parser):
    config = parser("adamw", epochs=6, warmup_epochs=2, learning_rate=0.01, head_lr_multiplier=3.0)
    optimizer, schedule = (config.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    assert type(optimizer) is torch.optim.AdamW
    rates = []
    for _ in range(7):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    encoder = [one for one, _ in rates]
    assert all(head == pytest.approx(3 * one) for one, head in rates)
    assert encoder[:3] == pytest.approx([0.001, 0.0055, 0.01])
    assert encoder[2:] == sorted(encoder[2:], reverse=True) and encoder[-1] == pytest.approx(0)


@pytest.mark.slow
@pytest.mark.usefixtures("clean_process")
def test_a_killed_training_by_all_overlays_ends_like_one_that_was_not(phantoms, tmp_path):
    options = {"dataset_dir": str(phantoms(PRETRAINING)), "spatial_size": [32, 32, 32], "device": "cpu"}
    options |= {"samples_per_domain": 1, "crop_spacing": 2.0, "epochs": 2}

    def kill(engine):
        raise ZeroDivisionError

    def train(name, stop=None):
        made = workflow(PRETRAINING, "train", *OVERLAYS, **options, **places(PRETRAINING, tmp_path / name))
        if stop is None:
            made.run()
        else:
            trainer = made.parser.get_parsed_content("train::trainer")
            trainer.add_event_handler(Events.EPOCH_STARTED(once=stop), kill)
            with pytest.raises(RuntimeError):  # what the config parser makes of it
                made.run()
        return torch.load(tmp_path / name / "models" / "training_state.pt", weights_only=True)

    whole = train("whole")
    train("killed", stop=2)
    resumed = train("killed")
    assert whole["epoch"] == resumed["epoch"] == 2
    assert all(torch.equal(tensor, resumed["model"][key]) for key, tensor in whole["model"].items())
