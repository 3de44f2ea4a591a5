"""Training methods: each one's objective on a batch."""

from typing import TYPE_CHECKING

from robustfront.methods.alp import ALP
from robustfront.methods.avg_at import AvgAT
from robustfront.methods.base import METHODS, LossTerms, Method, StepContext, kl_divergence
from robustfront.methods.cc_ibp import CCIBP
from robustfront.methods.clp import CLP
from robustfront.methods.clp_noise import CLPNoise
from robustfront.methods.coap import COAP
from robustfront.methods.consistency import Consistency
from robustfront.methods.crown_ibp import CROWNIBPTraining
from robustfront.methods.cure import CURE
from robustfront.methods.dale import DALE
from robustfront.methods.e_at import EAT
from robustfront.methods.exp_ibp import ExpIBP
from robustfront.methods.fast_at import FastAT
from robustfront.methods.ibp import IBPTraining
from robustfront.methods.macer import MACER
from robustfront.methods.mart import MART
from robustfront.methods.max_at import MaxAT
from robustfront.methods.msd import MSD
from robustfront.methods.mtl_ibp import MTLIBP
from robustfront.methods.oat import OAT
from robustfront.methods.pgd_at import PGDAT
from robustfront.methods.ramp import RAMP
from robustfront.methods.sabr import SABR
from robustfront.methods.smooth_adv import SmoothAdv
from robustfront.methods.standard import Standard
from robustfront.methods.trades import Trades
from robustfront.methods.trades_hinge import TradesHinge

if TYPE_CHECKING:
    MethodField = Method
else:
    MethodField = METHODS.field()

__all__ = [
    "MACER",
    "Consistency",
    "SmoothAdv",
    "COAP",
    "ALP",
    "CCIBP",
    "CROWNIBPTraining",
    "CURE",
    "ExpIBP",
    "IBPTraining",
    "MTLIBP",
    "SABR",
    "CLP",
    "DALE",
    "EAT",
    "MART",
    "METHODS",
    "MSD",
    "OAT",
    "PGDAT",
    "AvgAT",
    "CLPNoise",
    "FastAT",
    "MaxAT",
    "RAMP",
    "LossTerms",
    "Method",
    "MethodField",
    "Standard",
    "StepContext",
    "Trades",
    "TradesHinge",
    "kl_divergence",
]
