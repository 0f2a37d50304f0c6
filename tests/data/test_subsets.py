from __future__ import annotations

import pytest

from med3d_ext.data.domains import choose_domains
from med3d_ext.data.splits import nested_share
from med3d_ext.errors import InputError

TABLE = {
    "Task01_BrainTumour": {"organ": "brain"},
    "Task04_Hippocampus": {"organ": "hippocampus"},
    "Task03_Liver": {"organ": "liver"},
    "Mine": {"organ": "Mine"},
}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, list(TABLE)),
        (1, ["Task01_BrainTumour"]),
        ("2", ["Task01_BrainTumour", "Task04_Hippocampus"]),
        ("liver, Task01", ["Task01_BrainTumour", "Task03_Liver"]),
        (["Mine", "Task04_Hippocampus"], ["Task04_Hippocampus", "Mine"]),
    ],
)
def test_domains_are_chosen_by_number_or_name_in_the_tables_order(wanted, names) -> None:
    assert choose_domains(TABLE, wanted) == names


@pytest.mark.parametrize(("wanted", "message"), [(5, "1 to 4"), (0, "1 to 4"), ("liver,lung", "got 'lung'")])
def test_domains_that_are_not_there_are_refused(wanted, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_domains(TABLE, wanted)


def items() -> list[dict]:
    sizes = {"brain": 50, "liver": 10, "tiny": 2}
    return [{"domain": name, "sha256": f"{case:03d}"} for name, size in sizes.items() for case in range(size)]


def names_of(part: list[dict]) -> set[tuple[str, str]]:
    return {(item["domain"], item["sha256"]) for item in part}


def test_a_larger_share_holds_every_smaller_one() -> None:
    shares = [names_of(nested_share(items(), share)) for share in (0.1, 0.2, 0.4, 0.8, 1.0)]
    assert all(small < large for small, large in zip(shares, shares[1:]))
    assert shares[-1] == names_of(items())


@pytest.mark.parametrize(("share", "counts"), [(0.1, [5, 1, 1]), (0.4, [20, 4, 1]), (1.0, [50, 10, 2])])
def test_each_domain_gives_its_share_and_at_least_one_case(share: float, counts: list[int]) -> None:
    part = nested_share(items(), share)
    assert [sum(item["domain"] == name for item in part) for name in ("brain", "liver", "tiny")] == counts


def test_the_share_depends_on_the_seed_and_not_on_the_order() -> None:
    assert names_of(nested_share(items(), 0.2)) == names_of(nested_share(items()[::-1], 0.2))
    assert names_of(nested_share(items(), 0.2)) != names_of(nested_share(items(), 0.2, seed=1))


@pytest.mark.parametrize("share", [0, -0.1, 10])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="share must be above 0 and at most 1"):
        nested_share(items(), share)
