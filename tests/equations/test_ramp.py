"""RAMP: the worst of two norms, a KL between them where the first is right, and the projection."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy_reference import (
    Watched,
    batch_norm_net,
    cross_entropy,
    examples,
    f64,
    kl,
    linear_net,
    logits,
    running,
    separated,
)

from robustfront.attacks import PGD
from robustfront.config import TrialConfig
from robustfront.methods import RAMP, MaxAT, Standard, StepContext
from robustfront.randomness import Rng
from robustfront.threats import Threat
from robustfront.updates import GradientProjection, Plain
from robustfront.updates.gradient_projection import projected

INNER = PGD(steps=3, start="zero")
# small enough to leave some examples right
BALLS = {
    "linf": Threat(norm="linf", eps="1/40"),
    "l2": Threat(norm="l2", eps="1/10"),
    "l1": Threat(norm="l1", eps="1/4"),
}
WEIGHT = 5.0


def context(*norms) -> StepContext:
    balls = {norm: BALLS[norm] for norm in norms or BALLS}
    return StepContext(BALLS["linf"], Rng((0, "ramp")), 0.0, balls)


def found(net, x, y, norm):
    def ce(z):
        return torch.nn.functional.cross_entropy(z, y, reduction="none")

    return INNER(net, x, ce, BALLS[norm], Rng((0,)))


def test_the_loss_is_the_worst_norm_plus_the_divergence_where_the_first_norm_is_right():
    net, (x, _, y) = linear_net(), examples(40)
    z_q, z_r = (logits(net, f64(found(net, x, y, norm))) for norm in ("linf", "l1"))
    labels = y.numpy()
    each = np.stack([cross_entropy(z, labels) for z in (z_q, z_r)])
    right, also = z_q.argmax(1) == labels, z_r.argmax(1) == labels
    assert 0 < right.sum() < len(y)
    pairing, worst = kl(z_q, z_r)[right].mean(), each.max(0).mean()
    expected = worst + WEIGHT * pairing
    assert separated(worst, each.mean(), each.min(0).mean(), each[0].mean(), each.sum(0).mean())
    assert separated(
        pairing,
        kl(z_r, z_q)[right].mean(),  # the other direction
        kl(z_q, z_r).mean(),  # all examples
        (kl(z_q, z_r) * right).mean(),  # divided by all
        kl(z_q, z_r)[also].mean(),  # those right in the second norm
    )

    loss = RAMP(inner=INNER, pairing_weight=WEIGHT).loss(net, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["adversarial_ce"].item() == pytest.approx(worst, rel=1e-5)
    assert loss.terms["pairing_kl"].item() == pytest.approx(pairing, rel=1e-5)


def test_the_first_key_norm_is_the_one_that_has_to_be_right():
    net, (x, _, y) = linear_net(), examples(40)
    z_q, z_r = (logits(net, f64(found(net, x, y, norm))) for norm in ("l2", "linf"))
    right = z_q.argmax(1) == y.numpy()
    method = RAMP(inner=INNER, key_norms=("l2", "linf"))
    terms = method.loss(net, x, y, context()).terms
    assert terms["pairing_kl"].item() == pytest.approx(kl(z_q, z_r)[right].mean(), rel=1e-5)


def test_both_sides_of_the_divergence_get_gradients():
    net, (x, _, y) = linear_net(), examples(40)
    method = RAMP(inner=INNER)
    terms = method.loss(net, x, y, context()).terms
    (grad,) = torch.autograd.grad(terms["pairing_kl"], [net[1].weight])
    q, r = (found(net, x, y, norm) for norm in ("linf", "l1"))
    log_q = torch.log_softmax(net(q), 1)
    log_r = torch.log_softmax(net(r), 1)
    right = net(q).argmax(1) == y
    value = (log_q.exp() * (log_q - log_r)).sum(1)[right].mean()
    (expected,) = torch.autograd.grad(value, [net[1].weight], retain_graph=True)
    half = (log_q.detach().exp() * (log_q.detach() - log_r)).sum(1)[right].mean()
    (one_sided,) = torch.autograd.grad(half, [net[1].weight])
    assert separated(f64(expected), f64(one_sided))
    torch.testing.assert_close(grad, expected)


def test_where_nothing_is_right_nothing_is_paired():
    net, (x, _, y) = linear_net(), examples(40)
    z = logits(net, f64(found(net, x, y, "linf")))
    wrong = torch.from_numpy(z.argmax(1) != y.numpy())
    terms = RAMP(inner=INNER).loss(net, x[wrong], y[wrong], context()).terms
    assert terms["pairing_kl"].item() == 0


def test_without_pairing_it_is_max_over_the_two_norms():
    net, (x, _, y) = batch_norm_net(), examples()
    nets = [net, batch_norm_net()]
    ours = RAMP(inner=INNER, pairing_weight=0).loss(nets[0], x, y, context())
    theirs = MaxAT(inner=INNER).loss(nets[1], x, y, context("linf", "l1"))
    assert torch.equal(ours.total, theirs.total)
    assert torch.equal(nets[0][1].running_var, nets[1][1].running_var)


def test_batch_norm_sees_the_worst_inputs_and_those_of_both_norms():
    net, (x, _, y) = batch_norm_net(), examples()
    start = f64(net[1].running_mean), f64(net[1].running_var)
    watched = Watched(net).train()
    RAMP(inner=INNER).loss(watched, x, y, context())
    seen = watched.trained_on
    torch.testing.assert_close(seen[1], found(net, x, y, "linf"), rtol=0, atol=0.11)
    assert len(seen) == 3
    mean, var = running(start, *map(f64, seen))
    np.testing.assert_allclose(f64(net[1].running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(f64(net[1].running_var), var, rtol=1e-5)
    assert watched.eval_passes == 2 * (INNER.steps + 1)


# -- the projection


def test_the_projection_of_two_changes():
    rng = np.random.default_rng(0)
    g_a = rng.normal(size=(4, 3))
    g_n = 2 * g_a + 2 * rng.normal(size=(4, 3))
    cosine = (g_a * g_n).sum() / np.sqrt((g_a**2).sum() * (g_n**2).sum())
    assert 0.1 < cosine < 0.9
    expected = 0.7 * g_a + 0.3 * cosine * g_n
    assert separated(
        expected,
        0.3 * g_a + 0.7 * cosine * g_n,
        0.7 * g_a + 0.3 * g_n,
        0.7 * g_a + 0.3 * cosine * g_a,
        0.7 * g_a + 0.3 * (g_a * g_n).sum() / (g_n**2).sum() * g_n,  # an orthogonal projection
    )
    ours = projected(torch.tensor(g_a), torch.tensor(g_n), 0.3)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
    against = projected(torch.tensor(g_a), torch.tensor(-g_n), 0.3)
    np.testing.assert_allclose(against.numpy(), 0.7 * g_a, rtol=1e-12)
    nothing = torch.zeros(4, 3, dtype=torch.float64)
    assert torch.equal(projected(nothing, nothing, 0.3), nothing)


def epoch(update, method, net, batches, lr=0.1):
    """Weights after an epoch of SGD with momentum."""

    def optimizer(model):
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    own = optimizer(net)
    with update.epoch(net, optimizer) as take:
        for x, y in batches:
            take(net, own, method, (x, y), context())
    return net


def test_an_epoch_joins_the_changes_of_robust_and_of_natural_training():
    x, _, y = examples(40)
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    method = RAMP(inner=INNER)
    start = linear_net()
    robust = epoch(Plain(), method, linear_net(), batches)
    natural = epoch(Plain(), Standard(), linear_net(), batches)
    both = epoch(GradientProjection(share=0.3), method, linear_net(), batches)
    weights = zip(
        *(map(f64, net.parameters()) for net in (start, robust, natural, both)), strict=True
    )
    for old, with_attack, without, found_ in weights:
        g_a, g_n = with_attack - old, without - old
        cosine = max(0, (g_a * g_n).sum() / np.sqrt((g_a**2).sum() * (g_n**2).sum()))
        expected = old + 0.7 * g_a + 0.3 * cosine * g_n
        np.testing.assert_allclose(found_, expected, rtol=1e-4, atol=1e-6)


def test_without_a_share_an_epoch_is_a_plain_one_and_batch_norm_is_never_mixed():
    x, _, y = examples(40)
    method = RAMP(inner=INNER)
    plain = epoch(Plain(), method, batch_norm_net(), [(x, y)])
    ours = epoch(GradientProjection(share=0), method, batch_norm_net(), [(x, y)])
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    mixed = epoch(GradientProjection(share=0.9), method, batch_norm_net(), [(x, y)])
    assert torch.equal(mixed[1].running_mean, plain[1].running_mean)


# -- the method in a job

TRIAL: dict[str, Any] = {
    "data": {"type": "digits"},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
    "method": {"type": "ramp"},
}


def test_a_job_gets_the_projection_and_the_key_norms_without_naming_them():
    config = TrialConfig.model_validate(TRIAL)
    assert config.update == GradientProjection()
    assert config.parameters()["train_threat.radius.l1"] != "0"
    assert TrialConfig.model_validate({**TRIAL, "update": {"share": 0.2}}).update.share == 0.2
    plain = TrialConfig.model_validate({**TRIAL, "update": {"type": "plain"}})
    assert plain.update == Plain()
    assert TrialConfig.model_validate({**TRIAL, "method": {"type": "trades"}}).update == Plain()
    with pytest.raises(ValueError, match="two different norms, got l1 twice"):
        RAMP(key_norms=("l1", "l1"))


def test_what_it_costs():
    config = TrialConfig.model_validate(TRIAL)
    assert config.method.forward_equivalents == 2 * (21 + 1) + 9
    assert config.step_equivalents() == 53 + 3
    assert RAMP(pairing_weight=0).forward_equivalents == 2 * (21 + 1) + 3
