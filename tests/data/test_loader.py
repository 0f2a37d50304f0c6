"""Items that depend on (seed, epoch, index) alone, balanced batches of one grid, and workers that there is room for."""

from __future__ import annotations

import collections
import multiprocessing
import os
from collections import Counter

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, MapTransform, RandGaussianNoised, RandLambdad, RandScaleIntensityd

from med3d_ext.data import BalancedSampler, GridBatchSampler, SeededDataset, TrainingLoader, loader
from med3d_ext.data.loader import chosen_workers

DATA = [{"image": f"case_{number}.nii", "domain": "liver"} for number in range(6)]


class Make(MapTransform):
    """Stands for loading: a float16 volume that its number fills; counts its calls."""

    calls = 0

    def __call__(self, data):
        Make.calls += 1
        item = dict(data)
        number = int(item["image"].split("_")[1].split(".")[0])
        volume = torch.full((1, 4, 5, 6), float(number), dtype=torch.float16)
        meta = {"filename_or_obj": item["image"], "header": np.float64(1)}
        item["image"] = MetaTensor(volume, affine=torch.eye(4) * (number + 1), meta=meta)
        return item


class MakeLabel(MapTransform):
    """Stands for the loading of a label, whose key it makes, with a box of foreground or without."""

    def __call__(self, data):
        label = torch.zeros(1, 4, 5, 6)
        label[0, 1:3, 2, 5] = int(self.allow_missing_keys)
        return {**data, "label": MetaTensor(label, meta={"filename_or_obj": "label.nii"})}


def make(cache_dir=None, seed: int = 0) -> SeededDataset:
    random = [RandGaussianNoised("image", prob=0.7, dtype=None), RandScaleIntensityd("image", 0.5, prob=0.7)]
    return SeededDataset(DATA, Compose([Make("image"), *random]), cache_dir and str(cache_dir), seed)


def plain(dataset: SeededDataset, index: int) -> np.ndarray:
    return dataset[index]["image"].numpy().copy()


@pytest.mark.parametrize("cached", [True, False])
def test_an_item_does_not_depend_on_what_was_drawn_before_nor_on_workers(cached, tmp_path):
    cache_dir = tmp_path if cached else None
    first = [plain(make(cache_dir), index) for index in range(6)]
    used = make(cache_dir)
    for index in (5, 5, 3, 0):
        plain(used, index)
    torch.rand(3)
    for index in reversed(range(6)):
        np.testing.assert_array_equal(plain(used, index), first[index])
    if not cached:
        for batch, expected in zip(DataLoader(make(), batch_size=1, num_workers=2), first):
            np.testing.assert_array_equal(batch["image"][0].numpy(), expected)


def test_epochs_seeds_and_items_differ():
    noise = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            dataset = make(seed=seed)
            dataset.set_epoch(epoch)
            noise |= {plain(dataset, index).tobytes() for index in range(6)}
    assert len(noise) >= 22  # at probability 0.3 x 0.3 an item of one epoch stays as it is


def test_the_cache_is_read_by_a_new_data_set_without_the_transform(tmp_path):
    expected = [plain(make(tmp_path), index) for index in range(6)]
    looked = [make(tmp_path).before_random(index)["image"] for index in range(6)]
    Make.calls = 0
    again = make(tmp_path)
    for index in range(6):
        np.testing.assert_array_equal(plain(again, index), expected[index])
        assert tuple(looked[index].shape) == expected[index].shape
    assert Make.calls == 0 and len(list(tmp_path.glob("*.pt"))) == 6
    _ = SeededDataset(DATA, Compose([Make(["image", "label"], allow_missing_keys=True)]), str(tmp_path))[0]
    assert Make.calls == 1  # another transform, another file


