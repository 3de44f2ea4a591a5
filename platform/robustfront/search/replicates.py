"""Which configurations can be on the front, given that errors are measured on few examples and
with few seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from robustfront.search.pareto import non_dominated

Mistakes = npt.NDArray[np.bool_]  # (examples, objectives)

_DRAWS = 1000
_THRESHOLD = 0.05  # of the draws on whose front a configuration must be to matter


def membership(mistakes: Mapping[int, Sequence[Mistakes]]) -> dict[int, float]:
    """Probability that each configuration is on the front: its share of bootstrap draws.

    A draw takes examples with replacement, the same ones for all configurations, and for each
    configuration as many of its seeds as it has, with replacement. The draws are fixed by the
    shape of the table.

    Args:
        mistakes: of each configuration, for each of its seeds, which examples are errors in which
            objective, (examples, objectives); all on the same examples.
    """
    if not mistakes:
        return {}
    source = np.random.Generator(np.random.PCG64(0))
    examples = len(next(iter(mistakes.values()))[0])
    shares = np.full(examples, 1 / examples)
    weights = source.multinomial(examples, shares, size=_DRAWS) / examples
    drawn = [_drawn_errors(seeds, weights, source) for seeds in mistakes.values()]
    points = np.stack(drawn, axis=1)  # (draws, configurations, objectives)
    on_front = np.stack([non_dominated(draw) for draw in points])
    return dict(zip(mistakes, on_front.mean(axis=0).tolist(), strict=True))


def can_matter(mistakes: Mapping[int, Sequence[Mistakes]]) -> set[int]:
    """The configurations that are on the front in 5 % of the draws or more."""
    return {number for number, share in membership(mistakes).items() if share >= _THRESHOLD}


def _drawn_errors(
    seeds: Sequence[Mistakes], weights: npt.NDArray[np.float64], source: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Errors of one configuration in every draw, (draws, objectives)."""
    by_seed = np.stack([weights @ wrong.astype(float) for wrong in seeds])  # (seeds, draws, m)
    chosen = source.integers(len(seeds), size=(len(seeds), len(weights)))
    picked = np.take_along_axis(by_seed, chosen[:, :, None], axis=0)
    return np.asarray(picked.mean(axis=0), dtype=np.float64)
