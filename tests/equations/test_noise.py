"""Noise in training: x + N(0, sigma^2) at the network's input, one draw a step, not clipped."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from robustfront.config import TrialConfig
from robustfront.models import build_model
from robustfront.training.fit import fit

SIGMA, EPS, BATCH, STEPS, INNER = 0.5, 0.1, 128, 4, 3


@pytest.fixture
def passes(monkeypatch):
    """Trains one epoch; gives (train mode?, input) of each pass through the network."""

    def trained(method: str, sigma: float, seed: int = 0) -> list[tuple[bool, Tensor]]:
        seen: list[tuple[bool, Tensor]] = []

        def watched(*args):
            model = build_model(*args)
            model.register_forward_pre_hook(
                lambda module, inputs: seen.append((module.training, inputs[0].detach().clone()))
            )
            return model

        monkeypatch.setattr("robustfront.config.build_model", watched)
        inner = {} if method == "standard" else {"inner": {"type": "pgd", "steps": INNER}}
        config = TrialConfig.model_validate(
            {
                "data": {"type": "digits", "train_size": STEPS * BATCH, "val_size": 50},
                "model": {"type": "mlp", "hidden": [16]},
                "threat": {"norm": "linf", "eps": EPS},
                "method": {"type": method, **inner},
                "smoothing": {"sigma": sigma},
                "train": {"epochs": 1, "batch_size": BATCH},
                "evaluate": {"attack": {"type": "fgsm"}},
                "seed": seed,
            }
        )
        list(fit(config))
        return seen

    return trained


def in_training(seen: list[tuple[bool, Tensor]]) -> list[Tensor]:
    return [x for training, x in seen if training]


def test_it_is_normal_with_deviation_sigma_around_the_input(passes):
    clean = in_training(passes("standard", 0.0))
    noisy = in_training(passes("standard", SIGMA))
    assert len(clean) == len(noisy) == STEPS
    noise = [(b - a).double().numpy() for a, b in zip(clean, noisy, strict=True)]
    sample = np.concatenate([n.ravel() for n in noise])

    assert stats.kstest(sample, "norm", args=(0, SIGMA)).pvalue > 1e-3
    # wrong scales are told apart at this size of the sample
    for wrong in (SIGMA**2, SIGMA**0.5, SIGMA * 1.05, SIGMA * 0.95):
        assert stats.kstest(sample, "norm", args=(0, wrong)).pvalue < 1e-4


def test_it_is_not_clipped(passes):
    clean = torch.cat(in_training(passes("standard", 0.0)))
    noisy = torch.cat(in_training(passes("standard", SIGMA)))
    at_zero = noisy[clean == 0].double().numpy()

    assert len(at_zero) > 1000
    assert stats.kstest(at_zero, "norm", args=(0, SIGMA)).pvalue > 1e-3
    assert (noisy > 1).any()


def test_each_step_and_each_example_has_noise_of_its_own(passes):
    clean = in_training(passes("standard", 0.0))
    noisy = in_training(passes("standard", SIGMA))
    rows = torch.cat([b - a for a, b in zip(clean, noisy, strict=True)]).flatten(1)
    correlation = np.corrcoef(rows.numpy())
    np.fill_diagonal(correlation, 0)

    # of 130,000 pairs of rows with 64 values, none is correlated by more than 5.5 deviations
    assert np.abs(correlation).max() < 5.5 / 8


def test_another_seed_draws_other_noise(passes):
    first, other = (in_training(passes("standard", SIGMA, seed)) for seed in (0, 1))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("method", ["pgd_at", "trades"])
def test_all_passes_of_a_step_share_it(passes, method):
    clean = in_training(passes("standard", 0.0))
    noise = [b - a for a, b in zip(clean, in_training(passes("standard", SIGMA)), strict=True)]
    seen = passes(method, SIGMA)
    each = INNER + {"pgd_at": 1, "trades": 3}[method]
    training_passes = [x for _, x in seen[: STEPS * each]]

    for step in range(STEPS):
        inputs = [x - noise[step] for x in training_passes[step * each : (step + 1) * each]]
        for x in inputs:
            # without the noise each pass is a point of the threat set around the clean input,
            # but for the start of TRADES, 0.001 N(0, 1) away, which is not projected
            slack = 0.006 if method == "trades" else 1e-6
            assert x.min() >= -slack and x.max() <= 1 + slack
            assert (x - clean[step]).abs().max() <= EPS + slack
        moved = (inputs[-1] - clean[step]).abs()
        assert (moved > 0.9 * EPS).float().mean() > 0.3


def test_evaluation_sees_none(passes):
    seen = passes("standard", SIGMA)
    evaluated = torch.cat([x for training, x in seen if not training])

    assert len(evaluated) >= 50
    assert evaluated.min() == 0 and evaluated.max() <= 1