def test_the_cache_keeps_type_geometry_and_name_loads_safely_and_is_memory_mapped(tmp_path, monkeypatch):
    bare = SeededDataset(DATA, Compose([Make("image")]), str(tmp_path))
    real, kinds = torch.UntypedStorage.from_file, []
    for number in range(2):
        item = bare[2]
        image = item["image"]
        assert isinstance(image, MetaTensor) and image.dtype == torch.float16 and (image == 2).all()
        np.testing.assert_array_equal(image.affine.numpy(), np.eye(4) * 3)
        assert (image.meta["filename_or_obj"], item["domain"]) == ("case_2.nii", "liver")
        (path,) = tmp_path.glob("*.pt")
        assert torch.load(path, weights_only=True)["entry"]["image"]["x"].dtype == torch.float16
        assert kinds == [str(path)] * number
        spy = lambda *args, **kwargs: kinds.append(args[0]) or real(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(torch.UntypedStorage, "from_file", spy)


@pytest.mark.parametrize("foreground", [True, False])
def test_the_box_of_a_label_is_known_with_its_item(foreground, tmp_path):
    for _ in range(2):
        item = SeededDataset(DATA, Compose([Make("image"), MakeLabel("label", foreground)]), str(tmp_path))[0]
        assert item["target_box"] == ([[1, 2, 5], [3, 3, 6]] if foreground else [[0, 0, 0], [0, 0, 0]])


def test_what_a_random_transform_changes_is_not_written_into_the_cache(tmp_path):
    class Spoil(RandScaleIntensityd):
        def __call__(self, data):
            data["image"].as_tensor().fill_(99)
            return data

    for _ in range(2):
        spoiled = SeededDataset(DATA, Compose([Make("image"), Spoil("image", 0.5)]), str(tmp_path))
        assert (spoiled[1]["image"] == 99).all()
    assert (SeededDataset(DATA, Compose([Make("image")]), str(tmp_path))[1]["image"] == 1).all()


# Balance

DOMAINS = ["heart"] * 3 + ["brain"] * 7 + ["liver"]


def epoch_of(epoch: int, domains=DOMAINS, **options: int) -> list[int]:
    sampler = BalancedSampler(domains, **options)
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return indices


def counts(indices: list[int]) -> Counter:
    return Counter(DOMAINS[index % len(DOMAINS)] for index in indices)


def test_every_domain_gives_as_many_samples_as_the_largest_has_cases_or_as_are_asked_for():
    assert counts(epoch_of(1)) == {"heart": 7, "brain": 7, "liver": 7}
    indices = epoch_of(3, samples_per_domain=20)
    assert counts(indices) == {"heart": 20, "brain": 20, "liver": 20} and len(set(indices)) == 60
    assert {index // len(DOMAINS) for index in indices if index % len(DOMAINS) == 10} == set(range(20))
    domains = [DOMAINS[index % len(DOMAINS)] for index in epoch_of(1, samples_per_domain=100)]
    assert sum(first != second for first, second in zip(domains, domains[1:])) > 150  # mixed: two thirds are expected
    assert sorted(epoch_of(1, [None, None])) == [0, 1]


@pytest.mark.parametrize("samples", [2, 4, 7, 9])
def test_no_case_comes_again_before_all_cases_came_also_across_epochs(samples):
    drawn = [index % len(DOMAINS) for epoch in range(14) for index in epoch_of(epoch, samples_per_domain=samples)]
    brain = Counter(case for case in drawn if DOMAINS[case] == "brain")
    assert sum(brain.values()) == 14 * samples and set(brain.values()) == {2 * samples}


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler = BalancedSampler(DOMAINS)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)
    assert epoch_of(2) == order != epoch_of(2, seed=1)
    assert epoch_of(1) != epoch_of(2)


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_processes_share_the_epoch_of_a_single_one(replicas):
    domains = [*DOMAINS, "spleen"]  # 4 domains x 6 samples
    ranks = [epoch_of(5, domains, samples_per_domain=6, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    assert {len(rank) for rank in ranks} == {24 // replicas}
    assert sorted(index for rank in ranks for index in rank) == sorted(epoch_of(5, domains, samples_per_domain=6))
    ranks = [epoch_of(1, samples_per_domain=5, num_replicas=2, rank=rank) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [9, 9]  # raised until both get as many
    assert counts(ranks[0] + ranks[1]) == {"heart": 6, "brain": 6, "liver": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": []}, "at least one item"),
        ({"domains": DOMAINS, "samples_per_domain": 0}, "at least 1, got 0"),
        ({"domains": DOMAINS, "num_replicas": 2, "rank": 2}, "rank"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BalancedSampler(**arguments)


class Draw(RandLambdad):
    """Put a random number into the item."""

    def __call__(self, data: dict) -> dict:
        return {**data, "number": self.R.uniform()}


@pytest.mark.parametrize("workers", [0, 1])
def test_repeats_of_a_case_are_drawn_anew_and_again_the_same_in_another_run(workers):
    def epoch(number: int) -> list[tuple[int, float]]:
        items = [{"case": torch.tensor(case)} for case in range(len(DOMAINS))]
        dataset = SeededDataset(items, Compose([Draw("case", lambda case: case)]))
        loader = DataLoader(dataset, batch_size=3, sampler=BalancedSampler(DOMAINS), num_workers=workers)
        loader.sampler.set_epoch(number)
        dataset.set_epoch(number)
        pairs = [(batch["case"], batch["number"]) for batch in loader]
        return [(int(case), float(value)) for cases, values in pairs for case, value in zip(cases, values)]

    first = epoch(1)
    assert len(first) == len({value for _, value in first}) == 21
    assert [case for case, _ in first] == [index % len(DOMAINS) for index in epoch_of(1)]
    assert epoch(1) == first
    assert not {value for _, value in first} & {value for _, value in epoch(2)}


# Batches

ITEMS = [{"domain": name} for name in ["heart"] * 3 + ["liver"] * 5 + ["brain"] * 2]
SIZES = {"heart": [16, 16, 16], "liver": [16, 16, 16], "brain": [32, 16, 16]}


def batches(batch_size: int = 2, replicas: int = 1, rank: int = 0, epoch: int = 1) -> list[list[int]]:
    sampler = BalancedSampler([item["domain"] for item in ITEMS], num_replicas=replicas, rank=rank)
    batch_sampler = GridBatchSampler(sampler, ITEMS, SIZES, batch_size)
    batch_sampler.set_epoch(epoch)
    assert len(batch_sampler) == len(list(batch_sampler))
    return list(batch_sampler)


def test_a_batch_has_one_grid_and_mixes_the_domains_that_share_it():
    found = [{ITEMS[index % len(ITEMS)]["domain"] for index in batch} for batch in batches(batch_size=4)]
    assert all(len({tuple(SIZES[domain]) for domain in domains}) == 1 for domains in found)
    assert {"heart", "liver"} in found
    assert batches(epoch=1) == batches(epoch=1) != batches(epoch=2)


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_processes_get_equally_many_batches_and_together_every_sample_once(replicas, batch_size):
    shares = [batches(batch_size, replicas, rank) for rank in range(replicas)]
    assert len({len(share) for share in shares}) == 1
    together = [index for share in shares for batch in share for index in batch]
    assert len(together) == len(set(together))
    assert len(set(Counter(ITEMS[index % len(ITEMS)]["domain"] for index in together).values())) == 1
    assert max(len(batch) for share in shares for batch in share) <= batch_size


def test_an_item_without_domain_takes_the_default_ones_grid_and_no_batch_is_empty():
    items = [{"image": "a"}, {"image": "b", "domain": "heart"}]
    sizes = {"liver": [8, 8, 8], "heart": [4, 4, 4]}
    sampler = BalancedSampler([None, "heart"])
    assert GridBatchSampler(sampler, items, sizes, domain="liver").sizes == [(8, 8, 8), (4, 4, 4)]
    with pytest.raises(KeyError, match="got None"):
        GridBatchSampler(sampler, items, sizes)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        batches(batch_size=0)


# Workers

Usage = collections.namedtuple("Usage", "free")


@pytest.mark.parametrize(
    ("facts", "cpu", "cuda"),
    [
        ({}, 1, 8),
        ({"cores": 1}, 0, 0),
        ({"cores": 2}, 1, 1),
        ({"cores": 4}, 1, 3),
        ({"cores": 4, "processes": 2}, 1, 1),
        ({"cores": 4, "processes": 4}, 0, 0),
        ({"memory": 2e9}, 0, 0),
        ({"memory": 13e9}, 1, 4),
        ({"memory": 13e9, "processes": 4}, 1, 1),
        ({"shared": 64e6}, 0, 0),  # a container's default
        ({"start": "spawn"}, 0, 0),
    ],
)
def test_workers_are_those_that_the_machine_has_room_for(facts, cpu, cuda, monkeypatch):
    machine = {"cores": 16, "memory": 1e12, "shared": 1e12, "processes": 1, "start": "fork", **facts}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(machine["cores"])), raising=False)
    monkeypatch.setattr(loader, "_memory", lambda: machine["memory"])
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: Usage(machine["shared"]))
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: machine["start"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(machine["processes"]))
    assert (chosen_workers("cpu"), chosen_workers(torch.device("cuda", 0))) == (cpu, cuda)
    assert TrainingLoader([1, 2], num_workers=3).num_workers == 3
    assert TrainingLoader([1, 2]).num_workers == cpu


def test_batches_for_a_gpu_are_pinned_unless_told_otherwise():
    pinned = [TrainingLoader([1], device, 0).pin_memory for device in ("cpu", "cuda", torch.device("cuda", 1))]
    assert pinned == [False, True, True]
    assert TrainingLoader([1], "cuda", 0, pin_memory=False).pin_memory is False
