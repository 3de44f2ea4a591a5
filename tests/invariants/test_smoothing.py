"""Randomized smoothing: what it guarantees, against closed forms and by simulation."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats
from torch import nn

import robustfront as rf
from robustfront.certifiers import InputDependent, Smoothing
from robustfront.certifiers.input_dependent import require_semi_elastic
from robustfront.certifiers.smoothing import lower_bounds, out_of_reach, upper_bounds
from robustfront.config import TrialConfig
from robustfront.data import Split
from robustfront.errors import ConfigError, DataError, SoundnessError
from robustfront.evaluation.certify import certified
from robustfront.evaluation.records import ABSTAINED, Records, read_arrays
from robustfront.evaluation.smoothing import Draws, audit, certificates, predict, recertify
from robustfront.randomness import _lower_tail, cell_middles, whole_normal, whole_normal_error
from robustfront.threats import Threat
from robustfront.tracking.shipper import _Runs
from robustfront.training.trial import (
    certified_errors,
    certify_final,
    measure_final,
    records_of_certificates,
    run_trial,
)

BALLS = [Threat(norm="l2", eps="1/2"), Threat(norm="l2", eps=1)]


class HalfSpace(nn.Module):
    """Two classes on either side of a plane: smoothed, its radius is the distance to the plane."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.w = torch.ones(dimension) / dimension**0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([-side, side], dim=1)


class Simulated:
    """Draws of classifiers whose probabilities are known."""

    def __init__(self, p: np.ndarray, seed: int) -> None:
        self.p, self.sigma = p, np.ones(len(p))
        self.source = np.random.default_rng(seed)
        self.drawn = np.zeros(len(p), np.int64)

    def counts(self, purpose: str, rows: np.ndarray, first: int, end: int) -> np.ndarray:
        found = self.source.multinomial(end - first, self.p[rows])
        if purpose == "estimate":
            self.drawn[rows] += end - first
        return found


def test_bounds_of_probabilities_are_those_of_the_literature() -> None:
    k, n = np.array([100000, 99000, 0, 5]), np.array([100000, 100000, 100, 5])
    found = lower_bounds(k, n, 0.001)
    np.testing.assert_allclose(found[:2], [0.99993092483, 0.98898934], atol=1e-8)
    assert found[2] == 0
    assert found[3] == pytest.approx(0.001**0.2, rel=1e-12)
    for i in (1, 3):
        theirs = stats.binomtest(int(k[i]), int(n[i])).proportion_ci(0.998, "exact")
        assert found[i] == pytest.approx(theirs.low, rel=1e-9)
        assert upper_bounds(k, n, 0.001)[i] == pytest.approx(theirs.high, rel=1e-9)


@pytest.mark.parametrize("p", [0.6, 0.8, 0.95, 0.99])
def test_radii_of_counts_are_the_textbook_s(p: float) -> None:
    n = np.array([1000, 10000, 100000])
    k = np.round(p * n).astype(np.int64)
    radii = Smoothing(sigma=0.5).radii(lower_bounds(k, n, 0.001), np.full(3, 0.5), 784)
    textbook = 0.5 * special.ndtri(stats.beta.ppf(0.001, k, n - k + 1))
    np.testing.assert_allclose(radii, textbook, rtol=5e-13)
    assert (radii <= textbook).all()


@pytest.mark.parametrize("looks", [(), (100, 1000)], ids=["fixed", "adaptive"])
def test_overstated_radii_are_rarer_than_alpha(looks: tuple[int, ...]) -> None:
    """20,000 classifiers of known probabilities, alpha larger than anybody would have it."""
    size, alpha = 20_000, 0.05
    source = np.random.default_rng(0)
    first = source.uniform(0.35, 0.99, size)
    p = np.stack([first, (1 - first) * 0.7, (1 - first) * 0.3], axis=1)
    draws = Simulated(p, seed=1)
    certifier = Smoothing(sigma=1, n0=20, n=4000, alpha=alpha, looks=looks)
    y = np.zeros(size, np.int64)
    found = certificates(draws, certifier, y, BALLS, 784)  # type: ignore[arg-type]
    said = found.predictions != ABSTAINED
    own = p[np.arange(size), np.where(said, found.predictions, 0)]
    exact = special.ndtri(np.clip(own, 0.5, 1))
    wrong = said & (found.radii > exact)
    assert stats.binomtest(int(wrong.sum()), size, alpha, "greater").pvalue > 1e-3
    assert wrong.sum() > 0, "bounds that are never wrong at 5 % are too loose to test anything"
    if looks:
        assert draws.drawn.mean() < 0.5 * 4000
    else:
        assert (draws.drawn == 4000).all()


