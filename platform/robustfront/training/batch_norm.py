"""Batch norm for a model that several workers train together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class TeamBatchNorm(_BatchNorm):
    """Batch norm with the statistics of the whole batch: the shares of all workers together.

    y = weight * (x - mean) / sqrt(var + eps) + bias in train mode, where mean and var are over all
    workers' examples; the workers' shares are of one size. In eval mode it is the plain layer, so
    an attack may take other paths on other workers. Needs torch.distributed with any backend.

    Shape: (N, C) or (N, C, H, W) to the same.
    Deviates: nn.SyncBatchNorm exists on GPUs only, and takes shares of different sizes.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> TeamBatchNorm:
        """The same layer, with the same weights and running statistics."""
        mine = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        mine.load_state_dict(norm.state_dict())
        return mine

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in train mode all workers must come here."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        over = [0, *range(2, x.dim())]
        mean = _team_mean(values.mean(over))
        centred = values - _per_channel(mean, x)
        var = _team_mean(centred.square().mean(over))
        if self.running_mean is not None:
            self._keep(mean.detach(), var.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        y = centred * _per_channel(torch.rsqrt(var + self.eps), x)
        if self.affine:
            y = y * _per_channel(self.weight, x) + _per_channel(self.bias, x)
        return y.to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Running statistics, with the unbiased variance, as PyTorch's layer keeps them."""
        assert self.momentum and self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / (count - 1)), self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two on."""


class _TeamMean(torch.autograd.Function):
    """Mean over the workers, whose losses add up: the gradient is the mean of all gradients."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return _mean(mine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _mean(grad)


def _team_mean(mine: Tensor) -> Tensor:
    found: Tensor = _TeamMean.apply(mine)
    return found


def _mean(mine: Tensor) -> Tensor:
    total = mine.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))
