"""Perturbations other than balls: they stay what they say they are, and find what is there."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import nn

import robustfront as rf
from robustfront.attacks import PGD
from robustfront.config import Evaluate, TrialConfig
from robustfront.data import Corrupted, Digits, Split
from robustfront.errors import DataError
from robustfront.evaluation.evaluate import measure_changed, measure_corrupted
from robustfront.evaluation.records import Records
from robustfront.models import MLP, build_model
from robustfront.randomness import Rng
from robustfront.training.trial import (
    corruption_errors,
    measure_unseen,
    run_trial,
    unseen_errors,
)
from robustfront.unseen import (
    JPEG,
    UNSEEN,
    Elastic,
    Fog,
    Gabor,
    Geometric,
    Patch,
    RotationTranslation,
    Snow,
)
from robustfront.unseen.base import ascended, filtered, moved

TRIED = {
    "rotation_translation": RotationTranslation(angles=5, shifts=3),
    "patch": Patch(size=3, locations=5, steps=10),
    "elastic": Elastic(steps=8, restarts=2),
    "gabor": Gabor(strength=0.5, steps=8, restarts=2),
    "fog": Fog(strength=2, steps=8, restarts=2),
    "snow": Snow(density=0.2, steps=8, restarts=2),
    "geometric": Geometric(rotation=25, translation=1, shear=0.1, contrast=0.2),
    "jpeg": JPEG(steps=8, restarts=2),
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
        *[
            (TRIED[name].model_copy(update={"restarts": 1}), TRIED[name])
            for name in ("elastic", "gabor", "fog", "snow", "jpeg")
        ],
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


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_a_patch_moves_black_and_white_pixels(end):
    # What raises the cross-entropy is to leave the end, for every pixel.
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.zeros_(model[1].bias)
    model[1].weight.data = torch.tensor([[1.0], [-1.0]]).expand(2, 16) * (2 * end - 1)
    x, y = torch.full((3, 1, 4, 4), end), torch.zeros(3, dtype=torch.int64)
    patch = Patch(size=4, locations=1, steps=5, step_size=0.1)
    found = patch.candidate(0, model, x, y, Rng((0,)))
    torch.testing.assert_close(found, torch.full_like(x, abs(end - 0.5)))


def test_a_change_that_reaches_an_end_comes_back():
    # The slope turns once all entries are at 1: what goes on beyond it never returns.
    slopes = iter([1.0, 1.0, 1.0, -1.0, -1.0])

    def render(change: torch.Tensor) -> torch.Tensor:
        return torch.cat([0 * change, next(slopes) * change], dim=1)

    y = torch.zeros(4, dtype=torch.int64)
    found = ascended(nn.Identity(), torch.zeros(4, 1), render, y, 0.5, 5, ends=(-1, 1))
    torch.testing.assert_close(found, torch.zeros(4, 1))


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


def test_every_unseen_perturbation_is_tried_here():
    assert TRIED.keys() == UNSEEN.classes.keys()


def test_gabor_noise_is_as_large_as_it_says_and_snow_only_brightens(case):
    model, x, y = case
    grey = torch.full_like(x, 0.5)
    noise = Gabor(strength=0.2, steps=3).candidate(0, model, grey, y, Rng((0,))) - grey
    torch.testing.assert_close(noise.flatten(1).abs().amax(1), torch.full((len(x),), 0.2))
    snow = Snow(strength=0.3, density=0.3, steps=3).candidate(0, model, grey, y, Rng((0,))) - grey
    assert snow.min() >= 0 and 0.1 < snow.max() <= 0.3 + 1e-6


def test_fog_is_brighter_where_the_image_is_dark_and_keeps_its_brightest_value(case):
    model, x, y = case
    fogged = Fog(strength=1, steps=3).candidate(0, model, x, y, Rng((0,)))
    brightest = x.flatten(1).amax(1)
    assert (fogged.flatten(1).amax(1) <= brightest + 1e-6).all()
    assert fogged[x == 0].mean() > 0.1
    fog = Fog()._fog(torch.ones(1, 4 + 9 + 25), [2, 3, 5], torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(fog, torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_is_stored_as_pillow_stores_it(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, len(mode)), dtype=np.uint8)
    pixels = ndimage.gaussian_filter(pixels, (3, 3, 0)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode=mode).save(file, "JPEG", quality=60, subsampling=0)
    theirs = np.asarray(Image.open(file), np.float32).reshape(pixels.shape)
    jpeg, x = JPEG(quality=60), torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    ours = 255 * jpeg.unpacked(jpeg.stored(x), x)[0].permute(1, 2, 0).numpy()
    # Pillow's colours are whole numbers before the transform: now and then one rounds differently.
    assert np.quantile(np.abs(ours - theirs), 0.99) <= 4
    assert np.abs(ours - theirs).mean() < 0.6
    assert np.abs(255 * x[0].permute(1, 2, 0).numpy() - theirs).mean() > 0.7, "lossy at all"


def test_a_kernel_is_applied_to_its_own_field():
    fields, kernels = torch.rand(3, 1, 9, 9), torch.rand(3, 1, 5, 5)
    found = filtered(fields, kernels)
    for field, kernel, one in zip(fields, kernels, found, strict=True):
        theirs = ndimage.correlate(field[0].numpy(), kernel[0].numpy(), mode="constant")
        np.testing.assert_allclose(one[0].numpy(), theirs, rtol=1e-4)


def test_an_image_outside_the_range_is_refused(case):
    model, x, y = case
    with pytest.raises(ValueError, match="inputs in"):
        TRIED["patch"](model, x + 1, y, Rng((0,)))


def _digits(**more: object) -> Digits:
    return Digits.model_validate({"type": "digits", "train_size": 200, "val_size": 50, **more})


def _corrupt(folder: Path, x: torch.Tensor, y: torch.Tensor) -> None:
    folder.mkdir()
    images = (255 * x[:, 0]).byte().numpy()
    np.save(folder / "labels.npy", np.tile(y.numpy(), 2))
    np.save(folder / "clean.npy", np.tile(images, (2, 1, 1)))
    np.save(folder / "black.npy", np.zeros((2 * len(y), 8, 8, 1), np.uint8))


def test_corrupted_images_are_read_and_measured(tmp_path, case):
    model, x, y = case
    _corrupt(tmp_path / "c", x, y)
    corrupted = Corrupted(tmp_path / "c", _digits())
    errors = measure_corrupted(model, corrupted, torch.device("cpu"), 7)
    wrong, always = (float((model(images).argmax(1) != y).float().mean()) for images in (x, 0 * x))
    assert errors == pytest.approx({"black": always, "clean": wrong}, abs=1e-6)
    two = Corrupted(tmp_path / "c", _digits(only_classes=(3, 1)))
    assert set(two.read("clean", torch.device("cpu")).y.tolist()) == {0, 1}


def test_all_that_is_wrong_with_corrupted_images_is_told(tmp_path, case):
    _, x, y = case
    config = _digits()
    with pytest.raises(DataError, match=r"labels\.npy: no such file"):
        Corrupted(tmp_path, config)
    _corrupt(tmp_path / "c", x, y)
    np.save(tmp_path / "c/black.npy", np.zeros((80, 9, 9), np.uint8))
    np.save(tmp_path / "c/blur.npy", np.zeros((80, 8, 8)))
    np.save(tmp_path / "c/labels.npy", np.full(80, 10))
    with pytest.raises(DataError) as error:
        Corrupted(tmp_path / "c", config)
    for part in ("0 to 9, got 10 to 10", "(80, 9, 9), expected", "uint8, these are float64"):
        assert part in str(error.value)
    np.save(tmp_path / "c/blur.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot|can be read"):
        Corrupted(tmp_path / "c", config)


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
                "corruptions": str(tmp_path / "c"),
            },
        }
    )
    _corrupt(tmp_path / "c", torch.rand(5, 1, 8, 8), torch.arange(5))
    for _ in run_trial(config, tmp_path):
        pass
    part = measure_unseen(config, tmp_path)
    assert 0 < next(part) < 0.2
    part.close()
    begun = Records.load(tmp_path / "test-unseen.npz").attacked
    assert {name for name, found in begun.items() if (found >= 0).any()} == {
        TRIED["rotation_translation"].name
    }
    first = TRIED["rotation_translation"].name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RotationTranslation, "candidate", None)
        # what is known already is not made again
        assert [*measure_unseen(config, tmp_path)][-1] == 1
    errors = unseen_errors(config, tmp_path)
    records = Records.load(tmp_path / "test-unseen.npz")
    assert len(records) == 40
    known = begun[first] >= 0
    np.testing.assert_array_equal(records.attacked[first][known], begun[first][known])
    plain = records.union([]).mean()
    for one in TRIED.values():
        assert errors[f"test/robust_error/{one.name}"] == records.union([one.name]).mean() >= plain
    corrupted = corruption_errors(config, tmp_path)
    assert [*corrupted] == [f"test/corruption_error{end}" for end in ("", "/black", "/clean")]
    black = corrupted["test/corruption_error/black"]
    assert black in (0.8, 1.0), "one class at most is right for images that are all alike"
    mean = (black + corrupted["test/corruption_error/clean"]) / 2
    assert corrupted["test/corruption_error"] == pytest.approx(mean)
    assert config.id == config.model_copy(update={"evaluate": Evaluate(attack=PGD(steps=2))}).id
