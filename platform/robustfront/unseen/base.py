"""The contract of an unseen perturbation: candidates for each example, one of which may fool."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import eval_mode
from robustfront.attacks.base import require_unit_range
from robustfront.attacks.goals import Misclassification
from robustfront.randomness import Rng
from robustfront.registry import Component, Registry


class Unseen(Component):
    """Looks for a changed image that is misclassified, among candidates made one by one.

    Where it is `certifiable`, `boxes` hold every changed image.
    """

    certifiable: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """How metrics call it, as threat and attack: `patch_5/pgd40`."""

    @abstractmethod
    def candidates(self) -> int:
        """How many changed images are tried for each example."""

    @abstractmethod
    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """One changed image (N, C, H, W) for each example; the model is in eval mode.

        Args:
            number: from 0.
            rng: of this candidate, one row an example.
        """

    def boxes(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Boxes of images, by their ends (N, C, H, W), that together hold all changed ones."""
        raise NotImplementedError(f"{self.name} has no certificate")

    @final
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """A misclassified image in [0, 1] where one is found, else x; the model is left as it was.

        Raises:
            ValueError: an input outside [0, 1] or not finite.
        """
        require_unit_range(x)
        found, left = x.clone(), torch.arange(len(x), device=x.device)
        with eval_mode(model):
            for changed, rows in self._tried(model, x, y, left, rng):
                found[rows] = changed
        return found

    def _tried(
        self, model: nn.Module, x: Tensor, y: Tensor, left: Tensor, rng: Rng
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What fools the model, with the examples it does so for; these leave the search."""
        with torch.no_grad():
            left = left[model(x).argmax(1) == y]
        for number in range(self.candidates()):
            if not len(left):
                return
            source = rng.child("candidate", number).rows(left)
            changed = self.candidate(number, model, x[left], y[left], source).clamp(0, 1)
            with torch.no_grad():
                wrong = model(changed).argmax(1) != y[left]
            yield changed[wrong], left[wrong]
            left = left[~wrong]


UNSEEN: Registry[Unseen] = Registry("unseen perturbation")


def moved(x: Tensor, flow: Tensor) -> Tensor:
    """Images whose pixel (i, j) is what stood at (i, j) + flow before, black outside.

    Args:
        x: (N, C, H, W).
        flow: down and right in pixels, (N, 2, H, W).
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + flow[:, 0]
    columns = torch.arange(width, device=x.device, dtype=x.dtype) + flow[:, 1]
    # grid_sample counts from -1 to 1 between the outer edges of the pixels.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def filtered(fields: Tensor, kernels: Tensor) -> Tensor:
    """Each field (N, 1, H, W) convolved with its own kernel (N, 1, odd, odd), 0 outside."""
    reach = kernels.shape[2] // 2
    return F.conv2d(fields.transpose(0, 1), kernels, padding=reach, groups=len(fields)).transpose(
        0, 1
    )


def ascended(
    model: nn.Module,
    change: Tensor,
    render: Callable[[Tensor], Tensor],
    y: Tensor,
    step: float,
    steps: int,
    ends: tuple[float, float],
) -> Tensor:
    """Signed gradient ascent on the cross-entropy of rendered images; the last `change`.

    Each step is projected between the `ends`: were `render` to clip instead, no gradient would
    bring an entry back that is at an end or beyond.
    """
    goal = Misclassification(y)
    for _ in range(steps):
        change = change.detach().requires_grad_()
        with torch.enable_grad():
            value = goal(model(render(change))).sum()
            (slope,) = torch.autograd.grad(value, change)
        change = (change.detach() + step * slope.sign()).clamp(*ends)
    return change.detach()
