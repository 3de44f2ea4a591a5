"""Certificates: proofs, and statements with a known risk, that no allowed input changes a class."""

from typing import TYPE_CHECKING

from robustfront.certifiers.alpha_crown import AlphaCROWN
from robustfront.certifiers.base import CERTIFIERS, Certifier, Lower, proven
from robustfront.certifiers.cascade import Cascade
from robustfront.certifiers.crown import CROWN
from robustfront.certifiers.crown_ibp import CROWNIBP
from robustfront.certifiers.ibp import IBP
from robustfront.certifiers.input_dependent import InputDependent
from robustfront.certifiers.smoothing import Smoothing

if TYPE_CHECKING:
    CertifierField = Certifier
else:
    CertifierField = CERTIFIERS.field()

__all__ = [
    "CERTIFIERS",
    "CROWN",
    "CROWNIBP",
    "IBP",
    "AlphaCROWN",
    "Cascade",
    "Certifier",
    "CertifierField",
    "InputDependent",
    "Lower",
    "Smoothing",
    "proven",
]
