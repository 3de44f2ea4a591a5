"""Certificates of smoothed classifiers: draws, counts, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

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
from robustfront.errors import ConfigError, SoundnessError, nearest
from robustfront.evaluation.records import ABSTAINED, UNDECIDED, Records
from robustfront.methods.noisy import Averaged
from robustfront.randomness import Noise, Rng, cell_middles, generator, seed_of, whole_normal
from robustfront.threats import Threat
from robustfront.threats.balls import size_of, step_in_l1, step_in_l2

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

AUDITED = 100  # examples whose certificates an attack tries
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
        ConfigError: a threat that so few draws cannot certify, where the noise is the same
            everywhere; no noise to certify with.
    """
    names = {f"{threat.name}/{certifier.name}": threat for threat in threats}
    with eval_mode(model), torch.no_grad():
        one, _ = split.batch(slice(0, 1))
        classes, dimension = int(model(one).shape[1]), one[0].numel()
        sigma = certifier.deviations(one, anchors)
        if problems := out_of_reach(certifier, float(sigma[0]), threats, dimension):
            raise ConfigError("certify.n", problems)
        state = _State.of(records, [*names], certifier, classes)
        waiting = np.flatnonzero(state.predictions == UNDECIDED)
        for first in range(0, len(waiting), _EXAMPLES):
            rows = waiting[first : first + _EXAMPLES]
            x, y = split.batch(torch.from_numpy(rows).to(split.y.device))
            sigma = certifier.deviations(x, anchors)
            draws = Draws(model, x, sigma, split.start + rows, certifier)
            found = certificates(draws, certifier, y.cpu().numpy(), threats, dimension)
            state.predictions[rows], state.radii[rows] = found.predictions, found.radii
            state.counts[rows], state.sigmas[rows] = found.draws, sigma
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
    sigmas: Floats
    certified: Mapping[str, npt.NDArray[np.int8]]

    @classmethod
    def of(
        cls, records: Records, names: Sequence[str], certifier: Smoothing, classes: int
    ) -> _State:
        n, verifier = len(records), certifier.name
        begun = records.smoothed.get(verifier, np.full(n, UNDECIDED, np.int64)).copy()
        return cls(
            begun,
            records.radii.get(f"{certifier.norm}/{verifier}", np.zeros(n)).copy(),
            records.draws.get(verifier, np.zeros((n, 2, classes), np.int64)).copy(),
            records.sigmas.get(verifier, np.zeros(n)).copy(),
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
            sigmas={**records.sigmas, verifier: self.sigmas},
        )


