"""CROWN-IBP: linear bounds of the margins, with interval bounds of the hidden layer."""

import numpy as np
import pytest
import torch
from bound_reference import (
    box,
    context,
    images,
    loss_of,
    margins,
    of_layer,
    two_layers,
    verified,
)
from numpy_reference import f64, separated
from torch import nn

from robustfront.certifiers.propagation import Ball, margins_of, propagate, regions_of
from robustfront.methods import CROWNIBPTraining, IBPTraining
from robustfront.methods.bounding import verified_ce
from robustfront.models import CNN7, COAPSmall, build_model
from robustfront.threats import Threat


def linear_bounds(net, low, high, y, classes=4) -> np.ndarray:
    """Least margins by lines below and above each unit, one unit and one margin after the other."""
    weight, bias = f64(net[1].weight), f64(net[1].bias)
    last, shift = f64(net[3].weight), f64(net[3].bias)
    found = []
    for n, label in enumerate(y):
        centre, radius = (low[n] + high[n]) / 2, (high[n] - low[n]) / 2
        for k in [k for k in range(classes) if k != label]:
            rows, constant = np.zeros(12), shift[label] - shift[k]
            for unit in range(len(bias)):
                a = last[label, unit] - last[k, unit]
                middle = weight[unit] @ centre + bias[unit]
                spread = np.abs(weight[unit]) @ radius
                least, most = middle - spread, middle + spread
                if least >= 0:
                    slope, cut = 1.0, 0.0
                elif most <= 0:
                    slope, cut = 0.0, 0.0
                elif a >= 0:
                    slope, cut = float(most > -least), 0.0
                else:
                    slope, cut = most / (most - least), -most * least / (most - least)
                rows += a * slope * weight[unit]
                constant += a * (slope * bias[unit] + cut)
            found.append(rows @ centre - np.abs(rows) @ radius + constant)
    return np.array(found).reshape(len(y), classes - 1)


@pytest.mark.parametrize("strength", [0.25, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.4, 1.0])
def test_the_loss_is_that_of_the_paper(final, strength):
    net, (x, _, y) = two_layers(), images()
    low, high = box(x, 0.1 * strength)
    tight, loose = linear_bounds(net, low, high, y.numpy()), margins(net, low, high, y.numpy())
    beta = 1 - (1 - final) * strength
    robust = verified(beta * tight + (1 - beta) * loose).mean()
    if 0 < beta < 1:
        of_losses = beta * verified(tight).mean() + (1 - beta) * verified(loose).mean()
        swapped = verified((1 - beta) * tight + beta * loose).mean()
        assert separated(robust, of_losses, least=1e-5) and separated(robust, swapped, least=1e-3)
    method = CROWNIBPTraining(regularise=0, final_beta=final)
    loss = loss_of(method, net, context(strength))
    assert loss.terms["robust"].item() == pytest.approx(robust, rel=1e-5)


def test_without_linear_bounds_it_is_ibp():
    net = two_layers()
    expected = loss_of(IBPTraining(regularise=0), net, context()).total.item()
    found = loss_of(CROWNIBPTraining(regularise=0), net, context()).total.item()
    assert found == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [COAPSmall(), CNN7(width=2)], ids=lambda config: config.type)
def test_linear_bounds_are_those_of_auto_lirpa(config):
    from robustfront.certifiers.relaxation import Relaxation

    torch.manual_seed(0)
    model = build_model(config, (1, 8, 8), 5, (0.4,), (0.3,)).eval()
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 3, 4])
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    threat, rule = Threat(norm="linf", eps="1/20"), margins_of(y, 5)
    theirs = Relaxation(model).using("CROWN-IBP")(x, threat, rule)
    ours = propagate(model, regions_of(threat, x), trace=True).backward(rule)
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_balls_are_met_by_the_dual_norm(norm):
    net, (x, _, y) = two_layers(), images()
    threat = Threat(norm=norm, eps="0.3")
    known = propagate(net, regions_of(threat, x), trace=True)
    lower = known.backward(margins_of(y, 4))
    (ball,) = regions_of(threat, x)
    assert isinstance(ball, Ball)
    for _ in range(200):
        far = threat.project(x + torch.randn_like(x), x)
        plain = torch.einsum("nsk,nk->ns", margins_of(y, 4), net(far))
        assert (lower <= plain + 1e-5).all()
    assert (lower >= known.lower(margins_of(y, 4)) - 1e-5).float().mean() > 0.5


