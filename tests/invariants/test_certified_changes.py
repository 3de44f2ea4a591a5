"""Certificates within geometric changes and patches: what they hold, and that nothing escapes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import robustfront as rf
from robustfront.config import TrialConfig
from robustfront.data import Split
from robustfront.errors import ConfigError, SoundnessError
from robustfront.evaluation.certify import box_prover, certifying_changes
from robustfront.evaluation.evaluate import plain_predictions
from robustfront.evaluation.records import Records, read_arrays
from robustfront.models import WideResNet, build_model
from robustfront.randomness import Rng
from robustfront.training.trial import (
    certified_errors,
    certify_unseen,
    measure_unseen,
    run_trial,
)
from robustfront.unseen import Elastic, Geometric, Patch, geometric

CASES = {
    "rotation": Geometric(rotation=40, splits=8),
    "translation": Geometric(translation=1.5, splits=4),
    "scale": Geometric(scale=0.3, splits=5),
    "shear": Geometric(shear=0.4, splits=5),
    "light": Geometric(brightness=0.2, contrast=0.5, splits=3),
    "rotation and shear": Geometric(rotation=20, shear=0.2, contrast=0.2, splits=4),
    "nothing": Geometric(),
}


def _images() -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.rand(3, 2, 7, 8, generator=source)


def _escaping(change: Geometric, x: torch.Tensor, draws: int) -> int:
    """How many changed images lie in none of the boxes."""
    boxes = [(low, high) for low, high in change.boxes(x)]
    outside = 0
    for number in range(draws):
        found = change.candidate(number, nn.Identity(), x, x, Rng((number,)))
        inside = [((low <= found) & (found <= high)).flatten(1).all(1) for low, high in boxes]
        outside += int((~torch.stack(inside).any(0)).sum())
    return outside


@pytest.mark.parametrize("name", CASES)
def test_every_changed_image_lies_in_a_box(name: str) -> None:
    x = _images()
    assert _escaping(CASES[name], x, 200) == 0
    for low, high in CASES[name].boxes(x):
        assert (low <= high).all() and low.min() >= 0 and high.max() <= 1


@pytest.mark.parametrize(("moving", "boxes"), [(1, 20), (3, 20**3), (4, 17**4), (5, 10**5)])
def test_ranges_are_cut_into_as_many_parts_as_can_be_bounded(
    moving: int, boxes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("rotation", "scale", "shear", "brightness", "contrast")[:moving]
    change = Geometric(**dict.fromkeys(names, 0.1))
    monkeypatch.setattr(Geometric, "_box", lambda *_: None)
    assert sum(1 for _ in change.boxes(_images())) == boxes


@pytest.mark.parametrize("defect", ["ends only", "middle of the part"])
def test_boxes_that_forget_the_grid_or_the_width_are_seen(
    defect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = _images()
    if defect == "ends only":
        monkeypatch.setattr(geometric, "_knots", lambda ends, size: [*ends])
    else:
        middle = lambda ends: ((ends[0] + ends[1]) / 2,) * 2  # noqa: E731
        monkeypatch.setattr(geometric, "_widened", middle)
    assert _escaping(CASES["translation"], x, 100) > 0


def test_a_change_is_the_affine_map_of_the_formula() -> None:
    x = _images()[:, :1]
    change = Geometric(rotation=90)
    parameters = torch.tensor([[20.0, 0.7, -0.4, 0.1, 0.2, 0.05, -0.1]])
    found = change.changed(x[:1], parameters)[0, 0].numpy()
    turn, scale, shear = math.radians(20), 1.1, 0.2
    matrix = (
        scale
        * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        @ np.array([[1, shear], [0, 1]])
    )
    centre = np.array([3.0, 3.5])
    offset = centre + [0.7, -0.4] - matrix @ centre
    # A black border: there scipy interpolates towards 0 too, as grid_sample does.
    padded = np.pad(x[0, 0].numpy(), 2)
    moved = ndimage.affine_transform(padded, matrix, offset - 2 * matrix @ [1, 1] + 2, order=1)
    expected = np.clip(0.9 * moved[2:-2, 2:-2] + 0.05, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_patch_has_a_box_for_every_place() -> None:
    x = _images()
    boxes = list(Patch(size=3).boxes(x))
    assert len(boxes) == 5 * 6
    for low, high in boxes:
        free = (low == 0) & (high == 1)
        assert free.flatten(1).sum(1).eq(2 * 9).all()
        assert torch.equal(low[~free], x[~free])
    for number in range(5):
        found = Patch(size=3, steps=2).candidate(
            number, _slope(), x, torch.zeros(3, dtype=torch.long), Rng((number,))
        )
        inside = [((low <= found) & (found <= high)).flatten(1).all(1) for low, high in boxes]
        assert torch.stack(inside).any(0).all()
    assert len(list(Patch(size=9).boxes(x))) == 1


def _slope() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 7 * 8, 3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialConfig, Path]:
    """A network of digits that is trained on bounds."""
    unseen = [
        {"type": "geometric", "rotation": 5, "brightness": 0.02, "splits": 6, "tries": 50},
        {"type": "patch", "size": 1, "locations": 10, "steps": 10},
        {"type": "elastic", "steps": 2, "restarts": 1},
    ]
    config = TrialConfig.model_validate(
        {
            "data": {"type": "digits"},
            "model": {"type": "mlp", "hidden": [64]},
            "threat": {"norm": "linf", "eps": "1/10"},
            "method": {"type": "ibp"},
            "train": {
                "epochs": 12,
                "batch_size": 50,
                "optimizer": {"type": "adam", "lr": 0.01},
                "eps_ramp": {"end": 6},
            },
            "evaluate": {
                "attack": {"type": "pgd", "steps": 2},
                "certify": {"type": "ibp"},
                "unseen": unseen,
                "final": {"type": "pgd", "steps": 2, "examples": 100},
            },
        }
    )
    folder = tmp_path_factory.mktemp("trial")
    for _ in run_trial(config, folder):
        pass
    return config, folder


def test_proved_within_perturbations_means_that_none_is_found(
    trained: tuple[TrialConfig, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = trained
    for _ in measure_unseen(config, folder):
        pass
    shares = list(certify_unseen(config, folder))
    assert shares[-1] == 1
    errors = certified_errors(config, folder)
    attacked = Records.load(folder / "test-unseen.npz").attacked
    proofs = Records.load(folder / "test-unseen-certified.npz").certified
    verifier = "ibp-crown_ibp"
    assert {*proofs} == {f"rotation_5_brightness_0.02/{verifier}", f"patch_1/{verifier}"}
    for name, found in proofs.items():
        assert 0.2 < (found == 1).mean() < 1
        assert errors[f"test/certified_error/{name}"] == pytest.approx((found != 1).mean())
        (attack,) = [own for own in attacked if own.startswith(name.partition("/")[0] + "/")]
        labels = Records.load(folder / "test-unseen.npz").label
        assert (attacked[attack][found == 1] == labels[found == 1]).all()
    before = (folder / "test-unseen-certified.npz").read_bytes()
    monkeypatch.setattr(
        "robustfront.evaluation.certify._proven_in_boxes", lambda *_: pytest.fail("again")
    )
    assert list(certify_unseen(config, folder)) == [1.0]
    assert read_arrays(folder / "test-unseen-certified.npz").keys()
    assert len((folder / "test-unseen-certified.npz").read_bytes()) == len(before)


def test_more_attacks_contradict_no_certificate_and_bigger_changes_are_proved_less(
    trained: tuple[TrialConfig, Path],
) -> None:
    _, folder = trained
    model = rf.load_model(folder)
    x, y = (part[:60] for part in rf.load_data({"type": "digits"}, split="test"))
    shares = []
    for degrees in (2, 8):
        change = Geometric(rotation=degrees, splits=10, tries=400)
        records = rf.certify(model, x, y, change)
        (proofs,) = records.certified.values()
        found = change(model, x, y, Rng((1,)))
        assert (model(found).argmax(1).numpy() == y.numpy())[proofs == 1].all()
        shares.append((proofs == 1).mean())
    assert shares[0] > shares[1] > 0
    with pytest.raises(ConfigError, match="elastic_2 has no certificate"):
        rf.certify(model, x, y, Elastic(pixels=2))


def test_a_proof_that_an_attack_contradicts_stops_everything() -> None:
    labels = np.zeros(3, dtype=np.int64)
    with pytest.raises(SoundnessError, match="patch_1/ibp"):
        Records(
            labels,
            labels,
            {"patch_1/pgd10x10": np.array([0, 1, 0])},
            {"patch_1/ibp": np.array([1, 1, 0], np.int8)},
        )


def test_nets_that_cannot_be_passed_backward_are_proved_by_intervals() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    split = Split(x, y, 1.0)
    model = build_model(WideResNet(depth=10, width=1), (1, 8, 8), 3, (0.0,), (1.0,)).eval()
    assert box_prover(model, split)[1] == "ibp"
    records = Records(y.numpy(), plain_predictions(model, split))
    *_, (_, found) = certifying_changes(model, split, [Patch(size=1)], records)
    assert {*found.certified} == {"patch_1/ibp"}
