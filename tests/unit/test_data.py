"""Data sets: splits, ranges, augmentation, and every way a user's files can be wrong."""

import shutil
import struct
import sys
import warnings
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from robustfront.data import (
    CIFAR10,
    DATA,
    MNIST,
    Arrays,
    Augment,
    ConcentricSpheres,
    DataSet,
    Digits,
    FashionMNIST,
    ImageFolder,
    LinearMargin,
    RawData,
    Split,
    load_data,
    split_data,
)
from robustfront.errors import ConfigError, DataError
from robustfront.randomness import Rng

CPU = torch.device("cpu")


def numbered(n: int = 40, test: int = 7, classes: int = 4) -> dict[str, np.ndarray]:
    """Images that can be told apart: image i has the value i everywhere."""

    def images(first: int, count: int) -> np.ndarray:
        values = np.arange(first, first + count, dtype=np.uint8)
        return np.broadcast_to(values[:, None, None, None], (count, 3, 5, 6)).copy()

    return {
        "x_train": images(0, n),
        "y_train": np.arange(n) % classes,
        "x_test": images(n, test),
        "y_test": np.arange(test) % classes,
    }


def saved(tmp_path, **changes) -> str:
    arrays = {**numbered(), **changes}
    path = tmp_path / "set.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


def check(config, data: DataSet) -> None:
    """What holds for every data set."""
    for split in (data.train, data.val, data.test):
        x, y = split.batch(slice(None))
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.shape == (len(split), *config.shape)
        assert x.min() >= 0 and x.max() <= 1
        assert y.min() >= 0 and y.max() < config.classes
    assert data.train.batch(slice(None))[0].max() > 0.5, "images were scaled twice"
    assert (data.shape, data.classes) == (config.shape, config.classes)
    assert data.train.y.unique().tolist() == list(range(config.classes))
    assert len(data.mean) == len(data.std) == config.shape[0]


def test_every_data_set_is_registered():
    assert set(DATA.classes) == {
        "concentric_spheres",
        "linear_margin",
        "arrays",
        "cifar10",
        "digits",
        "fashion_mnist",
        "image_folder",
        "mnist",
    }


# Splits


def stored(split: Split) -> torch.Tensor:
    """The split's images as they are stored."""
    return split.x if split.rows is None else split.x[split.rows]


def test_digits_hold_what_they_say():
    config = Digits()
    raw = config.load()
    assert (len(raw.y_train), len(raw.y_test), raw.x_train.max(), raw.scale) == (1500, 297, 16, 16)
    data = split_data(config, raw, CPU)
    check(config, data)
    assert (len(data.train), len(data.val), len(data.test)) == (1350, 150, 297)
    again = Digits().load()
    assert np.array_equal(raw.x_test, again.x_test)


def test_splits_are_disjoint_and_cover_the_training_data(tmp_path):
    config = Arrays(path=saved(tmp_path), val_size=10)
    data = split_data(config, config.load(), CPU)
    train, val = (set(stored(s)[:, 0, 0, 0].tolist()) for s in (data.train, data.val))
    assert len(train) == 30 and len(val) == 10
    assert train | val == set(range(40))
    assert data.test.x[:, 0, 0, 0].tolist() == list(range(40, 47))


def test_labels_stay_with_their_images(tmp_path):
    config = Arrays(path=saved(tmp_path))
    data = split_data(config, config.load(), CPU)
    for split in (data.train, data.val):
        assert torch.equal(split.y, stored(split)[:, 0, 0, 0].long() % 4)


def test_validation_repeats_and_does_not_depend_on_train_size(tmp_path):
    path = saved(tmp_path)
    raw = Arrays(path=path).load()

    def cut(**sizes) -> DataSet:
        return split_data(Arrays(path=path, val_size=8, **sizes), raw, CPU)

    first, small, other = cut(), cut(train_size=5), cut(split_seed=1)
    assert torch.equal(stored(first.val), stored(small.val)) and torch.equal(
        first.val.y, small.val.y
    )
    assert torch.equal(stored(first.train)[:5], stored(small.train))
    assert not torch.equal(stored(first.val), stored(other.val))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"val_size": 41}, ["data.val_size", "41", "40"]),
        ({"val_size": 40}, ["data.val_size", "40", "at least one"]),
        ({"train_size": 37}, ["data.train_size", "37", "36", "data.val_size = 4"]),
        ({"train_size": 31, "val_size": 10}, ["data.train_size", "31", "30"]),
    ],
)
def test_asking_for_more_than_there_is_says_what_there_is(tmp_path, sizes, words):
    config = Arrays(path=saved(tmp_path), **sizes)
    with pytest.raises(ConfigError) as error:
        split_data(config, config.load(), CPU)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("n", [1, 4, 400])
