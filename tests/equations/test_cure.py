"""CURE: bounds around what is found in two balls, combined and aligned."""

import numpy as np
import pytest
import torch
from bound_reference import box, images, margins, two_layers, verified
from numpy_reference import Probe, f64, kl, separated

from robustfront.certifiers.propagation import Ball, Box
from robustfront.methods import CURE, SABR, StepContext
from robustfront.methods.cure import aligned
from robustfront.randomness import Rng
from robustfront.threats import Norm, Threat

BALLS: dict[Norm, Threat] = {
    "linf": Threat(norm="linf", eps="1/10"),
    "l2": Threat(norm="l2", eps="1/5"),
}


def context() -> StepContext:
    return StepContext(BALLS["linf"], Rng((0, "cure")), 0.0, BALLS, {"linf": 1.0})


def probed(found: torch.Tensor, **fields: object) -> CURE:
    probe = Probe(found=found, logits=torch.zeros(len(found), 4))
    method = CURE(**{"regularise": 0, "align": 0, "share_linf": 0.3, "share_l2": 0.05, **fields})
    return method.model_copy(update={"inner": probe})


def around(x: torch.Tensor, found: torch.Tensor, eps: float, share: float):
    low, high = box(x, eps)
    radius = share * (high - low) / 2
    centre = np.clip(f64(found), low + radius, high - radius)
    return centre - radius, centre + radius


def both():
    """Margins of the two regions, and the net and labels they are of."""
    net, (x, x_adv, y) = two_layers(), images()
    linf = margins(net, *around(x, x_adv, 0.1, 0.3), y.numpy())
    l2 = margins(net, *around(x, x_adv, 0.2, 0.05), y.numpy())
    return net, x, x_adv, y, linf, l2


def loss_of(method: CURE) -> torch.Tensor:
    net, (x, _, y) = two_layers(), images()
    return method.loss(net.train(), x, y, context()).total


@pytest.mark.parametrize("combine", ["joint", "max"])
def test_both_terms_are_combined_as_the_paper_says(combine):
    _, _, x_adv, _, linf, l2 = both()
    ways = {
        "joint": 0.7 * verified(linf).mean() + 0.3 * verified(l2).mean(),
        "max": np.maximum(verified(linf), verified(l2)).mean(),
        "max of means": max(verified(linf).mean(), verified(l2).mean()),
        "swapped": 0.3 * verified(linf).mean() + 0.7 * verified(l2).mean(),
    }
    expected = ways.pop(combine)
    assert separated(expected, ways["joint" if combine == "max" else "swapped"], least=1e-3)
    found = loss_of(probed(x_adv, combine=combine, alpha=0.3)).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_random_takes_half_the_batch_for_each():
    _, _, x_adv, _, linf, l2 = both()
    expected = np.concatenate([verified(linf)[:3], verified(l2)[3:]]).mean()
    net, (x, _, y) = two_layers(), images()
    halves = iter([x_adv[:3], x_adv[3:]])

    class Halves(Probe):
        def search(self, *args):
            self.__dict__["found"] = next(halves)
            return super().search(*args)

    probe = Halves(found=x_adv, logits=torch.zeros(3, 4))
    method = probed(x_adv, combine="random").model_copy(update={"inner": probe})
    found = method.loss(net.train(), x, y, context()).total.item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("origin", ["l2", "linf"])
def test_bounds_are_aligned_over_what_is_certified(origin):
    net, (x, x_adv, _) = two_layers(), images()
    with torch.no_grad():
        y = net(x).argmax(1)
    y[:2] = (y[:2] + 1) % 4  # these cannot be certified
    labels = y.numpy()
    of = {
        "linf": margins(net, *around(x, x_adv, 0.1, 0.3), labels),
        "l2": margins(net, *around(x, x_adv, 0.2, 0.05), labels),
    }
    reference, other = of[origin], of["linf" if origin == "l2" else "l2"]

    def soft(m: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((len(m), 1)), -m], axis=1)

    chosen = (reference > 0).all(1)
    assert 0 < chosen.sum() < len(chosen)
    each, turned = kl(soft(reference), soft(other)), kl(soft(other), soft(reference))
    expected = each[chosen].mean()
    assert separated(expected, turned[chosen].mean(), each.mean(), each[chosen].sum(), least=1e-3)
    method = probed(x_adv, combine="joint", align=2.0, align_from=origin)
    loss = method.loss(net.train(), x, y, context())
    assert loss.terms["alignment"].item() == pytest.approx(expected, rel=1e-4)
    bare = probed(x_adv, combine="joint").loss(net.train(), x, y, context()).total.item()
    assert loss.total.item() == pytest.approx(bare + 2 * expected, rel=1e-5)


def test_alignment_moves_both_sides_and_is_0_where_nothing_is_certified():
    reference = torch.tensor([[1.0, 2.0], [-1.0, 3.0]], requires_grad=True)
    other = torch.tensor([[0.5, -1.0], [2.0, 2.0]], requires_grad=True)
    aligned(reference, other).backward()
    assert reference.grad[0].any() and other.grad[0].any()
    assert not reference.grad[1].any() and not other.grad[1].any()
    assert aligned(-reference.abs(), other).item() == 0


def test_joint_without_l2_is_sabr():
    net, (x, x_adv, y) = two_layers(), images()
    probe = Probe(found=x_adv, logits=torch.zeros(len(y), 4))
    sabr = SABR(regularise=0, share=0.3).model_copy(update={"inner": probe})
    expected = sabr.loss(net.train(), x, y, context()).total.item()
    found = loss_of(probed(x_adv, combine="joint", alpha=0.0)).item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_certified_l2_term_bounds_a_ball_inside_the_threat():
    net, (x, x_adv, y) = two_layers(), images()
    method = probed(x_adv, l2_term="ball", share_l2=0.5)
    _, (ball,) = method.regions(net, x, y, context())
    assert isinstance(ball, Ball)
    assert float(ball.threat.eps) == pytest.approx(0.1)
    assert (BALLS["l2"].distance(ball.centre, x) <= 0.1 + 1e-6).all()
    _, (small,) = probed(x_adv).regions(net, x, y, context())
    assert isinstance(small, Box)
    assert loss_of(method).item() != pytest.approx(loss_of(probed(x_adv)).item(), rel=1e-3)


def test_each_search_is_in_its_own_ball():
    seen = []

    class Asked(Probe):
        def search(self, model, x, surrogate, threat, rng):
            seen.append((threat, rng.key))
            return super().search(model, x, surrogate, threat, rng)

    net, (x, x_adv, y) = two_layers(), images()
    probe = Asked(found=x_adv, logits=torch.zeros(len(y), 4))
    probed(x_adv).model_copy(update={"inner": probe}).loss(net.train(), x, y, context())
    assert [threat for threat, _ in seen] == [BALLS["linf"], BALLS["l2"]]
    assert seen[0][1] != seen[1][1]
    assert not any(probe.modes)
