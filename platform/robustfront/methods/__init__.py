"""Training methods: each one's objective on a batch."""

from typing import TYPE_CHECKING

from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, kl_divergence
from robustfront.methods.pgd_at import PGDAT
from robustfront.methods.standard import Standard
from robustfront.methods.trades import Trades

if TYPE_CHECKING:
    MethodField = Method
else:
    MethodField = METHODS.field()

__all__ = [
    "METHODS",
    "PGDAT",
    "LossTerms",
    "Method",
    "MethodField",
    "Standard",
    "StepContext",
    "Trades",
    "kl_divergence",
]
