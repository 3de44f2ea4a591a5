"""TRADES with the hinge loss: the form its theory is about."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from robustfront.attacks import PGD, Attack, AttackField, Surrogate, eval_mode
from robustfront.attacks.goals import Margin
from robustfront.methods.base import METHODS, LossTerms, StepContext, cross_entropies
from robustfront.methods.trades import Trades
from robustfront.randomness import Rng
from robustfront.threats import PerturbationSet


@METHODS.register
class TradesHinge(Trades):
    """TRADES of two classes, f(x) = z_1 - z_0, y = +-1, with the hinge loss phi(t) = max(0, 1 - t).

    loss = mean phi(f(x) y) + mean phi(f(x) f(x_adv) / lambda), x_adv minimises f(x) f(x_adv).

    With more classes f(x) y is the margin of the label and f(x) f(x_adv) the product of the margins
    of the class predicted at x. The audit compares both sides of the bound of the paper's theorem
    3.1 on the validation split, with optimal risks of 0: delta_lhs = the robust error, delta_rhs =
    mean phi(f(x) y) + mean phi(f(x) f(x_adv) / lambda) at the same x_adv, which is that of the
    job's attack; delta_rhs is never less, for each example.

    `beta` is 1/lambda; `lambda` is accepted in its place.
    Batch norm: two train-mode forwards, x then x_adv; the search runs in eval mode.
    Source: arXiv:1901.08573, equation 3, theorem 3.1 and section 5.1. Official code:
    yaodongyu/TRADES, train_trades_mnist_binary.py.
    Deviates: the search follows the product itself where its hinge is 0; the flag `beta` of the
    code is lambda.
    """

    type: Literal["trades_hinge"] = "trades_hinge"  # type: ignore[assignment]
    beta: NonNegativeFloat = 0.2  # 1/lambda
    inner: AttackField = PGD(steps=20, start="gaussian")

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """Two terms, `clean_hinge` and `boundary_hinge`."""
        with eval_mode(model), torch.no_grad():
            predicted, sizes = _predicted(model(x))
        product: Surrogate = lambda logits: sizes * Margin(predicted).loss(logits)  # noqa: E731
        x_adv = self.inner(model, x, product, ctx.threat, ctx.rng)
        clean, boundary = self._hinges(model(x), model(x_adv), y)
        terms = {"clean_hinge": clean.mean(), "boundary_hinge": boundary.mean()}
        return LossTerms(terms["clean_hinge"] + terms["boundary_hinge"], terms)

    def audit(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        attack: Attack,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Mapping[str, Tensor]:
        """`clean_hinge`, `delta_lhs`, `delta_rhs` and their `gap`."""
        x_adv = attack(model, x, cross_entropies(y), threat, rng)
        with eval_mode(model), torch.no_grad():
            logits, logits_adv = model(x), model(x_adv)
        clean, boundary = self._hinges(logits, logits_adv, y)
        wrong = (logits.argmax(1) != y) | (logits_adv.argmax(1) != y)
        left, right = wrong.to(clean.dtype), clean + boundary
        return {"clean_hinge": clean, "delta_lhs": left, "delta_rhs": right, "gap": right - left}

    def _hinges(self, logits: Tensor, logits_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """phi(f(x) y) and phi(f(x) f(x_adv) / lambda) of each example, (N,)."""
        predicted, sizes = _predicted(logits)
        product = sizes * -Margin(predicted).loss(logits_adv)
        clean = (1 + Margin(y).loss(logits)).clamp(min=0)
        return clean, (1 - self.beta * product).clamp(min=0)


def _predicted(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted class and how far its logit is above all others, (N,) each."""
    predicted = logits.argmax(1)
    return predicted, -Margin(predicted).loss(logits)
