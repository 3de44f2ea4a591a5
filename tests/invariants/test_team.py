"""Several workers that train one model give what one worker gives."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustfront.config import TrialConfig
from robustfront.data import Split
from robustfront.randomness import Rng
from robustfront.threats import Threat, TrainThreat
from robustfront.training.checkpoint import read_tensors
from robustfront.training.team import Team
from robustfront.training.trial import run_trial
from tiny_job import environment, free_port

CONFIG: dict[str, Any] = {
    "data": {"type": "digits", "train_size": 400, "val_size": 101},
    "model": {"type": "mlp", "hidden": [32]},
    "threat": [{"norm": "linf", "eps": "1/10"}, {"norm": "l2", "eps": "1/2"}],
    "train_threat": {"mix": {"linf": 0.5, "l2": 0.5}},
    "method": {"type": "trades", "inner": {"steps": 3}},
    "smoothing": {"sigma": 0.1},
    "train": {
        "epochs": 3,
        "batch_size": 64,
        "optimizer": {"type": "sgd", "lr": 0.1},
        "clip_norm": 1.0,
        "ema": 0.9,
    },
    "evaluate": {"attack": {"type": "pgd", "steps": 3}},
}
WORKER = """
import json, sys, torch
import torch.distributed as dist
import torch._dynamo  # Imported later, by an optimiser, it would keep the group's threads alive.
from pathlib import Path
from robustfront.config import TrialConfig
from robustfront.training.trial import run_trial
port, folder = sys.argv[3:5]
rank, size, stop = (int(sys.argv[at]) for at in (1, 2, 5))
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
config = TrialConfig.model_validate(json.loads(Path(folder).with_name("job.json").read_text()))
for epoch, metrics in run_trial(config, Path(folder)):
    if epoch == stop:
        break
dist.destroy_process_group()
"""


def train_in_team(folder: Path, size: int, stop: int = 0) -> None:
    """A trial in a folder by so many processes, up to an epoch or to its end."""
    port = free_port()
    arguments = [str(size), str(port), str(folder), str(stop)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), *arguments],
            env=environment(GLOO_SOCKET_IFNAME="lo"),
        )
        for rank in range(size)
    ]
    assert [worker.wait(timeout=240) for worker in workers] == [0] * size


def reports(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def train_alone(folder: Path, **changes: Any) -> Path:
    """The same trial by this process alone, beside the folder of the team."""
    folder.mkdir()
    config = {**CONFIG, **changes}
    (folder / "job.json").write_text(json.dumps(config))
    list(run_trial(TrialConfig.model_validate(config), folder / "alone"))
    return folder / "alone"


def check_same(folder: Path, alone: Path, tolerance: float) -> None:
    """Validation errors to 1e-4; losses and weights to a tolerance."""
    for mine, its in zip(reports(folder), reports(alone), strict=True):
        assert {name for name in its if name not in mine} == set()
        for name in its:
            if "error" in name:
                assert mine[name] == pytest.approx(its[name], abs=1e-4), name
            elif name.startswith("train/"):
                assert mine[name] == pytest.approx(its[name], abs=tolerance), name
    weights = [read_tensors(f / "checkpoint" / "last.safetensors")[0] for f in (folder, alone)]
    for group, tensors in weights[1].items():
        for name, tensor in tensors.items():
            drift = (weights[0][group][name] - tensor).float().norm() / tensor.float().norm()
            assert drift < 10 * tolerance, name


def test_one_step_of_two_workers_is_one_step_of_one(tmp_path: Path) -> None:
    alone = train_alone(tmp_path / "step", train={"epochs": 1, "batch_size": 400})
    train_in_team(alone.with_name("two"), 2)
    check_same(alone.with_name("two"), alone, 2e-6)


def test_a_dual_variable_follows_the_whole_batch(tmp_path: Path) -> None:
    # Steps along l2 gradients, as above; every worker alone would see another slack.
    l2 = {"norm": "l2", "eps": "1/2"}
    dale = {"type": "dale", "dual_lr": 0.1, "inner": {"type": "langevin", "steps": 3}}
    alone = train_alone(
        tmp_path / "dual",
        method=dale,
        threat=l2,
        train_threat=l2,
        train={"epochs": 2, "batch_size": 200},
    )
    train_in_team(alone.with_name("two"), 2)
    check_same(alone.with_name("two"), alone, 1e-5)
    assert reports(alone)[1]["train/nu"] != pytest.approx(reports(alone)[0]["train/nu"], abs=0.01)


def test_batch_norm_sees_the_whole_batch(tmp_path: Path) -> None:
    # One step of TRADES: the statistics of two passes over 96 examples, and the gradients through.
    data = {**CONFIG["data"], "train_size": 96, "val_size": 20}
    train = {"epochs": 1, "batch_size": 96}
    model = {"type": "cnn7", "width": 4}
    alone = train_alone(tmp_path / "norm", model=model, data=data, train=train)
    train_in_team(alone.with_name("two"), 2)
    check_same(alone.with_name("two"), alone, 1e-5)


def test_two_workers_go_on_where_two_others_stopped(tmp_path: Path) -> None:
    # Within l2: in linf the sign of a gradient turns a last bit into a whole step.
    l2 = {"norm": "l2", "eps": "1/2"}
    alone = train_alone(tmp_path / "epochs", threat=l2, train_threat=l2)
    folder = alone.with_name("stopped")
    train_in_team(folder, 2, stop=2)
    assert len(reports(folder)) == 2 and not (folder / "records.npz").exists()
    train_in_team(folder, 2)
    check_same(folder, alone, 2e-3)


def test_shares_cover_everything_once() -> None:
    for total in (0, 1, 7, 64):
        for size in (1, 2, 3):
            rows = [np.arange(total)[Team(rank, size).share(total)] for rank in range(size)]
            assert np.concatenate(rows).tolist() == list(range(total))


@pytest.mark.parametrize("mix", [{}, {"linf": 0.3, "l2": 0.5, "l1": 0.2}])
def test_a_share_of_a_batch_draws_what_the_whole_batch_draws(mix: dict[str, float]) -> None:
    threat = TrainThreat.model_validate({"norm": "linf", "eps": "1/10", "mix": mix})
    x, key = torch.rand(30, 1, 4, 4), (0, 1, 2)
    whole = threat.draw(30, 16, 1.0, Rng((*key, "mix"), block=30))
    expected = whole.sample(x, Rng(key, block=30))
    for size in (1, 2, 5):
        rows = [Team(rank, size).share(30) for rank in range(size)]
        parts = [whole.part(r).sample(x[r], Rng(key, r.start, block=30)) for r in rows]
        assert torch.equal(torch.cat(parts), expected)


def test_a_part_of_a_split_knows_its_place() -> None:
    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    for rows in (None, torch.arange(9, -1, -1)):
        split = Split(x, y, 1.0, rows)
        part = split.part(slice(2, 8)).part(slice(1, 4))
        assert part.start == 3 and len(part) == 3
        assert torch.equal(part.batch(slice(0, 3))[0], split.batch(slice(3, 6))[0])
        assert torch.equal(part.batch(slice(0, 3))[1], split.batch(slice(3, 6))[1])


def test_a_norm_of_every_kind_is_a_part_of_itself() -> None:
    threat = Threat.parse("l2:0.5")
    assert threat.part(slice(3, 5)) == threat