def test_what_is_decided_early_is_decided_as_by_all_draws() -> None:
    size = 3000
    source = np.random.default_rng(3)
    first = source.uniform(0.35, 0.999, size)
    p = np.stack([first, 1 - first], axis=1)
    y = np.zeros(size, np.int64)
    shares = []
    for looks in ((), (100, 1000)):
        certifier = Smoothing(sigma=1, n=10000, looks=looks)
        found = certificates(Simulated(p, 4), certifier, y, BALLS, 784)  # type: ignore[arg-type]
        right = found.predictions == y
        shares.append([(right & (found.radii >= radius)).mean() for radius in (0, 0.5, 1)])
    np.testing.assert_allclose(shares[0], shares[1], atol=0.02)


def test_radii_of_a_half_space_are_the_distances() -> None:
    dimension, sigma, n = 16, 0.25, 2000
    model = HalfSpace(dimension)
    source = torch.Generator().manual_seed(0)
    x = torch.rand(200, 1, 4, 4, generator=source)
    distance = ((x.flatten(1) - 0.5) @ model.w).numpy()
    y = torch.from_numpy((distance > 0).astype(np.int64))
    records = Records(y.numpy(), y.numpy())
    certifier = Smoothing(sigma=sigma, n=n, alpha=0.01)
    threat = Threat(norm="l2", eps="1/10")
    found = certified(model, Split(x, y, 1.0), [threat], certifier, records)
    radii, exact = found.radii["l2/smoothing"], np.abs(distance)
    above = radii > exact
    assert stats.binomtest(int(above.sum()), 200, 0.01, "greater").pvalue > 1e-3
    # Never less than what the sampling interval leaves, by a normal approximation, where it says
    # something and is not at its end.
    counts = found.draws["smoothing"]
    assert (counts.sum(2) == [100, n]).all()
    inside = (exact < 0.4) & (exact > 0.12) & (counts[:, 1].max(1) < n)
    assert inside.sum() > 50
    p = special.ndtr(exact / sigma)
    low = sigma * special.ndtri(np.clip(p - 6 * np.sqrt(p * (1 - p) / n) - 2 / n, 0.5, 1))
    assert (radii[inside] >= low[inside]).all()
    errors = found.errors("test")
    assert errors["test/certified_error/l2_0.1/smoothing"] == np.mean(radii < 0.1)
    right = found.smoothed["smoothing"] == y.numpy()
    assert errors["test/smoothed_error/smoothing"] == pytest.approx(1 - right.mean())
    acr = errors["test/average_certified_radius/l2/smoothing"]
    assert acr == pytest.approx((radii * right).mean())


def test_the_draws_depend_neither_on_batches_nor_on_other_examples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    x = torch.rand(6, 1, 4, 4)
    sigma = np.full(6, 0.5)
    whole = Draws(model, x, sigma, np.arange(6), Smoothing())
    everyone = np.arange(6)
    expected = whole.counts("estimate", everyone, 0, 450)
    assert (expected.sum(1) == 450).all()
    small = Draws(model, x, sigma, np.arange(6), Smoothing(batch=100))
    assert (small.counts("estimate", everyone, 0, 450) == expected).all()
    part = Draws(model, x[2:4], sigma[:2], np.array([2, 3]), Smoothing())
    assert (part.counts("estimate", np.arange(2), 0, 450) == expected[2:4]).all()
    rest = whole.counts("estimate", everyone, 0, 130) + whole.counts("estimate", everyone, 130, 450)
    assert (rest == expected).all()
    assert (whole.counts("select", everyone, 0, 450) != expected).any(1).all()
    assert (whole.counts("estimate", everyone, 0, 450) == expected).all()


