"""Perturbation sets: what an adversary may do to an input."""

from robustfront.threats.balls import BALLS, Norm, PerturbationSet, Threat
from robustfront.threats.mixture import Mixture, TrainThreat
from robustfront.threats.radius import Eps, eps_text, parse_eps

__all__ = [
    "BALLS",
    "Eps",
    "Mixture",
    "Norm",
    "PerturbationSet",
    "Threat",
    "TrainThreat",
    "eps_text",
    "parse_eps",
]
