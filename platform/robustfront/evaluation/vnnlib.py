"""What complete verifiers read and write: ONNX, VNN-LIB, lists of instances, verdicts."""

from __future__ import annotations

import csv
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustfront.certifiers.relaxation import translated
from robustfront.errors import ConfigError, DataError, RobustfrontError
from robustfront.threats import Threat

# What verifiers call a property that holds (no counterexample), and one that does not.
_PROVED = {"unsat", "holds", "verified", "safe", "safe-incomplete", "safe-bab", "certified"}
_REFUTED = {"sat", "violated", "falsified", "unsafe", "unsafe-pgd", "unsafe-bab"}
_OPEN = {"unknown", "timeout", "error", "crash", "crashed", "out-of-memory", "run_instance_timeout"}

# As `instances.csv` has them, wherever the folder was.
_PROPERTY = re.compile(r"(?:.*[/\\])?(?P<threat>[^/\\]+)[/\\](?P<number>\d+)\.vnnlib(?:\.gz)?")

_TOLERANCE = 1e-4
_COMPARED = 100


def to_onnx(model: nn.Module, x: Tensor) -> bytes:
    """A model in eval mode as ONNX: images `X` (N, C, H, W) in [0, 1] to logits `Y`.

    Normalisation is a batch norm with fixed statistics, or part of a fully connected first layer:
    other operations before the first layer lead some verifiers to bounds that do not hold.

    Args:
        x: images on which the result is compared with the model.

    Raises:
        RobustfrontError: onnx or onnxruntime is missing, or the result computes something else.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        problem = "exports need onnx and onnxruntime: pip install onnx onnxruntime"
        raise RobustfrontError(problem) from None
    plain: Any = translated(model).cpu().eval()
    x = x[:_COMPARED].cpu()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        # The newer exporter's operator set is too new for most verifiers.
        warnings.simplefilter("ignore")
        file = Path(scratch) / "model.onnx"
        axes = {"X": {0: "N"}, "Y": {0: "N"}}
        torch.onnx.export(
            plain,
            (x[:1],),
            file,
            dynamo=False,
            opset_version=13,
            input_names=["X"],
            output_names=["Y"],
            dynamic_axes=axes,
        )
        weights = file.read_bytes()
    session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"X": x.numpy()})
    with torch.no_grad():
        ours = plain.double()(x.double()).numpy()
    difference = float(np.abs(theirs - ours).max())
    others = int((theirs.argmax(1) != ours.argmax(1)).sum())
    if difference > _TOLERANCE * (1 + float(np.abs(ours).max())) or others:
        problem = f"logits differ by {difference:.3g}, {others} of {len(x)} predictions"
        raise RobustfrontError(f"the exported model's {problem}")
    return weights


def specification(x: Tensor, label: int, classes: int, threat: Threat) -> str:
    """The counterexamples of one image (C, H, W) as VNN-LIB: allowed inputs of another class.

    Ends are computed in fp64 and rounded outwards.

    Raises:
        ConfigError: a threat that is no box, which VNN-LIB cannot say.
    """
    require_box(threat)
    exact = x.double()[None]
    low, high = (end.flatten().numpy() for end in threat.ends(exact))
    low = np.where(low < exact.flatten().numpy(), np.nextafter(low, -1), low).clip(0, 1)
    high = np.where(high > exact.flatten().numpy(), np.nextafter(high, 2), high).clip(0, 1)
    lines = [f"; {threat.name}, label {label}: unsat is a proof"]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(low))]
    lines += [f"(declare-const Y_{k} Real)" for k in range(classes)]
    lines += [
        f"(assert (<= X_{i} {_real(b)}))\n(assert (>= X_{i} {_real(a)}))"
        for i, (a, b) in enumerate(zip(low, high, strict=True))
    ]
    others = [f"(and (>= Y_{k} Y_{label}))" for k in range(classes) if k != label]
    lines.append(f"(assert (or {' '.join(others)}))")
    return "\n".join(lines) + "\n"


def require_box(threat: Threat) -> None:
    """Raise ConfigError unless a threat is a box."""
    if not threat.is_box:
        problem = f"{threat.name}: VNN-LIB has boxes only, such as linf"
        raise ConfigError("threat", [problem])


def _real(value: float) -> str:
    """A number that is read back as the same, without an exponent, which some parsers lack."""
    return np.format_float_positional(value, trim="0")


def instances(names: Iterable[str], timeout: float) -> str:
    """The list that verifiers work through: model, property, seconds."""
    return "".join(f"model.onnx,{name},{timeout:g}\n" for name in names)


def read_verdicts(path: Path, threat: str) -> dict[int, str]:
    """What a verifier says of each example: `proved`, `refuted` or `open`, by its number.

    Args:
        path: lines of cells, of which one ends in `<threat>/<number>.vnnlib` and one is a verdict,
            as VNN-COMP's and alpha-beta-CROWN's results.
        threat: the name of the one that is asked for; lines on others are passed over.

    Raises:
        DataError: no such file, a line without either, two verdicts on an example, or none within
            the threat.
    """
    try:
        rows = list(csv.reader(path.read_text().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    found: dict[int, str] = {}
    others: set[str] = set()
    for line, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        known = [match for cell in cells if (match := _PROPERTY.fullmatch(cell))]
        words = [kind for cell in cells if (kind := _kind(cell))]
        if not any(".vnnlib" in cell for cell in cells) and (line == 1 or not any(cells)):
            continue  # the heads of columns
        if len(known) != 1 or not words:
            problem = "not a property <threat>/<number>.vnnlib with a verdict"
            raise DataError(f"{path}:{line}: {problem}: {row}")
        if known[0]["threat"] != threat:
            others.add(known[0]["threat"])
        elif found.setdefault(int(known[0]["number"]), words[-1]) != words[-1]:
            raise DataError(f"{path}:{line}: another verdict on {known[0]['number']} than before")
    if not found:
        has = f" (only on {', '.join(sorted(others))})" if others else ""
        raise DataError(f"{path}: holds no verdict on {threat}{has}")
    return found


def _kind(cell: str) -> str:
    word = cell.lower()
    kinds: dict[str, Callable[[str], bool]] = {
        "proved": _PROVED.__contains__,
        "refuted": _REFUTED.__contains__,
        "open": _OPEN.__contains__,
    }
    return next((kind for kind, holds in kinds.items() if holds(word)), "")


def with_verdicts(
    known: npt.NDArray[np.int8], verdicts: dict[int, str], where: str
) -> npt.NDArray[np.int8]:
    """Certificates (1 proved, 0 not) with those of another verifier added.

    Raises:
        DataError: a number beyond the examples, or a refutation of what is proved.
    """
    wrong = [number for number in verdicts if number >= len(known)]
    if wrong:
        raise DataError(f"{where}: has example {wrong[0]}, there are {len(known)}")
    refuted = [n for n, verdict in verdicts.items() if verdict == "refuted" and known[n] == 1]
    if refuted:
        raise DataError(f"{where}: refutes example {refuted[0]}, which is proved here")
    found = np.asarray(known == 1, dtype=np.int8)
    found[[number for number, verdict in verdicts.items() if verdict == "proved"]] = 1
    return found
