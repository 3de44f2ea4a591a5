"""Clean logit pairing: cross-entropy of noisy inputs plus the distance of neighbours' logits."""

import numpy as np
import pytest
import torch
from numpy_reference import Watched, cross_entropy, examples, f64, linear_net, logits, separated

from robustfront.methods import CLPNoise, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat

WEIGHT, SIGMA = 0.3, 0.4


def context() -> StepContext:
    return StepContext(Threat(norm="linf", eps=1), Rng((0, "clp_noise")), 0.0)


@pytest.mark.parametrize("n", [8, 7])
def test_the_loss(n):
    net, (x, _, y) = linear_net(), examples(n)
    noisy = x + SIGMA * Rng((0, "clp_noise")).normal(x)
    z, clean = logits(net, f64(noisy)), logits(net, f64(x))
    ce = cross_entropy(z, y.numpy()).mean()
    pairs = np.array([np.linalg.norm(z[i] - z[i + 1]) for i in range(0, n - 1, 2)])
    halves = np.linalg.norm(z[: n // 2] - z[n // 2 : n // 2 * 2], axis=1)
    expected = ce + WEIGHT * pairs.mean()
    assert separated(
        expected,
        cross_entropy(clean, y.numpy()).mean() + WEIGHT * pairs.mean(),
        ce + WEIGHT * pairs.sum(),
        ce + WEIGHT * (pairs**2).mean(),
        ce + WEIGHT * np.linalg.norm(z - clean, axis=1).mean(),
        ce + pairs.mean(),
    )
    assert abs(halves.mean() - pairs.mean()) > 0.01
    watched = Watched(net).train()

    loss = CLPNoise(weight=WEIGHT, sigma=SIGMA).loss(watched, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["noisy_ce"].item() == pytest.approx(ce, rel=1e-5)
    assert loss.terms["pairing"].item() == pytest.approx(pairs.mean(), rel=1e-5)
    assert len(watched.trained_on) == 1 and watched.eval_passes == 0
    assert torch.equal(watched.trained_on[0], noisy)


def test_an_image_alone_is_in_no_pair():
    net, (x, _, y) = linear_net(), examples(1)
    loss = CLPNoise(weight=WEIGHT, sigma=SIGMA).loss(net.train(), x, y, context())
    assert loss.terms["pairing"] == 0 and loss.total == loss.terms["noisy_ce"]
    loss.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())


def test_a_step_costs_as_much_as_one_of_standard_training():
    assert CLPNoise().forward_equivalents == 3