def test_the_first_examples_are_the_first(tmp_path, n):
    config = Arrays(path=saved(tmp_path), val_size=10)
    data = split_data(config, config.load(), CPU)
    for split in (data.train, data.val, data.test):
        whole, part = split.batch(slice(None)), split.first(n).batch(slice(0, 500))
        assert len(split.first(n)) == len(part[0]) == min(n, len(split))
        assert all(torch.equal(a[:n], b) for a, b in zip(whole, part, strict=True))


def test_read_only_arrays_are_shared_not_copied_and_not_warned_about(tmp_path):
    config = Arrays(path=saved(tmp_path))
    raw = config.load()
    for array in (raw.x_train, raw.y_train, raw.x_test, raw.y_test):
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = split_data(config, raw, CPU)
    assert data.train.x.data_ptr() == data.val.x.data_ptr() == raw.x_train.ctypes.data
    assert data.test.x.data_ptr() == raw.x_test.ctypes.data


def test_statistics_are_those_of_the_training_split():
    noise = np.random.default_rng(0).random((3000, 2, 3, 4), dtype=np.float32)
    noise[:, 1] = 0.25
    y = np.zeros(3000, dtype=np.int64)
    config = Digits(train_size=2000)
    data = split_data(config, RawData(noise, y, noise[:5], y[:5], scale=1), CPU)
    x = stored(data.train).double()
    assert data.mean == pytest.approx(x.mean((0, 2, 3)).tolist(), rel=1e-3)
    assert data.std[0] == pytest.approx(x[:, 0].std().item(), rel=1e-3)
    assert data.std[1] == 1  # a constant channel is not divided by zero


def test_batch_takes_indices_and_slices():
    x = torch.arange(0, 250, 10, dtype=torch.uint8).view(-1, 1, 1, 1)
    split = Split(x, torch.arange(25), 255)
    images, labels = split.batch(torch.tensor([5, 0]))
    assert torch.equal(images.flatten(), torch.tensor([50.0, 0.0]) / 255)
    assert labels.tolist() == [5, 0]
    assert torch.equal(split.batch(slice(2, 4))[1], torch.tensor([2, 3]))


# Augmentation


def batch(n: int = 50) -> torch.Tensor:
    return torch.rand(n, 2, 5, 7, generator=torch.Generator().manual_seed(0)) + 0.01


def windows(image: torch.Tensor, augment: Augment) -> list[torch.Tensor]:
    """Every output that the augmentation may give, by slicing."""
    c, height, width = image.shape
    pad = augment.crop
    padded = torch.zeros(c, height + 2 * pad, width + 2 * pad)
    padded[:, pad : pad + height, pad : pad + width] = image
    cuts = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    ]
    return cuts + ([cut.flip(2) for cut in cuts] if augment.flip else [])


def test_no_augmentation_is_the_identity():
    x = batch()
    assert torch.equal(Augment().apply(x, Rng(("t",))), x)


@pytest.mark.parametrize(
    "augment", [Augment(crop=2), Augment(flip=True), Augment(crop=1, flip=True)], ids=repr
)
def test_every_output_is_a_true_window_and_every_window_occurs(augment):
    image = batch(1)
    x = image.repeat(600, 1, 1, 1)
    out = augment.apply(x, Rng(("t",)))
    possible = windows(image[0], augment)
    hits = torch.stack([(out == window).flatten(1).all(1) for window in possible], dim=1)
    assert torch.all(hits.sum(1) == 1)
    assert torch.all(hits.any(0))


def test_each_image_gets_its_own_window_of_itself():
    x = batch()
    augment = Augment(crop=2, flip=True)
    for image, out in zip(x, augment.apply(x, Rng(("t",))), strict=True):
        assert any(torch.equal(out, window) for window in windows(image, augment))


def test_augmentation_is_a_function_of_the_key_and_not_of_batches():
    x, augment = batch(), Augment(crop=2, flip=True)
    whole = augment.apply(x, Rng(("t", 1)))
    parts = [augment.apply(x[:20], Rng(("t", 1))), augment.apply(x[20:], Rng(("t", 1), first=20))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, augment.apply(x, Rng(("t", 2))))


def test_cifar10_is_augmented_by_default_and_others_are_not():
    assert CIFAR10().augment == Augment(crop=4, flip=True)
    assert CIFAR10(augment=None).augment is None
    assert MNIST().augment is None


