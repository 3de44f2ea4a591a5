"""A sweep whose objectives are three errors: standard, robust and certified."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import robustfront as rf
from robustfront.config import TrialConfig
from robustfront.evaluation.records import UNDECIDED, Records
from robustfront.report import save_front
from robustfront.training.trial import (
    certified_errors,
    certify_final,
    measure_final,
    records_of_certificates,
    run_trial,
)
from tiny_job import JOB, write_job

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

EVALUATE: dict[str, Any] = {**JOB["evaluate"], "certify": {"type": "ibp"}}
OBJECTIVES = ["standard_error", "robust_error", "certified_error"]


def test_three_errors_make_one_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("")
    job = write_job(
        tmp_path,
        method={"type": "ibp"},
        evaluate=EVALUATE,
        objectives=OBJECTIVES,
        train={**JOB["train"], "eps_ramp": {"end": 2}},
    )
    (tmp_path / "space.yaml").write_text(
        "method.type: {choice: [ibp, standard]}\ntrain_threat.eps: {uniform: [0.02, 0.1]}\n"
    )
    sweep = rf.run(job, executor="inline")
    assert sweep.problems == (), sweep.problems[0]
    finished = [t for t in sweep.state.trials.values() if t.status == "finished"]
    assert len(finished) == 4
    for trial in finished:
        standard, robust, certified = (trial.metrics[name] for name in OBJECTIVES)
        assert standard <= robust <= certified
        records = Records.load(sweep.folder / "trials" / trial.id / "records.npz")
        assert records.errors("val")["certified_error"] == certified
        assert trial.metrics["val/certified_error/linf_0.1/ibp"] == certified
    front = sweep.front()
    assert set(OBJECTIVES) <= set(front.columns)
    for member in front["trial"]:
        test = sweep.state.trials[member].test
        assert (
            test["test/standard_error"]
            <= test["test/robust_error/linf_0.1/pgd5x2"]
            <= test["test/certified_error/linf_0.1/ibp"]
        )
    files = [tmp_path / f"front.{kind}" for kind in ("csv", "png", "html")]
    save_front(sweep.front_view(), *files)
    assert all(file.stat().st_size > 0 for file in files)


def test_certificates_go_on_where_they_were_interrupted(tmp_path: Path) -> None:
    config = TrialConfig.model_validate(
        {
            "data": {"type": "digits", "train_size": 400, "val_size": 50},
            "model": {"type": "mlp", "hidden": [16]},
            "threat": [{"norm": "linf", "eps": "1/100"}, {"norm": "l2", "eps": "1/20"}],
            "method": {"type": "ibp"},
            "train": {"epochs": 3, "optimizer": {"type": "adam", "lr": 0.01}},
            "evaluate": {
                "attack": {"type": "pgd", "steps": 2},
                "certify": {"type": "ibp"},
                "final": {"type": "pgd", "steps": 2, "examples": 250},
            },
        }
    )
    for _ in run_trial(config, tmp_path):
        pass
    for _ in measure_final(config, tmp_path):
        pass
    part = certify_final(config, tmp_path)
    shares = [next(part)]
    part.close()
    path = records_of_certificates(tmp_path)
    begun = Records.load(path).certified
    assert 0 < shares[0] < 1
    assert (begun["linf_0.01/ibp"] == 1).any()
    assert (begun["l2_0.05/ibp"] == UNDECIDED).any()
    rest = [*certify_final(config, tmp_path)]
    assert rest == sorted(rest) and rest[0] > shares[0] and rest[-1] == 1
    whole = Records.load(path).certified
    for name, found in begun.items():
        known = found != UNDECIDED
        np.testing.assert_array_equal(whole[name][known], found[known])
    assert all(set(found.tolist()) == {0, 1} for found in whole.values())
    errors = certified_errors(config, tmp_path)
    union = np.mean((whole["linf_0.01/ibp"] != 1) | (whole["l2_0.05/ibp"] != 1))
    assert errors["test/certified_error/union/ibp"] == union
    assert errors["test/examples"] == 250
    path.unlink()
    for _ in certify_final(config, tmp_path):
        pass
    assert certified_errors(config, tmp_path) == errors
