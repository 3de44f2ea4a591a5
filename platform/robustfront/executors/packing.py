"""How many trials share a GPU: by what the first of their shape was seen to need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CONTEXT = 0.6e9  # bytes that CUDA itself takes for each process
_ROOM = 1.2  # over the measured peak: the allocator's gaps, a larger last batch


class Packing:
    """Shares of a GPU, by the memory that trials of the same shape have used."""

    def __init__(self) -> None:
        self._needs: dict[str, float] = {}  # shape -> part of a GPU's memory

    def observe(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Learn from an epoch's report; one from a CPU says nothing."""
        if "gpu_memory_bytes" in metrics:
            used = _ROOM * metrics["peak_memory_bytes"] + _CONTEXT
            shape = shape_of(config)
            need = used / metrics["gpu_memory_bytes"]
            self._needs[shape] = max(need, self._needs.get(shape, 0.0))

    def share(self, config: Mapping[str, Any]) -> float | None:
        """The share of a GPU for a trial; None while nothing is known of its shape."""
        need = self._needs.get(shape_of(config))
        return None if need is None else 1 / max(1, int(1 / need))


def shape_of(config: Mapping[str, Any]) -> str:
    """What decides how much memory a trial takes; trials of one shape take the same."""
    train = config["train"]
    data = {key: value for key, value in config["data"].items() if key not in ("root", "path")}
    decisive = (
        data,
        config["model"],
        config["method"]["type"],
        config["update"]["type"],
        train["optimizer"]["type"],
        train["batch_size"],
        train["precision"],
        train["ema"] is None,
        len(config["threat"]),
        config["evaluate"]["batch_size"],
    )
    return json.dumps(decisive, sort_keys=True)
