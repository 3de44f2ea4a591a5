"""TRADES: clean cross-entropy plus beta times the mean KL(p(x) || p(x_adv))."""

import copy

import numpy as np
import pytest
import torch
from numpy_reference import (
    Probe,
    Watched,
    batch_norm,
    batch_norm_net,
    cross_entropy,
    dropout_net,
    examples,
    f64,
    gradient,
    kl,
    linear_net,
    log_softmax,
    logits,
    running,
    separated,
)
from pydantic import ValidationError
from torch import nn

from robustfront.attacks import PGD
from robustfront.methods import Standard, StepContext, Trades, kl_divergence
from robustfront.randomness import Rng
from robustfront.threats import Threat

ANYWHERE = Threat(norm="linf", eps=1)  # projects nothing away
BETA = 3.0


def context(threat: Threat = ANYWHERE) -> StepContext:
    return StepContext(threat, Rng((0, "trades")), 0.0)


def probed(x_adv: torch.Tensor, at: torch.Tensor | None = None, beta: float = BETA) -> Trades:
    at = torch.zeros(len(x_adv), 4) if at is None else at
    return Trades(beta=beta).model_copy(update={"inner": Probe(found=x_adv, logits=at)})


def test_the_loss_and_its_terms_are_those_of_the_paper():
    net, (x, x_adv, y) = linear_net(), examples()
    z, z_adv = logits(net, f64(x)), logits(net, f64(x_adv))
    clean, robust = cross_entropy(z, y.numpy()).mean(), kl(z, z_adv).mean()
    total = clean + BETA * robust
    on_adversarial = cross_entropy(z_adv, y.numpy()).mean()
    assert separated(clean, on_adversarial)
    assert separated(robust, kl(z_adv, z).mean(), robust / 4, robust * len(y))
    assert separated(
        total,
        clean - BETA * robust,
        clean + robust / BETA,
        clean + robust,
        on_adversarial + BETA * robust,
        clean + BETA * kl(z_adv, z).mean(),
        clean + BETA * robust / 4,
    )

    loss = probed(x_adv).loss(net, x, y, context())

    assert set(loss.terms) == {"clean_ce", "robust_kl"}
    assert loss.terms["clean_ce"].item() == pytest.approx(clean, rel=1e-5)
    assert loss.terms["robust_kl"].item() == pytest.approx(robust, rel=1e-5)
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_both_arguments_of_the_outer_kl_get_gradients():
    net, (x, x_adv, y) = linear_net(), examples()
    weight, bias = f64(net[-1].weight), f64(net[-1].bias)

    def loss(w_clean, w_target, w_adv):
        z, target, z_adv = (
            f64(inputs) @ w.T + bias for inputs, w in ((x, w_clean), (x, w_target), (x_adv, w_adv))
        )
        return cross_entropy(z, y.numpy()).mean() + BETA * kl(target, z_adv).mean()

    expected = gradient(lambda w: loss(w, w, w), weight)
    target_detached = gradient(lambda w: loss(w, weight, w), weight)
    adversarial_detached = gradient(lambda w: loss(w, w, weight), weight)
    assert separated(expected, target_detached, adversarial_detached)

    probed(x_adv).loss(net, x, y, context()).total.backward()

    np.testing.assert_allclose(f64(net[-1].weight.grad), expected, atol=1e-4)


def test_the_search_makes_the_kl_to_a_fixed_clean_prediction_in_eval_mode_large():
    net, (x, x_adv, y) = batch_norm_net(), examples()
    at = torch.randn(len(y), 4, requires_grad=True)
    norm = net[1]
    clean = logits(
        net, (f64(x) - f64(norm.running_mean)) / np.sqrt(f64(norm.running_var) + norm.eps)
    )
    expected = kl(clean, f64(at))
    in_train_mode = kl(logits(net, batch_norm(f64(x))), f64(at))
    assert separated(expected, kl(f64(at), clean), in_train_mode, -expected, expected / 4)
    method = probed(x_adv, at)

    method.loss(net.train(), x, y, context())

    np.testing.assert_allclose(method.inner.values, expected, rtol=1e-4)
    assert method.inner.modes and not any(method.inner.modes)
    assert all(module.training for module in net.modules())


