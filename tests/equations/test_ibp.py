"""IBP: cross-entropy at the least margins, and what the ramp of the radius adds."""

import math

import numpy as np
import pytest
import torch
from bound_reference import LINF, at, box, context, images, loss_of, margins, two_layers, verified
from numpy_reference import f64, separated
from torch import nn

from robustfront.methods import IBPTraining
from robustfront.models import CNN7, build_model
from robustfront.threats import Threat

PLAIN = IBPTraining(regularise=0)


def test_the_loss_is_the_cross_entropy_at_the_least_margins():
    net, (x, _, y) = two_layers(), images()
    m = margins(net, *box(x, 0.1), y.numpy())
    expected = verified(m).mean()
    uncut = margins(net, f64(x) - 0.1, f64(x) + 0.1, y.numpy())
    assert separated(
        expected, verified(-m).mean(), verified(at(net, x, y.numpy())).mean(), least=0.05
    )
    assert separated(expected, verified(uncut).mean(), verified(m).sum(), least=0.001)
    loss = loss_of(PLAIN, net, context())
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["robust"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 0.3])
@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_the_clean_term_loses_weight_with_the_ramp(kappa, strength):
    net, (x, _, y) = two_layers(), images()
    clean = verified(at(net, x, y.numpy())).mean()
    robust = verified(margins(net, *box(x, 0.1 * strength), y.numpy())).mean()
    weight = 1 - (1 - kappa) * strength
    expected = weight * clean + (1 - weight) * robust
    assert separated(expected, (1 - weight) * clean + weight * robust, least=0.005)
    method = IBPTraining(regularise=0, kappa=kappa)
    assert loss_of(method, net, context(strength)).total.item() == pytest.approx(expected, rel=1e-5)


def test_the_regularisers_are_those_of_the_paper_and_end_with_the_ramp():
    net, (x, _, _) = two_layers(), images()
    strength = 0.5
    low, high = box(x, 0.05)
    weight, bias = f64(net[1].weight), f64(net[1].bias)
    centre, radius = (low + high) / 2 @ weight.T + bias, (high - low) / 2 @ np.abs(weight).T
    start = ((high - low) / 2).mean()
    tight = max(0.5 - start / radius.mean(), 0) / 0.5
    on, off = centre - radius > 0, centre + radius < 0
    alpha = (centre * on).mean() / -(centre * off).mean()
    spread = (centre - centre.mean()) ** 2
    beta = (spread * on).sum() / (spread * off).sum()
    balance = sum(max(0.5 - min(r, 1 / r), 0) for r in (alpha, beta)) / 0.5
    loss = loss_of(IBPTraining(), net, context(strength))
    assert tight > 0
    assert loss.terms["tightness"].item() == pytest.approx(tight, rel=1e-4)
    assert loss.terms["balance"].item() == pytest.approx(balance, rel=1e-4)
    bare = loss_of(PLAIN, net, context(strength)).total.item()
    assert loss.total.item() == pytest.approx(bare + 0.5 * 0.5 * (tight + balance), rel=1e-4)
    whole = loss_of(IBPTraining(), net, context())
    assert whole.total.item() == pytest.approx(loss_of(PLAIN, net, context()).total.item())


def test_at_radius_0_the_regularisers_are_finite():
    loss = loss_of(IBPTraining(), two_layers(), context(0.0))
    loss.total.backward()
    assert math.isfinite(loss.total.item())
    assert loss.terms["tightness"].item() > 0


def test_weights_are_made_small_by_their_sizes():
    net = two_layers()
    size = sum(np.abs(f64(layer.weight)).sum() for layer in (net[1], net[3]))
    bare = loss_of(PLAIN, net, context()).total.item()
    found = loss_of(IBPTraining(regularise=0, l1=0.01), net, context()).total.item()
    assert found == pytest.approx(bare + 0.01 * size, rel=1e-5)


def test_l2_balls_are_bounded_by_the_first_layer_s_rows():
    net, (x, _, y) = two_layers(), images()
    weight, bias = f64(net[1].weight), f64(net[1].bias)
    centre = f64(x) @ weight.T + bias
    for norm, sizes in (
        ("l2", np.sqrt((weight**2).sum(1))),
        ("l1", np.abs(weight).max(1)),
    ):
        low, high = np.maximum(centre - 0.3 * sizes, 0), np.maximum(centre + 0.3 * sizes, 0)
        last, shift = f64(net[3].weight), f64(net[3].bias)
        each = []
        for n, label in enumerate(y.numpy()):
            others = [k for k in range(4) if k != label]
            rows = last[label] - last[others]
            ends = np.where(rows > 0, low[n], high[n])
            each.append((rows * ends).sum(1) + shift[label] - shift[others])
        expected = verified(np.array(each)).mean()
        threat = Threat(norm=norm, eps="0.3")
        found = loss_of(PLAIN, net, context(threat=threat)).total.item()
        assert found == pytest.approx(expected, rel=1e-5), norm


def test_bounds_use_the_clean_statistics_of_batch_norm():
    torch.manual_seed(0)
    net, (x, _, y) = two_layers(), images()
    norm = nn.BatchNorm1d(8)
    with_norm = nn.Sequential(net[0], net[1], norm, net[2], net[3]).train()
    loss = PLAIN.loss(with_norm, x, y, context())
    z = f64(x) @ f64(net[1].weight).T + f64(net[1].bias)
    scale = 1 / np.sqrt(z.var(0) + 1e-5)
    folded = two_layers()
    with torch.no_grad():
        folded[1].weight.copy_(torch.from_numpy(f64(net[1].weight) * scale[:, None]))
        folded[1].bias.copy_(torch.from_numpy((f64(net[1].bias) - z.mean(0)) * scale))
    expected = verified(margins(folded, *box(x, 0.1), y.numpy())).mean()
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(f64(norm.running_mean), 0.1 * z.mean(0), rtol=1e-4, atol=1e-6)


def test_fast_weights_keep_the_bounds_of_a_deep_network_in_size():
    torch.manual_seed(0)
    model = build_model(CNN7(width=8), (1, 12, 12), 10, (0.0,), (1.0,))
    IBPTraining().initialise(model)
    deep = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for layer in deep[1:]:
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / fan_in, rel=0.1)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert last.weight.abs().max() <= 1 / math.sqrt(last.in_features)
    before = deep[1].weight.clone()
    IBPTraining(fast_init=False).initialise(model)
    assert torch.equal(before, deep[1].weight)


def test_the_threat_is_the_one_the_step_is_given():
    net = two_layers()
    losses = [
        loss_of(PLAIN, net, context(threat=Threat(norm="linf", eps=eps))).total.item()
        for eps in ("0.01", "0.1", "0.3")
    ]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert LINF.eps == Threat(norm="linf", eps="0.1").eps
