from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from torch import nn

from med3d_ext.losses import MultiHeadLoss
from med3d_ext.networks.med3d import PADDING_LOGIT

GRID = (4, 5, 6)


class FlatCrossEntropy(nn.Module):
    """The inner loss in its own convention, for a target that has a channel."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, target[:, 0])


def dice() -> DiceCELoss:
    return DiceCELoss(to_onehot_y=True, softmax=True)


def batch(samples: int = 5, classes: int = 4, labels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(samples, classes, *GRID, requires_grad=True), torch.randint(labels, (samples, 1, *GRID))


@pytest.mark.parametrize("loss, inner", [(nn.CrossEntropyLoss(), FlatCrossEntropy()), (dice(), dice())])
@pytest.mark.parametrize("domain", [None, [0] * 5])
def test_one_domain_gives_exactly_the_inner_loss_and_its_gradient(loss, inner, domain):
    logits, target = batch(labels=4)
    own = MultiHeadLoss(loss, [4])(logits, target, domain)
    expected = inner(logits, target)
    assert torch.equal(own, expected)
    assert torch.equal(torch.autograd.grad(own, logits)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("loss, inner", [(nn.CrossEntropyLoss(), FlatCrossEntropy()), (dice(), dice())])
def test_mixed_domains_give_the_mean_over_the_samples_of_their_own_channels(loss, inner):
    logits, target = batch()
    classes, domain = [2, 4, 3], [1, 0, 1, 2, 1]
    singles = [inner(logits[n : n + 1, : classes[d]], target[n : n + 1]) for n, d in enumerate(domain)]
    own = MultiHeadLoss(loss, classes)
    torch.testing.assert_close(own(logits, target, torch.tensor(domain)), torch.stack(singles).mean())
    torch.testing.assert_close(own.per_domain[1], torch.stack([singles[0], singles[2], singles[4]]).mean())
    assert list(own.per_domain) == [0, 1, 2] and not any(value.requires_grad for value in own.per_domain.values())


def test_channels_beyond_a_domain_get_no_gradient():
    logits, target = batch()
    MultiHeadLoss(nn.CrossEntropyLoss(), {"liver": 2, "brain": 4})(logits, target, [0, 1, 0, 0, 1]).backward()
    used = logits.grad.flatten(2).abs().sum(-1) > 0
    assert used.tolist() == [[True, True, width, width] for width in (False, True, False, False, True)]


def test_the_padding_of_the_network_is_nothing_to_a_plain_loss():
    logits, target = batch(classes=2)
    padded = nn.functional.pad(logits, [0] * 7 + [2], value=PADDING_LOGIT)
    torch.testing.assert_close(FlatCrossEntropy()(padded, target), FlatCrossEntropy()(logits, target))


def test_meta_tensors_float_labels_a_domain_column_and_a_pair_of_target_and_domain_are_welcome():
    logits, target = batch()
    domain = torch.tensor([0, 1, 1, 0, 1])
    loss = MultiHeadLoss(nn.CrossEntropyLoss(), [2, 4])
    expected = loss(logits, target, domain)
    wrapped = loss(MetaTensor(logits), MetaTensor(target.float()), domain[:, None])
    assert torch.equal(wrapped, expected) and type(wrapped) is torch.Tensor
    assert torch.equal(loss(logits, (target, domain)), expected)
    value = loss(logits, target, [0] * 5)
    assert list(loss.per_domain) == [0] and loss.per_domain[0] == value  # of the last call


def test_the_label_that_cross_entropy_ignores_is_no_mistake():
    logits, target = batch()
    target[3, 0, 0, 0, 0] = 255
    loss = nn.CrossEntropyLoss(ignore_index=255)
    assert MultiHeadLoss(loss, [2])(logits, target) == loss(logits[:, :2], target[:, 0])
    with pytest.raises(ValueError, match="got 0 to 255"):
        MultiHeadLoss(nn.CrossEntropyLoss(), [2])(logits, target)


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ([0, 1], "domain must be 5 indices from 0 to 1, got"),
        ([0, 1, 2, 0, 0], "domain must be 5 indices from 0 to 1, got"),
        ([0, -1, 0, 0, 0], "domain must be 5 indices from 0 to 1, got"),
        ([1, 1, 1, 0, 1], "labels from 0 to 1 in domain 0, got 0 to 3"),
    ],
)
def test_domains_and_labels_that_do_not_fit_are_named(domain, words):
    logits, target = batch()
    target[3, 0, 0, 0, 0] = 3
    with pytest.raises(ValueError, match=words):
        MultiHeadLoss(dice(), [2, 4])(logits, target, domain)
    MultiHeadLoss(dice(), [2, 4])(logits, target, [0, 0, 0, 1, 0])
    with pytest.raises(ValueError, match="target must be N x 1 x D x H x W"):
        MultiHeadLoss(dice(), [2])(logits, target[:, 0])
    with pytest.raises(ValueError, match="at least one domain"):
        MultiHeadLoss(dice(), {})
