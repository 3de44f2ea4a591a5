"""Learning-rate schedules and the ramp of the training radius, as functions of the epoch."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from robustfront.registry import Component, Registry


class Schedule(Component):
    """A factor on the optimiser's learning rate."""

    @abstractmethod
    def factor(self, epoch: float, epochs: int) -> float:
        """The factor after `epoch` (fractional) of `epochs` epochs."""


SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register
class Constant(Schedule):
    """The learning rate itself."""

    type: Literal["constant"] = "constant"

    def factor(self, epoch: float, epochs: int) -> float:
        """Always 1."""
        return 1.0


@SCHEDULES.register
class Step(Schedule):
    """Multiplied by `gamma` at each of the milestones (epochs)."""

    type: Literal["step"] = "step"
    milestones: tuple[PositiveInt, ...] = (75, 90)
    gamma: PositiveFloat = 0.1

    def factor(self, epoch: float, epochs: int) -> float:
        """`gamma` to the number of milestones passed."""
        return float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones))


@SCHEDULES.register
class Cosine(Schedule):
    """Half a cosine from 1 to 0, after a linear warm-up of `warmup` epochs."""

    type: Literal["cosine"] = "cosine"
    warmup: NonNegativeFloat = 0.0

    def factor(self, epoch: float, epochs: int) -> float:
        """Linear up to `warmup`, then cosine down to 0 at the last epoch."""
        if epoch < self.warmup:
            return epoch / self.warmup
        rest = max(epochs - self.warmup, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min((epoch - self.warmup) / rest, 1.0)))


@SCHEDULES.register
class OneCycle(Schedule):
    """Linear up to the full rate at the share `peak` of the training, then linear down to 0.

    Source: arXiv:1708.07120; the triangle of arXiv:2001.03994's experiments.
    """

    type: Literal["one_cycle"] = "one_cycle"
    peak: float = Field(default=0.3, gt=0, lt=1)
    start: float = Field(default=0.1, ge=0, le=1)  # factor at the first step

    def factor(self, epoch: float, epochs: int) -> float:
        """From `start` to 1 at `peak`, to 0 at the end."""
        progress = min(epoch / epochs, 1.0)
        if progress < self.peak:
            return self.start + (1 - self.start) * progress / self.peak
        return (1 - progress) / (1 - self.peak)


class EpsRamp(Component):
    """The training radius grows from 0 between two epochs; by default full at once.

    `linear`, or `smooth`: with the fourth power of time for a quarter of it, then linearly, without
    a bend between the two (Fast-Certified-Robust-Training, arXiv:2103.17268, official code).
    """

    start: NonNegativeFloat = 0.0
    end: NonNegativeFloat = 0.0
    shape: Literal["linear", "smooth"] = "linear"

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"ends (at {self.end:g}) before it starts (at {self.start:g})")
        return self

    def factor(self, epoch: float) -> float:
        """Share of the full radius after `epoch` (fractional) epochs."""
        if epoch >= self.end:
            return 1.0
        time = max(0.0, (epoch - self.start) / max(self.end - self.start, 1e-9))
        return time if self.shape == "linear" else _smooth(time)


def _smooth(time: float, middle: float = 0.25, power: int = 4) -> float:
    slope = power * middle ** (power - 1)
    scale = 1 / ((1 - middle) * slope + middle**power)
    if time < middle:
        return float(scale * time**power)
    return float(scale * (middle**power + slope * (time - middle)))


if TYPE_CHECKING:
    ScheduleField = Schedule
else:
    ScheduleField = SCHEDULES.field()