def test_prediction_abstains_where_two_classes_are_alike() -> None:
    model = HalfSpace(16)
    x = torch.full((3, 1, 4, 4), 0.5)
    x[1] += 0.3
    x[2] -= 0.3
    assert predict(model, x, np.full(3, 0.25), Smoothing(n=1000)).tolist() == [ABSTAINED, 1, 0]


def test_other_norms_are_held_by_the_l2_ball_and_what_is_out_of_reach_is_said() -> None:
    certifier = Smoothing(sigma=0.5, n=1000)
    most = certifier.most(0.5, 100)
    assert most == pytest.approx(0.5 * 2.4633, abs=1e-4)
    threats = [Threat.model_validate({"norm": n, "eps": "0.15"}) for n in ("l2", "l1", "linf")]
    (problem,) = out_of_reach(certifier, 0.5, threats, 100)
    assert "linf_0.15: 1000 draws with sigma 0.5" in problem
    assert "certify an linf radius of 0.1232 at most" in problem
    model, x, y = HalfSpace(100), torch.full((2, 1, 10, 10), 0.6), torch.ones(2, dtype=torch.long)
    with pytest.raises(ConfigError, match="an linf radius of 0.1232 at most"):
        rf.certify(model, x, y, "linf:0.15", certifier)
    found = rf.certify(model, x, y, "linf:0.05", certifier)
    assert found.certified["linf_0.05/smoothing"].tolist() == [1, 1]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no noise": ({"smoothing": {}}, "certify.sigma: is missing, and smoothing.sigma is 0"),
    "sigma": ({"certify": {"sigma": 0}}, "greater than 0"),
    "alpha": ({"certify": {"alpha": 1}}, "less than 1"),
    "looks": ({"certify": {"looks": [100, 100]}}, "grow from look to look"),
    "looks at all draws": (
        {"certify": {"looks": [100, 500]}},
        "the last look is at n = 500 draws by itself",
    ),
    "draws": (
        {"threat": {"norm": "l2", "eps": 1}},
        r"certify.n: l2_1: 500 draws with sigma 0.25 .* an l2 radius of 0.55\d* at most",
    ),
    "grid": (
        {"certify": {"grid": 255, "noise": "uniform"}},
        "grid: got 255, allowed with gaussian",
    ),
    "grid of the noise of training": (
        {"certify": {"grid": 255}, "smoothing": {"sigma": 0.25, "noise": "uniform"}},
        "certify.grid: got 255, allowed with gaussian",
    ),
    "law": (
        {
            "certify": {"type": "input_dependent"},
            "smoothing": {"sigma": 0.25, "noise": "uniform"},
        },
        "certify.noise: got 'uniform'",
    ),
    "cells": (
        {"smoothing": {"sigma": 0.25, "noise": "splitting"}, "method": {"type": "trades"}},
        "trades searches for adversarial examples",
    ),
    "segment": ({"threat": {"norm": "segment", "eps": 0.1}}, "smoothing has no segment"),
}


def _config(certify: dict[str, Any] | None = None, **changes: Any) -> TrialConfig:
    settings: dict[str, Any] = {
        "data": {"type": "digits", "train_size": 600, "val_size": 100},
        "model": {"type": "mlp", "hidden": [32]},
        "threat": [{"norm": "l2", "eps": "1/4"}, {"norm": "linf", "eps": "1/50"}],
        "smoothing": {"sigma": 0.25},
        "train": {"epochs": 4, "optimizer": {"type": "adam", "lr": 0.01}, "batch_size": 50},
        "evaluate": {
            "attack": {"type": "pgd", "steps": 2},
            "certify": {"type": "smoothing", "n": 500, **(certify or {})},
            "final": {"type": "pgd", "steps": 2, "examples": 250},
        },
        "objectives": ["smoothed_error", "certified_error"],
    }
    return TrialConfig.model_validate({**settings, **changes})


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**changes)