# A NumPy file of the user's own


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("grey", [True, False])
def test_arrays_of_every_kind(tmp_path, dtype, grey):
    arrays = numbered(n=200)
    for name in ("x_train", "x_test"):
        x = arrays[name] if dtype == np.uint8 else (arrays[name] / 255).astype(dtype)
        arrays[name] = x[:, 0] if grey else x
    config = Arrays(path=saved(tmp_path, **arrays))
    assert config.shape == ((1, 5, 6) if grey else (3, 5, 6))
    assert config.classes == 4
    data = split_data(config, config.load(), CPU)
    check(config, data)
    expected = torch.arange(200, 207) / 255
    torch.testing.assert_close(
        data.test.batch(slice(None))[0][:, 0, 0, 0], expected, rtol=0, atol=1e-3
    )


def x_float(low: float, high: float) -> np.ndarray:
    x = np.full((40, 3, 5, 6), 0.5, dtype=np.float32)
    x[3, 1, 2, 2], x[5, 0, 0, 0] = low, high
    return x


FLOAT_TEST = np.full((7, 3, 5, 6), 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None, "X_train": np.zeros(1)}, r"x_train: missing; is 'X_train' meant\?"),
        ({"y_test": None}, r"y_test: missing.*the file holds: x_train, y_train, x_test"),
        ({"x_train": np.zeros((40, 6), np.uint8)}, r"x_train: images have shape .* got \(40, 6\)"),
        ({"x_test": np.zeros((0, 3, 5, 6), np.uint8)}, r"x_test: images have shape .* got \(0,"),
        ({"x_train": np.zeros((40, 3, 5, 6), int)}, "x_train: images are uint8 .* these are int64"),
        ({"x_train": x_float(0, np.nan), "x_test": FLOAT_TEST}, "x_train: contains NaN"),
        ({"x_train": x_float(-1, 2), "x_test": FLOAT_TEST}, r"these in \[-1, 2\]"),
        ({"x_train": x_float(0, np.inf), "x_test": FLOAT_TEST}, r"these in \[0, inf\]"),
        ({"x_test": FLOAT_TEST}, "x_test: float64, but uint8 in x_train"),
        ({"x_test": np.zeros((7, 3, 6, 6), np.uint8)}, r"x_test: images of shape \(3, 6, 6\), but"),
        ({"y_train": np.arange(39) % 4}, "y_train: 39 labels for 40 images"),
        ({"y_train": (np.arange(40) % 4).astype(float)}, "y_train: labels are integers.*float64"),
        ({"y_train": (np.arange(40) % 4)[:, None]}, r"y_train: labels have shape \(N,\)"),
        ({"y_train": np.arange(40) % 4 + 1}, "y_train: labels are 0 to K - 1.* got 1, 2, 3, 4"),
        ({"y_train": np.arange(40) % 4 - 1}, "y_train: labels are 0 to K - 1.* got -1, 0, 1, 2"),
        ({"y_test": np.full(7, 9)}, "y_test: labels 9 do not occur in y_train"),
        ({"y_test": np.array([{}] * 7, dtype=object)}, "y_test: labels are integers.*object"),
    ],
)
def test_each_problem_of_an_array_file_is_named(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as error:
        Arrays(path=saved(tmp_path, **changes)).load()
    assert "set.npz: 1 problem\n" in str(error.value)


def test_all_problems_of_an_array_file_are_told_at_once(tmp_path):
    path = saved(
        tmp_path, x_train=x_float(0, 3), y_test=None, y_train=np.arange(39), x_test=np.zeros(2)
    )
    with pytest.raises(DataError) as error:
        Arrays(path=path).load()
    lines = str(error.value).splitlines()
    assert lines[0].endswith("4 problems")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "x_test",
        "y_test",
        "y_train",
        "x_train",
    ]


def test_shape_and_classes_refuse_a_bad_file_too(tmp_path):
    with pytest.raises(DataError, match="x_train: missing"):
        _ = Arrays(path=saved(tmp_path, x_train=None)).shape
    with pytest.raises(DataError, match="labels are 0 to K - 1"):
        _ = Arrays(path=saved(tmp_path, y_train=np.full(40, 3))).classes


def test_shape_reads_headers_only(tmp_path, monkeypatch):
    path = saved(tmp_path)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("the arrays were read"))
    assert Arrays(path=path).shape == (3, 5, 6)


