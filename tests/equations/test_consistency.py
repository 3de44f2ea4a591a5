"""Consistency: the cross-entropy of noisy copies, their divergence from the mean, its entropy."""

import numpy as np
import pytest
from noisy_reference import POINT, context, copies_of, softmax
from numpy_reference import cross_entropy, examples, linear_net, separated
from torch import nn

from robustfront.methods import Consistency


@pytest.mark.parametrize("copies", [2, 3])
def test_consistency(copies: int) -> None:
    net, (x, _, y) = linear_net(), examples()
    z, labels = copies_of(net, x, copies), y.numpy()
    p = np.stack([softmax(one) for one in z])
    mean = p.mean(0)
    ce = np.mean([cross_entropy(one, labels).mean() for one in z])
    kl = np.mean([(mean * (np.log(mean) - np.log(one))).sum(1).mean() for one in p])
    swapped = np.mean([(one * (np.log(one) - np.log(mean))).sum(1).mean() for one in p])
    entropy = -(mean * np.log(mean)).sum(1).mean()
    expected = ce + 7 * kl + 0.3 * entropy
    assert separated(expected, ce + 7 * swapped + 0.3 * entropy, least=1e-4)
    assert separated(expected, ce + 7 * kl - 0.3 * entropy, ce + 7 * kl, least=1e-3)
    of_mean = -np.log(mean[np.arange(len(y)), labels]).mean()
    assert separated(expected, of_mean + 7 * kl + 0.3 * entropy, least=1e-4)
    method = Consistency(copies=copies, weight=7, entropy_weight=0.3)
    loss = method.loss(net, x, y, context())
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["divergence"].item() == pytest.approx(kl, rel=1e-4)


def test_without_noise_all_copies_are_the_example() -> None:
    net, (x, _, y) = linear_net(), examples()
    loss = Consistency().loss(net, x, y, context(0, POINT))
    plain = nn.functional.cross_entropy(net(x), y).item()
    assert next(iter(loss.terms.values())).item() == pytest.approx(plain, rel=1e-5)
