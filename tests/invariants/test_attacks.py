"""What every attack keeps: its set, the box, the model as it was; and what its strength obeys."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustfront.attacks import (
    ATTACKS,
    FGSM,
    PGD,
    Attack,
    Langevin,
    eval_mode,
    misclassification,
)
from robustfront.data import Split
from robustfront.evaluation.evaluate import evaluate, measure
from robustfront.evaluation.records import Records
from robustfront.models import CNN7, MLP, Linear, ModelConfig, build_model
from robustfront.randomness import Rng
from robustfront.threats import Mixture, PerturbationSet, Threat

SHAPE, CLASSES = (2, 6, 6), 4
ATTACKS_TRIED = [
    FGSM(),
    PGD(steps=4),
    PGD(steps=3, restarts=3),
    PGD(steps=4, start="gaussian", step_size="1/2"),
    PGD(steps=3, start="zero", rel_step_size=3.0),
    Langevin(steps=4),
    Langevin(steps=3, start="uniform", temperature=0.1, noise="gaussian"),
]
THREATS = {
    "linf": Threat(norm="linf", eps="1/10"),
    "l2": Threat(norm="l2", eps="1/2"),
    "l1": Threat(norm="l1", eps=3),
    "zero": Threat(norm="linf", eps=0),
    "mixture": Mixture(
        [
            (Threat(norm="linf", eps="1/10"), 4),
            (Threat(norm="l2", eps="1/2"), 3),
            (Threat(norm="l1", eps=3), 5),
        ]
    ),
}
each_attack = pytest.mark.parametrize(
    "attack", ATTACKS_TRIED, ids=lambda a: f"{a.name}-{getattr(a, 'start', 'x')}"
)
each_threat = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)


def network(config: ModelConfig, seed: int = 0, gain: float = 1.0) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(config, SHAPE, CLASSES, [0.4] * SHAPE[0], [0.3 / gain] * SHAPE[0])
    return model.eval()


def batch(n: int = 12, seed: int = 0, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Some of the pixels at the ends of the box."""
    source = torch.Generator().manual_seed(seed)
    x = (1.4 * torch.rand(n, *SHAPE, generator=source) - 0.2).clamp(0, 1)
    return x, torch.randint(classes, (n,), generator=source)


def attacked(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: PerturbationSet, *key: int
) -> Tensor:
    return attack(model, x, misclassification(y), threat, Rng((0, *key)))


def test_every_attack_is_tried_here():
    assert len(ATTACKS.classes) >= 2
    assert {type(attack) for attack in ATTACKS_TRIED} == set(ATTACKS.classes.values())


def test_attacks_of_different_strength_have_different_names():
    attacks = [FGSM(), PGD(steps=10), PGD(steps=20), PGD(steps=20, restarts=5)]
    assert [a.name for a in attacks] == ["fgsm", "pgd10", "pgd20", "pgd20x5"]


@each_attack
@each_threat
def test_it_stays_in_its_set_and_in_the_box(attack, threat):
    model, (x, y) = network(MLP(hidden=(16,)), gain=5), batch()
    found = attacked(attack, model, x, y, threat)
    parts = threat.parts if isinstance(threat, Mixture) else [(threat, len(x))]
    sizes = [n for _, n in parts]

    assert found.shape == x.shape and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1
    for (ball, _), part, origin in zip(parts, found.split(sizes), x.split(sizes), strict=True):
        eps = float(ball.eps)
        assert (ball.distance(part, origin) <= eps * (1 + 1e-4)).all()
        if eps and not (isinstance(attack, FGSM) and ball.norm == "l1"):
            assert (ball.distance(part, origin) > 0.5 * eps).any()


@each_attack
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_radius_zero_gives_the_input_bit_for_bit(attack, norm):
    model, (x, y) = network(MLP(hidden=(16,))), batch()
    before = x.clone()
    assert torch.equal(attacked(attack, model, x, y, Threat(norm=norm, eps=0)), before)
    attacked(attack, model, x, y, THREATS[norm])
    assert torch.equal(x, before)


@each_attack
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_raises_the_loss(attack, norm):
    model, (x, _) = network(MLP(hidden=(16,)), gain=3), batch()
    y = model(x).argmax(1)
    found = attacked(attack, model, x, y, THREATS[norm])
    before, after = (misclassification(y)(model(inputs)).mean() for inputs in (x, found))
    assert after > before