def test_with_batch_norm_the_search_uses_the_running_statistics():
    net, (x, _, y) = batch_norm_net(), examples()
    threat, inner = Threat(norm="linf", eps="1/10"), PGD(steps=5, start="gaussian")

    def found(searched: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            log_p = searched.eval()(x).log_softmax(1)
        return inner(
            searched,
            x,
            lambda z: (log_p.exp() * (log_p - z.log_softmax(1))).sum(1),
            threat,
            Rng((0, "trades")),
        )

    def total(x_adv: torch.Tensor) -> float:
        z, z_adv = (logits(net, batch_norm(f64(inputs))) for inputs in (x, x_adv))
        return cross_entropy(z, y.numpy()).mean() + BETA * kl(z, z_adv).mean()

    in_train_mode = copy.deepcopy(net)
    in_train_mode[1] = nn.BatchNorm1d(12, affine=False, track_running_stats=False)
    x_adv = found(copy.deepcopy(net))
    assert separated(total(x_adv), total(found(in_train_mode)))

    watched = Watched(net).train()
    loss = Trades(beta=BETA, inner=inner).loss(watched, x, y, context(threat))

    assert loss.total.item() == pytest.approx(total(x_adv), rel=1e-4)
    assert len(watched.trained_on) == 2
    assert torch.equal(watched.trained_on[0], x)
    assert torch.equal(watched.trained_on[1], x_adv)


def test_with_dropout_the_search_drops_nothing():
    net, (x, _, y) = dropout_net(), examples()
    threat, inner = Threat(norm="l2", eps=1), PGD(steps=3)
    without = nn.Sequential(net[0], net[2])
    log_p = without(x).log_softmax(1).detach()
    x_adv = inner(without, x, lambda z: kl_divergence(log_p, z), threat, Rng((0, "trades")))
    watched = Watched(net).train()

    Trades(inner=inner).loss(watched, x, y, context(threat))

    assert torch.equal(watched.trained_on[1], x_adv)


def test_batch_norm_sees_the_clean_then_the_adversarial_inputs():
    net, (x, x_adv, y) = batch_norm_net(), examples()
    x_adv = 0.2 * x_adv  # statistics of its own
    a, b = f64(x), f64(x_adv)
    start = f64(net[1].running_mean), f64(net[1].running_var)
    mean, var = running(start, a, b)
    others = [(b, a), (a, b, a), (a, a, b), (np.concatenate([a, b]),), (a,), (b,)]
    for passes in others:
        other = running(start, *passes)
        assert np.abs(other[0] - mean).max() > 1e-3 and np.abs(other[1] - var).max() > 1e-3

    probed(x_adv).loss(net.train(), x, y, context())

    np.testing.assert_allclose(f64(net[1].running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(f64(net[1].running_var), var, rtol=1e-5)
    assert net[1].num_batches_tracked == 2


def test_without_its_robust_term_it_has_the_gradient_of_standard_training():
    net, (x, _, y) = linear_net(), examples()
    ctx = context(Threat(norm="linf", eps="1/10"))
    Standard().loss(net, x, y, ctx).total.backward()
    expected = net[-1].weight.grad.clone()
    net.zero_grad()

    Trades(beta=0).loss(net, x, y, ctx).total.backward()

    assert torch.equal(net[-1].weight.grad, expected)
    net.zero_grad()
    Trades(beta=BETA).loss(net, x, y, ctx).total.backward()
    assert separated(f64(expected), f64(net[-1].weight.grad))


def test_the_search_leaves_the_gradients_of_the_weights_alone():
    net, (x, _, y) = linear_net(), examples()
    net[-1].weight.grad = torch.full_like(net[-1].weight, 7.0)

    Trades().loss(net, x, y, context(Threat(norm="linf", eps="1/10")))

    assert torch.equal(net[-1].weight.grad, torch.full_like(net[-1].weight, 7.0))
    assert net[-1].bias.grad is None


def test_lambda_is_one_over_beta():
    assert Trades.model_validate({"lambda": 0.25}).beta == 4
    assert Trades.model_validate({"type": "trades", "lambda": "0.5"}) == Trades(beta=2)
    assert Trades(beta=8).derived() == {"lambda": 0.125}
    assert Trades(beta=0).derived() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lambda": 1.0, "beta": 1.0}, "one of them, not both"),
        ({"lambda": 0}, "number above 0"),
        ({"lambda": "small"}, "number above 0"),
        ({"lambda": -2}, "greater than or equal to 0"),
        ({"beta": -1}, "greater than or equal to 0"),
        ({"beta": float("nan")}, "finite"),
    ],
)
def test_wrong_weights_of_the_robust_term_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        Trades.model_validate(given)


def test_kl_divergence_equals_torch_and_numpy_at_moderate_logits():
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    ours = kl_divergence(a.log_softmax(1), b)
    theirs = nn.KLDivLoss(reduction="none")(b.log_softmax(1), a.softmax(1)).sum(1)
    assert separated(f64(ours), kl(f64(b), f64(a)))

    np.testing.assert_allclose(f64(ours), kl(f64(a), f64(b)), rtol=1e-5)
    torch.testing.assert_close(ours, theirs)
    gradients = torch.autograd.grad(ours.sum(), (a, b))
    expected = torch.autograd.grad(theirs.sum(), (a, b))
    torch.testing.assert_close(gradients, expected)


def test_kl_divergence_of_saturated_logits_has_finite_values_and_gradients():
    a = torch.tensor([[200.0, -200.0, 0.0], [200.0, -200.0, 0.0], [-200.0, 200.0, 1.0]])
    b = torch.tensor([[-200.0, 200.0, 0.0], [200.0, -200.0, 0.0], [0.0, 0.0, 0.0]])
    a.requires_grad_(), b.requires_grad_()

    value = kl_divergence(a.log_softmax(1), b)
    value.sum().backward()

    np.testing.assert_allclose(f64(value), [400, 0, np.log(3)], rtol=1e-6, atol=1e-6)
    p, q = (np.exp(log_softmax(f64(z))) for z in (a, b))
    np.testing.assert_allclose(f64(b.grad), q - p, atol=1e-6)
    log_ratio = log_softmax(f64(a)) - log_softmax(f64(b))
    np.testing.assert_allclose(
        f64(a.grad), p * (log_ratio - kl(f64(a), f64(b))[:, None]), atol=1e-4
    )


def test_a_step_with_ten_inner_steps_costs_27_forwards():
    assert Trades(inner=PGD(steps=10)).forward_equivalents == 2 * 10 + 7