def test_files_that_are_no_array_archive(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Arrays(path=str(tmp_path / "none.npz")).load()
    with pytest.raises(DataError, match="cannot be read .Is a directory"):
        Arrays(path=str(tmp_path)).load()
    text = tmp_path / "text.npz"
    text.write_text("x_train")
    with pytest.raises(DataError, match="not an .npz file"):
        Arrays(path=str(text)).load()
    with open(saved(tmp_path), "rb") as file:
        whole = file.read()
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(whole[:600] + bytes([whole[600] ^ 255]) + whole[601:])
    with pytest.raises(DataError, match="damaged"):
        Arrays(path=str(damaged)).load()


# A folder of images


@pytest.fixture
def folder(tmp_path):
    """Two classes, 10 and 2 images each; green cats, and dogs that are white on the left."""
    cat = np.zeros((8, 8, 3), dtype=np.uint8)
    cat[..., 1] = 200
    dog = np.zeros((8, 8, 3), dtype=np.uint8)
    dog[:, :4] = 255
    for part, count in (("train", 10), ("test", 2)):
        for name, pixels in (("dog", dog), ("cat", cat)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_image_folder_is_read_in_the_order_of_class_names(folder):
    (folder / "train" / "notes.txt").write_text("not a class")
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    config = ImageFolder(root=str(folder), size=8)
    raw = config.load()
    check(config, split_data(config, raw, CPU))
    assert raw.y_train.tolist() == [0] * 10 + [1] * 10 and raw.y_test.tolist() == [0, 0, 1, 1]
    assert raw.x_train[0, :, 0, 0].tolist() == [0, 200, 0]
    assert raw.x_train[10, 0, 0].tolist() == [255] * 4 + [0] * 4


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_and_converted(folder, channels):
    config = ImageFolder(root=str(folder), size=5, channels=channels)
    assert config.shape == (channels, 5, 5) and config.classes == 2
    assert config.load().x_test.shape == (4, channels, 5, 5)


def test_what_is_wrong_with_an_image_folder_is_named(folder):
    config = ImageFolder(root=str(folder), size=8)
    (folder / "test" / "bird").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "test" / "bird" / "0.png")
    (folder / "train" / "fish").mkdir()
    with pytest.raises(DataError) as error:
        config.load()
    assert "test/bird: no such class in train" in str(error.value)
    assert "train/fish: no image" in str(error.value)


def test_unreadable_images_are_named(folder):
    (folder / "train" / "cat" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train/cat/3\.png"):
        ImageFolder(root=str(folder), size=8).load()


def test_missing_folders_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="nowhere: not an image folder\n  no folder train/CLASS"):
        _ = ImageFolder(root=str(tmp_path / "nowhere"), size=8).classes
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match=r"no image \(.png, .jpg, .jpeg\) in test/CLASS"):
        ImageFolder(root=str(folder), size=8).load()


# torchvision's sets


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def fake_mnist(root, name="MNIST", n: int = 20, labels: int = 20, value: int = 255) -> None:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.full((n, 28, 28), value, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(labels, dtype=np.uint8) % 10))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        print("Downloading ...")
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


def test_roots_are_searched_in_order(tmp_path, no_network):
    fake_mnist(tmp_path / "b", value=1)
    fake_mnist(tmp_path / "c", value=2)
    roots = tuple(str(tmp_path / name) for name in "abc")
    raw = MNIST(root=roots).load()
    assert raw.x_train.max() == 1 and raw.x_train.shape == (20, 1, 28, 28)
    assert MNIST(root=roots[2]).load().x_train.max() == 2


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_without_data_and_network_the_roots_and_a_way_out_are_named(
    tmp_path, no_network, kind, capfd
):
    roots = (str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(DataError) as error:
        kind(root=roots).load()
    message = str(error.value)
    assert all(root in message for root in roots)
    assert "no network" in message and "download=True" in message and "data.root" in message
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "a").exists()


def test_what_is_downloaded_lands_in_the_first_root(tmp_path, monkeypatch, capfd):
    source = tmp_path / "mirror"
    fake_mnist(source)

    def fetch(url, download_root, filename, md5):
        print("Downloading ...")
        shutil.copy(source / "MNIST" / "raw" / filename.removesuffix(".gz"), download_root)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    roots = (str(tmp_path / "a"), str(tmp_path / "b"))
    assert len(MNIST(root=roots).load().y_train) == 20
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["MNIST"]
    assert not (tmp_path / "b").exists()
    assert capfd.readouterr() == ("", "")


def test_a_set_without_torchvision_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "MNIST").mkdir()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for root in (tmp_path, tmp_path / "empty"):
        with pytest.raises(DataError, match="read by torchvision, which is not here") as caught:
            MNIST(root=str(root)).load()
        assert "remove" not in str(caught.value)
    assert not (tmp_path / "empty").exists()