@each_attack
@each_threat
def test_the_model_is_left_as_it_was(attack, threat):
    model, (x, y) = network(CNN7(width=2)), batch()
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0  # mixed, as with frozen batch norm
    model.body[-1].weight.grad = torch.full_like(model.body[-1].weight, 7.0)
    model.stem.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    assert True in modes and False in modes
    assert any("running_mean" in name for name in state)

    attacked(attack, model, x, y, threat)

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, state[name]) for name, a in model.state_dict().items())
    for name, parameter in model.named_parameters():
        if name.endswith(f"{len(model.body) - 1}.weight"):
            assert torch.equal(parameter.grad, torch.full_like(parameter, 7.0))
        else:
            assert parameter.grad is None
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


def test_the_model_gets_its_modes_back_after_a_failure():
    model = network(CNN7(width=2)).train()
    model.body[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="on purpose"), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("on purpose")
    assert [module.training for module in model.modules()] == modes


@each_attack
def test_it_searches_in_eval_mode_whatever_the_model_is_in(attack):
    model, (x, y) = network(CNN7(width=2)), batch()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(1.0)
    expected = attacked(attack, model, x, y, THREATS["linf"])
    assert torch.equal(attacked(attack, model.train(), x, y, THREATS["linf"]), expected)


@each_attack
def test_it_works_where_gradients_are_switched_off(attack):
    model, (x, y) = network(MLP(hidden=(16,))), batch()
    expected = attacked(attack, model, x, y, THREATS["l2"])
    with torch.no_grad():
        assert torch.equal(attacked(attack, model, x, y, THREATS["l2"]), expected)


@each_attack
@pytest.mark.parametrize("wrong", [-1e-3, 1.001, float("nan"), float("inf"), 255.0])
def test_inputs_outside_the_box_are_refused(attack, wrong):
    model, (x, y) = network(Linear()), batch()
    x[3, 1, 2, 2] = wrong
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        attacked(attack, model, x, y, THREATS["linf"])


@each_attack
@each_threat
def test_the_same_key_gives_the_same_result(attack, threat):
    model, (x, y) = network(MLP(hidden=(16,))), batch()
    first = attacked(attack, model, x, y, threat, 1)
    torch.manual_seed(99)
    assert torch.equal(attacked(attack, model, x, y, threat, 1), first)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_another_key_gives_another_result(norm, start):
    model, (x, y) = network(MLP(hidden=(16,))), batch()
    attack = PGD(steps=1, start=start, rel_step_size=0.1)
    first, other = (attacked(attack, model, x, y, THREATS[norm], key) for key in (1, 2))
    assert not torch.equal(first, other)


def test_an_absolute_step_is_in_the_units_of_the_threat():
    model, (x, y) = network(Linear()), batch()
    x = 0.4 + 0.2 * x
    for norm in ("linf", "l2", "l1"):
        threat = THREATS[norm].model_copy(update={"eps": Fraction(1, 4)})
        absolute = PGD(steps=1, start="zero", step_size="1/20")
        relative = PGD(steps=1, start="zero", rel_step_size=0.2)
        found = [attacked(attack, model, x, y, threat) for attack in (absolute, relative)]
        torch.testing.assert_close(found[0], found[1])
        torch.testing.assert_close(threat.distance(found[0], x), torch.full((12,), 0.05))


def test_the_default_step_lets_every_point_of_the_ball_be_reached():
    model, (x, y) = network(Linear()), batch()
    x = 0.4 + 0.2 * x
    for steps in (1, 5, 40):
        found, given = (
            attacked(attack, model, x, y, THREATS["l2"])
            for attack in (PGD(steps=steps), PGD(steps=steps, rel_step_size=2.5 / steps))
        )
        assert torch.equal(found, given)