def shipped(folder: Path) -> dict[str, bytes]:
    """What goes to a trial's run about its smoothed classifier."""
    sent: dict[str, bytes] = {}

    class Store:
        def log_artifact(self, run: str, path: str, place: str = "") -> None:
            pass

        def log_artifacts(self, run: str, files: str, place: str) -> None:
            assert (run, place) == ("run", "smoothing")
            sent.update({path.name: path.read_bytes() for path in Path(files).iterdir()})

    runs, trial = object.__new__(_Runs), SimpleNamespace(id="a trial")
    runs.client, runs.name, runs.children = Store(), "sweep", {trial.id: "run"}
    runs.artifacts(trial, folder)  # type: ignore[arg-type]
    runs.test_records(trial, folder)  # type: ignore[arg-type]
    return sent


def test_a_trial_is_measured_as_a_smoothed_classifier_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config()
    *_, (_, metrics) = run_trial(config, tmp_path)
    assert 0 <= metrics["smoothed_error"] <= metrics["certified_error"] < 1
    assert metrics["val/certified_error/union/smoothing"] == metrics["certified_error"]
    assert metrics["val/average_certified_radius/l2/smoothing"] > 0
    list(measure_final(config, tmp_path))
    going = certify_final(config, tmp_path)
    assert next(going) == pytest.approx(0.4)
    going.close()
    asked: list[int] = []
    true = Draws.__init__

    def watched(self: Draws, *arguments: Any) -> None:
        asked.extend(arguments[3].tolist())
        true(self, *arguments)

    monkeypatch.setattr(Draws, "__init__", watched)
    assert list(certify_final(config, tmp_path))[-1] == 1
    # and then the audit of the first examples
    assert asked[:150] == list(range(100, 250)) and 250 not in asked
    errors = certified_errors(config, tmp_path)
    found = Records.load(records_of_certificates(tmp_path))
    assert (found.draws["smoothing"].sum(2) == [100, 500]).all()
    sent = shipped(tmp_path)
    pictures = {"waterfall-val.png", "waterfall-test.png"}
    tables = {"waterfall-val-l2-smoothing.csv", "waterfall-test-l2-smoothing.csv"}
    assert {*sent} == pictures | tables
    table = pd.read_csv(io.BytesIO(sent["waterfall-test-l2-smoothing.csv"]))
    val = pd.read_csv(io.BytesIO(sent["waterfall-val-l2-smoothing.csv"]))
    assert val["certified_error"][0] == metrics["smoothed_error"]
    assert table["certified_error"].is_monotonic_increasing
    assert table["certified_error"][0] == errors["test/smoothed_error/smoothing"]
    assert (
        (table["low"] <= table["certified_error"]) & (table["certified_error"] <= table["high"])
    ).all()
    at = table["certified_error"][np.searchsorted(table["radius"], 0.25)]
    assert at >= errors["test/certified_error/l2_0.25/smoothing"]
    assert all(sent[name].startswith(b"\x89PNG") for name in pictures)
    assert (
        errors["test/smoothed_error/smoothing"] <= errors["test/certified_error/l2_0.25/smoothing"]
    )
    assert 0 <= errors["test/class_spread/smoothing"] < 0.5
    # 0.02 sqrt(64) is a smaller l2 radius than 1/4.
    assert (
        errors["test/certified_error/linf_0.02/smoothing"]
        <= errors["test/certified_error/l2_0.25/smoothing"]
    )


def test_certificates_are_attacked_whether_or_not_gradients_are_checked(tmp_path: Path) -> None:
    """An earlier call has left radii that are too large; a later one goes on from them."""
    evaluate = {**_config().evaluate.model_dump(mode="json"), "gates": None}
    config = _config(evaluate=evaluate)
    list(run_trial(config, tmp_path))
    list(certify_final(config, tmp_path))
    path = records_of_certificates(tmp_path)
    arrays, found = read_arrays(path), Records.load(path)
    far = replace(found, radii={"l2/smoothing": 4 * found.radii["l2/smoothing"]})
    path.write_bytes(far.to_bytes({name: arrays[name] for name in ("identity", "by")}))
    with pytest.raises(SoundnessError, match="an attack changes the class of"):
        list(certify_final(config, tmp_path))


