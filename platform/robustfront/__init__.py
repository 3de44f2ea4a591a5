"""robustfront: what robustness costs in accuracy, and which training method buys it cheapest."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustfront.config import Job, TrialConfig
    from robustfront.data import load_data
    from robustfront.errors import (
        ConfigError,
        DataError,
        Diverged,
        OutOfMemory,
        RobustfrontError,
        SearchSpaceError,
        SoundnessError,
        StorageError,
        TrialError,
    )
    from robustfront.evaluation.certify import bounds, certify
    from robustfront.evaluation.evaluate import evaluate
    from robustfront.sweep import Sweep, run
    from robustfront.training.checkpoint import load_model

# torch takes seconds to import: each name is fetched when it is first used.
_HOMES = {
    "Job": "config",
    "TrialConfig": "config",
    "ConfigError": "errors",
    "DataError": "errors",
    "Diverged": "errors",
    "OutOfMemory": "errors",
    "RobustfrontError": "errors",
    "SearchSpaceError": "errors",
    "SoundnessError": "errors",
    "StorageError": "errors",
    "TrialError": "errors",
    "Sweep": "sweep",
    "bounds": "evaluation.certify",
    "certify": "evaluation.certify",
    "evaluate": "evaluation.evaluate",
    "load_data": "data",
    "load_model": "training.checkpoint",
    "run": "sweep",
}

__all__ = [
    "ConfigError",
    "DataError",
    "Diverged",
    "Job",
    "OutOfMemory",
    "RobustfrontError",
    "SearchSpaceError",
    "SoundnessError",
    "StorageError",
    "Sweep",
    "TrialConfig",
    "TrialError",
    "bounds",
    "certify",
    "evaluate",
    "load_data",
    "load_model",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'robustfront' has no attribute {name!r}")
    return getattr(import_module(f"robustfront.{_HOMES[name]}"), name)
