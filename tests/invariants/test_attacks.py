"""What every attack keeps: its set, the box, the model as it was; and what its strength obeys."""

import copy
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.attacks import (
    APGD,
    ATTACKS,
    FGSM,
    PGD,
    Attack,
    AutoAttack,
    Langevin,
    Misclassification,
    Noise,
    Square,
    TargetedAPGD,
    TargetedFAB,
    eval_mode,
)
from robustfront.attacks.apgd import _Sparse
from robustfront.data import Split
from robustfront.errors import DataError
from robustfront.evaluation.evaluate import evaluate, measure, measuring, stages_of
from robustfront.evaluation.progress import Progress
from robustfront.evaluation.records import Records
from robustfront.models import CNN7, MLP, Linear, ModelConfig, build_model
from robustfront.randomness import Rng
from robustfront.threats import Mixture, PerturbationSet, Threat

SHAPE, CLASSES = (2, 6, 6), 4


class SmallAutoAttack(AutoAttack):
    """The same protocol with few steps."""

    def stages(self, threat):
        return [
            stage.model_copy(update={"steps": 5, "queries": 40}) for stage in super().stages(threat)
        ]


ATTACKS_TRIED = [
    Noise(draws=60),
    FGSM(),
    PGD(steps=4),
    PGD(steps=3, restarts=3),
    PGD(steps=4, start="gaussian", step_size="1/2"),
    PGD(steps=3, start="zero", rel_step_size=3.0),
    Langevin(steps=4),
    Langevin(steps=3, start="uniform", temperature=0.1, noise="gaussian"),
    APGD(steps=6),
    APGD(steps=5, loss="dlr", restarts=2),
    APGD(steps=10, start="zero", shrinking_radius=True),
    TargetedAPGD(steps=5, targets=2),
    TargetedFAB(steps=5),
    Square(queries=60),
    SmallAutoAttack(),
]
# They move as far as is needed, or change nothing where they find nothing.
SPARING = (FGSM, Noise, TargetedFAB, AutoAttack)
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
    goal = Misclassification(y)
    # The examples of a mixture stay together: there is no goal that could leave some of them out.
    surrogate = goal.loss if isinstance(threat, Mixture) else goal
    return attack(model, x, surrogate, threat, Rng((0, *key)))


def test_every_attack_is_tried_here():
    assert len(ATTACKS.classes) >= 2
    tried = {type(attack) for attack in ATTACKS_TRIED} - {SmallAutoAttack} | {AutoAttack}
    assert tried == set(ATTACKS.classes.values())


def test_attacks_of_different_strength_have_different_names():
    attacks = [FGSM(), PGD(steps=10), PGD(steps=20), PGD(steps=20, restarts=5), *ATTACKS_TRIED]
    names = [attack.name for attack in attacks]
    assert names[:4] == ["fgsm", "pgd10", "pgd20", "pgd20x5"]
    assert {"apgd6", "apgd5_dlrx2", "apgd5_t2", "fab5_t9", "square60", "autoattack"} < set(names)


def try_in(attack: Attack, threat: PerturbationSet) -> None:
    """Skip what does not go together: attacks of evaluations search in one ball."""
    if attack.needs_labels and isinstance(threat, Mixture):
        pytest.skip("for evaluations: within one ball")


@each_attack
@each_threat
def test_it_stays_in_its_set_and_in_the_box(attack, threat):
    try_in(attack, threat)
    model, (x, y) = network(MLP(hidden=(16,)), gain=5), batch()
    found = attacked(attack, model, x, y, threat)
    parts = threat.parts if isinstance(threat, Mixture) else [(threat, len(x))]
    sizes = [n for _, n in parts]

    assert found.shape == x.shape and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1
    for (ball, _), part, origin in zip(parts, found.split(sizes), x.split(sizes), strict=True):
        eps = float(ball.eps)
        assert (ball.distance(part, origin) <= eps * (1 + 1e-4)).all()
        if eps and not isinstance(attack, SPARING):
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
    model, (x, _) = network(MLP(hidden=(16,)), gain=12), batch()
    y = model(x).argmax(1)
    found = attacked(attack, model, x, y, THREATS[norm])
    before, after = (Misclassification(y)(model(inputs)).mean() for inputs in (x, found))
    assert after > before


