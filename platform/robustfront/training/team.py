"""The workers that train one model together, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustfront.training.batch_norm import TeamBatchNorm


@dataclass(frozen=True)
class Team:
    """One worker's place among those of its trial; alone unless torch.distributed says otherwise.

    Args:
        rank: from 0; the worker of rank 0 writes the trial's files.
        size: how many workers there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Team:
        """Of this process."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this worker writes the trial's files."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This worker's part of so many consecutive examples."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def wait(self) -> None:
        """Until all workers have come here."""
        if self.size > 1:
            dist.barrier()

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, in place, by their means over the workers."""
        if self.size == 1:
            return
        each = list(tensors)
        if not each:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in each])
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [tensor.numel() for tensor in each])
        for tensor, part in zip(each, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, mine: Any) -> list[Any]:
        """What every worker has, by rank."""
        if self.size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, mine)
        return gathered

    def join(self, model: nn.Module) -> nn.Module:
        """The model with batch norms that take the statistics of all workers' examples."""
        if self.size > 1:
            for parent in list(model.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, _BatchNorm):
                        setattr(parent, name, TeamBatchNorm.of(child))
        return model

    def mean_gradients(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Every step of the optimiser is on the mean gradient of all workers."""

        def average(*_: object) -> None:
            self.mean(p.grad for p in model.parameters() if p.grad is not None)

        if self.size > 1:
            optimizer.register_step_pre_hook(average)
