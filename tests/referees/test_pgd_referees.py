"""Our PGD and FGSM against torchattacks and foolbox, on a small network trained on MNIST."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustfront.attacks import FGSM, PGD, Attack, AutoAttack
from robustfront.config import TrialConfig
from robustfront.evaluation.evaluate import evaluate
from robustfront.evaluation.records import Records
from robustfront.models import build_model
from robustfront.training.checkpoint import read_tensors
from robustfront.training.fit import fit

with warnings.catch_warnings():
    # foolbox imports scipy.ndimage's functions from where they used to be
    warnings.filterwarnings("ignore", r".*scipy\.ndimage", DeprecationWarning)
    import foolbox
    import torchattacks

LINF, L2, STEPS = 0.1, 1.5, 10
EXAMPLES = 1000
# Other draws of the starts move an accuracy over 1,000 images by 0.003 (standard deviation).
APART = {"zero": 0.01, "uniform": 0.02}


@pytest.fixture(scope="module")
def trained(data_root: Path, tmp_path_factory) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained adversarially for a moment, and test images."""
    config = TrialConfig.model_validate(
        {
            "data": {
                "type": "mnist",
                "root": str(data_root),
                "train_size": 3000,
                "val_size": 100,
            },
            "model": {"type": "mlp", "hidden": [128]},
            "threat": {"norm": "linf", "eps": 0.05},
            "method": {"type": "pgd_at", "inner": {"steps": 3}},
            "train": {"epochs": 4, "batch_size": 64, "optimizer": {"type": "adam", "lr": 2e-3}},
            "evaluate": {"attack": {"type": "fgsm"}},
        }
    )
    state = tmp_path_factory.mktemp("trained") / "state.safetensors"
    for report in fit(config):
        report.save(state)
    model = build_model(config.model, (1, 28, 28), 10, (0.0,), (1.0,))
    model.load_state_dict(read_tensors(state)[0]["model"])
    raw = config.data.load()
    x = torch.tensor(raw.x_test[:EXAMPLES]).float() / raw.scale
    return model.eval(), x, torch.tensor(raw.y_test[:EXAMPLES])


def ours(model: nn.Module, x: Tensor, y: Tensor, threat: str, attack: Attack) -> Records:
    return evaluate(model, x, y, [threat], attack)


def accuracy(records: Records) -> float:
    """Under the attack alone, as the referees count."""
    (prediction,) = records.attacked.values()
    return float((prediction == records.label).mean())


def by_foolbox(
    attack: foolbox.Attack, model: nn.Module, x: Tensor, y: Tensor, eps: float
) -> Tensor:
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, x_adv, _ = attack(wrapped, x, y, epsilons=eps)
    return x_adv


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def test_the_network_is_neither_trivial_nor_hopeless(trained):
    model, x, y = trained
    plain = (predicted(model, x) == y).float().mean()
    robust = accuracy(ours(model, x, y, f"linf:{LINF}", PGD(steps=STEPS)))
    assert plain > 0.9
    assert 0.2 < robust < plain - 0.1


@pytest.mark.parametrize("start", ["uniform", "zero"])
@pytest.mark.parametrize("step", [0.01, 0.025])
def test_linf_pgd_agrees_with_both_referees(trained, start, step):
    model, x, y = trained
    random = start == "uniform"
    found = accuracy(
        ours(model, x, y, f"linf:{LINF}", PGD(steps=STEPS, step_size=step, start=start))
    )
    torchattack = torchattacks.PGD(model, LINF, step, STEPS, random_start=random)
    by_torchattacks = (predicted(model, torchattack(x, y)) == y).float().mean().item()
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=STEPS, random_start=random)
    foolboxed = predicted(model, by_foolbox(attack, model, x, y, LINF))

    assert found == pytest.approx(by_torchattacks, abs=APART[start])
    assert found == pytest.approx((foolboxed == y).float().mean().item(), abs=APART[start])