def test_input_dependent_noise_is_semi_elastic_and_at_rate_0_classical() -> None:
    x, y = (part[:150] for part in rf.load_data({"type": "digits"}, split="test"))
    anchors = rf.load_data({"type": "digits"}, split="train")[0][:300]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    split, records = Split(x, y, 1.0), Records(y.numpy(), model(x).argmax(1).numpy())
    threat = Threat(norm="l2", eps="1/20")
    classical = certified(model, split, [threat], Smoothing(sigma=0.25, n=500), records)
    own = InputDependent(sigma=0.25, n=500, rate=0)
    same = certified(model, split, [threat], own, records, anchors)
    np.testing.assert_allclose(same.radii["l2/input_dependent"], classical.radii["l2/smoothing"])
    public = rf.certify(model, x, y, "l2:1/20", own, anchors)
    assert (public.radii["l2/input_dependent"] == same.radii["l2/input_dependent"]).all()
    with pytest.raises(ConfigError, match="none are there"):
        rf.certify(model, x, y, "l2:1/20", own)
    with pytest.raises(DataError, match="anchors are images like x"):
        rf.certify(model, x, y, "l2:1/20", own, anchors[:, :, :4])
    certifier = InputDependent(sigma=0.25, rate=0.05, k=5)
    sigma = certifier.deviations(x, anchors)
    flat = x.flatten(1).double().numpy()
    far = np.linalg.norm(flat[:, None] - anchors.flatten(1).double().numpy()[None], axis=2)
    nearest = np.sort(far, axis=1)[:, :5].mean(1)
    np.testing.assert_allclose(np.diff(np.log(sigma)), 0.05 * np.diff(nearest), atol=1e-12)
    assert sigma.std() > 0.001
    require_semi_elastic(x.flatten(1).double(), sigma, 0.05)
    with pytest.raises(SoundnessError, match="more than the rate 0.02 allows"):
        require_semi_elastic(x.flatten(1).double(), sigma, 0.02)
    with pytest.raises(ConfigError, match="got 300, more training images"):
        InputDependent(sigma=0.25, k=300).deviations(x, anchors)
    with pytest.raises(ConfigError, match="none are there"):
        InputDependent(sigma=0.25).deviations(x, None)
    p = np.full(150, 0.99)
    assert (certifier.radii(p, sigma, 64) < Smoothing().radii(p, sigma, 64)).all()


def test_noise_that_depends_on_the_input_is_never_out_of_reach_as_a_whole() -> None:
    """Some images have enough of it, wherever a batch of a hundred happens to end."""
    anchors = torch.full((30, 1, 4, 4), 0.5)
    x = anchors[:1].repeat(150, 1, 1, 1)
    x[120:] = 1.0
    certifier = InputDependent(sigma=0.25, rate=0.3, n=500, centre=0)
    threat = Threat(norm="l2", eps="3/5")
    assert certifier.most(0.25, 16) < 0.6
    _config({"type": "input_dependent", "rate": 0.3}, threat={"norm": "l2", "eps": "3/5"})
    y = np.ones(150, np.int64)
    split, records = Split(x, torch.from_numpy(y), 1.0), Records(y, y)
    found = certified(HalfSpace(16), split, [threat], certifier, records, anchors)
    proved = found.certified["l2_0.6/input_dependent"]
    assert not proved[:120].any() and proved[120:].all()


