"""A sweep whose objectives are three errors: standard, robust and certified."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import robustfront as rf
from robustfront.config import TrialConfig
from robustfront.errors import SoundnessError
from robustfront.evaluation.records import UNDECIDED, Records, read_arrays
from robustfront.report import save_front
from robustfront.training.trial import (
    certified_errors,
    certify_final,
    export_final,
    import_verdicts,
    measure_final,
    records_of_certificates,
    records_of_test,
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


def two_threats(**final: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "data": {"type": "digits", "train_size": 400, "val_size": 50},
            "model": {"type": "mlp", "hidden": [16]},
            "threat": [{"norm": "linf", "eps": "1/100"}, {"norm": "l2", "eps": "1/20"}],
            "method": {"type": "ibp"},
            "train": {"epochs": 3, "optimizer": {"type": "adam", "lr": 0.01}},
            "evaluate": {
                "attack": {"type": "pgd", "steps": 2},
                "certify": {"type": "ibp"},
                "final": {"type": "pgd", "steps": 2, "examples": 250, **final},
            },
        }
    )


def test_certificates_go_on_where_they_were_interrupted(tmp_path: Path) -> None:
    config = two_threats()
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial that is measured and certified."""
    folder, config = tmp_path_factory.mktemp("trained"), two_threats()
    for work in (run_trial, measure_final, certify_final):
        for _ in work(config, folder):
            pass
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "trial")


def test_another_suite_keeps_certificates_and_is_held_against_them(folder: Path) -> None:
    path = records_of_certificates(folder)
    before = read_arrays(path)
    stronger = two_threats(steps=5)
    for work in (measure_final, certify_final):
        for _ in work(stronger, folder):
            pass
    after = read_arrays(path)
    assert all((after[name] == found).all() for name, found in before.items())
    attack = stronger.evaluate.final.attack
    attacked = Records.load(records_of_test(folder, attack))
    fooled = np.flatnonzero(attacked.attacked[f"linf_0.01/{attack.name}"] != attacked.label)
    assert len(fooled)
    before["certified:linf_0.01/ibp"][fooled[0]] = 1
    np.savez(path, **before)
    with pytest.raises(SoundnessError, match="contradicted"):
        next(certify_final(stronger, folder))


def test_another_certifier_and_imported_proofs_leave_those_there_are(
    folder: Path, tmp_path: Path
) -> None:
    config, path = two_threats(), records_of_certificates(folder)
    count, others = export_final(config, folder, tmp_path / "out", 10)
    assert others == ["l2_0.05"]
    names = [*(tmp_path / "out").glob("linf_0.01/*.vnnlib")]
    assert count == len(names) > 0
    assert not [*(tmp_path / "out").glob("l2*")]
    number = int(names[0].stem)
    verdicts = tmp_path / "verdicts.csv"
    verdicts.write_text(f"linf_0.01/{number}.vnnlib,unsat\n")
    import_verdicts(config, folder, config.threat[0], verdicts, "other")
    first = Records.load(path)
    assert first.certified["linf_0.01/ibp-other"][number] == 1
    tighter = two_threats(certify={"type": "crown_ibp"})
    for _ in certify_final(tighter, folder):
        pass
    both = Records.load(path)
    for name, found in first.certified.items():
        np.testing.assert_array_equal(both.certified[name], found)
    proved = both.certified["linf_0.01/crown_ibp"] == 1
    assert proved.sum() >= (first.certified["linf_0.01/ibp"] == 1).sum()


@pytest.mark.filterwarnings("ignore:cascade. its 1e-09 s are over:UserWarning")
def test_the_same_certifier_with_other_settings_begins_anew(folder: Path) -> None:
    """A cascade that was short of time says nothing about one that is not."""
    short = {"type": "cascade", "stages": ["ibp", "crown_ibp"], "seconds": 1e-9}
    for settings in (short, {**short, "seconds": None}):
        config = two_threats(certify=settings)
        for _ in certify_final(config, folder):
            pass
    found = Records.load(records_of_certificates(folder)).certified
    alone = two_threats(certify={"type": "crown_ibp"})
    for _ in certify_final(alone, folder):
        pass
    expected = Records.load(records_of_certificates(folder)).certified
    assert (found["linf_0.01/ibp-crown_ibp"] >= expected["linf_0.01/crown_ibp"]).all()
    assert "linf_0.01/ibp" in expected
