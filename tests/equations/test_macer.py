"""MACER: the cross-entropy of the mean probability, and a hinge on the radius."""

import numpy as np
import pytest
import torch
from noisy_reference import POINT, SIGMA, context, copies_of, noises, softmax
from numpy_reference import cross_entropy, examples, linear_net, separated
from scipy import special
from torch import nn

from robustfront.methods import MACER
from robustfront.methods.noisy import Averaged


def test_macer() -> None:
    net, (x, _, y) = linear_net(), examples()
    with torch.no_grad():
        y = Averaged(net, noises(x, 4))(x).argmax(1)  # most are right, so that there is a hinge
        y[0] = (y[0] + 1) % 4
    z, labels = copies_of(net, x, 4), y.numpy()
    rows = np.arange(len(y))
    p = np.stack([softmax(one) for one in z]).mean(0)
    q = np.stack([softmax(2 * one) for one in z]).mean(0)
    others = q.copy()
    others[rows, labels] = -1
    gap = special.ndtri(q[rows, labels]) - special.ndtri(np.maximum(others.max(1), 1e-9))
    right = q.argmax(1) == labels
    counted = right & (gap > 0) & (gap <= 1.5)
    assert 0 < counted.sum() < len(y)
    hinge = SIGMA / 2 * np.where(counted, 1.5 - gap, 0).sum() / len(y)
    ce = -np.log(p[rows, labels]).mean()
    expected = ce + 3 * hinge
    of_copies = np.mean([cross_entropy(one, labels).mean() for one in z])
    every = SIGMA / 2 * (1.5 - gap).mean()
    assert separated(expected, of_copies + 3 * hinge, ce - 3 * hinge, ce + 3 * every, least=1e-4)
    method = MACER(copies=4, weight=3, gamma=1.5, beta=2)
    loss = method.loss(net, x, y, context())
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert loss.terms["radius"].item() == pytest.approx(hinge, rel=1e-4)


def test_macer_has_no_gradient_that_is_not_finite() -> None:
    net, (x, _, y) = linear_net(), examples()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 500  # probabilities of 0 and 1
    MACER(copies=4).loss(net, x, y, context()).total.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())  # type: ignore[arg-type]


def test_without_noise_all_copies_are_the_example() -> None:
    net, (x, _, y) = linear_net(), examples()
    loss = MACER(copies=4).loss(net, x, y, context(0, POINT))
    plain = nn.functional.cross_entropy(net(x), y).item()
    assert next(iter(loss.terms.values())).item() == pytest.approx(plain, rel=1e-5)