def test_certificates_of_another_classifier_are_not_mixed_up_with_attacks_on_the_plain_one() -> (
    None
):
    label = np.array([0, 1])
    wrong_plainly = np.array([1, 1])
    given = {
        "attacked": {"l2_0.5/pgd20": np.array([1, 0])},
        "certified": {"l2_0.5/smoothing": np.array([1, 1], np.int8)},
        "radii": {"l2/smoothing": np.array([0.6, 0.7])},
        "draws": {"smoothing": np.zeros((2, 2, 2), np.int64)},
    }
    fine = Records(label, wrong_plainly, smoothed={"smoothing": label}, **given)
    assert fine.errors("val")["certified_error"] == 0
    with pytest.raises(SoundnessError):
        Records(label, label, smoothed={"smoothing": wrong_plainly}, **given)
    again = Records.joined([fine, fine])
    assert again.radii["l2/smoothing"].tolist() == [0.6, 0.7, 0.6, 0.7]


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "splitting"])
def test_an_attack_on_the_smoothed_classifier_contradicts_radii_that_are_too_large(noise) -> None:
    # Certificates in l2 are tight for every plane, in l1 for those that one pixel decides.
    model = HalfSpace(16)
    if noise != "gaussian":
        model.w = torch.eye(16)[3]
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    split, certifier = Split(x, y, 1.0), Smoothing(noise=noise, sigma=0.25, n=1000)
    records = Records(y.numpy(), y.numpy())
    threat = Threat(norm=certifier.norm, eps="1/100")
    found = certified(model, split, [threat], certifier, records)
    name = f"{certifier.norm}/{certifier.name}"
    assert (found.radii[name] > 0.1).sum() > 20
    assert audit(model, split, certifier, found) == 0
    far = replace(found, radii={name: found.radii[name] * 1.5})
    with pytest.raises(SoundnessError, match="an attack changes the class of"):
        audit(model, split, certifier, far)


def test_uniform_noise_certifies_l1_by_the_overlap_of_two_cubes() -> None:
    """The worst classifier says its class on one cube of noise and nowhere else."""
    certifier = Smoothing(noise="uniform", sigma=0.5)
    assert (certifier.name, certifier.norm) == ("uniform_smoothing", "l1")
    half, p, sigma = np.sqrt(3) * 0.5, np.array([0.4, 0.6, 0.9, 0.99]), np.full(4, 0.5)
    l1 = certifier.radii(p, sigma, 16, "l1")
    np.testing.assert_allclose(l1, [0, 0.2 * half, 0.8 * half, 0.98 * half], rtol=1e-9)
    source = np.random.default_rng(0)
    for norm, order in (("l1", 1), ("l2", 2), ("linf", np.inf)):
        radii = certifier.radii(p, sigma, 16, norm)  # type: ignore[arg-type]
        for share, holds in ((0.999, True), (1.02, False)):
            worst = np.ones(3)
            equal = np.ones(16) / np.linalg.norm(np.ones(16), order)
            one = np.eye(16)[0]
            for delta in [equal, one, *source.standard_normal((300, 16))]:
                delta = delta / np.linalg.norm(delta, order)
                moved = share * radii[1:, None] * np.abs(delta)
                overlap = np.prod(np.maximum(1 - moved / (2 * half), 0), axis=1)
                # Of the class' probability p at x at most 1 - overlap is lost.
                worst = np.minimum(worst, p[1:] - (1 - overlap))
            assert ((worst > 0.5) == holds).all(), (norm, share)


def certified_error_for_l1(noise: str, folder: Path) -> float:
    """Of a trial that is trained and certified with a noise for l1."""
    config = _config(
        smoothing={"sigma": 0.25, "noise": noise},
        threat={"norm": "l1", "eps": "1/5"},
    )
    *_, (_, metrics) = run_trial(config, folder)
    assert metrics["smoothed_error"] <= metrics["certified_error"]
    assert metrics[f"val/average_certified_radius/l1/{noise}_smoothing"] > 0
    list(certify_final(config, folder))
    assert f"test/certified_error/l1_0.2/{noise}_smoothing" in certified_errors(config, folder)
    return metrics["certified_error"]


