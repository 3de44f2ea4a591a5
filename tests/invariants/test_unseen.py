"""Perturbations other than balls: they stay what they say they are, and find what is there."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import robustfront as rf
from robustfront.attacks import PGD
from robustfront.config import Evaluate, TrialConfig
from robustfront.data import Split
from robustfront.evaluation.evaluate import measure_changed
from robustfront.evaluation.records import Records
from robustfront.models import MLP, build_model
from robustfront.randomness import Rng
from robustfront.training.trial import measure_unseen, run_trial
from robustfront.unseen import Elastic, Patch, RotationTranslation
from robustfront.unseen.base import moved

TRIED = {
    "rotation_translation": RotationTranslation(angles=5, shifts=3),
    "patch": Patch(size=3, locations=5, steps=10),
    "elastic": Elastic(steps=8, restarts=2),
}


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A trained network, and images most of which it has right."""
    torch.manual_seed(0)
    x, y = rf.load_data({"type": "digits"}, split="train")
    model = build_model(MLP(hidden=(32,)), (1, 8, 8), 10, (0.3,), (0.4,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    x, y = rf.load_data({"type": "digits"}, split="test")
    y = y[:40].clone()
    y[:4] = (model(x[:4]).argmax(1) + 1) % 10
    return model.eval(), x[:40], y


@pytest.mark.parametrize("name", TRIED)
def test_what_is_found_fools_and_all_else_is_left_alone(name, case):
    model, x, y = case
    modes = [module.training for module in model.modules()]
    found = TRIED[name](model, x, y, Rng((0,)))
    assert found.min() >= 0 and found.max() <= 1
    changed = (found != x).flatten(1).any(1)
    wrong = model(found).argmax(1) != y
    assert wrong[changed].all()
    assert not changed[:4].any(), "those that are wrong plainly need nothing"
    assert changed.any()
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", TRIED)
def test_results_do_not_depend_on_batches_and_repeat(name, case):
    model, x, y = case
    whole, parts, again = (
        measure_changed(model, Split(x, y, 1.0), [TRIED[name]], ("t",), size)
        for size in (40, 7, 40)
    )
    key = TRIED[name].name
    np.testing.assert_array_equal(whole.attacked[key], parts.attacked[key])
    np.testing.assert_array_equal(whole.attacked[key], again.attacked[key])
    assert whole.union([key]).mean() >= whole.union([]).mean()


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (
            RotationTranslation(degrees=0, pixels=0, angles=1, shifts=1),
            TRIED["rotation_translation"],
        ),
        (Patch(size=3, locations=2, steps=10), TRIED["patch"]),
        (Elastic(steps=8, restarts=1), TRIED["elastic"]),
    ],
)
def test_more_candidates_find_no_less(less, more, case):
    model, x, y = case
    errors = [(model(one(model, x, y, Rng((0,)))).argmax(1) != y) for one in (less, more)]
    assert (errors[0] <= errors[1]).all()


def test_a_patch_changes_one_square_only(case):
    model, x, y = case
    patch = Patch(size=3, locations=1, steps=5)
    for start in range(3):
        changed = (patch.candidate(0, model, x, y, Rng((start,))) != x)[:, 0]
        for one in changed:
            if not one.any():
                continue
            rows, columns = one.any(1).nonzero()[:, 0], one.any(0).nonzero()[:, 0]
            assert rows[-1] - rows[0] < 3 and columns[-1] - columns[0] < 3
    whole = Patch(size=8, locations=1, steps=5)
    assert (whole.candidate(0, model, x, y, Rng((0,))) != x).float().mean() > 0.4


def test_a_rotation_is_that_of_scipy_and_a_translation_moves_whole_pixels():
    x = torch.zeros(1, 1, 21, 21)
    x[0, 0, 6:12, 8:15] = torch.rand(6, 7)
    turned = RotationTranslation(degrees=20, pixels=0, angles=2, shifts=1)
    for number, angle in ((0, -20), (1, 20)):
        ours = turned.candidate(number, nn.Identity(), x, torch.zeros(1), Rng((0,)))
        theirs = ndimage.rotate(x[0, 0].numpy(), angle, reshape=False, order=1)
        np.testing.assert_allclose(ours[0, 0].numpy(), theirs, atol=1e-4)
    shifted = RotationTranslation(degrees=0, pixels=3, angles=1, shifts=3)
    ours = shifted.candidate(0, nn.Identity(), x, torch.zeros(1), Rng((0,)))
    torch.testing.assert_close(ours[0, 0, 3:9, 5:12], x[0, 0, 6:12, 8:15])


def test_a_field_moves_pixels_and_a_blur_stays_within_its_range():
    x = torch.rand(2, 1, 9, 9)
    flow = torch.zeros(2, 2, 9, 9)
    torch.testing.assert_close(moved(x, flow), x)
    flow[:, 1] = 1
    torch.testing.assert_close(moved(x, flow)[..., :-1], x[..., 1:])
    elastic = Elastic(pixels=2)
    field = torch.where(torch.rand(3, 2, 12, 12) < 0.5, -2.0, 2.0)
    assert elastic._blurred(field).abs().max() <= 2
    assert elastic._blurred(field).std() < field.std() / 2


def test_an_image_outside_the_range_is_refused(case):
    model, x, y = case
    with pytest.raises(ValueError, match="inputs in"):
        TRIED["patch"](model, x + 1, y, Rng((0,)))


def test_a_finished_trial_is_measured_and_its_predictions_kept(tmp_path):
    config = TrialConfig.model_validate(
        {
            "data": {"type": "digits", "train_size": 200, "val_size": 50},
            "model": {"type": "mlp", "hidden": [16]},
            "threat": {"norm": "linf", "eps": "1/10"},
            "train": {"epochs": 2, "optimizer": {"type": "sgd", "lr": 0.2}, "batch_size": 32},
            "evaluate": {
                "attack": {"type": "pgd", "steps": 2},
                "final": {"type": "pgd", "steps": 2, "examples": 40},
                "unseen": [one.model_dump() for one in TRIED.values()],
            },
        }
    )
    for _ in run_trial(config, tmp_path):
        pass
    errors = measure_unseen(config, tmp_path)
    records = Records.load(tmp_path / "test-unseen.npz")
    assert len(records) == 40
    plain = records.union([]).mean()
    for one in TRIED.values():
        assert errors[f"test/robust_error/{one.name}"] == records.union([one.name]).mean() >= plain
    assert measure_unseen(config, tmp_path) == errors
    assert config.id == config.model_copy(update={"evaluate": Evaluate(attack=PGD(steps=2))}).id
