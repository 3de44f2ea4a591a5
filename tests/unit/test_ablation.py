"""Designs: their cells, what is tuned in them, and what is wrong with some."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robustfront.ablation import Ablation
from robustfront.errors import ConfigError
from robustfront.executors.live import summary
from robustfront.ledger import Trial
from robustfront.search.cells import CellProposer
from robustfront.search.plan import Plan, load_plan
from robustfront.search.samplers import PastProposal
from robustfront.tracking.ablation_view import _mean
from tiny_job import JOB, write_job

FACTORS: dict[str, Any] = {
    "method.type": ["pgd_at", "ibp"],
    "budget": {
        "small": {"threat.eps": {"by": "shape", "box": "1/50", "ball": "1/5"}},
        "large": {"threat.eps": {"by": "shape", "box": "1/20", "ball": "1/2"}},
    },
    "shape": {"box": {"threat.norm": "linf"}, "ball": {"threat.norm": "l2"}},
}
NUISANCE: dict[str, Any] = {
    "train.optimizer.lr": {"log_uniform": [0.01, 0.1]},
    "method.kappa": {"uniform": [0, 0.5], "when": {"method.type": "ibp"}},
    "method.inner.steps": {"choice": [1, 2], "when": {"method.type": ["pgd_at"]}},
}


def plan_of(folder: Path, **ablation: Any) -> Plan:
    """A small job with a design; `search` of the job is left out."""
    design = {"factors": FACTORS, "nuisance": NUISANCE, "trials_per_cell": 2, **ablation}
    job = {k: v for k, v in JOB.items() if k not in ("search", "search_space", "method")}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**job, "ablation": design}, sort_keys=False))
    return load_plan(path)


def test_cells_are_all_combinations_and_values_may_depend_on_another_factor(tmp_path: Path) -> None:
    job = plan_of(tmp_path).job
    assert job.ablation is not None
    cells = job.ablation.cells()
    assert len(cells) == 8
    assert job.search.trials == 16
    assert job.search.seeds == (0, 1, 2)
    assert job.search.scheduler is None
    found = {cell.name: cell.settings for cell in cells}
    settings = found["method.type ibp, budget large, shape ball"]
    assert settings == {"method.type": "ibp", "threat.eps": "1/2", "threat.norm": "l2"}
    trial = job.trial(settings, 0)
    assert trial.threat[0].name == "l2_0.5"
    assert trial.train_threat.threats(64)["l2"].name == "l2_0.5"


def test_conditions_on_factors_are_decided_in_each_cell(tmp_path: Path) -> None:
    ablation = plan_of(tmp_path).job.ablation
    assert ablation is not None
    for cell in ablation.cells():
        entries = ablation.nuisance_in(cell)
        certified = cell.settings["method.type"] == "ibp"
        own = "method.kappa" if certified else "method.inner.steps"
        assert {*entries} == {"train.optimizer.lr", own}
        assert "when" not in entries[own]


def test_a_half_fraction_confounds_the_factors_only_with_their_joint_interaction() -> None:
    factors = {name: [0, 1] for name in "abc"}
    half = Ablation(factors=factors, fraction="1/2").cells()
    assert [cell.name for cell in half] == [
        "a 0, b 0, c 0",
        "a 0, b 1, c 1",
        "a 1, b 0, c 1",
        "a 1, b 1, c 0",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": {}}, "at least 1"),
        ({"factors": {"method.type": ["ibp"]}}, "two levels or more"),
        ({"factors": {"method.type": ["ibp", "ibp"]}}, "given twice"),
        ({"factors": {"method.type": ["ibp", ["sabr"]]}}, "a plain value"),
        ({"compare": "methods"}, "did you mean 'method.type'"),
        ({"tune_for": "robust"}, "did you mean 'robust_error'"),
        ({"seeds": [1, 1]}, "seeds: one is given twice"),
        ({"fraction": "1/8"}, "too few cells"),
        ({"fraction": "2/3"}, "1/2, 1/3"),
        ({"nuisance": {"method.type": {"choice": ["ibp"]}}}, "set by nuisance and by method.type"),
        ({"nuisance": {"data.margin": {"uniform": [0, 1]}}}, "cannot be searched"),
        (
            {"nuisance": {"method.kappa": {"uniform": [0, 1], "when": {"method.type": "sabr"}}}},
            "holds in no cell",
        ),
        ({"nuisance": {"method.kappa": {"uniform": [0, 1]}}}, "method.type pgd_at"),
        ({"factors": {"method.type": ["ibp", "ipb"]}, "nuisance": {}}, "did you mean 'ibp'"),
        ({"factors": {"search.trials": [1, 2]}, "nuisance": {}}, "cannot be a factor"),
        (
            {"factors": {**FACTORS, "budget": {"a": {"threat.eps": {"by": "shap"}}, "b": {}}}},
            "did you mean 'shape'",
        ),
        (
            {"factors": {**FACTORS, "budget": {"a": {"threat.eps": {"by": ["shape"]}}, "b": {}}}},
            "by: got ['shape']",
        ),
        (
            {"factors": {**FACTORS, "budget": {"a": {"threat.eps": {"by": {"c": 1}}}, "b": {}}}},
            "by: got {'c': 1}",
        ),
        (
            {"factors": {**FACTORS, "budget": {"a": {"threat.eps": {"by": "shape"}}, "b": {}}}},
            "a value for each level of shape",
        ),
    ],
)
def test_what_is_wrong_with_a_design_is_said(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as found:
        plan_of(tmp_path, **change)
    assert message in str(found.value)


def test_a_search_beside_a_design_is_refused(tmp_path: Path) -> None:
    design = {"factors": {"method.type": ["pgd_at", "ibp"]}}
    for changes, message in [
        ({"search": {"trials": 3}, "search_space": {}}, "trials: an ablation decides that"),
        (
            {"search": {}, "search_space": "space.yaml"},
            "search_space: an ablation has its `nuisance`",
        ),
    ]:
        path = write_job(tmp_path, ablation=design, method={}, **changes)
        with pytest.raises(ConfigError, match=message):
            load_plan(path)


def test_each_cell_tunes_on_its_own_and_alike_and_is_rebuilt_from_the_past(tmp_path: Path) -> None:
    job = plan_of(tmp_path, trials_per_cell=3).job
    proposer = CellProposer(job)
    made = {number: proposer.propose(number) for number in range(24)}
    assert all(made.values())
    cells = job.ablation.cells()  # type: ignore[union-attr]
    for number, proposal in made.items():
        assert proposal is not None
        assert proposal.values.items() >= cells[number % 8].settings.items()
        assert proposal.attrs["cell"] == cells[number % 8].name
    rates = [made[number].values["train.optimizer.lr"] for number in range(8)]  # type: ignore[union-attr]
    assert len({*rates[:4]}) == 1
    assert len({*rates[4:]}) == 1
    again = CellProposer(job)
    past = [PastProposal(p, "complete", (0.1, 0.2)) for n, p in made.items() if n < 13 and p]
    again.restore(past)
    for number in range(13, 24):
        assert again.propose(number) == made[number]


def test_a_cell_that_has_no_other_configuration_leaves_the_rest_alone(tmp_path: Path) -> None:
    nuisance = {
        "method.kappa": {"uniform": [0, 0.5], "when": {"method.type": "ibp"}},
        "train.batch_size": {"choice": [32, 64], "when": {"method.type": "pgd_at"}},
    }
    proposer = CellProposer(plan_of(tmp_path, nuisance=nuisance, trials_per_cell=3).job)
    made = [proposer.propose(number) for number in range(24)]
    assert [number for number, one in enumerate(made) if one is None] == [16, 17, 18, 19]


def test_a_level_that_replaces_a_whole_part_is_shown_on_one_line() -> None:
    values = {
        "method": {"type": "cure", "inner": {"steps": 3}},
        "train_threat.eps": 0.125,
        "train_threat.mix": {"linf": 0.25, "l2": 0.75},
    }
    trial = Trial("an id", 0, 0, values, {}, {}, {})
    assert summary(trial) == "method={type=cure inner={steps=3}} eps=0.125 mix=0.25/0.75"


def test_a_seed_that_diverged_has_every_example_wrong_and_shortens_nothing() -> None:
    wrong = np.array([0, 1, 0, 0])
    diverged = np.ones(1)
    np.testing.assert_array_equal(_mean([wrong, diverged]), [0.5, 1, 0.5, 0.5])
    np.testing.assert_array_equal(_mean([wrong, wrong[:3]]), [0, 1, 0])
    np.testing.assert_array_equal(_mean([diverged, diverged]), [1])