def test_gradients_reach_every_weight_and_batch_norm_uses_clean_statistics():
    torch.manual_seed(0)
    model = build_model(CNN7(width=2), (1, 8, 8), 5, (0.4,), (0.3,)).train()
    x, y = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    zero = regions_of(Threat(norm="linf", eps="0"), x)
    known = propagate(model, zero, x, trace=True)
    plain = torch.einsum("nsk,nk->ns", margins_of(y, 5), known.clean)
    torch.testing.assert_close(known.backward(margins_of(y, 5)), plain, rtol=1e-3, atol=1e-3)
    threat = Threat(norm="linf", eps="1/50")
    bounds = propagate(model, regions_of(threat, x), x, trace=True).backward(margins_of(y, 5))
    verified_ce(bounds).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_fused_loss_bounds_the_sum_of_exponentials_by_lines() -> None:
    net, (x, _, y) = two_layers(), images()
    low, high = box(x, 0.1)
    names, loose = y.numpy(), margins(net, low, high, y.numpy())
    weight, bias = f64(net[1].weight), f64(net[1].bias)
    hidden = of_layer(weight, bias, low, high)
    on = np.maximum(hidden[0], 0), np.maximum(hidden[1], 0)
    sums = []
    for n, label in enumerate(names):
        others = [k for k in range(4) if k != label]
        rows = f64(net[3].weight)[label] - f64(net[3].weight)[others]
        shift = f64(net[3].bias)[label] - f64(net[3].bias)[others]
        ends = of_layer(rows, shift, on[0][n : n + 1], on[1][n : n + 1])
        least, most = -ends[1][0], -ends[0][0]
        slope = (np.exp(most) - np.exp(least)) / (most - least)
        # One network whose only output is the sum of slope_k (z_y - z_k).
        joined = nn.Sequential(*net[:3], nn.Linear(8, 2))
        with torch.no_grad():
            joined[3].weight.zero_()
            joined[3].bias.zero_()
            joined[3].weight[0] = torch.as_tensor(slope @ rows)
            joined[3].bias[0] = torch.as_tensor(slope @ shift)
        part = low[n : n + 1], high[n : n + 1]
        under = linear_bounds(joined, *part, [0], classes=2)[0, 0]
        sums.append((np.exp(least) - slope * least).sum() - under)
    linear = np.array(sums)
    assert (linear <= np.exp(-loose).sum(1) + 1e-6).mean() > 0.5
    fused = CROWNIBPTraining(regularise=0, final_beta=1, fused=True)
    found = loss_of(fused, net, context()).terms["robust"].item()
    assert found == pytest.approx(np.log1p(linear).mean(), rel=1e-4)
    plain = CROWNIBPTraining(regularise=0, final_beta=1)
    tight = loss_of(plain, net, context()).terms["robust"].item()
    assert separated(found, tight, least=1e-3) and found > tight
    zero = Threat(norm="linf", eps="0")
    exact = loss_of(fused, net, context(threat=zero)).terms["robust"].item()
    logits = net(x)
    assert exact == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-3)


def test_without_linear_bounds_the_fused_loss_is_ibp_and_in_between_a_mean_of_sums() -> None:
    net = two_layers()
    ibp, both, linear = (
        loss_of(CROWNIBPTraining(regularise=0, final_beta=b, fused=True), net, context())
        for b in (0.0, 0.5, 1.0)
    )
    expected = loss_of(IBPTraining(regularise=0), net, context()).total.item()
    assert ibp.total.item() == pytest.approx(expected)
    low, high = sorted([linear.total.item(), expected])
    assert low < both.total.item() < high