class Draws:
    """Classes of noisy copies of some examples; which ones depends on nothing but their keys.

    Args:
        x: (N, C, H, W).
        sigma: (N,).
        positions: of the examples in the whole set, (N,).

    Raises:
        ConfigError: there is a grid, and an image is not on it.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        sigma: Floats,
        positions: Counts,
        certifier: Smoothing,
    ) -> None:
        self.model, self.x, self.sigma, self.positions = model, x, sigma, positions
        self.certifier = certifier
        self.classes = int(model(x[:1]).shape[1])
        self._at_once = max(certifier.batch // _CHUNK, 1)
        if certifier.grid is not None:
            _require_on_grid(x, certifier.grid)

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
            said = self._classify(parts[0] if len(parts) == 1 else torch.cat(parts))
            places = torch.tensor(slots, device=said.device) * self.classes + said
            found += torch.bincount(places, minlength=len(found))
        counts: Counts = found.view(len(rows), self.classes).cpu().numpy()
        return counts

    def _classify(self, x: Tensor) -> Tensor:
        low = self.certifier.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            logits: Tensor = self.model(x)
        return logits.argmax(1)

    def _noisy(self, purpose: str, row: int, chunk: int) -> Tensor:
        """A fixed number of noisy copies of an example."""
        x, sigma = self.x[row], float(self.sigma[row])
        law, grid = self.certifier.law, self.certifier.grid
        source = generator(x.device, "smoothing", purpose, int(self.positions[row]), chunk)
        if grid is not None:
            whole = whole_normal((_CHUNK, *x.shape), sigma * grid, source)
            return ((x * grid).round().long() + whole) / grid
        noise = torch.empty((_CHUNK, *x.shape), device=x.device)
        if law == "splitting":
            return cell_middles(x, noise.uniform_(generator=source), sigma)
        if law == "uniform":
            return x + noise.uniform_(-1, 1, generator=source) * (3**0.5 * sigma)
        return torch.add(x, noise.normal_(generator=source), alpha=sigma)


def _require_on_grid(x: Tensor, grid: int) -> None:
    off = (x * grid - (x * grid).round()).abs().max() if len(x) else torch.zeros(())
    if off > 1e-3:
        problem = f"got {grid}, pixels that are no multiples of 1/{grid} are among the images"
        raise ConfigError("certify.grid", [problem])


@dataclass(frozen=True)
class Found:
    """What is said of each example, (N,) each.

    Args:
        predictions: of the smoothed classifier, ABSTAINED where it has none.
        radii: certified, 0 where it abstains.
        holds: whether the class holds within each threat.
        draws: how often each class came, as in the records, (N, 2, K).
    """

    predictions: Counts
    radii: Floats
    holds: Sequence[Flags]
    draws: Counts


def certificates(
    draws: Draws, certifier: Smoothing, y: Counts, threats: Sequence[Threat], dimension: int
) -> Found:
    """CERTIFY, in stages; an example is left alone once all that is asked of it is decided.

    With several looks an example whose chosen class is not its label y is left alone after the
    first: whatever more draws say, it is an error.
    """

    everyone, slack = np.arange(len(y)), certifier.slack(draws.sigma, dimension)
    selection = draws.counts(_SELECT, everyone, 0, certifier.n0)
    chosen, counts = selection.argmax(1), np.zeros_like(selection)
    looks = certifier.all_looks()
    alpha = certifier.alpha / len(looks)
    p_lower, left, before = np.zeros(len(y)), everyone, 0
    for look in looks:
        counts[left] += draws.counts(_ESTIMATE, left, before, look)
        successes, total = counts[left, chosen[left]], np.full(len(left), look)
        before = look
        # Every look is right with its share of alpha, so the best of them is with all of it.
        bound = lower_bounds(successes, total, alpha) - slack[left]
        p_lower[left] = np.maximum(p_lower[left], bound)
        most = np.minimum(upper_bounds(successes, total, alpha) + slack[left], 1)
        decided = (p_lower[left] > 0.5) | (most < 0.5)
        for threat in threats:
            hold = partial(_hold, certifier, draws.sigma[left], dimension, threat)
            decided &= hold(p_lower[left]) | ~hold(most)
        left = left[~decided & (chosen[left] == y[left])]
        if not len(left):
            break
    predictions, radii, holds = _said(certifier, draws.sigma, dimension, threats, chosen, p_lower)
    return Found(predictions, radii, holds, np.stack([selection, counts], axis=1))


def _hold(
    certifier: Smoothing, sigma: Floats, dimension: int, threat: Threat, p_lower: Floats
) -> Flags:
    radii = certifier.radii(p_lower, sigma, dimension, threat.norm)
    return np.asarray(radii >= float(threat.eps))


def _said(
    certifier: Smoothing,
    sigma: Floats,
    dimension: int,
    threats: Sequence[Threat],
    chosen: Counts,
    p_lower: Floats,
) -> tuple[Counts, Floats, list[Flags]]:
    """Predictions, radii, and whether each threat holds, from the bound of the chosen class."""
    sure = p_lower > 0.5
    radii = certifier.radii(p_lower, sigma, dimension, certifier.norm)
    holds = [sure & _hold(certifier, sigma, dimension, threat, p_lower) for threat in threats]
    return np.where(sure, chosen, ABSTAINED), np.where(sure, radii, 0.0), holds


def recertify(
    records: Records, x: Tensor, threat: str, certifier: Smoothing, anchors: Tensor | None = None
) -> Records:
    """Certificates by draws that are recorded: another alpha, fewer draws, another radius.

    Of n recorded draws, `certifier.n` are drawn without putting back, which is as good as fresh
    ones. With alpha / m in place of alpha all m certificates hold at once, with 1 - alpha.

    Args:
        records: with draws of this certifier.
        x: the images they are of, (N, C, H, W).
        threat: such as `l2:1/2`.
        anchors: training images, where the noise depends on them.

    Returns:
        The records with the certificates for this threat, predictions and radii; others that
        follow from these draws are gone.

    Raises:
        ConfigError: no such draws, fewer than asked for, or with another sigma; looks, which cannot
            be made again.
    """
    ball, name = Threat.parse(threat), certifier.name
    if name not in records.draws:
        raise ConfigError("certifier", [f"got {name!r}{nearest(name, [*records.draws])}"])
    asked, sigma = certifier.deviations(x, anchors), records.sigmas.get(name, np.zeros(len(x)))
    if not np.allclose(asked, sigma, rtol=1e-4, atol=0):
        problem = f"got {asked.mean():.4g} on average, the draws are with {sigma.mean():.4g}"
        raise ConfigError("certify.sigma", [problem])
    selection, counts = records.draws[name][:, 0], records.draws[name][:, 1]
    chosen, total = selection.argmax(1), counts.sum(1)
    if certifier.looks or (total < certifier.n).any():
        problem = f"got {certifier.n}, {total.min()} draws of each example are there, without looks"
        raise ConfigError("certify.n", [problem])
    own = counts[np.arange(len(counts)), chosen]
    source = np.random.default_rng(seed_of("smoothing", "recertify", certifier.n))
    successes = source.hypergeometric(own, total - own, certifier.n)
    p_lower = lower_bounds(successes, np.full(len(own), certifier.n), certifier.alpha)
    dimension = x[0].numel()
    p_lower = p_lower - certifier.slack(sigma, dimension)
    predictions, radii, (holds,) = _said(certifier, sigma, dimension, [ball], chosen, p_lower)
    others = {k: v for k, v in records.certified.items() if k.partition("/")[2] != name}
    proved = (holds & (predictions == records.label)).astype(np.int8)
    return replace(
        records,
        certified={**others, f"{ball.name}/{name}": proved},
        smoothed={**records.smoothed, name: predictions},
        radii={**records.radii, f"{certifier.norm}/{name}": radii},
    )


def predict(
    model: nn.Module, x: Tensor, sigma: Floats, certifier: Smoothing, key: int = 0
) -> Counts:
    """PREDICT: the smoothed class of each input, ABSTAINED where n draws leave it open, (N,).

    Guarantee: a class that is given is that of the ideal smoothed classifier with a probability of
    at least 1 - alpha.

    Args:
        sigma: (N,).
        certifier: its noise, n and alpha.

    Source: arXiv:1902.02918, PREDICT: a two-sided binomial test of the two most frequent classes.
    """
    with eval_mode(model), torch.no_grad():
        draws = Draws(model, x, sigma, np.arange(len(x)), certifier)
        counts = draws.counts(f"predict {key}", np.arange(len(x)), 0, certifier.n)
    first, second = np.sort(counts, axis=1)[:, -1], np.sort(counts, axis=1)[:, -2]
    p = 2 * stats.binom.sf(first - 1, first + second, 0.5)
    return np.asarray(np.where(p <= certifier.alpha, counts.argmax(1), ABSTAINED))


def audit(
    model: nn.Module,
    split: Split,
    certifier: Smoothing,
    records: Records,
    anchors: Tensor | None = None,
) -> int:
    """Attacks the smoothed classifier within its radii; how many classes change for sure.

    Each example that has a class is moved by PGD on the soft smoothed classifier (16 noises) to the
    edge of its certified ball, in l1 within [0, 1] too, where PREDICT looks with fresh noise. Both
    statements, that of the certificate and that of PREDICT, are wrong with a probability of alpha
    each, so some contradictions are chance.

    Raises:
        SoundnessError: more contradictions than chance allows (p < 1e-6).

    Source: arXiv:1906.04584, section 2.2, for the attack.
    """
    predictions = records.smoothed[certifier.name]
    radii = records.radii[f"{certifier.norm}/{certifier.name}"]
    rows = np.flatnonzero((predictions >= 0) & (radii > 0) & np.isfinite(radii))
    if not len(rows):
        return 0
    x, _ = split.batch(torch.from_numpy(rows).to(split.y.device))
    sigma = certifier.deviations(x, anchors)
    radius = torch.from_numpy(radii[rows]).to(x) * (1 - 1e-6)
    with eval_mode(model):
        classes = torch.from_numpy(predictions[rows]).to(x.device)
        moved = _moved(model, x, classes, radius, sigma, certifier.law)
        if certifier.grid is not None:
            # Towards x, so that it stays in the ball.
            moved = ((x * certifier.grid).round() + ((moved - x) * certifier.grid).trunc()) / (
                certifier.grid
            )
        # The noise belongs to where the input is now.
        there = certifier.deviations(moved, anchors)
        few = certifier.model_copy(update={"n": 1000})
        found = predict(model, moved, there, few, key=1)
    wrong = int(((found >= 0) & (found != predictions[rows])).sum())
    chance = stats.binom.sf(wrong - 1, len(rows), min(2 * certifier.alpha, 1))
    if chance < 1e-6:
        raise SoundnessError(
            f"{certifier.name}: an attack changes the class of {wrong} of {len(rows)} examples "
            f"within their certified radii; {2 * certifier.alpha * len(rows):.2g} would be chance"
        )
    return wrong


def _moved(
    model: nn.Module,
    x: Tensor,
    classes: Tensor,
    radius: Tensor,
    sigma: Floats,
    law: Noise,
    steps: int = 10,
) -> Tensor:
    """Inputs within a radius of each x at which the soft smoothed class is less sure.

    In l2 for Gaussian noise, otherwise in l1.
    """
    scale = torch.from_numpy(sigma).to(x)[:, None, None, None]
    size, moved = radius[:, None, None, None], x
    for _ in range(steps):
        # Where a pixel's cell stands for it, the gradient passes it by.
        noises = [
            Rng(("smoothing", "audit", number), block=len(x)).noise(moved, scale, law)
            for number in range(16)
        ]
        here = moved.detach().requires_grad_()
        with torch.enable_grad():
            loss = nn.functional.nll_loss(Averaged(model, noises)(here), classes, reduction="sum")
            (slope,) = torch.autograd.grad(loss, here)
        if law == "gaussian":
            delta = step_in_l2(moved, slope, 2.5 / steps * size) - x
            length = size_of(delta, "l2")[:, None, None, None]
            moved = x + delta * (size / length.clamp(min=1e-30)).clamp(max=1)
        else:
            moved = step_in_l1(moved, x, slope, radius[:, None], 2.5 / steps * size)
    return moved
