"""SABR: interval bounds over a part of the threat around what the search finds."""

import numpy as np
import pytest
import torch
from bound_reference import LINF, at, box, context, images, loss_of, margins, two_layers, verified
from numpy_reference import Probe, check_search_climbs_cross_entropy, f64, separated

from robustfront.certifiers.propagation import Ball
from robustfront.methods import SABR, IBPTraining
from robustfront.methods.bounding import parts_around
from robustfront.threats import Threat


def probed(found: torch.Tensor, at: torch.Tensor | None = None, **fields: object) -> SABR:
    at = torch.zeros(len(found), 4) if at is None else at
    return SABR(regularise=0, **fields).model_copy(update={"inner": Probe(found=found, logits=at)})


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_the_region_lies_inside_the_threat_around_what_was_found(share):
    net, (x, x_adv, y) = two_layers(), images()
    low, high = box(x, 0.1)
    radius = share * (high - low) / 2
    centre = np.clip(f64(x_adv), low + radius, high - radius)
    expected = verified(margins(net, centre - radius, centre + radius, y.numpy())).mean()
    around_x = verified(margins(net, f64(x) - radius, f64(x) + radius, y.numpy())).mean()
    outside = f64(x_adv)
    wide = verified(margins(net, outside - radius, outside + radius, y.numpy())).mean()
    assert separated(expected, around_x, verified(at(net, x_adv, y.numpy())).mean(), least=0.002)
    assert separated(expected, wide, least=1e-4)
    loss = loss_of(probed(x_adv, share=share), net, context())
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_its_ends_are_ibp_and_adversarial_training():
    net, (_, x_adv, y) = two_layers(), images()
    all_of_it = loss_of(probed(x_adv, share=1), net, context()).total.item()
    ibp = loss_of(IBPTraining(regularise=0), net, context()).total.item()
    assert all_of_it == pytest.approx(ibp, rel=1e-5)
    none_of_it = loss_of(probed(x_adv, share=0), net, context()).total.item()
    assert none_of_it == pytest.approx(verified(at(net, x_adv, y.numpy())).mean(), rel=1e-5)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_balls_stay_inside_the_ball(norm):
    x, _, _ = images()
    threat = Threat(norm=norm, eps="0.3")
    far = threat.project(x + torch.randn_like(x), x)
    (part,) = parts_around(threat, x, far, 0.25)
    assert isinstance(part, Ball)
    assert float(part.threat.eps) == pytest.approx(0.075)
    assert (threat.distance(part.centre, x) <= 0.225 + 1e-6).all()
    assert (threat.distance(part.centre, x) > 0.1).any()


def test_the_search_makes_the_cross_entropy_large_in_eval_mode():
    check_search_climbs_cross_entropy(lambda found, at: probed(found, at), context(threat=LINF))
