"""The contract of a training method: a loss on one batch, with its terms by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import Attack, Surrogate, eval_mode
from robustfront.randomness import Noise, Rng
from robustfront.registry import Component, Registry
from robustfront.threats import Norm, PerturbationSet, Threat


@dataclass(frozen=True)
class LossTerms:
    """A loss and its parts.

    Args:
        total: what is minimised, a scalar.
        terms: its parts by name, scalars, before their weights; logged and tested by name.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class StepContext:
    """What a method may know about the step it is in.

    Args:
        threat: the perturbation sets of this batch, at the radius scheduled for now.
        rng: randomness of this step, one row an example.
        progress: share of the training done, in [0, 1].
        balls: the ball of each norm of the training threat and of those the method requires, for
            methods that look at several for every example; at the radius scheduled for now.
        shares: the weight of each norm of the training threat; they sum to 1.
        memory: what the method keeps from step to step, by name; its to change.
        strength: share of the full radii that is scheduled for now.
        sigma, noise: of smoothing, for methods that draw it themselves; for others it is in the
            model already.
    """

    threat: PerturbationSet
    rng: Rng
    progress: float
    balls: Mapping[Norm, Threat] = field(default_factory=dict)
    shares: Mapping[Norm, float] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)
    strength: float = 1.0
    sigma: float = 0.0
    noise: Noise = "gaussian"


class Method(Component):
    """A training method; its fields are its hyperparameters."""

    default_update: ClassVar[str] = "plain"  # where a job names none
    # Whether it looks at the model's layers: no noise before them, and one worker.
    looks_inside: ClassVar[bool] = False
    # Whether it draws the noise of smoothing itself, from the step's `sigma`.
    draws_noise: ClassVar[bool] = False

    @property
    @abstractmethod
    def forward_equivalents(self) -> float:
        """Cost of a step for each example in forward passes (a full backward counts as two)."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """The loss of a batch x (N, C, H, W) in [0, 1], y (N,); the model is in train mode."""

    def forward_equivalents_at(self, strength: float) -> float:
        """The same while that share of the radii is scheduled."""
        return self.forward_equivalents

    @property
    def forward_equivalents_per_norm(self) -> float:
        """What each norm of the training threat adds to that."""
        return 0

    @property
    def searches(self) -> bool:
        """Whether it follows gradients to adversarial inputs, which noise in cells would hide."""
        return any(isinstance(value, Attack) for _, value in self)

    @property
    def required_norms(self) -> tuple[Norm, ...]:
        """Norms whose balls it needs, whether the training threat names them or not."""
        return ()

    @property
    def condition(self) -> float | None:
        """The weight that its model is told; None: the model is told nothing."""
        return None

    @property
    def curve(self) -> tuple[float, ...]:
        """Weights at which the model is measured after the last epoch, beside that one."""
        return ()

    @property
    def single_step(self) -> bool:
        """Whether it searches in one gradient step; its robustness may collapse unnoticed."""
        return any(isinstance(value, Attack) and value.single_step for _, value in self)

    def initialise(self, model: nn.Module) -> None:
        """Give a fresh model the weights it begins with, where those it has are not right."""
        return None

    def memory(self) -> dict[str, Tensor]:
        """What it knows before the first step, by name.

        It comes back in each step's context (where more may be added), is kept in checkpoints, and
        is averaged over the workers of a trial after each step: its changes must be means over
        examples.
        """
        return {}

    def audit(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        attack: Attack,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Mapping[str, Tensor]:
        """What its theory says of the trained model, by name, of each example (N,).

        Measured after the last epoch on the validation split, within the job's first threat.
        """
        return {}

    def derived(self) -> dict[str, float]:
        """Values that follow from the fields and are logged beside them."""
        return {}


METHODS: Registry[Method] = Registry("method")


def kl_divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || softmax(logits)) of each example, (N,), both sides differentiable.

    Computed from log-probabilities: with torch's kl_div the gradient to a target that underflows
    to 0 is NaN.
    """
    return (log_p.exp() * (log_p - F.log_softmax(logits, dim=1))).sum(dim=1)


def cross_entropies(y: Tensor) -> Surrogate:
    """What most searches make large: each example's cross-entropy to its label y (N,)."""
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def divergences(model: nn.Module, x: Tensor) -> Surrogate:
    """What TRADES makes large: KL(p(x) || p(x_adv)) of each example, p(x) fixed, in eval mode."""
    with eval_mode(model), torch.no_grad():
        log_p = F.log_softmax(model(x), dim=1)
    return lambda logits: kl_divergence(log_p, logits)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||_2 of each example's logits, (N,); the gradient where they are equal is 0."""
    found: Tensor = torch.linalg.vector_norm(a - b, dim=1)
    return found


def log_complement(logits: Tensor, classes: Tensor) -> Tensor:
    """log(1 - p_k), (N,), of one class (N,) of each example.

    From the logits of the other classes: 1 - softmax is 0 in fp32 for gaps above 17.
    """
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return others.logsumexp(dim=1) - logits.logsumexp(dim=1)