@each_attack
@each_threat
def test_the_model_is_left_as_it_was(attack, threat):
    try_in(attack, threat)
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
    try_in(attack, threat)
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
        Misclassification(y)(
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
    value = Misclassification(torch.tensor([0, 0]))(logits)
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
    assert plain[0] > plain[1]
    assert value[1] > value[0] + 900


@pytest.mark.parametrize(
    ("attack", "share"),
    [
        (APGD(start="zero"), 0.05),
        (APGD(), 0.05),
        (APGD(start="zero", shrinking_radius=True), 0.05),
        (APGD(shrinking_radius=True), None),
    ],
)
def test_sparse_steps_begin_as_said(attack, share, monkeypatch):
    """How many pixels the first l1 steps take; and that the first look starts the size anew."""
    model, x, y = binary()
    rules, looks = [], []
    move = _Sparse.move

    def seen(self, x_adv, grad):
        if not rules or rules[-1] is not self:
            rules.append(self)
            looks.append([(self.count.clone(), (x_adv - x != 0).flatten(1).sum(1))])
        looks[-1].append(self.size.clone())
        return move(self, x_adv, grad)

    monkeypatch.setattr(_Sparse, "move", seen)
    threat = Threat(norm="l1", eps=2)
    attack(model, x, lambda logits: F.cross_entropy(logits, y, reduction="none"), threat, Rng((0,)))
    for phase, ((count, moved), *sizes) in enumerate(looks):
        if phase or share is None:
            torch.testing.assert_close(count, moved / 1.5)
        else:
            torch.testing.assert_close(count, torch.full_like(count, share * x[0].numel()))
            # 4 % of the steps later the perturbation is sparser than all pixels
            assert (sizes[rules[0].every] == 1).all()
    assert len(looks) == (3 if attack.shrinking_radius else 1)


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


# --- attacks that know the labels -------------------------------------------------------------


@pytest.mark.parametrize("attack", [a for a in ATTACKS_TRIED if a.needs_labels])
def test_without_labels_it_is_refused(attack):
    model, x = network(MLP(hidden=(16,)), gain=5), batch()[0]
    with pytest.raises(TypeError, match="know the labels"):
        attack(model, x, lambda logits: logits.sum(1), THREATS["linf"], Rng((0,)))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_problems_with_few_classes_are_attacked(classes, norm):
    torch.manual_seed(0)
    model = build_model(MLP(hidden=(16,)), SHAPE, classes, [0.4] * 2, [0.3] * 2).eval()
    x, _ = batch(40, classes=classes)
    y = model(x).argmax(1)
    threat = Threat(norm=norm, eps={"linf": "1/20", "l2": "1/4", "l1": "1"}[norm])
    by_pgd = evaluate(model, x, y, [f"{norm}:{threat.eps}"], PGD(steps=100, restarts=5))
    fooled = [
        model(attacked(attack, model, x, y, threat)).argmax(1) != y
        for attack in (
            APGD(loss="dlr", steps=50),
            TargetedAPGD(steps=50),
            TargetedFAB(steps=50),
            Square(queries=300),
        )
    ]
    wrong = next(iter(by_pgd.attacked.values())) != by_pgd.label
    assert 0.1 < wrong.mean() < 0.9
    for attack in fooled[:3]:
        assert (wrong & ~attack.numpy()).mean() <= 0.05
    assert fooled[3].sum() >= 0.3 * wrong.sum()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_more_of_an_attack_never_finds_fewer_errors(norm):
    """More targets, more queries; for every example."""
    model, (x, _) = network(MLP(hidden=(16,)), gain=4), batch(60)
    y = model(x).argmax(1)

    def fooled(attack: Attack) -> Tensor:
        return model(attacked(attack, model, x, y, THREATS[norm])).argmax(1) != y

    for weak, strong in [
        (TargetedAPGD(steps=3, targets=1), TargetedAPGD(steps=3, targets=3)),
        (TargetedFAB(steps=2, targets=1), TargetedFAB(steps=20, targets=3)),
        (Square(queries=20), Square(queries=400)),
        (APGD(steps=1), SmallAutoAttack()),
    ]:
        fewer, more = fooled(weak), fooled(strong)
        assert (more | ~fewer).all()
        assert more.sum() > fewer.sum() or more.all()


def test_only_examples_that_stand_are_attacked():
    """What one attack of a suite has fooled, and what is wrong plainly, is left alone."""
    model, (x, y) = network(MLP(hidden=(16,)), gain=3), batch(100)
    seen: list[int] = []

    class Recorder(Square):
        def search(self, model, x, surrogate, threat, rng):
            seen.append(len(x))
            return super().search(model, x, surrogate, threat, rng)

    class Suite(AutoAttack):
        def stages(self, threat):
            return [APGD(steps=5), Recorder(queries=10), Recorder(queries=20)]

    records = evaluate(model, x, y, ["linf:1/20"], Suite())
    plain = evaluate(model, x, y, ["linf:1/20"], APGD(steps=5))
    (after,) = (name for name in plain.attacked)
    right = plain.plain == plain.label
    standing = (plain.attacked[after] == plain.label).sum()
    assert 0 < seen[1] <= seen[0] < right.sum()
    assert seen[0] == pytest.approx(standing, abs=5)  # their starts differ
    (found,) = records.attacked.values()
    assert (found[~right] == records.plain[~right]).all()


def test_a_suite_called_as_an_attack_fools_what_an_evaluation_says():
    model, (x, y) = network(MLP(hidden=(16,)), gain=3), batch(60)
    records = evaluate(model, x, y, ["l2:1/2"], SmallAutoAttack(), seed=3)
    rng = Rng((3, "evaluate", Threat(norm="l2", eps="1/2").name, "autoattack"))
    found = SmallAutoAttack()(model, x, Misclassification(y), Threat(norm="l2", eps="1/2"), rng)
    (predicted,) = records.attacked.values()
    assert np.array_equal(model(found).argmax(1).numpy(), predicted)


def test_square_asks_nothing_twice_and_finds_the_same(monkeypatch):
    """A proposal without effect, or refused since the last change, is not evaluated again."""
    model, (x, _) = network(MLP(hidden=(16,)), gain=1), batch(20)
    y, asked = model(x).argmax(1), []
    model.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))

    def run() -> Tensor:
        asked.clear()
        return attacked(Square(queries=600), model, x, y, Threat(norm="linf", eps="1/50"))

    sparing = run()
    few = sum(asked)
    monkeypatch.setattr("robustfront.attacks.square._REMEMBERED_CHANNELS", 0)
    assert torch.equal(run(), sparing)
    assert few < 0.8 * sum(asked)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_named(wrong):
    model, (x, y) = network(Linear()), batch()
    model.stem[-1].bias.data[1] = wrong
    with pytest.raises(DataError, match="not finite for 12 of 12"):
        evaluate(model, x, y, ["linf:1/10"], PGD(steps=2))


