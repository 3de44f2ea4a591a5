"""Interval bound propagation: what each layer can do to a set of inputs, as centre and radius.

Source: arXiv:1810.12715 (IBP), section 3. A first affine layer bounds l2 and l1 balls exactly, by
the dual norm of each of its rows; from there on everything is a box.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torch.nn.modules.batchnorm import _BatchNorm

from robustfront.errors import ConfigError
from robustfront.models import Classifier
from robustfront.models.conditioned import DualNorm, FiLM
from robustfront.models.preact_resnet18 import PreActBlock
from robustfront.threats import Mixture, PerturbationSet, Threat


class Interval:
    """Boxes of values, and clean values that batch norm takes its statistics from.

    Held as centre and radius, or by its ends: the other two are computed where they are asked for.

    Args:
        clean: M clean examples, (M, ...), if any.
        centre, radius: of R boxes, (R, ...).
    """

    def __init__(self, clean: Tensor | None, centre: Tensor, radius: Tensor) -> None:
        self.clean = clean
        self._middle: tuple[Tensor, Tensor] | None = (centre, radius)
        self._ends: tuple[Tensor, Tensor] | None = None

    @classmethod
    def between(cls, clean: Tensor | None, lower: Tensor, upper: Tensor) -> Interval:
        """By its ends."""
        found = cls(clean, lower, upper)
        found._middle, found._ends = None, (lower, upper)
        return found

    @property
    def middle(self) -> tuple[Tensor, Tensor]:
        """Centre and radius, (R, ...) each."""
        if self._middle is None:
            lower, upper = self.ends
            self._middle = (lower + upper) / 2, (upper - lower) / 2
        return self._middle

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end, (R, ...) each."""
        if self._ends is None:
            centre, radius = self.middle
            self._ends = centre - radius, centre + radius
        return self._ends

    @property
    def centre(self) -> Tensor:
        """(R, ...)."""
        return self.middle[0]

    @property
    def radius(self) -> Tensor:
        """(R, ...)."""
        return self.middle[1]

    @property
    def lower(self) -> Tensor:
        """(R, ...)."""
        return self.ends[0]

    @property
    def upper(self) -> Tensor:
        """(R, ...)."""
        return self.ends[1]

    def mapped(
        self, act: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor]
    ) -> Interval:
        """Under an affine map `act`; `spread` is what it makes of radii."""
        centre, radius = self.middle
        return Interval(_of(act, self.clean), act(centre), spread(radius))

    def monotone(self, act: Callable[[Tensor], Tensor]) -> Interval:
        """Under a function that grows in each of its arguments, such as a mean of some of them."""
        lower, upper = self.ends
        return Interval.between(_of(act, self.clean), act(lower), act(upper))

    def plus(self, other: Interval) -> Interval:
        """The sum."""
        (a, r), (b, q) = self.middle, other.middle
        clean = None if self.clean is None or other.clean is None else self.clean + other.clean
        return Interval(clean, a + b, r + q)


def _of(act: Callable[[Tensor], Tensor], value: Tensor | None) -> Tensor | None:
    return None if value is None else act(value)


