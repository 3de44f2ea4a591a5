"""Models: their size, their logits, and the normalisation that is part of them."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from robustfront.errors import ConfigError
from robustfront.models import (
    CNN7,
    MLP,
    MODELS,
    COAPSmall,
    Linear,
    ModelConfig,
    PreActResNet18,
    SmallCNN,
    WideResNet,
    build_model,
)
from robustfront.models.base import Classifier
from robustfront.models.preact_resnet18 import PreActBlock

MNIST, CIFAR, TINY = (1, 28, 28), (3, 32, 32), (2, 16, 20)
SMALL = [
    Linear(),
    MLP(hidden=(8, 6)),
    SmallCNN(),
    COAPSmall(),
    CNN7(width=2),
    PreActResNet18(),
    WideResNet(depth=10, width=1),
]


def built(config: ModelConfig, shape: tuple[int, int, int], classes: int = 10) -> Classifier:
    channels = shape[0]
    mean = [0.1 * (c + 1) for c in range(channels)]
    std = [0.2 * (c + 1) for c in range(channels)]
    return build_model(config, shape, classes, mean, std)


def images(shape: tuple[int, int, int], n: int = 3) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def test_every_model_is_tried_here():
    assert len(MODELS.classes) >= 6
    assert {type(config) for config in SMALL} == set(MODELS.classes.values())


@pytest.mark.parametrize(
    ("config", "shape", "count"),
    [
        (Linear(), MNIST, 7_850),
        (Linear(), CIFAR, 30_730),
        (MLP(), MNIST, 269_322),
        (MLP(hidden=()), MNIST, 784 * 10 + 10),
        (SmallCNN(), MNIST, 312_202),
        (COAPSmall(), MNIST, 166_406),
        (CNN7(), CIFAR, 17_192_650),
        (CNN7(), MNIST, 13_259_338),
        (PreActResNet18(), CIFAR, 11_172_170),
        (PreActResNet18(), MNIST, 11_171_018),
        (WideResNet(), CIFAR, 36_479_194),
        (WideResNet(depth=34), CIFAR, 46_160_474),
    ],
    ids=repr,
)
def test_parameter_count_is_the_published_one(config, shape, count):
    with torch.device("meta"):
        stem, body = config.build(shape, 10)
    assert sum(p.numel() for part in (stem, body) for p in part.parameters()) == count


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.type)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_logits_have_a_row_per_image_and_gradients_reach_everything(config, memory_format):
    model = built(config, TINY, classes=7).to(memory_format=memory_format)
    logits = model(images(TINY).to(memory_format=memory_format))
    assert logits.shape == (3, 7) and logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.type)
def test_memory_format_does_not_change_the_logits(config):
    model = built(config, TINY).eval()
    _give_the_last_layer_weights(model)
    x = images(TINY)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    actual = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.type)
def test_normalisation_is_inside(config):
    model = built(config, TINY).eval()
    _give_the_last_layer_weights(model)
    x = images(TINY)
    normalised = torch.stack(
        [(x[:, c] - 0.1 * (c + 1)) / (0.2 * (c + 1)) for c in range(TINY[0])], dim=1
    )
    expected = model.body(model.stem(normalised))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(x), model.body(model.stem(x)), rtol=0.05)


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.type)
def test_weights_depend_on_the_global_seed_alone(config):
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in built(config, TINY).parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.type)
def test_stem_sees_float32_and_body_the_callers_autocast(config):
    model = built(config, TINY)
    seen = {}
    first = next(m for m in model.stem.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    first.register_forward_hook(lambda _, args, out: seen.update(stem=(args[0].dtype, out.dtype)))
    for layer in model.body.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda _, args, out: seen.update(body=out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(TINY))
    assert seen["stem"] == (torch.float32, torch.float32)
    assert seen.get("body", torch.bfloat16) == torch.bfloat16
    assert logits.dtype == torch.float32


def test_a_step_of_one_pixel_level_survives_autocast():
    # in bfloat16 both images would round to the same value
    model = built(Linear(), MNIST)
    x = torch.full((1, *MNIST), 0.997)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(model(x), model(x + 0.0005))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 15)])
def test_images_too_small_are_refused_with_model_and_shape(shape):
    with pytest.raises(ConfigError) as error:
        built(SmallCNN(), shape)
    assert "small_cnn needs images of 16x16 pixels or more" in str(error.value)
    assert f"these are {shape[1]}x{shape[2]}" in str(error.value)


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.type)
def test_smallest_images_work_and_odd_sizes_too(config):
    least = config.smallest
    for shape in ((1, least, least), (1, least + 3, least + 2)):
        assert built(config, shape)(images(shape)).shape == (3, 10)


def test_small_cnn_starts_undecided():
    assert torch.equal(built(SmallCNN(), MNIST)(images(MNIST)), torch.zeros(3, 10))


def test_dropout_acts_in_train_mode_only():
    model = built(SmallCNN(), MNIST)
    _give_the_last_layer_weights(model)
    x = images(MNIST)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (4, 2), (6, 1)])
def test_residual_block_is_that_of_the_paper(outputs, stride):
    block = PreActBlock(4, outputs, stride).eval()
    x = torch.randn(2, 4, 6, 6)
    batch_norm, *_ = block.activation
    batch_norm.running_mean.normal_()
    active = torch.relu((x - batch_norm.running_mean.view(1, 4, 1, 1)) / (1 + 1e-5) ** 0.5)
    first, _, _, second = block.rest
    hidden = F.conv2d(active, first.weight, stride=stride, padding=1)
    rest = F.conv2d(torch.relu(hidden / (1 + 1e-5) ** 0.5), second.weight, padding=1)
    if (outputs, stride) == (4, 1):
        shortcut = x
    else:
        shortcut = F.conv2d(active, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(x), shortcut + rest)


def test_convolutions_of_wide_resnet_follow_he_on_the_fan_out():
    stem, body = WideResNet(depth=10, width=8).build(CIFAR, 10)
    for conv in (m for m in body.modules() if isinstance(m, nn.Conv2d)):
        fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert all(torch.all(m.bias == 0) for m in body.modules() if isinstance(m, nn.Linear))
    assert isinstance(stem, nn.Conv2d)


@pytest.mark.parametrize("depth", [27, 4, -2, 30])
def test_depth_of_a_wide_resnet_is_six_n_plus_four(depth):
    with pytest.raises(ValidationError, match=rf"a depth is 6 n \+ 4 .*, got {depth}"):
        WideResNet(depth=depth)


def _give_the_last_layer_weights(model: Classifier) -> None:
    """SmallCNN starts at zero logits, which would hide every difference."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    nn.init.normal_(layers[-1].weight, generator=torch.Generator().manual_seed(1))