@pytest.mark.parametrize(("start", "step"), [("zero", 0.2), ("zero", 0.4), ("uniform", 0.4)])
def test_l2_pgd_agrees_with_both_referees(trained, start, step):
    """torchattacks starts nearer to x (its radius is uniform): the steps must make up for it."""
    model, x, y = trained
    random = start == "uniform"
    found = accuracy(ours(model, x, y, f"l2:{L2}", PGD(steps=STEPS, step_size=step, start=start)))
    torchattack = torchattacks.PGDL2(model, L2, step, STEPS, random_start=random)
    by_torchattacks = (predicted(model, torchattack(x, y)) == y).float().mean().item()
    attack = foolbox.attacks.L2PGD(abs_stepsize=step, steps=STEPS, random_start=random)
    foolboxed = predicted(model, by_foolbox(attack, model, x, y, L2))

    assert found == pytest.approx(by_torchattacks, abs=APART[start])
    assert found == pytest.approx((foolboxed == y).float().mean().item(), abs=APART[start])


def test_l2_pgd_from_the_uniform_start_agrees_with_foolbox_after_few_steps(trained):
    model, x, y = trained
    found = accuracy(ours(model, x, y, f"l2:{L2}", PGD(steps=STEPS, step_size=0.2)))
    attack = foolbox.attacks.L2PGD(abs_stepsize=0.2, steps=STEPS)
    foolboxed = predicted(model, by_foolbox(attack, model, x, y, L2))
    from_x = accuracy(ours(model, x, y, f"l2:{L2}", PGD(steps=STEPS, step_size=0.2, start="zero")))

    assert found == pytest.approx((foolboxed == y).float().mean().item(), abs=APART["uniform"])
    assert found > from_x + 0.05  # the start is told apart


@pytest.mark.parametrize("eps", [5.0, 10.0])
def test_l1_pgd_with_its_defaults_is_no_weaker_than_foolbox_after_50_steps(trained, eps):
    model, x, y = trained[0], trained[1][:400], trained[2][:400]
    referees = [foolbox.attacks.SparseL1DescentAttack(steps=50), foolbox.attacks.L1PGD(steps=50)]
    foolboxed = [predicted(model, by_foolbox(attack, model, x, y, eps)) for attack in referees]

    found = accuracy(ours(model, x, y, f"l1:{eps}", PGD()))

    assert found <= min((other == y).float().mean().item() for other in foolboxed) + 0.01


def test_the_agreement_would_notice_a_wrong_radius(trained):
    """One tenth more or less moves accuracy by more than the tolerance."""
    model, x, y = trained
    for norm, eps in (("linf", LINF), ("l2", L2)):
        attack = PGD(steps=STEPS)
        right, less, more = (
            accuracy(ours(model, x, y, f"{norm}:{eps * factor:.4f}", attack))
            for factor in (1, 0.9, 1.1)
        )
        assert less > right + 0.02 and more < right - 0.02


@pytest.mark.parametrize(("norm", "eps"), [("linf", LINF), ("l2", L2)])
def test_fgsm_gives_foolbox_predictions(trained, norm, eps):
    model, x, y = trained
    records = ours(model, x, y, f"{norm}:{eps}", FGSM())
    attack = {
        "linf": foolbox.attacks.LinfFastGradientAttack,
        "l2": foolbox.attacks.L2FastGradientAttack,
    }
    foolboxed = predicted(model, by_foolbox(attack[norm](), model, x, y, eps))

    (prediction,) = records.attacked.values()
    right = records.plain == records.label  # only these are attacked
    assert (torch.from_numpy(prediction) == foolboxed)[right].all()
    assert (foolboxed != predicted(model, x)).float().mean() > 0.1


def test_fgsm_gives_torchattacks_predictions(trained):
    model, x, y = trained
    records = ours(model, x, y, f"linf:{LINF}", FGSM())
    expected = predicted(model, torchattacks.FGSM(model, LINF)(x, y))

    (prediction,) = records.attacked.values()
    right = records.plain == records.label  # only these are attacked
    assert (torch.from_numpy(prediction) == expected)[right].all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", LINF), ("l2", L2)])
def test_autoattack_fools_the_examples_that_torchattacks_fools(trained, norm, eps):
    """torchattacks with AutoAttack's 100 steps, which are not its default."""
    model, (x, y) = trained[0], (part[:60] for part in trained[1:])
    (found,) = ours(model, x, y, f"{norm}:{eps}", AutoAttack()).attacked.values()
    referee = torchattacks.AutoAttack(model, {"linf": "Linf", "l2": "L2"}[norm], eps, seed=0)
    for attack in referee._autoattack.attacks[:3]:
        attack.steps = 100
    expected = predicted(model, referee(x, y)) != y
    mine = torch.from_numpy(found) != y
    assert 0.1 < expected.float().mean() < 0.95
    assert (mine != expected).sum() <= 1
