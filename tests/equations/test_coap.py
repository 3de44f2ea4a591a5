"""COAP: margins by the dual of the linear relaxation, one layer after the other."""

import numpy as np
import pytest
import torch
from bound_reference import box, context, images, loss_of, margins, two_layers, verified
from numpy_reference import Array, f64, separated
from test_crown_ibp import linear_bounds
from torch import nn

from robustfront.certifiers.propagation import margins_of, propagate, regions_of
from robustfront.methods import COAP
from robustfront.models import COAPSmall, build_model
from robustfront.threats import Threat


def dual(layers: list[tuple[Array, Array]], low: Array, high: Array, c: Array) -> float:
    """The dual's value for min c z over one box, by the formulas of the paper: nu back through the
    layers, alpha = u / (u - l) for units that may be on or off."""
    ends: list[tuple[Array, Array]] = []
    for depth in range(1, len(layers)):
        part = layers[:depth]
        rows = np.eye(len(part[-1][1]))
        least = np.array([_value(part, ends, low, high, row) for row in rows])
        most = np.array([-_value(part, ends, low, high, -row) for row in rows])
        ends.append((least, most))
    return _value(layers, ends, low, high, c)


def _value(
    layers: list[tuple[Array, Array]],
    ends: list[tuple[Array, Array]],
    low: Array,
    high: Array,
    c: Array,
) -> float:
    nu = -c
    total = -layers[-1][1] @ nu
    for (weight, _), (_, bias), (least, most) in zip(
        layers[:0:-1], layers[-2::-1], ends[::-1], strict=True
    ):
        hat = weight.T @ nu
        alpha = np.where(least >= 0, 1.0, np.where(most <= 0, 0.0, most / (most - least)))
        unstable = (least < 0) & (most > 0)
        nu = alpha * hat
        # l [nu]_+ for those that may be on or off
        total += (least * np.maximum(nu, 0))[unstable].sum()
        total -= bias @ nu
    first = layers[0][0].T @ nu
    return float(total - np.maximum(first * low, first * high).sum())


def layers_of(net: nn.Sequential) -> list[tuple[Array, Array]]:
    return [(f64(m.weight), f64(m.bias)) for m in net if isinstance(m, nn.Linear)]


def three_layers() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)]
    return nn.Sequential(nn.Flatten(), *sizes)


@pytest.mark.parametrize("net", [two_layers(), three_layers()], ids=["two", "three"])
def test_the_loss_is_that_of_the_paper(net: nn.Sequential) -> None:
    x, _, y = images()
    low, high = box(x, 0.1)
    m = np.array(
        [
            [
                dual(layers_of(net), low[n], high[n], np.eye(4)[label] - np.eye(4)[k])
                for k in range(4)
                if k != label
            ]
            for n, label in enumerate(y.numpy())
        ]
    )
    robust = verified(m).mean()
    if len(net) == 4:
        adaptive = verified(linear_bounds(net, low, high, y.numpy())).mean()
        loose = verified(margins(net, low, high, y.numpy())).mean()
        assert separated(robust, adaptive, least=1e-4)
        assert separated(robust, loose, least=1e-3)
    assert loss_of(COAP(), net, context()).terms["robust"].item() == pytest.approx(robust, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_its_bounds_are_those_of_auto_lirpa_with_parallel_lines() -> None:
    from robustfront.certifiers.relaxation import Relaxation

    torch.manual_seed(0)
    model = build_model(COAPSmall(), (1, 8, 8), 5, (0.4,), (0.3,)).eval()
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 3, 4])
    threat, rule = Threat(norm="linf", eps="1/20"), margins_of(y, 5)
    relaxation = Relaxation(model)
    relaxation.options = {**relaxation.options, "relu": "same-slope", "conv_mode": "matrix"}
    theirs = relaxation.using("CROWN")(x, threat, rule)
    ours = propagate(model, regions_of(threat, x), dual=True).backward(rule)
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-4)
    assert (ours > propagate(model, regions_of(threat, x)).lower(rule)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "segment"])
def test_nothing_that_is_allowed_is_below_the_bounds(norm: str) -> None:
    net, (x, _, y) = three_layers(), images()
    threat = Threat.model_validate({"norm": norm, "eps": "0.3"})
    lower = propagate(net, regions_of(threat, x), dual=True).backward(margins_of(y, 4))
    for _ in range(200):
        far = threat.project(x + torch.randn_like(x), x)
        plain = torch.einsum("nsk,nk->ns", margins_of(y, 4), net(far))
        assert (lower <= plain + 1e-5).all()
