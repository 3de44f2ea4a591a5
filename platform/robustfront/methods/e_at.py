"""Extreme-norms adversarial training."""

from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import PGD, AttackField
from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, cross_entropies
from robustfront.randomness import Rng
from robustfront.threats import Norm


@METHODS.register
class EAT(Method):
    """E-AT: each batch is trained on within one norm, more often within one the model is weak in.

    loss = mean CE(f(x_adv), y) within the norm that is drawn for the batch, with probabilities
    proportional to 1 - (running robust accuracy in training), equal until all norms were drawn.
    The norms are `key_norms`, whatever `train_threat.mix` says: linf and l1 are enough, since their
    hull holds the l2 ball.

    Batch norm: one train-mode forward, of x_adv; the search runs in eval mode.
    Source: arXiv:2105.12508, section 4. Official code: fra31/robust-finetuning.
    Deviates: the accuracy is that of the forward that is trained on, where the code takes it from
    the search; PGD is the default search, where the code uses APGD.
    """

    type: Literal["e_at"] = "e_at"
    key_norms: Annotated[tuple[Norm, ...], Field(min_length=1)] = ("linf", "l1")
    inner: AttackField = PGD(steps=10)

    @field_validator("key_norms")
    @classmethod
    def _different_norms(cls, key_norms: tuple[Norm, ...]) -> tuple[Norm, ...]:
        if len({*key_norms}) < len(key_norms):
            raise ValueError(f"one is given twice: {', '.join(key_norms)}")
        return key_norms

    @property
    def required_norms(self) -> tuple[Norm, ...]:
        """All that may be drawn."""
        return self.key_norms

    @property
    def forward_equivalents(self) -> float:
        """The search, then one forward and one full backward."""
        return self.inner.forward_equivalents + 3

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """`adversarial_ce`, and which norm was drawn (`drawn_linf` is 1 or 0, and so on)."""
        norm = self._draw(x, ctx)
        x_adv = self.inner(model, x, cross_entropies(y), ctx.balls[norm], ctx.rng)
        logits = model(x_adv)
        adversarial = F.cross_entropy(logits, y)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == y).to(x.dtype).mean()
            ctx.memory[f"accuracy_{norm}"] = ctx.memory[f"accuracy_{norm}"] + accuracy
            ctx.memory[f"batches_{norm}"] = ctx.memory[f"batches_{norm}"] + 1
        drawn = {f"drawn_{name}": x.new_tensor(name == norm) for name in self.key_norms}
        return LossTerms(adversarial, {"adversarial_ce": adversarial, **drawn})

    def _draw(self, x: Tensor, ctx: StepContext) -> Norm:
        """The norm of this batch, the same one for all workers."""
        for name in self.key_norms:
            ctx.memory.setdefault(f"accuracy_{name}", x.new_zeros(()))
            ctx.memory.setdefault(f"batches_{name}", x.new_zeros(()))
        # one transfer a batch: which search is run must be known here
        sums = torch.stack([ctx.memory[f"accuracy_{name}"].cpu() for name in self.key_norms])
        batches = torch.stack([ctx.memory[f"batches_{name}"].cpu() for name in self.key_norms])
        weights = 1 - sums / batches if bool(batches.all()) else torch.ones_like(sums)
        weights = weights + 1e-6  # somebody must be drawn where all are perfect
        edges = (weights / weights.sum()).cumsum(0)
        at = Rng((*ctx.rng.key, "norm"), block=1).uniform(torch.zeros(1))
        return self.key_norms[min(int((edges < at).sum()), len(edges) - 1)]
