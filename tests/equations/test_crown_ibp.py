"""CROWN-IBP: linear bounds of the margins, with interval bounds of the hidden layer."""

import numpy as np
import pytest
import torch
from bound_reference import box, context, images, loss_of, margins, two_layers, verified
from numpy_reference import f64, separated
from torch import nn

from robustfront.certifiers.propagation import Ball, margins_of, propagate, regions_of
from robustfront.methods import CROWNIBPTraining, IBPTraining
from robustfront.methods.bounding import verified_ce
from robustfront.models import CNN7, COAPSmall, build_model
from robustfront.threats import Threat


def linear_bounds(net, low, high, y) -> np.ndarray:
    """Least margins by lines below and above each unit, one unit and one margin after the other."""
    weight, bias = f64(net[1].weight), f64(net[1].bias)
    last, shift = f64(net[3].weight), f64(net[3].bias)
    found = []
    for n, label in enumerate(y):
        centre, radius = (low[n] + high[n]) / 2, (high[n] - low[n]) / 2
        for k in [k for k in range(4) if k != label]:
            rows, constant = np.zeros(12), shift[label] - shift[k]
            for unit in range(8):
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
    return np.array(found).reshape(len(y), 3)


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
