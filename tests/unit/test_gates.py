"""Checks for masked gradients: honest models pass, each way of masking is named."""

import pytest
import torch
from torch import Tensor, nn

from robustfront.attacks import PGD, AutoAttack
from robustfront.config import TrialConfig
from robustfront.data import Split, split_data
from robustfront.evaluation.evaluate import measure
from robustfront.evaluation.gates import masking
from robustfront.models import build_model
from robustfront.threats import Threat
from robustfront.training.checkpoint import read_tensors
from robustfront.training.fit import fit
from robustfront.training.trial import stronger_siblings

THREATS = [Threat(norm="linf", eps="1/10"), Threat(norm="l2", eps="1/2"), Threat(norm="l1", eps=2)]
EXAMPLES = 150


def trained(method: str, folder) -> tuple[nn.Module, Split]:
    config = TrialConfig.model_validate(
        {
            "data": {"type": "digits"},
            "model": {"type": "mlp", "hidden": [48]},
            "threat": {"norm": "linf", "eps": "1/10"},
            "method": {"type": method},
            "train": {"epochs": 12, "batch_size": 50, "optimizer": {"type": "adam", "lr": 0.005}},
            "evaluate": {"attack": {"type": "fgsm"}},
        }
    )
    data = split_data(config.data, config.data.load(), torch.device("cpu"))
    for report in fit(config):
        report.save(folder / "state.safetensors")
    model = build_model(config.model, data.shape, 10, data.mean, data.std)
    model.load_state_dict(read_tensors(folder / "state.safetensors")[0]["model"])
    return model.eval(), data.test.first(EXAMPLES)


@pytest.fixture(scope="module", params=["standard", "pgd_at"])
def honest(request, tmp_path_factory) -> tuple[nn.Module, Split]:
    return trained(request.param, tmp_path_factory.mktemp(request.param))


def reasons(model: nn.Module, split: Split, threat: Threat, suite=None) -> list[str]:
    suite = measure(model, split, [threat], suite or PGD(steps=50, restarts=2), (0,))
    return list(masking(model, split, threat, suite, (0, "gates"), 500))


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_honest_models_pass(honest, threat):
    assert reasons(*honest, threat) == []


class Behind(nn.Module):
    """The model behind something that hides its gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Steps(Behind):
    def forward(self, x: Tensor) -> Tensor:
        return self.model(torch.round(x * 15) / 15)


class Saturated(Behind):
    """Differences beyond fp32's reach: the gradient of the cross-entropy is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.model(x)


class Probabilities(Behind):
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).softmax(1)


class Random(Behind):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z + 0.05 * z.abs().mean() * torch.randn_like(z)


class Reversed(Behind):
    """Right outputs, a gradient that leads downhill."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return 2 * z.detach() - z


MASKED = {
    "steps": (Steps, "no gradient to the input for"),
    "saturated": (Saturated, "Square Attack fools"),
    "probabilities": (Probabilities, "are probabilities"),
    "random": (Random, "outputs for the same inputs differ"),
    "reversed": (Reversed, "finds more errors than fgsm"),
}


@pytest.mark.parametrize(("wrapper", "words"), MASKED.values(), ids=MASKED)
def test_masked_gradients_are_named(honest, wrapper, words):
    model, split = honest
    found = reasons(wrapper(model), split, THREATS[0], PGD(steps=5))
    assert any(words in reason for reason in found), found


def test_a_search_without_gradients_that_is_better_is_named(honest):
    model, split = honest
    found = reasons(Reversed(model), split, THREATS[0], AutoAttack())
    assert any("Square Attack fools" in reason for reason in found), found
    assert any("stay right where every input is allowed" in reason for reason in found), found


def test_examples_of_a_sibling_that_fool_more_often_than_the_own_are_told():
    errors = {"mine": 0.30, "weaker": 0.25, "about the same": 0.305, "stronger": 0.42}
    (reason,) = stronger_siblings("linf_0.1", errors, "mine")
    expected = "linf_0.1: examples of stronger fool 42.0 %, those by its own gradients 30.0 %"
    assert reason == expected
