"""Certifiers one after the other, from cheap to tight."""

from __future__ import annotations

import time
import warnings
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from robustfront.certifiers.alpha_crown import AlphaCROWN
from robustfront.certifiers.base import CERTIFIERS, Certifier, Lower, proven
from robustfront.certifiers.crown import CROWN
from robustfront.certifiers.crown_ibp import CROWNIBP
from robustfront.certifiers.ibp import IBP
from robustfront.threats import Threat

_STAGES: dict[str, type[Certifier]] = {
    "ibp": IBP,
    "crown_ibp": CROWNIBP,
    "crown": CROWN,
    "alpha_crown": AlphaCROWN,
}


@CERTIFIERS.register
class Cascade(Certifier):
    """Each stage bounds what those before could not prove; the best bound of each margin counts.

    `seconds` is what the tight stages may take for each model, all examples together, one threat
    after the other, and anew where an interrupted run goes on. What they have not got to by then,
    or have too little memory for, keeps the bounds that it has, and so is not proven; a warning
    says so.

    Source: the order of arXiv:2406.04848 (CTBench), section 4, without its complete verifier.
    """

    type: Literal["cascade"] = "cascade"
    stages: Annotated[
        tuple[Literal["ibp", "crown_ibp", "crown", "alpha_crown"], ...], Field(min_length=1)
    ] = ("ibp", "crown_ibp", "crown")
    seconds: PositiveFloat | None = None

    @property
    def name(self) -> str:
        """All stages: `ibp-crown_ibp-crown`."""
        return "-".join(self.stages)

    def prepare(self, model: nn.Module) -> Lower:
        """Those of its stages."""
        (_, first), *later = [(stage, _STAGES[stage]().prepare(model)) for stage in self.stages]
        spent = 0.0

        def lower(x: Tensor, threat: Threat, specification: Tensor) -> Tensor:
            nonlocal spent
            found = first(x, threat, specification)
            started = time.perf_counter()
            for name, stage in later:
                rows = (~proven(found)).nonzero()[:, 0]
                used = spent + time.perf_counter() - started
                if not len(rows):
                    break
                if self.seconds is not None and used > self.seconds:
                    _warn(f"its {self.seconds:g} s are over")
                    break
                try:
                    tighter = stage(x[rows], threat, specification[rows])
                except (torch.OutOfMemoryError, MemoryError):
                    _warn(f"too little memory for {name}")
                    break
                found[rows] = torch.maximum(found[rows], tighter)
            spent += time.perf_counter() - started
            return found

        return lower


def _warn(why: str) -> None:
    warnings.warn(f"cascade: {why}; what is undecided counts as not certified", stacklevel=3)