def test_the_noise_of_training_certifies_where_no_other_is_named() -> None:
    uniform = {"smoothing": {"sigma": 0.25, "noise": "uniform"}}
    l1 = {"threat": {"norm": "l1", "eps": "1/5"}, "objectives": ["standard_error"]}
    certifier = _config(**uniform, **l1).certifier(final=True)
    assert isinstance(certifier, Smoothing) and certifier.noise == "uniform"
    assert (
        "val/smoothed_error/uniform_smoothing"
        in _config(
            **uniform, **{**l1, "objectives": ["val/smoothed_error/uniform_smoothing"]}
        ).objectives
    )
    named = _config({"noise": "gaussian"}, **uniform, **l1).certifier()
    assert named is not None and named.name == "smoothing"
    # An id is that of the values themselves, wherever they come from.
    assert _config().id == _config({"noise": "gaussian"}).id
    assert _config(**uniform, **l1).id == _config({"noise": "uniform"}, **uniform, **l1).id


def test_a_trial_with_uniform_noise_is_certified_for_l1(tmp_path: Path) -> None:
    assert certified_error_for_l1("uniform", tmp_path) < 1
    x = torch.rand(2, 1, 8, 8)
    uniform = Smoothing(noise="uniform")
    draws = Draws(nn.Flatten(), x, np.full(2, 0.25), np.arange(2), uniform)
    noise = draws._noisy("estimate", 0, 0) - x[0]
    assert noise.abs().max() <= 3**0.5 * 0.25 + 1e-6
    assert noise.std() == pytest.approx(0.25, abs=0.01)


