from __future__ import annotations

from collections import Counter

import pytest

from med3d_ext.data import BalancedSampler, GridBatchSampler

ITEMS = [{"domain": name} for name in ["heart"] * 3 + ["liver"] * 5 + ["brain"] * 2]
SIZES = {"heart": [16, 16, 16], "liver": [16, 16, 16], "brain": [32, 16, 16]}


def batches(batch_size: int = 2, replicas: int = 1, rank: int = 0, epoch: int = 1) -> list[list[int]]:
    sampler = BalancedSampler([item["domain"] for item in ITEMS], num_replicas=replicas, rank=rank)
    batch_sampler = GridBatchSampler(sampler, ITEMS, SIZES, batch_size)
    batch_sampler.set_epoch(epoch)
    assert len(batch_sampler) == len(list(batch_sampler))
    return list(batch_sampler)


def domain_of(index: int) -> str:
    return ITEMS[index % len(ITEMS)]["domain"]


def test_a_batch_has_one_grid_and_mixes_the_domains_that_share_it():
    mixed = 0
    for batch in batches(batch_size=4):
        domains = {domain_of(index) for index in batch}
        assert len({tuple(SIZES[domain]) for domain in domains}) == 1
        mixed += domains == {"heart", "liver"}
    assert mixed > 0


def test_every_domain_gives_as_many_samples_as_the_largest():
    counts = Counter(domain_of(index) for batch in batches() for index in batch)
    assert counts == {"heart": 5, "liver": 5, "brain": 5}


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_processes_get_equally_many_batches_and_together_every_sample_once(replicas: int, batch_size: int):
    shares = [batches(batch_size, replicas, rank) for rank in range(replicas)]
    assert len({len(share) for share in shares}) == 1
    together = [index for share in shares for batch in share for index in batch]
    assert len(together) == len(set(together))
    counts = Counter(domain_of(index) for index in together)
    assert len(set(counts.values())) == 1
    assert max(len(batch) for share in shares for batch in share) <= batch_size


def test_another_epoch_has_other_batches_and_the_same_epoch_the_same():
    assert batches(epoch=1) == batches(epoch=1)
    assert batches(epoch=1) != batches(epoch=2)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        batches(batch_size=0)


def test_an_item_without_domain_takes_the_default_ones_grid():
    items = [{"image": "a"}, {"image": "b", "domain": "heart"}]
    sizes = {"liver": [8, 8, 8], "heart": [4, 4, 4]}
    sampler = BalancedSampler([None, "heart"])
    batches = GridBatchSampler(sampler, items, sizes, batch_size=2, domain="liver")
    assert batches.sizes == [(8, 8, 8), (4, 4, 4)]
    with pytest.raises(KeyError, match="got None"):
        GridBatchSampler(sampler, items, sizes, batch_size=2)
