"""The contract of a certifier: lower bounds of margins over everything a threat allows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from robustfront.registry import Component, Registry
from robustfront.threats import Norm, Threat

Lower = Callable[[Tensor, Threat, Tensor], Tensor]
"""Lower bounds (N, S) of C z(x') for all x' that a threat allows around x (N, C, H, W), of a
specification C (N, S, K)."""


class Certifier(Component):
    """Proves that no allowed input changes a prediction, where it can."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "segment")

    @property
    @abstractmethod
    def name(self) -> str:
        """How metrics call it."""

    @abstractmethod
    def prepare(self, model: nn.Module) -> Lower:
        """Its bounds for a model in eval mode, whose weights are not changed meanwhile.

        Raises:
            ConfigError: a layer that it cannot bound, by name.
        """


def proven(lower: Tensor) -> Tensor:
    """Where all bounds of margins (N, S) are above 0, by more than fp32 could be wrong, (N,).

    Specifications that say nothing (z_y - z_y, a bound of 0) do not count: leave them out.
    """
    slack = 1e-5 * (1 + lower.abs().amax(1, keepdim=True))
    every: Tensor = (lower > slack).all(1)
    return every


CERTIFIERS: Registry[Certifier] = Registry("certifier")
