"""Dice per domain, each counted alike: a domain of four cases weighs as much as one of two hundred."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from monai.utils import evenly_divisible_all_gather, string_list_all_gather


class DomainDice(Metric):
    """Mean over domains of the mean Dice over cases; the domains' own means stand next to it as ``<name>/<domain>``.

    A case's Dice is the mean over the classes that its label holds; a class that it lacks does not count. The per-case
    values are kept as metric details for :class:`med3d_ext.handlers.summary.EvaluationSummary`.

    Args:
        num_classes: domain to its number of classes, background counted.
        whole: count every foreground class as one target. Defaults to False.
    """

    def __init__(self, num_classes: dict[str, int], whole: bool = False) -> None:
        self.num_classes = num_classes
        self.whole = whole
        super().__init__()

    def reset(self) -> None:
        """Forget all cases."""
        self.domains: list[str] = []
        self.values: list[torch.Tensor] = []

    def update(self, output: Any) -> None:
        """Add one case: (domain, prediction, label), label maps of shape (1, X, Y, Z)."""
        domain, *maps = output
        prediction, label = (plain(volume, self.whole) for volume in maps)
        classes = 2 if self.whole else self.num_classes[domain]
        dice = DiceMetric(include_background=False, num_classes=classes)(prediction[None], label[None])
        self.domains.append(domain)
        self.values.append(torch.nanmean(torch.as_tensor(dice)).detach().cpu()[None])

    def iteration_completed(self, engine: Any) -> None:
        """Add the cases of one batch of a MONAI evaluator; items without a domain are of the first."""
        for item, output in zip(engine.state.batch, engine.state.output):
            self.update((item.get("domain", next(iter(self.num_classes))), output["pred"], output["label"]))

    def completed(self, engine: Any, name: str) -> None:
        """Write the metric, its domains' means and its details into the engine's state."""
        domains = string_list_all_gather(self.domains)
        own = torch.stack(self.values) if self.values else torch.zeros(0, 1)  # a process without cases gathers, too
        values = evenly_divisible_all_gather(own, concat=True)
        means = domain_means(domains, values[:, 0])
        engine.state.metrics.update({f"{name}/{domain}": mean for domain, mean in means.items()})
        engine.state.metrics[name] = sum(means.values()) / len(means) if means else 0.0
        engine.state.metric_details[name] = values

    def compute(self) -> float:
        """Mean over the domains of this process."""
        means = domain_means(self.domains, torch.cat(self.values))
        return sum(means.values()) / len(means)


def plain(volume: torch.Tensor, whole: bool) -> torch.Tensor:
    """A label map without its metadata, as long integers; as a mask where ``whole``."""
    tensor = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    return (tensor > 0).long() if whole else tensor.long()


def domain_means(domains: list[str], values: torch.Tensor) -> dict[str, float]:
    """Mean per domain over the cases with a value; a domain without any is left out."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for domain, value in zip(domains, values.tolist()):
        if value == value:  # NaN: the label holds no class to find
            grouped[domain].append(value)
    return {domain: sum(members) / len(members) for domain, members in grouped.items()}