@pytest.mark.parametrize("suite", [PGD(steps=2), SmallAutoAttack()], ids=["pgd", "autoattack"])
def test_at_radius_zero_an_evaluation_gives_the_plain_predictions(suite):
    model, (x, y) = network(MLP(hidden=(16,)), gain=3), batch(30)
    records = evaluate(model, x, y, ["linf:0", "l2:0", "l1:0"], suite)
    assert all(np.array_equal(found, records.plain) for found in records.attacked.values())


# --- interrupted evaluations ------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 3, 6, 9])
def test_an_interrupted_evaluation_goes_on_with_the_same_result(after, tmp_path):
    model, (x, y) = network(MLP(hidden=(16,)), gain=2), batch(150)
    threats, suite, key = [THREATS["linf"], THREATS["l2"]], SmallAutoAttack(), (0, "interrupted")
    split, path = Split(x, y, 1.0), tmp_path / "progress.npz"
    whole = measure(model, split, threats, suite, key, 60)

    def go_on(batch_size: int) -> tuple[Iterator[None], Progress]:
        progress = Progress(y, stages_of(threats, suite), path, "this")
        return measuring(model, split, threats, suite, key, batch_size, progress), progress

    steps, _ = go_on(60)
    for _ in range(after):
        next(steps)
    steps, progress = go_on(37)
    known = progress.share
    shares = [progress.share for _ in steps]

    assert 0 < known < 1
    assert shares == sorted(shares) and shares[-1] == 1
    for found in (progress.records, Records.load(path)):
        assert np.array_equal(found.plain, whole.plain)
        for name, prediction in whole.attacked.items():
            assert np.array_equal(found.attacked[name], prediction)


def test_what_was_done_before_an_interruption_is_not_done_again(tmp_path):
    model, (x, y) = network(MLP(hidden=(16,)), gain=2), batch(50)
    seen: list[int] = []

    class Recorder(Square):
        def search(self, model, x, surrogate, threat, rng):
            seen.append(len(x))
            return super().search(model, x, surrogate, threat, rng)

    threats, suite = [THREATS["linf"]], Recorder(queries=5)
    for _ in range(2):
        progress = Progress(y, stages_of(threats, suite), tmp_path / "p.npz", "this")
        for _ in measuring(model, Split(x, y, 1.0), threats, suite, (0,), 20, progress):
            pass
    assert len(seen) == 1 and seen[0] <= 20


def test_the_progress_of_another_measurement_is_begun_anew(tmp_path):
    path, y = tmp_path / "progress.npz", torch.zeros(10, dtype=torch.int64)
    Progress(y, {"a": 2}, path, "one").note("a", torch.arange(5), y[:5], 0)
    assert Progress(y, {"a": 2}, path, "one").share == 0.25
    assert Progress(y, {"a": 2}, path, "another").share == 0
    path.write_bytes(b"\x00not an archive")
    with pytest.raises(DataError, match="not records"):
        Progress(y, {"a": 2}, path, "one")
