"""ExpIBP: attacked inputs and interval bounds, mixed."""

import pytest
import torch
from bound_reference import at, box, context, images, loss_of, margins, two_layers, verified
from numpy_reference import Probe, check_search_climbs_cross_entropy, separated

from robustfront.methods import ExpIBP, IBPTraining


def probed(found: torch.Tensor, at: torch.Tensor | None = None, weight: float = 0.3) -> ExpIBP:
    at = torch.zeros(len(found), 4) if at is None else at
    method = ExpIBP(regularise=0, weight=weight)
    return method.model_copy(update={"inner": Probe(found=found, logits=at)})


def test_the_loss_is_that_of_the_paper():
    net, (x, x_adv, y) = two_layers(), images()
    attacked, bounded = at(net, x_adv, y.numpy()), margins(net, *box(x, 0.1), y.numpy())
    adversarial, certified = verified(attacked), verified(bounded)
    mixes = {
        "mtl_ibp": (0.7 * adversarial + 0.3 * certified).mean(),
        "cc_ibp": verified(0.7 * attacked + 0.3 * bounded).mean(),
        "exp_ibp": (adversarial**0.7 * certified**0.3).mean(),
    }
    expected = mixes.pop("exp_ibp")
    assert separated(expected, *mixes.values(), adversarial.mean(), certified.mean(), least=1e-4)
    swapped = (adversarial**0.3 * certified**0.7).mean()
    assert separated(expected, swapped, least=0.01)
    loss = loss_of(probed(x_adv), net, context())
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_its_ends_are_ibp_and_adversarial_training():
    net, (_, x_adv, y) = two_layers(), images()
    ibp = loss_of(IBPTraining(regularise=0), net, context()).total.item()
    assert loss_of(probed(x_adv, weight=1), net, context()).total.item() == pytest.approx(ibp)
    attacked = verified(at(net, x_adv, y.numpy())).mean()
    found = loss_of(probed(x_adv, weight=0), net, context()).total.item()
    assert found == pytest.approx(attacked, rel=1e-5)


def test_the_search_makes_the_cross_entropy_large_in_eval_mode():
    check_search_climbs_cross_entropy(lambda found, at: probed(found, at), context())
