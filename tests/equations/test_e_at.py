"""E-AT: one norm a batch, drawn by how weak the model is within it."""

import numpy as np
import pytest
import torch
from numpy_reference import (
    BALLS,
    Watched,
    cross_entropy,
    examples,
    f64,
    linear_net,
    logits,
    separated,
)

from robustfront.attacks import PGD
from robustfront.methods import EAT, PGDAT, StepContext
from robustfront.randomness import Rng

NORMS = ("linf", "l2", "l1")
INNER = PGD(steps=3, start="zero")


def context(step: int = 0, memory: dict[str, torch.Tensor] | None = None) -> StepContext:
    memory = {} if memory is None else memory
    return StepContext(BALLS["linf"], Rng((step, "e_at")), 0.0, BALLS, memory=memory)


def drawn(loss) -> str:
    (norm,) = (n for n in BALLS if loss.terms[f"drawn_{n}"].item() == 1)
    assert sum(loss.terms[f"drawn_{n}"].item() for n in BALLS) == 1
    return norm


def known(**accuracy: float) -> dict[str, torch.Tensor]:
    """As after 10 batches of each norm."""
    sums = {f"accuracy_{norm}": torch.tensor(10 * value) for norm, value in accuracy.items()}
    return sums | {f"batches_{norm}": torch.tensor(10.0) for norm in accuracy}


def test_the_loss_is_the_cross_entropy_within_the_norm_that_is_drawn():
    net, (x, _, y) = linear_net(), examples()

    def ce(z):
        return torch.nn.functional.cross_entropy(z, y, reduction="none")

    each = {
        norm: cross_entropy(logits(net, f64(INNER(net, x, ce, ball, Rng((0,))))), y.numpy()).mean()
        for norm, ball in BALLS.items()
    }
    seen = set()
    for step in range(12):
        loss = EAT(key_norms=NORMS, inner=INNER).loss(net, x, y, context(step))
        norm = drawn(loss)
        seen.add(norm)
        assert separated(each[norm], sum(each.values())) and len({*each.values()}) == 3
        assert loss.total.item() == pytest.approx(each[norm], rel=1e-5)
    assert seen == set(BALLS)


def test_the_draw_favours_the_norms_in_which_accuracy_is_low():
    net, (x, _, y) = linear_net(), examples(4)
    one = EAT(key_norms=NORMS, inner=PGD(steps=1, start="zero"))
    counts = dict.fromkeys(BALLS, 0)
    for step in range(600):
        memory = known(linf=0.9, l2=0.6, l1=0.5)
        counts[drawn(one.loss(net, x, y, context(step, memory)))] += 1
    shares = np.array([*counts.values()]) / 600
    np.testing.assert_allclose(shares, [0.1, 0.4, 0.5], atol=0.06)


def test_all_are_equal_until_each_was_drawn():
    net, (x, _, y) = linear_net(), examples(4)
    one = EAT(key_norms=NORMS, inner=PGD(steps=1, start="zero"))
    counts = dict.fromkeys(BALLS, 0)
    for step in range(600):
        memory = known(linf=0.9, l2=0.6)
        counts[drawn(one.loss(net, x, y, context(step, memory)))] += 1
    np.testing.assert_allclose(np.array([*counts.values()]) / 600, 1 / 3, atol=0.06)


def test_the_accuracy_is_a_running_mean_over_all_batches():
    net, (x, _, _) = linear_net(), examples(40)
    y = net(x).argmax(1)  # right, until it is attacked
    memory: dict[str, torch.Tensor] = {}
    sums, batches = dict.fromkeys(BALLS, 0.0), dict.fromkeys(BALLS, 0)
    for step in range(8):
        watched = Watched(net).train()
        norm = drawn(EAT(key_norms=NORMS, inner=INNER).loss(watched, x, y, context(step, memory)))
        (x_adv,) = watched.trained_on
        sums[norm] += (logits(net, f64(x_adv)).argmax(1) == y.numpy()).mean()
        batches[norm] += 1
    for norm in BALLS:
        assert memory[f"accuracy_{norm}"].item() == pytest.approx(sums[norm])
        assert memory[f"batches_{norm}"].item() == batches[norm]
    assert 0 < sum(sums.values()) < 8


def test_the_norms_do_not_depend_on_which_part_of_a_batch_a_worker_has():
    net, (x, _, y) = linear_net(), examples(4)
    one = EAT(key_norms=NORMS, inner=PGD(steps=1, start="zero"))
    for step in range(10):
        parts = [
            StepContext(BALLS["linf"], Rng((step, "e_at"), first, block=8), 0.0, BALLS, memory={})
            for first in (0, 4)
        ]
        assert len({drawn(one.loss(net, x, y, ctx)) for ctx in parts}) == 1


def test_the_two_extreme_norms_are_drawn_unless_others_are_named():
    """Whatever the mix of the training threat holds."""
    net, (x, _, y) = linear_net(), examples(4)
    one = EAT(inner=PGD(steps=1, start="zero"))
    assert one.required_norms == ("linf", "l1")
    losses = [one.loss(net, x, y, context(step)) for step in range(20)]
    terms = {"adversarial_ce", "drawn_linf", "drawn_l1"}
    assert all({*loss.terms} == terms for loss in losses)
    assert {loss.terms["drawn_l1"].item() for loss in losses} == {0, 1}
    with pytest.raises(ValueError, match="given twice: l1, l1"):
        EAT(key_norms=("l1", "l1"))


def test_within_one_norm_it_is_pgd_adversarial_training():
    net, (x, _, y) = linear_net(), examples()
    ctx = StepContext(BALLS["l2"], Rng((0, "e")), 0.0, {"l2": BALLS["l2"]}, memory={})
    assert torch.equal(
        EAT(key_norms=("l2",), inner=INNER).loss(net, x, y, ctx).total,
        PGDAT(inner=INNER).loss(net, x, y, ctx).total,
    )


def test_what_it_costs():
    assert EAT(inner=PGD(steps=10)).forward_equivalents == 2 * 10 + 3
    assert EAT().forward_equivalents_per_norm == 0