def test_splitting_noise_certifies_l1_and_shows_the_middles_of_cells(tmp_path: Path) -> None:
    """An input moved by delta is cut from the other with probability |delta| / (2 L) at most."""
    assert certified_error_for_l1("splitting", tmp_path) < 0.9
    certifier = Smoothing(noise="splitting")
    p, sigma = np.array([0.6, 0.9]), np.full(2, 0.25)
    width = 2 * 3**0.5 * 0.25
    np.testing.assert_allclose(certifier.radii(p, sigma, 64, "l1"), width * (p - 0.5), rtol=1e-9)
    x = torch.rand(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    moved = (x + 0.05).clamp(max=1)
    place = torch.rand(400, 1, 100, 100, generator=torch.Generator().manual_seed(1))
    there, here = cell_middles(moved, place, 0.25), cell_middles(x, place, 0.25)
    cut = (there != here).float().mean(0)[moved[0] < 1]
    assert cut.mean() == pytest.approx(0.05 / width, rel=0.02)
    # The middle says nothing but the cell: all inputs of one cell look alike.
    low = place * width + width * torch.floor((x - place * width) / width)
    inside = torch.minimum(low + 0.999 * width, torch.ones(1))
    assert (cell_middles(inside, place, 0.25) == here).float().mean() > 0.9999
    draws = Draws(nn.Flatten(), x[:, :, :8, :8], np.full(1, 0.25), np.arange(1), certifier)
    noisy = draws._noisy("estimate", 0, 0)
    assert ((noisy >= 0) & (noisy <= 1)).all()
    assert (noisy - x[0, :, :8, :8]).abs().max() <= width / 2 + 1e-6


def test_noise_on_a_grid_is_whole_and_as_likely_as_rounded_normal_noise() -> None:
    source = torch.Generator().manual_seed(0)
    deviation = 0.02 * 255
    drawn = whole_normal((200_000,), deviation, source).numpy()
    values = np.arange(-14, 15)
    seen = np.array([(drawn == value).sum() for value in values])
    edges = (np.append(values, 15) - 0.5) / deviation
    share = np.diff(stats.norm.cdf(edges))
    rest = len(drawn) - seen.sum(), 1 - share.sum()
    found = stats.chisquare([*seen, rest[0]], len(drawn) * np.array([*share, rest[1]]))
    assert found.pvalue > 1e-3
    # What the thresholds may be wrong by covers what double precision does, by 40 digits.
    for wide in (0.3, 5.1, 255.0):
        lower = _lower_tail(wide)
        for j in {0, 1, len(lower) // 2, len(lower) - 1}:
            with mpmath.workdps(40):
                exact = mpmath.ncdf(-(mpmath.mpf(j) + 0.5) / wide)
                assert abs(mpmath.mpf(float(lower[j])) - exact) < 1e-13 * exact
    assert whole_normal_error(255.0) * 3072 < 1e-6


def test_certificates_on_the_grid_are_those_of_the_plain_noise_but_for_chance() -> None:
    model = HalfSpace(16)
    x = (torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    distance = ((x.flatten(1) - 0.5) @ model.w).numpy()
    y = torch.from_numpy((distance > 0).astype(np.int64))
    split, records = Split(x, y, 1.0), Records(y.numpy(), y.numpy())
    threat = Threat(norm="l2", eps="1/10")
    certifier = Smoothing(sigma=0.25, n=2000, alpha=0.01, grid=255)
    assert certifier.name == "grid_smoothing"
    found = certified(model, split, [threat], certifier, records)
    plain = certified(model, split, [threat], Smoothing(sigma=0.25, n=2000, alpha=0.01), records)
    near = np.abs(distance) < 0.4
    apart = found.radii["l2/grid_smoothing"] - plain.radii["l2/smoothing"]
    assert np.abs(apart[near]).mean() < 0.02
    draws = Draws(nn.Flatten(), x, np.full(100, 0.25), np.arange(100), certifier)
    noisy = draws._noisy("estimate", 0, 0) * 255
    assert (noisy - noisy.round()).abs().max() < 1e-3
    assert (noisy / 255 - x[0]).std() == pytest.approx(0.25, abs=0.02)
    assert audit(model, split, certifier, found) == 0
    with pytest.raises(ConfigError, match="no multiples of 1/255"):
        rf.certify(model, 0.99 * x, y, "l2:0.1", certifier)


def test_a_model_in_bfloat16_is_another_model() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), torch.rand(4, 1, 4, 4)
    at = x, np.full(4, 0.5), np.arange(4)
    full, low = (
        Draws(model, *at, Smoothing(precision=p)).counts("estimate", at[2], 0, 2000)
        for p in ("float32", "bfloat16")
    )
    assert (full != low).any()
    assert np.abs(full - low).max() < 60


def test_another_alpha_fewer_draws_or_another_radius_need_no_new_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = HalfSpace(16)
    y = model(x).argmax(1)
    whole = Smoothing(sigma=0.25, n=2000)
    records = rf.certify(model, x, y, "l2:1/20", whole)
    stricter = whole.model_copy(update={"alpha": 0.001 / 300})
    anew = rf.certify(model, x, y, "l2:1/10", stricter)
    fewer = rf.certify(model, x, y, "l2:1/10", whole.model_copy(update={"n": 500}))
    monkeypatch.setattr(Draws, "counts", None)
    again = recertify(records, x, "l2:1/10", stricter)
    assert again.smoothed["smoothing"].tolist() == anew.smoothed["smoothing"].tolist()
    np.testing.assert_array_equal(again.radii["l2/smoothing"], anew.radii["l2/smoothing"])
    assert {*again.certified} == {"l2_0.1/smoothing"}
    assert (again.certified["l2_0.1/smoothing"] == anew.certified["l2_0.1/smoothing"]).all()
    some = recertify(records, x, "l2:1/10", whole.model_copy(update={"n": 500}))
    assert some.radii["l2/smoothing"].max() == fewer.radii["l2/smoothing"].max()
    means = [found.radii["l2/smoothing"].mean() for found in (some, fewer, again, records)]
    assert means[0] == pytest.approx(means[1], rel=0.03) and means[0] < means[3]
    with pytest.raises(ConfigError, match="got 3000, 2000 draws of each example are there"):
        recertify(records, x, "l2:1/10", whole.model_copy(update={"n": 3000}))
    with pytest.raises(ConfigError, match="got 0.5 on average, the draws are with 0.25"):
        recertify(records, x, "l2:1/10", whole.model_copy(update={"sigma": 0.5}))
    with pytest.raises(ConfigError, match="uniform_smoothing"):
        recertify(records, x, "l1:1/10", Smoothing(noise="uniform"))