class Region(ABC):
    """Inputs (R, C, H, W), or (R, D), around centres, before the first affine layer."""

    centre: Tensor

    @abstractmethod
    def divided(self, mean: Tensor, std: Tensor) -> Region:
        """(x - mean) / std, for each channel."""

    @abstractmethod
    def flat(self) -> Region:
        """(R, D)."""

    @abstractmethod
    def reach(self, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """How far each output is at most from that of the centre, (R, ...) or (1, ...)."""

    @abstractmethod
    def box(self) -> Box:
        """A box around it."""

    def least(self, rows: Tensor) -> Tensor:
        """The least values (R, S) of linear functions (R, S, ...) on it."""
        middle = (rows * self.centre[:, None]).flatten(2).sum(2)
        return middle - self.spread(rows)

    @abstractmethod
    def spread(self, rows: Tensor) -> Tensor:
        """How far below their values at the centre these are, (R, S)."""


@dataclass(frozen=True)
class Box(Region):
    """Each value within `radius` of its centre."""

    centre: Tensor
    radius: Tensor

    def divided(self, mean: Tensor, std: Tensor) -> Box:
        """A box again."""
        return Box((self.centre - mean) / std, self.radius / std)

    def flat(self) -> Box:
        """A box again."""
        return Box(self.centre.flatten(1), self.radius.flatten(1))

    def reach(self, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """|W| radius."""
        return _affine(layer, self.radius, _laid_out(torch.abs, layer.weight), None)

    def box(self) -> Box:
        """Itself."""
        return self

    def spread(self, rows: Tensor) -> Tensor:
        """|A| radius."""
        return (rows.abs() * self.radius[:, None]).flatten(2).sum(2)


@dataclass(frozen=True)
class Ball(Region):
    """Values whose differences from the centre, divided by `scale`, have an l2 or l1 norm of at
    most the threat's eps; not cut by the box [0, 1]."""

    centre: Tensor
    threat: Threat
    scale: Tensor  # (1, ...)

    def divided(self, mean: Tensor, std: Tensor) -> Ball:
        """An ellipsoid along the axes."""
        return Ball((self.centre - mean) / std, self.threat, self.scale / std)

    def flat(self) -> Ball:
        """Its values in a row."""
        return Ball(self.centre.flatten(1), self.threat, self.scale.flatten(1))

    def reach(self, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """eps times the dual norm of each row of W * scale, padding being no input."""
        eps = float(self.threat.eps)
        if self.threat.norm == "l2":
            # The root has no gradient at 0: a filter that is 0, or sees padding only.
            weight = _laid_out(torch.square, layer.weight)
            squares = _affine(layer, self.scale.square(), weight, None)
            return eps * squares.clamp(min=1e-24).sqrt()
        return eps * self._largest_entries(layer)

    def _largest_entries(self, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """max |W * scale| of each row."""
        if isinstance(layer, nn.Linear):
            return (layer.weight.abs() * self.scale).amax(1)[None]
        padded = F.pad(self.scale, layer._reversed_padding_repeated_twice)
        seen = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
        shape = _affine(layer, self.scale, layer.weight, None).shape
        rows = layer.weight.abs().flatten(1)  # (O, C k k); groups are refused
        parts = [(row[:, None] * seen[0]).amax(0) for row in rows]
        return torch.stack(parts).view(shape)

    def spread(self, rows: Tensor) -> Tensor:
        """eps times the dual norm of A * scale."""
        dual = 2.0 if self.threat.norm == "l2" else math.inf
        scaled = (rows * self.scale[:, None]).flatten(2)
        sizes: Tensor = torch.linalg.vector_norm(scaled, dual, dim=2)
        return float(self.threat.eps) * sizes

    def box(self) -> Box:
        """The smallest one."""
        return Box(self.centre, (float(self.threat.eps) * self.scale).expand_as(self.centre))


Pull = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Linear functions (R, S, ...) of a layer's output as functions of its input, and constants (R, S)
that go with them."""


def _back_through(layer: nn.Linear | nn.Conv2d, shape: Sequence[int]) -> Pull:
    """Of an affine layer whose inputs have a shape."""
    bias = layer.bias

    def linear(rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows @ layer.weight, rows.new_zeros(()) if bias is None else rows @ bias

    def convolution(rows: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(layer, nn.Conv2d)
        several = rows.flatten(0, 1)
        moves: Any = (layer.stride, layer.padding, layer.dilation)
        before: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            [len(several), *shape], layer.weight, several, *moves
        )
        constant = rows.new_zeros(()) if bias is None else rows.sum((3, 4)) @ bias
        return before.reshape(*rows.shape[:2], *shape), constant

    return linear if isinstance(layer, nn.Linear) else convolution


def _back_through_affine(scale: Tensor, shift: Tensor) -> Pull:
    """Of x * scale + shift, both (1, C, ...)."""

    def pull(rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows * scale[:, None], (rows * shift[:, None]).flatten(2).sum(2)

    return pull


def _back_through_relu(seen: Interval, parallel: bool) -> Pull:
    """Of ReLU on what it sees."""
    lower, upper = (end[:, None] for end in seen.ends)

    def pull(rows: Tensor) -> tuple[Tensor, Tensor]:
        high = upper.clamp(min=0)
        # The line between the ends; where the unit is on or off, the unit itself.
        slope = high / (high - lower.clamp(max=0)).clamp(min=1e-12)
        under = slope if parallel else (upper > -lower).to(rows.dtype)
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        constant = (negative * (-slope * lower.clamp(max=0))).flatten(2).sum(2)
        return positive * under + negative * slope, constant

    return pull


def regions_of(threat: PerturbationSet, x: Tensor) -> list[Region]:
    """What a threat allows around x; l2 and l1 balls are not cut by the box [0, 1], the rest is.

    Raises:
        TypeError: a perturbation set that is neither a ball nor a mixture of balls.
    """
    if isinstance(threat, Mixture):
        parts = torch.split(x, [size for _, size in threat.parts])
        found: list[Region] = []
        for (ball, _), part in zip(threat.parts, parts, strict=True):
            found += regions_of(ball, part)
        return found
    if not isinstance(threat, Threat):
        raise TypeError(f"bounds are for balls, not for {threat!r}")
    if threat.is_box:
        return [box_between(*threat.ends(x))]
    return [Ball(x, threat, torch.ones_like(x[:1]))]


def box_between(lower: Tensor, upper: Tensor) -> Box:
    """All values from `lower` to `upper`."""
    return Box((lower + upper) / 2, (upper - lower) / 2)


@dataclass(frozen=True)
class Bounds:
    """What is known after a pass.

    Args:
        clean: logits of the clean examples, (M, K).
        last: what the last layer sees, where it is linear; else its outputs.
        layer: the last layer, where it is linear.
        regions: what it sees where it is the first affine layer, too.
        start: mean half width of the boxes around the normalised inputs, a scalar.
        traced: the regions, and how linear functions go back through each layer but the last.
        hidden: what each ReLU sees, where asked for.
    """

    clean: Tensor
    last: Interval
    layer: nn.Linear | None
    regions: Sequence[Region]
    hidden: Sequence[Interval]
    start: Tensor
    traced: tuple[Sequence[Region], Sequence[Pull]]

    @property
    def classes(self) -> int:
        """K."""
        return self.last.centre.shape[1] if self.layer is None else self.layer.out_features

    def lower(self, specification: Tensor) -> Tensor:
        """Lower bounds (R, S) of C z for specifications C (R, S, K), the last layer joined in.

        Raises:
            ConfigError: the specification is for another number of classes.
        """
        self._require(specification)
        with _full_precision(specification):
            return self._lower(specification)

    def _require(self, specification: Tensor) -> None:
        classes = self.classes
        if specification.dim() != 3 or specification.shape[2] != classes:
            found = tuple(specification.shape)
            raise ConfigError(
                "specification", [f"expected (N, S, {classes}) for {classes} classes, got {found}"]
            )

    def _lower(self, specification: Tensor) -> Tensor:
        if self.layer is None:
            rows, centre, radius = specification, self.last.centre, self.last.radius
        else:
            rows = specification @ self.layer.weight
            if self.regions:
                lowest = _least(self.regions, rows)
                bias = self.layer.bias
                return lowest if bias is None else lowest + specification @ bias
            centre, radius = self.last.centre, self.last.radius
        middle = torch.einsum("rsf,rf->rs", rows, centre)
        if self.layer is not None and self.layer.bias is not None:
            middle = middle + specification @ self.layer.bias
        return middle - torch.einsum("rsf,rf->rs", rows.abs(), radius)

    def backward(self, specification: Tensor) -> Tensor:
        """The same as `lower` by one backward pass of linear bounds (CROWN-IBP); needs `trace`.

        Where a ReLU may be on or off, it is bounded from above by the line between its ends, from
        below by 0 or by its input, whichever leaves less (with `dual`: by the parallel line).

        Source: arXiv:1906.06316, section 3, and arXiv:1811.00866 for the slopes; for `dual`
        arXiv:1711.00851, section 3.

        Raises:
            ConfigError: the specification is for another number of classes.
        """
        self._require(specification)
        regions, tape = self.traced
        if self.layer is not None:
            tape = [*tape, _back_through(self.layer, (self.layer.in_features,))]
        with _full_precision(specification):
            return _pulled(regions, tape, specification)


def _pulled(regions: Sequence[Region], tape: Sequence[Pull], rows: Tensor) -> Tensor:
    """Lower bounds (R, S) of linear functions (R, S, ...) of the last output on a tape."""
    constant = rows.new_zeros(())
    for pull in reversed(tape):
        rows, more = pull(rows)
        constant = constant + more
    return _least(regions, rows) + constant


def _least(regions: Sequence[Region], rows: Tensor) -> Tensor:
    """Least values (R, S) of linear functions (R, S, ...), each on its own part of the regions."""
    parts = torch.split(rows, [len(region.centre) for region in regions])
    return torch.cat([region.least(part) for region, part in zip(regions, parts, strict=True)])


def margins_of(y: Tensor, classes: int) -> Tensor:
    """The specification z_y - z_k for the K - 1 classes k that are not y, (N, K - 1, K)."""
    eye = torch.eye(classes, device=y.device)
    all_of_them = eye[y][:, None, :] - eye[None]
    others = torch.arange(classes - 1, device=y.device)[None].expand(len(y), -1)
    others = others + (others >= y[:, None])
    return all_of_them.gather(1, others[:, :, None].expand(-1, -1, classes))


def propagate(
    model: nn.Module,
    regions: Sequence[Region],
    clean: Tensor | None = None,
    keep: bool = False,
    trace: bool = False,
    dual: bool = False,
) -> Bounds:
    """Bounds of a model over regions of inputs, one after the other along the batch.

    Batch norm in train mode takes the statistics of the clean examples, and updates its running
    ones, as a plain pass of these would; so does dropout draw one mask for all that belongs to an
    example. In eval mode clean examples are optional.

    Args:
        regions: of inputs (R, C, H, W) in [0, 1]; they sum to R examples.
        clean: (M, C, H, W).
        keep: keep what each ReLU sees.
        trace: keep what `Bounds.backward` needs.
        dual: and bound what each ReLU sees by a backward pass of its own, with parallel lines above
            and below a ReLU that may be on or off: the dual of its linear relaxation.

    Raises:
        ConfigError: a layer that cannot be bounded, or not backward where it is to be traced, by
            name; batch norm in train mode without clean examples.
    """
    with _full_precision(regions[0].centre):
        return _propagated(model, regions, clean, keep, trace, dual)


def _full_precision(like: Tensor) -> torch.autocast:
    """No autocast: in bf16 a radius of 1e-6 beside a centre of 1 is lost."""
    return torch.autocast(like.device.type, enabled=False)


def _propagated(
    model: nn.Module,
    regions: Sequence[Region],
    clean: Tensor | None,
    keep: bool,
    trace: bool,
    dual: bool,
) -> Bounds:
    walk, given = _Walk(model, keep, trace or dual, regions if dual else ()), regions
    *layers, last = flattened(model)
    value: _Inputs | Interval = _Inputs(clean, regions)
    for layer in layers:
        value = walk.through(layer, value)
        if isinstance(value, _Inputs):
            regions = value.regions
    start = torch.cat([region.box().radius.flatten() for region in regions]).mean()
    joined = last if isinstance(last, nn.Linear) else None
    if joined is None:
        value = walk.through(last, value)
    first = isinstance(value, _Inputs) and joined is not None
    seen = walk.interval(value)
    return Bounds(
        clean=_or_none(seen.clean if joined is None else _of(joined, seen.clean), start),
        last=seen,
        layer=joined,
        regions=regions if first else (),
        hidden=walk.hidden,
        start=start,
        traced=(given, walk.tape),
    )


def _or_none(logits: Tensor | None, like: Tensor) -> Tensor:
    """Of no example, where there is none."""
    return like.new_zeros(0) if logits is None else logits


@dataclass(frozen=True)
class _Inputs:
    """What the first layers see."""

    clean: Tensor | None
    regions: Sequence[Region]

    def each(self, act: Callable[[Tensor], Tensor], change: Callable[[Region], Region]) -> _Inputs:
        return _Inputs(_of(act, self.clean), [change(region) for region in self.regions])

    def boxes(self) -> Interval:
        """What any layer but an affine one sees."""
        boxes = [region.box() for region in self.regions]
        centres, radii = [box.centre for box in boxes], [box.radius for box in boxes]
        return Interval(self.clean, _joined(centres), _joined(radii))

    def through(self, layer: nn.Linear | nn.Conv2d) -> Interval:
        """After the first affine layer."""
        centres = [layer(region.centre) for region in self.regions]
        reaches = [
            region.reach(layer).expand_as(centre)
            for region, centre in zip(self.regions, centres, strict=True)
        ]
        return Interval(_of(layer, self.clean), _joined(centres), _joined(reaches))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Normalise(nn.Module):
    """The first layer of a classifier."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.mean, self.std = model.mean, model.std

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / std."""
        return (x - self.mean) / self.std


def flattened(model: nn.Module) -> list[nn.Module]:
    """The layers of a model one after the other, as far as it says so."""
    if isinstance(model, Classifier):
        return [Normalise(model), *flattened(model.stem), *flattened(model.body)]
    if type(model) is nn.Sequential:
        return [layer for child in model for layer in flattened(child)]
    return [] if isinstance(model, nn.Identity) else [model]


class _Walk:
    """One pass through a model.

    Args:
        regions: of the inputs, where what each ReLU sees is bounded by a backward pass.
    """

    def __init__(
        self, model: nn.Module, keep: bool, trace: bool, regions: Sequence[Region]
    ) -> None:
        self.model, self.keep, self.trace, self.regions = model, keep, trace, regions
        self.hidden: list[Interval] = []
        self.tape: list[Pull] = []

    def interval(self, value: _Inputs | Interval) -> Interval:
        """What layers beyond the first affine one work on."""
        return value if isinstance(value, Interval) else value.boxes()

    def through(self, layer: nn.Module, value: _Inputs | Interval) -> _Inputs | Interval:
        """After one layer, or a module of several."""
        if isinstance(value, _Inputs):
            shape = value.regions[0].centre.shape[1:]
            if isinstance(layer, Normalise):
                self._note(_back_through_affine(1 / layer.std, -layer.mean / layer.std))
                return value.each(layer, lambda region: region.divided(layer.mean, layer.std))
            if type(layer) is nn.Flatten and layer.start_dim == 1 and layer.end_dim == -1:
                self._note(lambda rows: (rows.reshape(*rows.shape[:2], *shape), rows.new_zeros(())))
                return value.each(layer, lambda region: region.flat())
            if self._is_affine(layer):
                self._note(_back_through(layer, shape))  # type: ignore[arg-type]
                return value.through(layer)  # type: ignore[arg-type]
        return self._beyond(layer, self.interval(value))

    def _note(self, pull: Pull) -> None:
        if self.trace:
            self.tape.append(pull)

    def _is_affine(self, layer: nn.Module) -> bool:
        if type(layer) is nn.Conv2d:
            if layer.groups != 1 or layer.padding_mode != "zeros":
                self._refuse(layer)
            if self.trace and isinstance(layer.padding, str):
                self._refuse(layer, f"going backward with padding {layer.padding!r}")
            return True
        return type(layer) is nn.Linear

    def _beyond(self, layer: nn.Module, value: Interval) -> Interval:
        kind = type(layer)
        if self._is_affine(layer):
            self._note(_back_through(layer, value.centre.shape[1:]))  # type: ignore[arg-type]
            size = _laid_out(torch.abs, layer.weight)  # type: ignore[arg-type]
            return value.mapped(layer, lambda radius: _affine(layer, radius, size, None))  # type: ignore[arg-type]
        if kind in _MONOTONE:
            self._require_monotone(layer)
            return self._monotone(layer, value)
        if isinstance(layer, _BatchNorm):
            return self._normalised(layer, value)
        if kind is nn.Dropout:
            return self._dropped(layer, value)  # type: ignore[arg-type]
        if isinstance(layer, nn.Identity):
            return value
        if kind is nn.Sequential:
            for child in layer:  # type: ignore[attr-defined]
                value = self.interval(self.through(child, value))
            return value
        return self._composed(layer, value)

    def _require_monotone(self, layer: nn.Module) -> None:
        if getattr(layer, "inplace", False):
            self._refuse(layer, _OVERWRITES)
        if getattr(layer, "negative_slope", 0) < 0:
            self._refuse(layer, "with a negative slope it falls before it grows")

    def _monotone(self, layer: nn.Module, value: Interval) -> Interval:
        if isinstance(layer, nn.ReLU):
            if self.regions:
                value = self._bounded_backward(value)
            if self.keep:
                self.hidden.append(value)
        if self.trace:
            self._note_monotone(layer, value)
        return value.monotone(layer)

    def _bounded_backward(self, value: Interval) -> Interval:
        """The ends of each unit, as linear functions of the inputs."""
        shape = value.centre.shape[1:]
        units = torch.eye(shape.numel(), device=value.centre.device).view(-1, *shape)
        rows = torch.cat([units, -units]).expand(len(value.centre), *[-1] * (1 + len(shape)))
        least, most = _pulled(self.regions, self.tape, rows).chunk(2, dim=1)
        ends = least.reshape(-1, *shape), -most.reshape(-1, *shape)
        return Interval.between(value.clean, *ends)

    def _note_monotone(self, layer: nn.Module, value: Interval) -> None:
        shape = value.centre.shape[1:]
        if type(layer) is nn.ReLU:
            self._note(_back_through_relu(value, parallel=bool(self.regions)))
        elif type(layer) is nn.Flatten:
            self._note(lambda rows: (rows.reshape(*rows.shape[:2], *shape), rows.new_zeros(())))
        else:
            self._refuse(layer, "going backward")

    def _composed(self, layer: nn.Module, value: Interval) -> Interval:
        if self.trace:
            return self._refuse(layer, "going backward")
        if isinstance(layer, PreActBlock):
            active = self._beyond(layer.activation, value)
            rest = self._beyond(layer.rest, active)
            short = value if layer.shortcut is None else self._beyond(layer.shortcut, active)
            return rest.plus(short)
        if isinstance(layer, FiLM):
            return self._modulated(layer, value)
        if isinstance(layer, DualNorm):
            norm = layer.adversarial if layer._condition[0].adversarial else layer.clean
            return self._modulated(layer.film, self._normalised(norm, value))
        if [*layer.children()] or [*layer.parameters(recurse=False)] == []:
            return _Graph(self, layer).run_on(value)
        return self._refuse(layer)

    def _modulated(self, layer: FiLM, value: Interval) -> Interval:
        """A map of each feature whose factor does not depend on the input."""
        zeros = torch.zeros_like(value.centre[:1])
        shift = layer(zeros)
        scale = layer(zeros + 1) - shift
        return value.mapped(lambda h: h * scale + shift, lambda radius: radius * scale.abs())

    def _normalised(self, layer: _BatchNorm, value: Interval) -> Interval:
        axes, shape = _axes(value.centre), (1, -1, *[1] * (value.centre.dim() - 2))
        mean, var = layer.running_mean, layer.running_var
        if layer.training or mean is None or var is None:
            if value.clean is None:
                self._refuse(layer, "in train mode it needs clean examples")
            assert value.clean is not None
            var, mean = torch.var_mean(value.clean, axes, correction=0)
            _follow(layer, mean, var, value.clean.numel() // value.clean.shape[1])
        scale = torch.rsqrt(var + layer.eps)
        if layer.weight is not None:
            scale = scale * layer.weight
        shift = -mean * scale if layer.bias is None else layer.bias - mean * scale
        scale, shift, size = scale.view(shape), shift.view(shape), scale.abs().view(shape)
        self._note(_back_through_affine(scale, shift))
        return value.mapped(lambda h: torch.addcmul(shift, h, scale), lambda radius: radius * size)

    def _dropped(self, layer: nn.Dropout, value: Interval) -> Interval:
        """One mask for all rows of an example: clean, centre and radius."""
        if not layer.training or not layer.p:
            return value
        rows, clean = len(value.radius), value.clean
        mask = F.dropout(torch.ones_like(value.radius), layer.p)
        if clean is not None:
            if rows % len(clean):
                raise ValueError(f"{rows} regions for {len(clean)} clean examples")
            own = mask[: len(clean)]
            mask, clean = own.repeat(rows // len(clean), *[1] * (mask.dim() - 1)), clean * own
        self._note(lambda a: (a * mask[:, None], a.new_zeros(())))
        return Interval(clean, value.centre * mask, value.radius * mask)

    def _refuse(self, layer: nn.Module, why: str = "") -> Interval:
        named = {id(module): name for name, module in self.model.named_modules()}
        name, kind = named.get(id(layer), "?") or "the model itself", type(layer).__name__
        known = ", ".join(sorted(cls.__name__ for cls in _MONOTONE))
        raise ConfigError(
            "model",
            [
                f"{name} ({kind}): cannot be bounded{': ' + why if why else ''} (known: Conv2d and "
                f"Linear, BatchNorm1d and BatchNorm2d, Dropout, {known}, sums of these)"
            ],
        )


_OVERWRITES = "inplace=True overwrites what bounds are computed from"

# Those with no negative weights, such as a mean, among them.
_MONOTONE: set[type[nn.Module]] = {
    nn.ReLU,
    nn.LeakyReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
}
_FUNCTIONS: set[object] = {
    F.relu,
    torch.relu,
    torch.tanh,
    torch.sigmoid,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.flatten,
    "relu",
    "tanh",
    "sigmoid",
    "flatten",
}


class _Graph:
    """A module whose forward is traced: submodules, sums, and the functions above.

    Traced each time: what a forward does may depend on the module's mode and attributes.
    """

    def __init__(self, walk: _Walk, module: nn.Module) -> None:
        self.walk, self.module = walk, module
        try:
            self.traced = _Tracer().trace(module)
        except Exception as error:  # whatever the module's own code makes of a proxy
            walk._refuse(module, f"its forward cannot be traced ({error})")

    def run_on(self, value: Interval) -> Interval:
        """The module's output, from its only input."""
        known: dict[fx.Node, Interval] = {}
        inputs = 0
        for node in self.traced.nodes:
            if node.op == "placeholder":
                inputs += 1
                known[node] = value
            elif node.op == "output":
                (result,) = node.args
                if inputs == 1 and isinstance(result, fx.Node):
                    return known[result]
                self.walk._refuse(self.module, "it has one input and one output")
            else:
                known[node] = self._step(node, known)
        return self.walk._refuse(self.module)

    def _step(self, node: fx.Node, known: dict[fx.Node, Interval]) -> Interval:
        target: Any = node.target
        given = [known[arg] for arg in node.args if isinstance(arg, fx.Node) and arg in known]
        if node.op == "call_module" and len(given) == 1:
            return self.walk._beyond(self.module.get_submodule(target), given[0])
        name, rest = getattr(target, "__name__", target), node.args[1:]
        if target in _SUMS and len(given) == len(node.args) == 2 and not node.kwargs:
            return given[0].plus(given[1])
        if target not in _FUNCTIONS or len(given) != 1:
            return self.walk._refuse(self.module, f"it uses {name}")
        if target is F.relu and (any(rest) or any(node.kwargs.values())):
            return self.walk._refuse(self.module, f"{name}: {_OVERWRITES}")

        def act(x: Tensor) -> Tensor:
            function = getattr(type(x), target) if node.op == "call_method" else target
            found: Tensor = function(x, *rest, **node.kwargs)
            return found

        return given[0].monotone(act)


_SUMS = {torch.add, operator.add, "add"}


class _Tracer(fx.Tracer):
    """Stops at every submodule; the walk goes on inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _laid_out(act: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """A function of each weight, in the memory format of the weights.

    For images of one channel torch by itself forgets that format, in which the layer's own results
    are: radii in another one than centres make all that follows several times slower.
    """
    if weight.dim() != 4:
        return act(weight)
    return act(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _affine(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's map with another weight."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def _axes(value: Tensor) -> list[int]:
    """All but that of the channels."""
    return [0, *range(2, value.dim())]


@torch.no_grad()
def _follow(layer: _BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """Running statistics, as a plain pass in train mode updates them."""
    if not layer.training or layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked += 1
    momentum = layer.momentum
    if momentum is None:
        momentum = 1 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean.detach(), momentum)
    layer.running_var.lerp_(var.detach() * (count / max(count - 1, 1)), momentum)
