"""Weights and training state on disk: safetensors files, each written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustfront.config import TrialConfig
from robustfront.errors import ConfigError, DataError
from robustfront.files import write_bytes
from robustfront.problems import validated

Groups = dict[str, dict[str, Tensor]]


def write_tensors(path: Path, groups: Mapping[str, Mapping[str, Tensor]], meta: Any) -> None:
    """Groups of named tensors and JSON-able metadata in one safetensors file."""
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }
    write_bytes(path, save(flat, {"robustfront": json.dumps(meta)}))


def read_tensors(path: Path) -> tuple[Groups, Any]:
    """What `write_tensors` wrote.

    Raises:
        DataError: no such file, a truncated one, or one that something else wrote.
    """
    groups: Groups = {}
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["robustfront"])
            for key in file.keys():  # noqa: SIM118 - not a dict
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a complete checkpoint ({error}); "
            "`resume --failed restart` begins such a trial anew"
        ) from None
    return groups, meta


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain numbers of an optimiser's state, by `index.name`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put back what `optimizer_state` took."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def write_config(folder: Path, config: TrialConfig) -> None:
    """`config.json`: all values, resolved."""
    text = json.dumps(config.model_dump(mode="json"), indent=2)
    write_bytes(folder / "config.json", text.encode())


def export_model(path: Path, weights: Mapping[str, Tensor], config: TrialConfig) -> None:
    """Weights with the shape and the number of classes that the model was built for."""
    meta = {"shape": list(config.data.shape), "classes": config.data.outputs}
    write_tensors(path, {"model": weights}, meta)


def load_model(path: str | Path) -> nn.Module:
    """The classifier of a trial's folder or checkpoint folder, in eval mode, inputs in [0, 1].

    Raises:
        DataError: no such folder, or unreadable weights.
        ConfigError: its config.json is not a trial's.
    """
    config, weights, meta = read_trained(Path(path))
    model = config.build_model(tuple(meta["shape"]), meta["classes"])
    load_weights(model, weights, Path(path))
    return model.eval()


def check_init(config: TrialConfig) -> None:
    """Whether a trial can begin with the weights that `init_from` names.

    Raises:
        ConfigError: there are none, or they belong to another architecture.
    """
    if config.init_from is None:
        return
    try:
        theirs, weights, _ = read_trained(Path(config.init_from))
    except (ConfigError, DataError) as error:
        raise ConfigError("init_from", [f"init_from: {error}"]) from None
    model = config.build_model(config.data.shape, config.data.outputs)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        mine, other = (
            f"{which.model.type} for {which.data.outputs} classes of {which.data.shape}"
            for which in (config, theirs)
        )
        problem = f"init_from: holds a {other}, this job trains a {mine} (or other sizes of it)"
        raise ConfigError("init_from", [problem])


def read_trained(folder: Path) -> tuple[TrialConfig, dict[str, Tensor], Any]:
    """Configuration and selected weights of a finished trial, and what its model was built for;
    raises as `load_model`."""
    if (folder / "checkpoint").is_dir():
        folder = folder / "checkpoint"
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise DataError(f"{folder}: no finished checkpoint here (config.json is missing)")
    try:
        raw = json.loads(config_file.read_text())
    except ValueError as error:
        raise DataError(f"{config_file}: not JSON ({error})") from None
    config, problems = validated(TrialConfig, raw if isinstance(raw, dict) else {})
    if config is None:
        raise ConfigError(str(config_file), problems)
    groups, meta = read_tensors(folder / f"{config.train.select}.safetensors")
    return config, groups["model"], meta


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights into the model.

    Raises:
        DataError: they belong to another architecture.
    """
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise DataError(f"{where}: the weights belong to another architecture ({error})") from None
