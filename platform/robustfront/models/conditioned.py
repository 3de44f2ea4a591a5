"""Models with one more input, a weight between two aims: one training gives many models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustfront.errors import ConfigError
from robustfront.models.base import Classifier

_WAVES = 16  # cosines that describe the weight


class Condition(nn.Module):
    """The weight in [0, 1] that all layers of a model see, and which batch norms are in use.

    Args:
        weight: of all examples, where nothing else is given.
    """

    value: Tensor

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor([float(weight)]))
        self.adversarial = weight > 0

    @property
    def waves(self) -> Tensor:
        """cos(pi k weight) for k = 0, 1, ..., (1 or N, 16)."""
        orders = torch.arange(_WAVES, device=self.value.device, dtype=torch.float32)
        return torch.cos(math.pi * orders * self.value[:, None])


class FiLM(nn.Module):
    """h * (1 + a) + b with a and b of each feature from the weight; at first h itself.

    Source: arXiv:1709.07871.
    """

    def __init__(self, condition: Condition, features: int) -> None:
        super().__init__()
        # In a tuple: it belongs to the whole model, whose weights it is saved with once.
        self._condition = (condition,)
        last = nn.Linear(features, 2 * features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(_WAVES, features), nn.ReLU(), last)

    def forward(self, h: Tensor) -> Tensor:
        """Features (N, C) or (N, C, H, W)."""
        scale, shift = self.net(self._condition[0].waves).chunk(2, dim=1)
        shape = (len(scale), -1, *[1] * (h.dim() - 2))
        return torch.addcmul(shift.view(shape), h, 1 + scale.view(shape))


class DualNorm(nn.Module):
    """One batch norm for clean inputs, one for adversarial ones, then FiLM."""

    def __init__(self, condition: Condition, norm: _BatchNorm) -> None:
        super().__init__()
        self._condition = (condition,)
        self.clean, self.adversarial = norm, type(norm)(norm.num_features)
        self.adversarial.load_state_dict(norm.state_dict())
        self.film = FiLM(condition, norm.num_features)

    def forward(self, h: Tensor) -> Tensor:
        """Features (N, C, H, W)."""
        norm = self.adversarial if self._condition[0].adversarial else self.clean
        moved: Tensor = self.film(norm(h))
        return moved


def conditioned(model: Classifier, weight: float) -> Classifier:
    """The model, changed so that its layers see a weight: at first it computes the same.

    FiLM stands after each batch norm, which there are two of from now on; in a model without batch
    norm after each convolution and each linear layer but the last.

    Source: arXiv:2010.11828, section 3.2 and 3.3.
    Deviates: the weight is described by 16 cosines, not by a random vector of 128 entries.

    Args:
        weight: what the model is given where nobody says otherwise.

    Raises:
        ConfigError: the model is linear, there is nowhere to tell it the weight.
    """
    condition = Condition(weight)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if len(layers) == 1:
        raise ConfigError("model", ["model.type: this method needs a model with a hidden layer"])
    changed: dict[nn.Module, nn.Module] = {norm: DualNorm(condition, norm) for norm in norms}
    if not norms:
        for layer in layers[:-1]:
            width = layer.weight.shape[0]
            changed[layer] = nn.Sequential(layer, FiLM(condition, width))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in changed:
                setattr(parent, name, changed[child])
    model.condition = condition
    return model


@contextmanager
def given(
    model: nn.Module, weight: float | Tensor, adversarial: bool | None = None
) -> Iterator[None]:
    """A conditioned model at another weight for a while.

    Args:
        weight: for all examples, or one each (N,).
        adversarial: which batch norms are used; None: those for adversarial inputs unless all
            weights are 0.

    Raises:
        TypeError: the model is not conditioned.
    """
    found = [module for module in model.modules() if isinstance(module, Condition)]
    if not found:
        raise TypeError("the model has no condition: build it by TrialConfig.build_model")
    (condition,) = found
    before = condition.value, condition.adversarial
    values = weight if isinstance(weight, Tensor) else before[0].new_tensor([weight])
    condition.value = values
    condition.adversarial = bool((values > 0).any()) if adversarial is None else adversarial
    try:
        yield
    finally:
        condition.value, condition.adversarial = before
