"""Once-for-all training: each example at its own weight, in a model that sees it."""

import copy

import numpy as np
import pytest
import torch
from numpy_reference import BALLS, cross_entropy, examples, f64, separated

from robustfront.attacks import PGD
from robustfront.config import TrialConfig
from robustfront.errors import ConfigError
from robustfront.methods import OAT, StepContext
from robustfront.models import CNN7, MLP, Linear, SmallCNN, build_model, given
from robustfront.models.conditioned import Condition, DualNorm, FiLM, conditioned
from robustfront.randomness import Rng

INNER = PGD(steps=3, start="zero")
WEIGHTS = (0.0, 0.3, 1.0)
SMALL = MLP(hidden=(16,))


def context() -> StepContext:
    return StepContext(BALLS["linf"], Rng((0, "oat")), 0.0)


def net(config=SMALL, shape=(1, 3, 4), classes=4):
    """Conditioned, with FiLM layers that do something."""
    torch.manual_seed(0)
    model = conditioned(build_model(config, shape, classes, (0.4,), (0.3,)), 0.3)
    for module in model.modules():
        if isinstance(module, FiLM):
            torch.nn.init.normal_(module.net[-1].weight, std=0.5)
    return model.eval()


def at(model, x, weights, adversarial):
    """Logits of each example on its own, at its own weight."""
    found = []
    for one, weight in zip(x, weights, strict=True):
        with given(model, float(weight), adversarial):
            found.append(model(one[None])[0])
    return f64(torch.stack(found))


def test_the_loss_weighs_each_example_s_terms_by_the_weight_its_model_sees():
    model, (x, _, y) = net(), examples(40)
    drawn = (context().rng.child("weight").uniform(x[:, 0, 0, 0]) * 3).long().numpy()
    weights = np.array(WEIGHTS)[drawn]
    assert set(drawn) == {0, 1, 2}
    with given(model, torch.tensor(weights, dtype=torch.float32), adversarial=True):
        x_adv = INNER(
            model,
            x,
            lambda z: torch.nn.functional.cross_entropy(z, y, reduction="none"),
            BALLS["linf"],
            context().rng,
        )
    clean = cross_entropy(at(model, x, weights, False), y.numpy())
    robust = cross_entropy(at(model, x_adv, weights, True), y.numpy())
    expected = ((1 - weights) * clean + weights * robust).mean()
    flat = np.full_like(weights, 0.3)
    assert separated(
        expected,
        (weights * clean + (1 - weights) * robust).mean(),
        (clean + weights * robust).mean(),
        weights.mean() * robust.mean() + (1 - weights.mean()) * clean.mean(),
        least=0.01,
    )
    other = cross_entropy(at(model, x, flat, False), y.numpy())
    assert not np.allclose(other, clean), "the weight changes nothing"

    loss = OAT(inner=INNER, weights=WEIGHTS).loss(model, x, y, context())

    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert loss.terms["clean_ce"].item() == pytest.approx(((1 - weights) * clean).mean(), rel=1e-4)
    assert model.condition.value.tolist() == pytest.approx([0.3])


@pytest.mark.parametrize("config", [MLP(hidden=(8, 8)), SmallCNN()], ids=lambda c: c.type)
def test_at_first_a_conditioned_model_computes_what_it_did(config):
    torch.manual_seed(0)
    model = build_model(config, (1, 28, 28), 4, (0.4,), (0.3,)).eval()
    torch.nn.init.normal_(model.body[-1].weight)
    x = torch.rand(5, 1, 28, 28)
    before = model(x)
    same = conditioned(model, 0.3)
    torch.testing.assert_close(same(x), before)
    assert sum(isinstance(module, FiLM) for module in same.modules()) >= 2


def test_a_weight_changes_the_logits_and_only_for_a_while():
    model, x = net(), torch.rand(6, 1, 3, 4)
    before = model(x)
    with given(model, 0.9):
        changed = model(x)
    assert not torch.allclose(before, changed)
    assert torch.equal(model(x), before)
    each = torch.tensor([0.3, 0.9, 0.3, 0.9, 0.3, 0.9])
    with given(model, each, adversarial=True):
        torch.testing.assert_close(model(x)[1::2], changed[1::2])
    twin = copy.deepcopy(model)
    with given(twin, 0.9):
        torch.testing.assert_close(twin(x), changed)
        assert torch.equal(model(x), before), "a copy has a condition of its own"


def test_clean_and_adversarial_inputs_have_batch_norms_of_their_own():
    model = net(CNN7(), (1, 16, 16)).train()
    duals = [module for module in model.modules() if isinstance(module, DualNorm)]
    assert duals
    start = duals[0].clean.running_mean.clone()
    x = torch.rand(8, 1, 16, 16)
    with given(model, 0.5, adversarial=True):
        model(x)
    assert torch.equal(duals[0].clean.running_mean, start)
    assert not torch.equal(duals[0].adversarial.running_mean, start)
    with given(model, 0.0):
        model(x)
    assert not torch.equal(duals[0].clean.running_mean, start)


def test_a_model_that_cannot_be_told_is_refused():
    with pytest.raises(ConfigError, match="needs a model with a hidden layer"):
        conditioned(build_model(Linear(), (1, 3, 4), 4, (0.4,), (0.3,)), 0.3)
    plain = build_model(MLP(), (1, 3, 4), 4, (0.4,), (0.3,))
    with pytest.raises(TypeError, match="has no condition"), given(plain, 0.3):
        pass
    with pytest.raises(ValueError, match="weights: one is given twice"):
        OAT(weights=(0.1, 0.1))


def test_a_job_builds_its_model_with_the_condition():
    config = TrialConfig.model_validate(
        {
            "data": {"type": "digits"},
            "model": {"type": "mlp"},
            "threat": {"norm": "linf", "eps": "1/10"},
            "method": {"type": "oat", "weight": 0.2},
        }
    )
    model = config.build_model((1, 8, 8), 10)
    (condition,) = (module for module in model.modules() if isinstance(module, Condition))
    assert condition.value.tolist() == pytest.approx([0.2])
    assert condition.adversarial
    names = [name for name in model.state_dict() if "condition" in name]
    assert names == ["condition.value"]


def test_what_it_costs():
    assert OAT(inner=PGD(steps=10)).forward_equivalents == 26