def binary() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model and its own labels, the inputs away from the ends of the box."""
    torch.manual_seed(0)
    model = build_model(Linear(), SHAPE, 2, [0.5] * 2, [0.1] * 2)
    x = 0.4 + 0.2 * batch(40)[0]
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("start", ["uniform", "gaussian", "zero"])
def test_more_steps_are_never_weaker_on_a_linear_binary_model(norm, start):
    """At a fixed length of the steps; by a first-order argument each step gains."""
    model, x, y = binary()
    threat = Threat(norm=norm, eps={"linf": "1/20", "l2": "1/4", "l1": "3/10"}[norm])
    losses = [
        misclassification(y)(
            model(attacked(PGD(steps=k, rel_step_size=0.2, start=start), model, x, y, threat))
        )
        for k in (1, 2, 4, 8, 16)
    ]
    for fewer, more in zip(losses, losses[1:], strict=False):
        assert (more >= fewer - 1e-5).all()
    assert losses[-1].mean() > losses[0].mean()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_more_restarts_never_find_fewer_errors(norm):
    """For every example; over many seeds, with a start that decides."""
    improved = 0
    for seed in range(12):
        model, (x, _) = network(MLP(hidden=(16,)), seed, gain=2), batch(30, seed)
        y = model(x).argmax(1)
        wrong = [
            model(
                attacked(
                    PGD(steps=2, rel_step_size=0.3, restarts=restarts),
                    model,
                    x,
                    y,
                    THREATS[norm],
                    seed,
                )
            ).argmax(1)
            != y
            for restarts in (1, 2, 4, 8)
        ]
        for fewer, more in zip(wrong, wrong[1:], strict=False):
            assert (more | ~fewer).all()
        improved += int(wrong[-1].sum() - wrong[0].sum())
    assert improved > 0


def test_restarts_prefer_an_error_to_a_larger_loss():
    """A wrong prediction may have a smaller cross-entropy than a right one of four."""
    logits = torch.tensor([[0.3, 0.2, 0.25, 0.25], [5.0, 5.1, -9.0, -9.0]])
    value = misclassification(torch.tensor([0, 0]))(logits)
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
    assert plain[0] > plain[1]
    assert value[1] > value[0] + 900


# --- through an evaluation --------------------------------------------------------------------


def both(attack: Attack, model: nn.Module, n: int, batch_size: int) -> Records:
    x, y = batch(n)
    threats = [THREATS["linf"], THREATS["l2"], THREATS["l1"]]
    return measure(model, Split(x, y, 1.0), threats, attack, (0, "batches"), batch_size)


@each_attack
@pytest.mark.parametrize("config", [Linear(), MLP(hidden=(16,))], ids=["linear", "mlp"])
def test_predictions_do_not_depend_on_how_examples_are_batched(attack, config):
    model = network(config, gain=2)
    whole = both(attack, model, 150, 150)
    for size in (1, 37, 149, 1000) if attack == PGD(steps=4) else (37, 128):
        split = both(attack, model, 150, size)
        assert np.array_equal(split.plain, whole.plain)
        for name, prediction in whole.attacked.items():
            assert np.array_equal(split.attacked[name], prediction), (size, name)


@each_attack
def test_robust_is_above_standard_error_and_a_union_above_its_parts(attack):
    errors = both(attack, network(MLP(hidden=(16,)), gain=2), 200, 50).errors("val")
    parts = [errors[f"val/robust_error/{THREATS[n].name}/{attack.name}"] for n in ("linf", "l2")]
    union = errors[f"val/robust_error/union/{attack.name}"]
    assert errors["standard_error"] < min(parts)
    assert union >= max(parts) and errors["robust_error"] == union


def test_an_evaluation_leaves_the_model_as_it_was():
    model, (x, y) = network(CNN7(width=2)).train(), batch()
    model.body[0].eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    evaluate(model, x, y, ["linf:1/10"], PGD(steps=2))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, state[name]) for name, a in model.state_dict().items())


def test_an_evaluation_measures_in_eval_mode():
    model, (x, y) = network(CNN7(width=2)), batch()
    expected = evaluate(model, x, y, ["linf:1/10"], PGD(steps=2))
    again = evaluate(model.train(), x, y, ["linf:1/10"], PGD(steps=2))
    assert np.array_equal(again.plain, expected.plain)
    assert np.array_equal(again.attacked["linf_0.1/pgd2"], expected.attacked["linf_0.1/pgd2"])


def test_the_seed_of_an_evaluation_decides_its_random_starts():
    model, (x, y) = network(MLP(hidden=(16,)), gain=8), batch(400)
    weak = PGD(steps=1, rel_step_size=0.01)
    first, same, other = (
        evaluate(model, x, y, ["linf:1/10"], weak, seed).attacked["linf_0.1/pgd1"]
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
