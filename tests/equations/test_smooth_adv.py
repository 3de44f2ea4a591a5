"""SmoothAdv: the mean probability is attacked, and every noisy copy trained on."""

import numpy as np
import pytest
from noisy_reference import BALL, POINT, context, copies_of, noises, softmax
from numpy_reference import cross_entropy, examples, f64, linear_net, separated
from numpy_reference import logits as plain_logits
from torch import nn

from robustfront.attacks import PGD
from robustfront.methods import SmoothAdv
from robustfront.methods.noisy import Averaged
from robustfront.randomness import Rng


def test_smooth_adv_attacks_the_mean_probability_and_trains_on_every_copy() -> None:
    net, (x, _, y) = linear_net(), examples()
    method = SmoothAdv(copies=2, inner=PGD(steps=6, rel_step_size=0.3, start="zero"))
    averaged = Averaged(net, noises(x, 2))
    p = np.stack([softmax(one) for one in copies_of(net, x, 2)]).mean(0)
    np.testing.assert_allclose(averaged(x).exp().detach().numpy(), p, rtol=1e-5)
    ctx = context()
    surrogate = lambda z: nn.functional.cross_entropy(z, y, reduction="none")  # noqa: E731
    x_adv = method.inner(averaged, x, surrogate, BALL, ctx.rng)
    worse = -averaged(x_adv)[range(len(y)), y] + averaged(x)[range(len(y)), y]
    assert (worse > 0).all()
    z, labels = copies_of(net, x_adv, 2), y.numpy()
    expected = np.mean([cross_entropy(one, labels).mean() for one in z])
    clean = np.mean([cross_entropy(one, labels).mean() for one in copies_of(net, x, 2)])
    without = cross_entropy(plain_logits(net, f64(x_adv)), labels).mean()
    assert separated(expected, clean, without, least=1e-4)
    loss = method.loss(net, x, y, context())
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)


def test_the_search_begins_at_the_example_and_its_steps_follow_from_their_number() -> None:
    net, (x, _, y) = linear_net(), examples()
    surrogate = lambda z: nn.functional.cross_entropy(z, y, reduction="none")  # noqa: E731
    for steps in (4, 10):
        method = SmoothAdv.model_validate({"inner": {"steps": steps}})
        explicit = PGD(steps=steps, rel_step_size=2.5 / steps, start="zero")
        found, expected = (
            attack(net, x, surrogate, BALL, Rng(("key", key), block=len(x)))
            for key, attack in enumerate((method.inner, explicit))
        )
        assert (found == expected).all()
        assert (found - x).abs().max() > 0


def test_without_noise_all_copies_are_the_example() -> None:
    net, (x, _, y) = linear_net(), examples()
    loss = SmoothAdv().loss(net, x, y, context(0, POINT))
    plain = nn.functional.cross_entropy(net(x), y).item()
    assert next(iter(loss.terms.values())).item() == pytest.approx(plain, rel=1e-5)
