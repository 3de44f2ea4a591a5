"""Linear relaxations by auto_LiRPA; the only module that imports it.

Works with 0.3 of the registry, which today's torch needs some help with, and with later ones.
"""

from __future__ import annotations

import copy
import importlib
import sys
import types
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustfront.certifiers.base import Lower
from robustfront.certifiers.propagation import Normalise, flattened
from robustfront.errors import ConfigError, RobustfrontError, SoundnessError
from robustfront.randomness import Rng
from robustfront.threats import Threat

_NORMS = {"linf": float("inf"), "segment": float("inf"), "l2": 2.0, "l1": 1.0}


class Relaxation:
    """A model as auto_LiRPA sees it: a copy, with normalisation in a form that it bounds soundly.

    With l2 and l1 balls an element-wise operation before the first affine layer gives bounds that
    attacks violate (0.3 and 0.7.1: the interval of the input collapses), so normalisation becomes a
    batch norm with fixed statistics, or part of a fully connected first layer, and other operations
    there are refused. Every bound is compared with a random allowed input.

    Args:
        model: in eval mode.
        steps: of alpha-CROWN's optimisation.

    Raises:
        RobustfrontError: auto_LiRPA is not installed.
        ConfigError: a model that it cannot bound.
    """

    def __init__(self, model: nn.Module, steps: int = 20) -> None:
        self.library = _library()
        self.model = model
        self.plain = translated(model).eval()
        self.options = {
            "optimize_bound_args": {"iteration": steps},
            # 0.3: with sparse slopes a layer whose units are nearly all unstable crashes.
            "minimum_sparsity": 1.0,
        }
        self.bounded: Any = None

    def using(self, method: str) -> Lower:
        """Bounds by one of auto_LiRPA's methods."""

        def lower(x: Tensor, threat: Threat, specification: Tensor) -> Tensor:
            self._refuse_unsound(threat)
            found = self._bounds(x, threat, specification, method)
            self._compare(found, x, threat, specification)
            return found

        return lower

    def _bounds(self, x: Tensor, threat: Threat, specification: Tensor, method: str) -> Tensor:
        try:
            return self._computed(x, threat, specification, method)
        except (torch.OutOfMemoryError, MemoryError):
            self.bounded = None
            if method != "CROWN-Optimized":
                raise
            warnings.warn("alpha-CROWN: too little memory, CROWN's bounds instead", stacklevel=2)
            return self._computed(x, threat, specification, "CROWN")

    def _computed(self, x: Tensor, threat: Threat, specification: Tensor, method: str) -> Tensor:
        if self.bounded is None:
            self.bounded = self._translate(x)
        eps, norm = float(threat.eps), _NORMS[threat.norm]
        ends = {}
        if threat.is_box:
            ends = dict(zip(("x_L", "x_U"), threat.ends(x), strict=True))
        ball = self.library.PerturbationLpNorm(norm=norm, eps=eps, **ends)
        try:
            lower, _ = self.bounded.compute_bounds(
                x=(self.library.BoundedTensor(x, ball),),
                C=specification,
                method=method,
                bound_upper=False,
            )
        except (NotImplementedError, AttributeError, AssertionError, RuntimeError) as error:
            # After an exception the translated model is not what it was.
            self.bounded = None
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from None  # as torch says it of a CPU
            if method == "CROWN-Optimized" and "sparse_spec_alpha" not in self.options:
                # 0.3: layers whose units are nearly all stable are too sparse for it.
                self.options["sparse_spec_alpha"] = False
                return self._computed(x, threat, specification, method)
            raise self._refused(error) from error
        found: Tensor = lower.detach()
        return found

    def _translate(self, x: Tensor) -> Any:
        try:
            return self.library.BoundedModule(
                self.plain, torch.zeros_like(x[:1]), bound_opts=self.options, device=x.device
            )
        except (NotImplementedError, AttributeError, AssertionError, RuntimeError) as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ConfigError:
        kinds = sorted({type(layer).__name__ for layer in self.plain.modules()} - {"Sequential"})
        problem = f"auto_LiRPA cannot bound it: {error} (its layers: {', '.join(kinds)})"
        return ConfigError("model", [problem])

    def _refuse_unsound(self, threat: Threat) -> None:
        if threat.is_box:
            return
        first = next((m for m in self.plain if not isinstance(m, nn.Flatten)), None)
        if not isinstance(first, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            problem = (
                f"{type(first).__name__} is the first layer: over {threat.norm} balls auto_LiRPA's "
                "bounds hold only where that is Linear, Conv2d or the normalisation of the inputs"
            )
            raise ConfigError("model", [problem])

    @torch.no_grad()
    def _compare(self, lower: Tensor, x: Tensor, threat: Threat, specification: Tensor) -> None:
        """No bound may be above the value at an allowed input."""
        rng = Rng(("relaxation",), block=len(x))
        for x_adv in (x, threat.sample(x, rng)):
            values = torch.einsum("nsk,nk->ns", specification, self.model(x_adv))
            slack = 1e-4 * (1 + values.abs())
            if not bool((lower <= values + slack).all()):
                raise SoundnessError(
                    f"auto_LiRPA {getattr(self.library, '__version__', '')}: a lower bound over "
                    f"{threat.name} lies {float((lower - values).max()):.3g} above an allowed input"
                )


def translated(model: nn.Module) -> nn.Sequential:
    """A copy that computes the same, without element-wise operations before the first layer."""
    # Dropout does nothing in eval mode, but 0.3 would put the model into train mode for it.
    kept = [layer for layer in flattened(model) if not isinstance(layer, nn.Dropout)]
    first, *rest = (copy.deepcopy(layer) for layer in kept)
    if not isinstance(first, Normalise):
        return nn.Sequential(first, *rest)
    if len(rest) > 1 and isinstance(rest[0], nn.Flatten) and isinstance(rest[1], nn.Linear):
        return nn.Sequential(rest[0], _joined(first, rest[1]), *rest[2:])
    norm = nn.BatchNorm2d(first.mean.numel(), eps=1e-30)  # as 0, which torch refuses
    norm.running_mean, norm.running_var = first.mean.flatten(), first.std.flatten().square()
    return nn.Sequential(norm, *rest)


def _joined(normalise: Normalise, layer: nn.Linear) -> nn.Linear:
    """A fully connected layer of the images as they are."""
    mean, std = normalise.mean.double().flatten(), normalise.std.double().flatten()
    pixels = layer.in_features // mean.numel()
    mean, std = mean.repeat_interleave(pixels), std.repeat_interleave(pixels)
    with torch.no_grad():
        weight = layer.weight.double() / std
        bias = layer.bias.double() - weight @ mean
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def _library() -> Any:
    """auto_LiRPA.

    Raises:
        RobustfrontError: it is not installed.
    """
    if "auto_LiRPA" not in sys.modules:
        _help_old_versions()
    limit = sys.getrecursionlimit()
    try:
        library = importlib.import_module("auto_LiRPA")
    except ModuleNotFoundError as error:
        if error.name != "auto_LiRPA":
            raise
        raise RobustfrontError(
            "these bounds need auto_LiRPA: pip install --no-deps auto-LiRPA==0.3 appdirs"
        ) from None
    finally:
        # It lifts the limit to a million: what recurses forever then crashes the process.
        sys.setrecursionlimit(limit)
    _accept_duplicates(library.BoundedModule)
    _keep_slopes_inside(importlib.import_module("auto_LiRPA.operators").BoundRelu)
    return library


def _help_old_versions() -> None:
    """What 0.3 looks for in numpy and torch, and what has moved since."""
    # Not `from torch.onnx import`: that can be another module than the one 0.3 imports from.
    symbolic_helper: Any = importlib.import_module("torch.onnx.symbolic_helper")
    sets = types.ModuleType("numpy.lib.arraysetops")
    sets.isin = np.isin  # type: ignore[attr-defined]
    sys.modules.setdefault(sets.__name__, sets)
    if not hasattr(symbolic_helper, "_set_opset_version"):
        symbolic_helper._set_opset_version = _set_opset_version
    node: Any = torch._C.Node
    if not hasattr(node, "__getitem__"):
        node.__getitem__ = symbolic_helper._node_get


def _set_opset_version(version: int) -> None:
    try:
        module = importlib.import_module("torch.onnx._internal.torchscript_exporter._globals")
    except ModuleNotFoundError:
        module = importlib.import_module("torch.onnx._globals")
    module.GLOBALS.export_onnx_opset_version = version


def _accept_duplicates(bounded_module: Any) -> None:
    """torch's `parameters` asks for an argument that 0.3 does not know."""
    members = bounded_module._named_members
    if "remove_duplicate" in members.__code__.co_varnames:
        return

    def named_members(self: Any, *args: Any, remove_duplicate: bool = True, **more: Any) -> Any:
        return members(self, *args, **more)

    bounded_module._named_members = named_members


def _keep_slopes_inside(relu: Any) -> None:
    """alpha-CROWN starts with slopes of 0 and 1 and clamps them; where clamp has no gradient at its
    ends (torch 2.15) they would stay there. Slopes a little inside are as sound."""
    masked = getattr(relu, "_relu_mask_alpha", None)
    if masked is None or hasattr(masked, "inside"):
        return

    def inside(lower: Tensor, upper: Tensor, *slopes: Tensor | None) -> Any:
        moved = [None if slope is None else 1e-6 + (1 - 2e-6) * slope for slope in slopes]
        return masked(lower, upper, *moved)

    inside.inside = True  # type: ignore[attr-defined]
    relu._relu_mask_alpha = staticmethod(inside)