def test_partial_and_damaged_copies_are_refused(tmp_path, no_network):
    fake_mnist(tmp_path / "partial")
    (tmp_path / "partial" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    fake_mnist(tmp_path / "short")
    images = tmp_path / "short" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    fake_mnist(tmp_path / "odd", labels=19)
    (tmp_path / "empty" / "MNIST").mkdir(parents=True)
    for name in ("partial", "short", "odd", "empty"):
        with pytest.raises(
            DataError, match=f"{name}.*not a whole copy of MNIST.*remove the folder"
        ):
            MNIST(root=str(tmp_path / name)).load()
    (tmp_path / "cifar" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(DataError, match="not a whole copy of CIFAR10"):
        CIFAR10(root=str(tmp_path / "cifar")).load()


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_real_data(data_root, kind):
    config = kind(root=str(data_root), val_size=5000, train_size=10_000)
    raw = config.load()
    assert (raw.x_train.shape, raw.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert raw.x_train.dtype == np.uint8 and np.bincount(raw.y_test).shape == (10,)
    data = split_data(config, raw, CPU)
    check(config, data)
    assert (len(data.train), len(data.val), len(data.test)) == (10_000, 5000, 10_000)
    x = raw.x_train / np.float32(255)
    assert (x.mean(), x.std()) == pytest.approx((data.mean[0], data.std[0]), abs=6e-5)


# -- some of the classes


def test_some_classes_get_new_labels_in_the_order_they_are_named():
    whole = Digits(val_size=100)
    some = Digits(only_classes=(3, 1), val_size=100)
    x, y = load_data(some, "test")
    x_all, y_all = load_data(whole, "test")
    wanted = (y_all == 3) | (y_all == 1)
    assert torch.equal(x, x_all[wanted])
    assert torch.equal(y, (y_all[wanted] == 1).long())
    assert (some.classes, some.outputs, whole.outputs) == (10, 2, 10)
    data = split_data(some, some.load(), torch.device("cpu"))
    assert data.classes == 2
    assert len(data.val) == 100
    assert data.train.y.unique().tolist() == [0, 1]


@pytest.mark.parametrize("chosen", [[], [1], [1, 1], [2, -1], "13"])
def test_classes_that_are_no_choice_are_refused(chosen):
    with pytest.raises(ValidationError):
        Digits(only_classes=chosen)


def test_a_class_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"got \[1, 12\], the classes of digits are 0 to 9"):
        load_data(Digits(only_classes=(1, 12)))


# -- drawn data, whose margin is known


def test_a_linear_margin_is_kept_and_all_else_is_noise():
    config = LinearMargin(dimension=20, margin=0.15, sigma=0.05, train_examples=4000)
    raw = config.load()
    x, y = raw.x_train.reshape(4000, 20), raw.y_train
    np.testing.assert_allclose(x[:, 0] - 0.5, 0.15 * (2 * y - 1), atol=1e-6)
    assert 0.45 < y.mean() < 0.55
    assert x[:, 1:].std() == pytest.approx(0.05, rel=0.02)
    assert abs(np.corrcoef(x[:, 1], y)[0, 1]) < 0.06
    assert raw.x_test.shape == (2000, 1, 1, 20)
    assert not np.array_equal(raw.x_test[:, 0, 0], x[:2000]), "test examples are others"


def test_spheres_have_their_radii_in_every_dimension():
    for dimension in (2, 50):
        raw = ConcentricSpheres(dimension=dimension, inner=0.2, outer=0.4).load()
        radii = np.linalg.norm(raw.x_train.reshape(5000, -1) - 0.5, axis=1)
        np.testing.assert_allclose(radii, np.where(raw.y_train == 1, 0.4, 0.2), atol=1e-5)
        assert np.abs(raw.x_train.mean(0) - 0.5).max() < 0.02
    with pytest.raises(ValidationError, match="outer is only"):
        ConcentricSpheres(inner=0.4, outer=0.3)


@pytest.mark.parametrize("kind", [LinearMargin, ConcentricSpheres])
def test_drawn_data_depend_on_their_seed_alone(kind):
    first, again, other = (kind(seed=seed).load() for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x_train, again.x_train)
    assert not np.array_equal(first.x_train, other.x_train)
    assert first.x_train.min() >= 0 and first.x_train.max() <= 1
    split = split_data(kind(val_size=100), first, torch.device("cpu"))
    assert split.std == (1.0,) and len(split.val) == 100
