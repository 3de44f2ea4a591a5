"""Certificates of smoothed classifiers: draws, counts, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from robustfront.attacks import eval_mode
from robustfront.certifiers.smoothing import (
    Smoothing,
    lower_bounds,
    out_of_reach,
    upper_bounds,
)
from robustfront.data import Split
from robustfront.errors import ConfigError, SoundnessError
from robustfront.evaluation.records import ABSTAINED, UNDECIDED, Records
from robustfront.methods.noisy import Averaged
from robustfront.randomness import Noise, generator
from robustfront.threats import Threat

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_CHUNK = 100  # draws from one generator
_EXAMPLES = 100  # between two reports
_SELECT, _ESTIMATE = "select", "estimate"


def smoothing(
    model: nn.Module,
    split: Split,
    threats: Sequence[Threat],
    certifier: Smoothing,
    records: Records,
    anchors: Tensor | None = None,
    save: Callable[[Records], None] = lambda records: None,
) -> Iterator[tuple[float, Records]]:
    """Certificates of the smoothed classifier, and the share that is done after each batch.

    Args:
        records: of this model on this split; goes on where its certificates end.
        anchors: training images, where the noise depends on them.
        save: is given the records after each batch.

    Raises:
        ConfigError: a threat that so few draws cannot certify; no noise to certify with.
    """
    names = {f"{threat.name}/{certifier.name}": threat for threat in threats}
    state = _State.of(records, [*names], certifier)
    waiting = np.flatnonzero(state.predictions == UNDECIDED)
    with eval_mode(model), torch.no_grad():
        for first in range(0, len(waiting), _EXAMPLES):
            rows = waiting[first : first + _EXAMPLES]
            x, y = split.batch(torch.from_numpy(rows).to(split.y.device))
            sigma = certifier.deviations(x, anchors)
            dimension = x[0].numel()
            if problems := out_of_reach(certifier, float(sigma.max()), threats, dimension):
                raise ConfigError("certify.n", problems)
            law, positions = certifier.noise, split.start + rows
            draws = Draws(model, x, sigma, positions, certifier.batch, law)
            found = certificates(draws, certifier, y.cpu().numpy(), threats, dimension)
            state.predictions[rows], state.radii[rows] = found.predictions, found.radii
            state.counts[rows] = np.stack([found.successes, found.draws], axis=1)
            right = found.predictions == y.cpu().numpy()
            for (name, _), holds in zip(names.items(), found.holds, strict=True):
                state.certified[name][rows] = right & holds
            records = state.added_to(records, certifier)
            save(records)
            yield float((state.predictions != UNDECIDED).mean()), records
    yield 1.0, state.added_to(records, certifier)


@dataclass(frozen=True)
class _State:
    """What is known so far of each example."""

    predictions: Counts
    radii: Floats
    counts: Counts
    certified: Mapping[str, npt.NDArray[np.int8]]

    @classmethod
    def of(cls, records: Records, names: Sequence[str], certifier: Smoothing) -> _State:
        n, verifier = len(records), certifier.name
        begun = records.smoothed.get(verifier, np.full(n, UNDECIDED, np.int64)).copy()
        return cls(
            begun,
            records.radii.get(f"{certifier.norm}/{verifier}", np.zeros(n)).copy(),
            records.draws.get(verifier, np.zeros((n, 2), np.int64)).copy(),
            {
                name: records.certified.get(name, np.full(n, UNDECIDED, np.int8)).copy()
                for name in names
            },
        )

    def added_to(self, records: Records, certifier: Smoothing) -> Records:
        verifier = certifier.name
        return replace(
            records,
            certified={**records.certified, **self.certified},
            smoothed={**records.smoothed, verifier: self.predictions},
            radii={**records.radii, f"{certifier.norm}/{verifier}": self.radii},
            draws={**records.draws, verifier: self.counts},
        )


class Draws:
    """Classes of noisy copies of some examples; which ones depends on nothing but their keys.

    Args:
        x: (N, C, H, W).
        sigma: (N,).
        positions: of the examples in the whole set, (N,).
        batch: noisy images at once.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        sigma: Floats,
        positions: Counts,
        batch: int,
        law: Noise = "gaussian",
    ) -> None:
        self.model, self.x, self.sigma, self.positions = model, x, sigma, positions
        self.law = law
        self.classes = int(model(x[:1]).shape[1])
        self._at_once = max(batch // _CHUNK, 1)

    def counts(self, purpose: str, rows: Counts, first: int, end: int) -> Counts:
        """How often each class comes in the draws from `first` to `end`, (rows, K)."""
        tasks = [
            (slot, chunk, max(first - chunk * _CHUNK, 0), min(end - chunk * _CHUNK, _CHUNK))
            for slot in range(len(rows))
            for chunk in range(first // _CHUNK, -(-end // _CHUNK))
        ]
        found = torch.zeros(len(rows) * self.classes, dtype=torch.int64, device=self.x.device)
        for at in range(0, len(tasks), self._at_once):
            parts, slots = [], []
            for slot, chunk, start, stop in tasks[at : at + self._at_once]:
                parts.append(self._noisy(purpose, int(rows[slot]), chunk)[start:stop])
                slots += [slot] * (stop - start)
            said = self.model(parts[0] if len(parts) == 1 else torch.cat(parts)).argmax(1)
            places = torch.tensor(slots, device=said.device) * self.classes + said
            found += torch.bincount(places, minlength=len(found))
        counts: Counts = found.view(len(rows), self.classes).cpu().numpy()
        return counts

    def _noisy(self, purpose: str, row: int, chunk: int) -> Tensor:
        """A fixed number of noisy copies of an example."""
        x = self.x[row]
        source = generator(x.device, "smoothing", purpose, int(self.positions[row]), chunk)
        noise, sigma = torch.empty((_CHUNK, *x.shape), device=x.device), float(self.sigma[row])
        if self.law == "uniform":
            return x + noise.uniform_(-1, 1, generator=source) * (3**0.5 * sigma)
        return torch.add(x, noise.normal_(generator=source), alpha=sigma)


@dataclass(frozen=True)
class Found:
    """What is said of each example, (N,) each.

    Args:
        predictions: of the smoothed classifier, ABSTAINED where it has none.
        radii: certified, 0 where it abstains.
        holds: whether the class holds within each threat.
        successes, draws: how often the chosen class came, of how many.
    """

    predictions: Counts
    radii: Floats
    holds: Sequence[Flags]
    successes: Counts
    draws: Counts


def certificates(
    draws: Draws, certifier: Smoothing, y: Counts, threats: Sequence[Threat], dimension: int
) -> Found:
    """CERTIFY, in stages; an example is left alone once all that is asked of it is decided.

    With several looks an example whose chosen class is not its label y is left alone after the
    first: whatever more draws say, it is an error.
    """

    def hold(p: Floats, rows: Counts, threat: Threat) -> Flags:
        radii = certifier.radii(p, draws.sigma[rows], dimension, threat.norm)
        return np.asarray(radii >= float(threat.eps))

    everyone = np.arange(len(y))
    chosen = draws.counts(_SELECT, everyone, 0, certifier.n0).argmax(1)
    looks = certifier.all_looks()
    alpha = certifier.alpha / len(looks)
    successes, total = np.zeros(len(y), np.int64), np.zeros(len(y), np.int64)
    p_lower, left, before = np.zeros(len(y)), everyone, 0
    for look in looks:
        counts = draws.counts(_ESTIMATE, left, before, look)
        successes[left] += counts[np.arange(len(left)), chosen[left]]
        total[left], before = look, look
        # Every look is right with its share of alpha, so the best of them is with all of it.
        bound = lower_bounds(successes[left], total[left], alpha)
        p_lower[left] = np.maximum(p_lower[left], bound)
        most = upper_bounds(successes[left], total[left], alpha)
        decided = (p_lower[left] > 0.5) | (most < 0.5)
        for threat in threats:
            decided &= hold(p_lower[left], left, threat) | ~hold(most, left, threat)
        left = left[~decided & (chosen[left] == y[left])]
        if not len(left):
            break
    radii = certifier.radii(p_lower, draws.sigma, dimension, certifier.norm)
    predictions = np.where(p_lower > 0.5, chosen, ABSTAINED)
    holds = [(p_lower > 0.5) & hold(p_lower, everyone, threat) for threat in threats]
    return Found(predictions, np.where(p_lower > 0.5, radii, 0.0), holds, successes, total)


def predict(
    model: nn.Module, x: Tensor, sigma: float | Floats, n: int, alpha: float, key: int = 0
) -> Counts:
    """PREDICT: the smoothed class of each input, ABSTAINED where n draws leave it open, (N,).

    Guarantee: a class that is given is that of the ideal smoothed classifier with a probability of
    at least 1 - alpha.

    Source: arXiv:1902.02918, PREDICT: a two-sided binomial test of the two most frequent classes.
    """
    with eval_mode(model), torch.no_grad():
        noise = np.broadcast_to(np.asarray(sigma, np.float64), len(x))
        draws = Draws(model, x, noise, np.arange(len(x)), 1000)
        counts = draws.counts(f"predict {key}", np.arange(len(x)), 0, n)
    first, second = np.sort(counts, axis=1)[:, -1], np.sort(counts, axis=1)[:, -2]
    p = 2 * stats.binom.sf(first - 1, first + second, 0.5)
    return np.asarray(np.where(p <= alpha, counts.argmax(1), ABSTAINED))


def audit(
    model: nn.Module,
    split: Split,
    certifier: Smoothing,
    records: Records,
    anchors: Tensor | None = None,
) -> int:
    """Attacks the smoothed classifier within its l2 radii; how many classes change for sure.

    Each example that has a class is moved by PGD on the soft smoothed classifier (16 noises) to the
    edge of its certified ball, where PREDICT looks with fresh noise. Both statements, that of the
    certificate and that of PREDICT, are wrong with a probability of alpha each, so some
    contradictions are chance.

    Raises:
        SoundnessError: more contradictions than chance allows (p < 1e-6).

    Source: arXiv:1906.04584, section 2.2, for the attack.
    """
    if certifier.norm != "l2":
        return 0
    predictions, radii = records.smoothed[certifier.name], records.radii[f"l2/{certifier.name}"]
    rows = np.flatnonzero((predictions >= 0) & (radii > 0) & np.isfinite(radii))
    if not len(rows):
        return 0
    x, _ = split.batch(torch.from_numpy(rows).to(split.y.device))
    sigma = certifier.deviations(x, anchors)
    radius = torch.from_numpy(radii[rows]).to(x) * (1 - 1e-6)
    with eval_mode(model):
        moved = _moved(model, x, torch.from_numpy(predictions[rows]).to(x.device), radius, sigma)
        # The noise belongs to where the input is now.
        there = certifier.deviations(moved, anchors)
        found = predict(model, moved, there, 1000, certifier.alpha, key=1)
    wrong = int(((found >= 0) & (found != predictions[rows])).sum())
    chance = stats.binom.sf(wrong - 1, len(rows), min(2 * certifier.alpha, 1))
    if chance < 1e-6:
        raise SoundnessError(
            f"{certifier.name}: an attack changes the class of {wrong} of {len(rows)} examples "
            f"within their certified radii; {2 * certifier.alpha * len(rows):.2g} would be chance"
        )
    return wrong


def _moved(
    model: nn.Module, x: Tensor, classes: Tensor, radius: Tensor, sigma: Floats, steps: int = 10
) -> Tensor:
    """Inputs within an l2 radius of each x at which the soft smoothed class is less sure."""
    scale = torch.from_numpy(sigma).to(x)[:, None, None, None]
    noises = [
        scale * torch.empty_like(x).normal_(generator=generator(x.device, "smoothing", "audit", i))
        for i in range(16)
    ]
    averaged, moved = Averaged(model, noises), x.clone()
    size = radius[:, None, None, None]
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            loss = nn.functional.nll_loss(averaged(moved), classes, reduction="sum")
            (slope,) = torch.autograd.grad(loss, moved)
        norms = torch.linalg.vector_norm(slope.flatten(1), dim=1)[:, None, None, None]
        delta = moved.detach() + 2.5 / steps * size * slope / norms.clamp(min=1e-30) - x
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1)[:, None, None, None]
        moved = x + delta * (size / length.clamp(min=1e-30)).clamp(max=1)
    return moved.detach()
