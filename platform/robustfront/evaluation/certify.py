"""Certificates for a set of examples, and bounds on a classifier's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustfront.attacks import eval_mode
from robustfront.certifiers import Certifier, CertifierField, Smoothing, proven
from robustfront.certifiers.propagation import box_between, margins_of, propagate
from robustfront.data import Split
from robustfront.errors import ConfigError, DataError
from robustfront.evaluation.evaluate import channels_last, full_precision, plain_predictions
from robustfront.evaluation.records import UNDECIDED, Records
from robustfront.evaluation.smoothing import smoothing
from robustfront.problems import configured
from robustfront.threats import Threat
from robustfront.unseen import Unseen

_BATCH = 100


def certifying(
    model: nn.Module,
    split: Split,
    threats: Sequence[Threat],
    certifier: Certifier,
    records: Records,
    save: Callable[[Records], None] = lambda records: None,
    anchors: Tensor | None = None,
) -> Iterator[tuple[float, Records]]:
    """Certificates for the examples of a split, and the share that is done after each batch.

    Examples that are wrong plainly or under an attack within the threat, by the records, need none.

    Args:
        records: of this model on this split; goes on where its certificates end.
        save: is given the records after each batch.
        anchors: training images, for noise that depends on them.

    Raises:
        ConfigError: a threat or model that the certifier cannot handle.
    """
    names = {f"{threat.name}/{certifier.name}": threat for threat in threats}
    _refuse_others(certifier, threats)
    if isinstance(certifier, Smoothing):
        yield from smoothing(model, split, threats, certifier, records, anchors, save)
        return
    with eval_mode(model):
        lower = certifier.prepare(model)

        def prove(name: str, x: Tensor, y: Tensor) -> Tensor:
            rule = margins_of(y, plain_logits(model, x).shape[1])
            return proven(lower(x, names[name], rule))

        yield from _batch_by_batch(split, list(names), prove, records, save)


def certifying_changes(
    model: nn.Module,
    split: Split,
    unseen: Sequence[Unseen],
    records: Records,
    save: Callable[[Records], None] = lambda records: None,
) -> Iterator[tuple[float, Records]]:
    """The same within perturbations that are certifiable, box by box.

    An example is proved if it is in each of the boxes that hold its changed images: by interval
    bounds, or by linear bounds over them where the model's layers can be passed backward.

    Raises:
        ConfigError: a layer that cannot be bounded.
    """
    prover, verifier = box_prover(model, split)
    names = {f"{one.name.partition('/')[0]}/{verifier}": one for one in unseen}

    def prove(name: str, x: Tensor, y: Tensor) -> Tensor:
        return _proven_in_boxes(model, x, y, names[name], prover)

    with eval_mode(model):
        yield from _batch_by_batch(split, list(names), prove, records, save)


def _batch_by_batch(
    split: Split,
    names: Sequence[str],
    prove: Callable[[str, Tensor, Tensor], Tensor],
    records: Records,
    save: Callable[[Records], None],
) -> Iterator[tuple[float, Records]]:
    """The records with what is proved, and the share that is done, after each batch.

    Args:
        names: of the certificates, `<threat>/<certifier>`.
        prove: which of some examples are proved under a name, (N,) bool.
    """
    known = {name: _begun(records, name, name.partition("/")[0]) for name in names}
    total = max(sum(len(found) for found in known.values()), 1)
    for name in names:
        waiting = np.flatnonzero(known[name] == UNDECIDED)
        for first in range(0, len(waiting), _BATCH):
            rows = waiting[first : first + _BATCH]
            x, y = split.batch(torch.from_numpy(rows).to(split.y.device))
            known[name][rows] = prove(name, x, y).cpu().numpy()
            records = replace(records, certified={**records.certified, **known})
            save(records)
            done = sum(int((found != UNDECIDED).sum()) for found in known.values())
            yield done / total, records
    yield 1.0, replace(records, certified={**records.certified, **known})


Prover = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def box_prover(model: nn.Module, split: Split) -> tuple[Prover, str]:
    """What proves specifications in boxes, and how metrics call it."""
    x, _ = split.batch(slice(0, 1))
    with eval_mode(model), torch.no_grad():
        try:
            propagate(model, [box_between(x, x)], trace=True)
        except ConfigError:
            propagate(model, [box_between(x, x)])
            return _by_intervals, "ibp"
    return _by_lines, "ibp-crown_ibp"


def _by_intervals(model: nn.Module, low: Tensor, high: Tensor, rule: Tensor) -> Tensor:
    return proven(propagate(model, [box_between(low, high)]).lower(rule))


def _by_lines(model: nn.Module, low: Tensor, high: Tensor, rule: Tensor) -> Tensor:
    """Intervals first; lines only for what these leave open."""
    found = _by_intervals(model, low, high, rule)
    rows = (~found).nonzero()[:, 0]
    if len(rows):
        known = propagate(model, [box_between(low[rows], high[rows])], trace=True)
        found[rows] = proven(known.backward(rule[rows]))
    return found


@torch.no_grad()
def _proven_in_boxes(
    model: nn.Module, x: Tensor, y: Tensor, unseen: Unseen, prove: Prover
) -> Tensor:
    """Which examples are proved right in all of their boxes, (N,)."""
    logits = model(x)
    left = (logits.argmax(1) == y).nonzero()[:, 0]
    rule = margins_of(y, logits.shape[1])
    for low, high in unseen.boxes(x):
        if not len(left):
            break
        left = left[prove(model, low[left], high[left], rule[left])]
    found = torch.zeros_like(y, dtype=torch.bool)
    found[left] = True
    return found


def certified(
    model: nn.Module,
    split: Split,
    threats: Sequence[Threat],
    certifier: Certifier,
    records: Records,
    anchors: Tensor | None = None,
) -> Records:
    """The records with certificates for all examples; arguments and errors as `certifying`."""
    for _, found in certifying(model, split, threats, certifier, records, anchors=anchors):
        records = found
    return records


def anchors_for(certifier: Certifier, train: Split) -> Tensor | None:
    """The training images, where noise depends on them."""
    if not isinstance(certifier, Smoothing) or not certifier.needs_anchors:
        return None
    return train.batch(slice(0, len(train)))[0]


def plain_logits(model: nn.Module, x: Tensor) -> Tensor:
    """(N, K)."""
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def _begun(records: Records, name: str, threat: str) -> np.ndarray:
    """What is known of each example before anything is computed."""
    found = records.certified.get(name)
    begun = np.full(len(records), UNDECIDED, np.int8) if found is None else found.copy()
    begun[records.union([n for n in records.attacked if n.startswith(f"{threat}/")])] = 0
    return begun


def _refuse_others(certifier: Certifier, threats: Sequence[Threat]) -> None:
    wrong = [threat.name for threat in threats if threat.norm not in certifier.norms]
    if wrong:
        allowed = ", ".join(certifier.norms)
        raise ConfigError(
            "certifier",
            [f"{certifier.name} has no certificate for {name} (has: {allowed})" for name in wrong],
        )


def _certifier(given: str | Mapping[str, Any] | Certifier, where: str) -> Certifier:
    if isinstance(given, Certifier):
        return given
    certifier: Certifier = configured(CertifierField, given, where)
    return certifier


def _threat(text: str) -> Threat:
    try:
        return Threat.parse(text)
    except ValueError as error:
        raise ConfigError("threat", [str(error)]) from None


def _require_images(x: Tensor) -> None:
    if x.dim() != 4 or not len(x) or not bool(((x >= 0) & (x <= 1)).all()):
        raise DataError(f"x (N, C, H, W) in [0, 1] is expected, got {tuple(x.shape)}")


def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: str | Unseen,
    certifier: str | Mapping[str, Any] | Certifier = "cascade",
    anchors: Tensor | None = None,
) -> Records:
    """Which examples are proved right and robust; `errors("test")` of the result sums it up.

    Args:
        model: logits (N, K) from inputs in [0, 1]; put into eval mode meanwhile.
        x: (N, C, H, W) float32 in [0, 1], on the model's device.
        y: (N,) int64.
        threat: such as `linf:1/10`; or a perturbation that is certifiable, such as
            `robustfront.unseen.Patch(size=3)`, which has a certifier of its own.
        certifier: or its name (then with its defaults), or its settings as in a job file.
        anchors: training images like x, which `input_dependent` measures distances to.

    Raises:
        ConfigError: a threat or certifier that does not exist; a layer that cannot be bounded; no
            anchors for a certifier that needs them.
        DataError: inputs outside [0, 1] or of the wrong shape.
    """
    _require_images(x)
    if anchors is not None:
        _require_images(anchors)
        if anchors.shape[1:] != x.shape[1:]:
            shapes = f"{tuple(anchors.shape[1:])} and {tuple(x.shape[1:])}"
            raise DataError(f"anchors are images like x, got {shapes}")
    if len(x) != len(y):
        raise DataError(f"x and y are of the same length, got {len(x)} and {len(y)}")
    split = Split(x, y, 1.0)
    if isinstance(threat, Unseen) and not threat.certifiable:
        raise ConfigError("threat", [f"{threat.name.partition('/')[0]} has no certificate"])
    with channels_last(model), full_precision():
        records = Records(y.cpu().numpy(), plain_predictions(model, split))
        if isinstance(threat, Unseen):
            for _, found in certifying_changes(model, split, [threat], records):
                records = found
            return records
        prover = _certifier(certifier, "certifier")
        return certified(model, split, [_threat(threat)], prover, records, anchors)


def bounds(
    model: nn.Module,
    x: Tensor,
    threat: str,
    method: str | Mapping[str, Any] | Certifier = "ibp",
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (N, K) of the logits over all inputs that a threat allows.

    Args:
        model: logits (N, K) from inputs in [0, 1]; put into eval mode meanwhile.
        x: (N, C, H, W) float32 in [0, 1], on the model's device.
        threat: such as `l2:0.5`.
        method: a certifier, its name, or its settings as in a job file.

    Raises:
        ConfigError: a threat or certifier that does not exist; a layer that cannot be bounded.
        DataError: inputs outside [0, 1] or of the wrong shape.
    """
    _require_images(x)
    ball, certifier = _threat(threat), _certifier(method, "method")
    _refuse_others(certifier, [ball])
    with eval_mode(model), full_precision():
        classes = plain_logits(model, x[:1]).shape[1]
        each = torch.eye(classes, device=x.device).expand(len(x), -1, -1)
        found = certifier.prepare(model)(x, ball, torch.cat([each, -each], dim=1))
    lower, upper = found.chunk(2, dim=1)
    return lower, -upper
