"""Models: one architecture a file; normalisation is the first layer of each classifier."""

from typing import TYPE_CHECKING

from robustfront.models.base import MODELS, Classifier, ModelConfig, build_model
from robustfront.models.cnn7 import CNN7
from robustfront.models.coap_small import COAPSmall
from robustfront.models.conditioned import given
from robustfront.models.linear import Linear
from robustfront.models.mlp import MLP
from robustfront.models.preact_resnet18 import PreActResNet18
from robustfront.models.small_cnn import SmallCNN
from robustfront.models.wide_resnet import WideResNet

if TYPE_CHECKING:
    ModelField = ModelConfig
else:
    ModelField = MODELS.field()

__all__ = [
    "CNN7",
    "COAPSmall",
    "MLP",
    "MODELS",
    "Classifier",
    "Linear",
    "ModelConfig",
    "ModelField",
    "PreActResNet18",
    "SmallCNN",
    "WideResNet",
    "build_model",
    "given",
]
