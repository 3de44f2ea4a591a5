"""DALE: an objective plus nu times the constrained loss; nu follows the constraint."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy_reference import (
    Probe,
    check_batch_norm_sees_clean_then_adversarial,
    cross_entropy,
    examples,
    f64,
    gradient,
    kl,
    linear_net,
    log_softmax,
    logits,
    separated,
)

from robustfront.attacks import FGSM, PGD, Langevin
from robustfront.methods import DALE, PGDAT, StepContext, Trades
from robustfront.randomness import Rng
from robustfront.threats import Threat

NU = 0.4
SET = Threat(norm="linf", eps="1/10")


def context(threat: Threat | None = None, **memory: float) -> StepContext:
    known = {name: torch.tensor(value) for name, value in memory.items()}
    return StepContext(threat or Threat(norm="linf", eps=1), Rng((0, "dale")), 0.0, memory=known)


def probed(x_adv: torch.Tensor, at: torch.Tensor | None = None, **fields: object) -> DALE:
    at = torch.zeros(len(x_adv), 4) if at is None else at
    return DALE(nu=NU, **fields).model_copy(update={"inner": Probe(found=x_adv, logits=at)})


def losses(net, x, x_adv, y):
    z, z_adv = logits(net, f64(x)), logits(net, f64(x_adv))
    clean, adversarial = (cross_entropy(some, y.numpy()).mean() for some in (z, z_adv))
    return clean, adversarial, kl(z, z_adv).mean(), kl(z_adv, z).mean()


@pytest.mark.parametrize("form", ["nominal", "reverse", "kl"])
def test_the_loss_of_each_form(form):
    net, (x, x_adv, y) = linear_net(), examples()
    clean, adversarial, divergence, swapped = losses(net, x, x_adv, y)
    every = {
        "nominal": adversarial + NU * clean,
        "reverse": clean + NU * adversarial,
        "kl": divergence + NU * clean,
    }
    expected = every.pop(form)
    assert separated(expected, *every.values(), swapped + NU * clean, adversarial + clean)

    loss = probed(x_adv, form=form, rho=None).loss(net, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    robust = ("robust_kl", divergence) if form == "kl" else ("adversarial_ce", adversarial)
    assert set(loss.terms) == {"clean_ce", robust[0]}
    assert loss.terms["clean_ce"].item() == pytest.approx(clean, rel=1e-5)
    assert loss.terms[robust[0]].item() == pytest.approx(robust[1], rel=1e-5)


@pytest.mark.parametrize("form", ["nominal", "reverse", "kl"])
@pytest.mark.parametrize("rho", [0.05, 30.0])
def test_the_dual_variable_rises_where_the_constraint_is_broken_and_falls_where_it_has_slack(
    form, rho
):
    net, (x, x_adv, y) = linear_net(), examples()
    clean, adversarial, divergence, _ = losses(net, x, x_adv, y)
    objective, constrained = {
        "nominal": (adversarial, clean),
        "reverse": (clean, adversarial),
        "kl": (divergence, clean),
    }[form]
    ctx = context(nu=NU)

    loss = probed(x_adv, form=form, rho=rho, dual_lr=0.01).loss(net, x, y, ctx)

    assert loss.total.item() == pytest.approx(objective + NU * constrained, rel=1e-5)
    assert loss.terms["slack"].item() == pytest.approx(rho - constrained, rel=1e-4)
    after = NU + 0.01 * (constrained - rho)
    assert ctx.memory["nu"].item() == pytest.approx(after, rel=1e-4)
    assert (after > NU) == (constrained > rho)
    assert not ctx.memory["nu"].requires_grad


def test_the_dual_variable_does_not_weigh_below_zero():
    net, (x, x_adv, y) = linear_net(), examples()
    _, adversarial, _, _ = losses(net, x, x_adv, y)
    ctx = context(nu=-3.0)
    loss = probed(x_adv, rho=30.0, dual_lr=0.01).loss(net, x, y, ctx)
    assert loss.total.item() == pytest.approx(adversarial, rel=1e-5)
    assert -0.3 < ctx.memory["nu"].item() < 0, "from 0, not from -3"


def test_the_gradient_holds_the_dual_variable_fixed():
    net, (x, x_adv, y) = linear_net(), examples()
    bias, weight = f64(net[-1].bias), f64(net[-1].weight)

    def loss(w, nu=NU):
        clean, robust = (
            cross_entropy(f64(inputs) @ w.T + bias, y.numpy()).mean() for inputs in (x, x_adv)
        )
        return robust + nu * clean

    expected = gradient(loss, weight)
    assert separated(expected, gradient(lambda w: loss(w, nu=0), weight))
    probed(x_adv).loss(net, x, y, context(nu=NU)).total.backward()
    np.testing.assert_allclose(f64(net[-1].weight.grad), expected, atol=1e-5)


def test_the_sampler_climbs_log_of_one_minus_the_probability():
    net, (x, x_adv, y) = linear_net(), examples()
    at = torch.randn(len(y), 4)
    method = probed(x_adv, at, rho=None)
    method.loss(net.train(), x, y, context())
    p = np.exp(log_softmax(f64(at)))[np.arange(len(y)), y.numpy()]
    expected = np.log(1 - p)
    assert separated(expected, -np.log(p), np.log(p), 1 - p)
    np.testing.assert_allclose(method.inner.values, expected, rtol=1e-5)
    assert method.inner.modes and not any(method.inner.modes)


def test_the_sampler_of_the_kl_form_climbs_the_divergence():
    net, (x, x_adv, y) = linear_net(), examples()
    at = torch.randn(len(y), 4)
    method = probed(x_adv, at, rho=None, form="kl")
    method.loss(net.train(), x, y, context())
    expected = kl(logits(net, f64(x)), f64(at))
    assert separated(expected, kl(f64(at), logits(net, f64(x))))
    np.testing.assert_allclose(method.inner.values, expected, rtol=1e-4)


def test_batch_norm_sees_the_clean_then_the_adversarial_inputs():
    check_batch_norm_sees_clean_then_adversarial(partial(probed, rho=None), context())


# -- what it contains


@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("start", ["uniform", "gaussian", "zero"])
def test_at_temperature_zero_the_sampler_is_pgd(noise, norm, start):
    net, (x, _, _) = linear_net(), examples()
    threat = Threat(norm=norm, eps="1/5")
    cold = Langevin(steps=4, start=start, temperature=0, noise=noise)
    found = cold(net, x, lambda z: -z[:, 0], threat, Rng((0, "s")))
    expected = PGD(steps=4, start=start)(net, x, lambda z: -z[:, 0], threat, Rng((0, "s")))
    assert torch.equal(found, expected)
    warm = cold.model_copy(update={"temperature": 10.0})
    assert not torch.equal(warm(net, x, lambda z: -z[:, 0], threat, Rng((0, "s"))), expected)


def test_one_cold_step_of_length_eps_is_fgsm():
    net, (x, _, _) = linear_net(), examples()
    one = Langevin(steps=1, rel_step_size=1, start="zero", temperature=0)
    ways = [attack(net, x, lambda z: -z[:, 0], SET, Rng((0, "s"))) for attack in (one, FGSM())]
    assert torch.equal(*ways)


def test_cold_and_without_its_constraint_it_is_pgd_adversarial_training():
    """grad log(1 - p_y) is a positive multiple of the gradient of the cross-entropy."""
    net, (x, _, y) = linear_net(), examples()
    cold = Langevin(steps=5, start="uniform", temperature=0)
    ours = DALE(nu=0, rho=None, inner=cold).loss(net, x, y, context(SET))
    pgd = PGD(steps=5, start="uniform")
    theirs = PGDAT(inner=pgd).loss(net, x, y, context(SET))
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-6, atol=0)


def test_cold_with_a_fixed_weight_its_kl_form_is_trades_up_to_a_factor():
    net, (x, _, y) = linear_net(), examples()
    cold = Langevin(steps=5, temperature=0)
    ours = DALE(form="kl", nu=NU, rho=None, inner=cold).loss(net, x, y, context(SET))
    theirs = Trades(beta=1 / NU, inner=PGD(steps=5, start="gaussian"))
    expected = theirs.loss(net, x, y, context(SET)).total * NU
    torch.testing.assert_close(ours.total, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
def test_the_noise_has_the_scale_of_step_and_temperature(noise):
    """Where nothing slopes, an l2 step without noise goes nowhere: what moves is noise."""
    x = torch.full((40, 1, 20, 20), 0.5)
    far = Threat(norm="l2", eps=1000)
    one = Langevin(steps=1, step_size="1/50", start="zero", temperature=0.04, noise=noise)
    moved = one.search(torch.nn.Identity(), x, lambda z: 0 * z.flatten(1)[:, 0], far, Rng((0,)))
    delta = (moved - x).flatten(1)
    if noise == "gaussian":  # clipped at the box in one of 10^28 draws
        assert delta.std().item() == pytest.approx((2 * 0.02 * 0.04) ** 0.5, rel=0.03)
    else:  # within the direction, whose length is the step
        torch.testing.assert_close(delta.norm(dim=1), torch.full((40,), 0.02), rtol=1e-4, atol=0)
        kurtosis = ((delta / delta.std()) ** 4).mean().item()
        assert kurtosis == pytest.approx(6, rel=0.15), "of a Laplace law, 3 of a normal one"


def test_costs():
    ten = Langevin(steps=10)
    assert DALE(inner=ten).forward_equivalents == 2 * 10 + 6
    assert DALE(inner=ten, form="kl").forward_equivalents == 2 * 10 + 7
    assert set(DALE().memory()) == {"nu"} and DALE(rho=None).memory() == {}
