from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandLambdad
from torch.utils.data import DistributedSampler

from med3d_ext.data import BalancedSampler, SeededDataset

DOMAINS = ["heart"] * 3 + ["brain"] * 7 + ["liver"]


def epoch_of(epoch: int, domains: Sequence[str | None] = DOMAINS, **options: int) -> list[int]:
    sampler = BalancedSampler(domains, **options)
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return indices


def counts(indices: list[int], domains: Sequence[str | None] = DOMAINS) -> Counter:
    return Counter(domains[index % len(domains)] for index in indices)


def test_every_domain_gives_as_many_samples_as_the_largest_has_cases() -> None:
    assert counts(epoch_of(1)) == {"heart": 7, "brain": 7, "liver": 7}


def test_every_domain_gives_the_samples_that_are_asked_for() -> None:
    assert counts(epoch_of(1, samples_per_domain=4)) == {"heart": 4, "brain": 4, "liver": 4}


def test_repeats_of_a_case_have_indices_of_their_own() -> None:
    indices = epoch_of(3, samples_per_domain=20)
    assert len(set(indices)) == 60
    assert {index // len(DOMAINS) for index in indices if index % len(DOMAINS) == 10} == set(range(20))


@pytest.mark.parametrize("samples", [2, 4, 7, 9])
def test_no_case_comes_again_before_all_cases_came_also_across_epochs(samples: int) -> None:
    sampler = BalancedSampler(DOMAINS, samples_per_domain=samples)
    drawn = [index % len(DOMAINS) for epoch in range(14) for index in sampler_epoch(sampler, epoch)]
    brain = Counter(case for case in drawn if DOMAINS[case] == "brain")
    assert sum(brain.values()) == 14 * samples  # whole passes over the 7 cases
    assert set(brain.values()) == {2 * samples}


def sampler_epoch(sampler: BalancedSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = BalancedSampler(DOMAINS)
    orders = [sampler_epoch(sampler, epoch) for epoch in range(3)]
    assert epoch_of(2) == orders[2]
    domains = [[DOMAINS[index % len(DOMAINS)] for index in order] for order in orders]
    assert domains[1] != domains[2]
    assert epoch_of(2, seed=1) != orders[2]


def test_domains_come_mixed() -> None:
    domains = [DOMAINS[index % len(DOMAINS)] for index in epoch_of(1, samples_per_domain=100)]
    assert len(set(domains[:12])) == 3
    changes = sum(first != second for first, second in zip(domains, domains[1:]))
    assert changes > 150  # of 299; two thirds are expected


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_processes_share_the_epoch_of_a_single_one(replicas: int) -> None:
    domains = [*DOMAINS, "spleen"]  # 4 domains x 6 samples
    single = epoch_of(5, domains, samples_per_domain=6)
    ranks = [epoch_of(5, domains, samples_per_domain=6, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    assert {len(rank) for rank in ranks} == {24 // replicas}
    assert sorted(index for rank in ranks for index in rank) == sorted(single)


def test_samples_are_raised_until_processes_get_the_same_number() -> None:
    ranks = [epoch_of(1, samples_per_domain=5, num_replicas=2, rank=rank) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [9, 9]
    assert counts(ranks[0] + ranks[1]) == {"heart": 6, "brain": 6, "liver": 6}


def test_items_without_domain_are_one_domain() -> None:
    assert sorted(epoch_of(1, [None, None])) == [0, 1]


def test_monai_sees_a_distributed_sampler() -> None:
    assert isinstance(BalancedSampler(DOMAINS), DistributedSampler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": []}, "at least one item"),
        ({"domains": DOMAINS, "samples_per_domain": 0}, "at least 1, got 0"),
        ({"domains": DOMAINS, "num_replicas": 2, "rank": 2}, "rank"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BalancedSampler(**arguments)


class Draw(RandLambdad):
    """Put a random number into the item."""

    def __call__(self, data: dict) -> dict:
        return {**data, "number": self.R.uniform()}


@pytest.mark.parametrize("workers", [0, 1])
def test_repeats_of_a_case_are_drawn_anew_and_again_the_same_in_another_run(workers: int) -> None:
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
