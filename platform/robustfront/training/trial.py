"""One trial in its folder: it goes on from what it finds there, and leaves what others need.

config.json                    all values, resolved
report.jsonl                   one line an epoch
records.npz                    predictions of the selected model on the validation split
test-<attack>.npz              the same on the test split, once they are asked for
test-certified.npz             what is proved of each example of the test split
test-unseen.npz                the same under perturbations that nobody trained against
test-unseen-certified.npz      what is proved within those of them that can be certified
checkpoint/config.json         the same as above: this folder alone rebuilds the model
checkpoint/last.safetensors    weights after the last epoch
checkpoint/best.safetensors    weights of the epoch with the lowest robust error
checkpoint/state.safetensors   what training goes on from, until it is finished
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustfront.attacks import Attack
from robustfront.certifiers import Certifier, Smoothing
from robustfront.config import TrialConfig, load_trial
from robustfront.data import Corrupted, DataSet, RawData, Split, split_data
from robustfront.errors import ConfigError, OutOfMemory, is_full
from robustfront.evaluation.certify import (
    anchors_for,
    certified,
    certifying,
    certifying_changes,
)
from robustfront.evaluation.evaluate import (
    measure,
    measure_corrupted,
    measuring,
    measuring_changed,
    plain_predictions,
    stages_of,
    transfer_error,
)
from robustfront.evaluation.gates import POINT, masking
from robustfront.evaluation.progress import Progress
from robustfront.evaluation.records import Records, read_arrays
from robustfront.evaluation.smoothing import AUDITED, audit
from robustfront.evaluation.vnnlib import (
    instances,
    read_verdicts,
    require_box,
    specification,
    to_onnx,
    with_verdicts,
)
from robustfront.files import write_bytes
from robustfront.registry import Component
from robustfront.threats import Threat
from robustfront.training.checkpoint import (
    check_init,
    export_model,
    load_model,
    read_tensors,
    write_config,
)
from robustfront.training.fit import Metrics, fit
from robustfront.training.team import Team


def run_trial(
    config: TrialConfig, folder: Path, raw: RawData | None = None
) -> Iterator[tuple[int, Metrics]]:
    """Train in a folder; yields (epochs done, metrics), epochs of an earlier attempt first.

    A report is yielded only when the checkpoint of its epoch, which carries all reports up to it,
    is on disk. May be killed at any moment and called again. Where several workers train together
    each of them calls this, and the first one writes.

    Raises:
        ConfigError: the device does not exist here, the folder holds another trial, or what the
            trial is to begin with is not there.
        DataError: the data or the trial's checkpoint cannot be read.
        Diverged: the loss is not finite.
        OutOfMemory: the device has no memory left.
    """
    if config.resources.gpu and not torch.cuda.is_available():
        raise ConfigError("resources.gpu", [f"got {config.resources.gpus:g}, no GPU is here"])
    device = torch.device(config.resources.device)
    data = split_data(config.data, raw or config.data.load(), device)
    team = Team.here()
    state = folder / "checkpoint" / "state.safetensors"
    if not state.exists():
        check_init(config)
    if team.leads:
        _claim(folder, config)
    team.wait()
    history: list[Metrics] = read_tensors(state)[1]["history"] if state.exists() else []
    yield from enumerate(history, start=1)
    records = None
    try:
        for report in fit(config, state if history else None, data):
            history.append(report.metrics)
            if team.leads:
                report.save(state)
                write_reports(folder, history)
            records = report.records
            yield report.epoch, report.metrics
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from None
    if team.leads:
        _finish(config, folder, data, records)


def _claim(folder: Path, config: TrialConfig) -> None:
    """Make the folder this trial's, unless it is another's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError(str(folder), [f"cannot be made a folder: {error.strerror}"]) from None
    path = folder / "config.json"
    if path.exists() and load_trial(path).id != config.id:
        raise ConfigError(str(folder), ["holds another trial; choose another folder"])
    # What a process that was killed while writing has left behind.
    for draft in (folder / "checkpoint").glob(".*.safetensors.*"):
        draft.unlink(missing_ok=True)
    write_config(folder, config)


def write_reports(folder: Path, history: list[Metrics]) -> None:
    """`report.jsonl`, whole."""
    lines = [json.dumps({"epoch": epoch, **metrics}) for epoch, metrics in enumerate(history, 1)]
    write_bytes(folder / "report.jsonl", ("\n".join(lines) + "\n").encode())


def _finish(config: TrialConfig, folder: Path, data: DataSet, records: Records | None) -> None:
    checkpoint = folder / "checkpoint"
    groups, meta = read_tensors(checkpoint / "state.safetensors")
    weights: dict[str, dict[str, Tensor]] = {
        "last": groups.get("average", groups["model"]),
        "best": groups["best"],
    }
    for name, tensors in weights.items():
        export_model(checkpoint / f"{name}.safetensors", tensors, config)
    write_config(checkpoint, config)
    write_reports(folder, meta["history"])
    if records is None or config.train.select == "best":
        model, evaluate = _selected(checkpoint, data.val.x.device), config.evaluate
        key, threats = ("evaluate", "val"), config.threat
        records = measure(model, data.val, threats, evaluate.attack, key, evaluate.batch_size)
        certifier = config.certifier()
        if certifier is not None:
            anchors = anchors_for(certifier, data.train)
            records = certified(model, data.val, threats, certifier, records, anchors)
    write_bytes(folder / "records.npz", records.to_bytes())


def measure_final(config: TrialConfig, folder: Path, raw: RawData | None = None) -> Iterator[float]:
    """The finished trial's selected model on the test split, under `evaluate.final`.

    Yields the share that is done. May be killed at any moment and called again: what is known
    stands in `records_of_test`, all of it at the end.

    Raises:
        DataError: the checkpoint or the data cannot be read.
    """
    final = config.evaluate.final
    model, test = _model_and_test(config, folder, raw)
    if final.examples is not None:
        test = test.first(final.examples)
    path = records_of_test(folder, final.attack)
    stages = stages_of(config.threat, final.attack)
    progress = Progress(test.y, stages, path, _identity(config, model, final.attack))
    key, batch_size = ("evaluate", "test"), config.evaluate.batch_size
    for _ in measuring(model, test, config.threat, final.attack, key, batch_size, progress):
        yield progress.share


def certify_final(config: TrialConfig, folder: Path, raw: RawData | None = None) -> Iterator[float]:
    """Certificates for the same examples, by `evaluate.final.certify` or else `evaluate.certify`.

    They go to `test-certified.npz`, from which a later call goes on, and where proofs of other
    certifiers stay. Examples that `measure_final` has found fooled, where it was called, need none.

    Raises:
        ConfigError: a model or threat that the certifier cannot handle.
        DataError: the checkpoint or the data cannot be read.
        SoundnessError: an attack contradicts a proof, be it an earlier one, or certificates of the
            smoothed classifier.
    """
    final, certifier = config.evaluate.final, config.certifier(final=True)
    if certifier is None:
        return
    model, test = _model_and_test(config, folder, raw)
    test = test if final.examples is None else test.first(final.examples)
    records = _attacked(model, test, records_of_test(folder, final.attack))
    anchors = None
    if isinstance(certifier, Smoothing):
        data = split_data(config.data, raw or config.data.load(), test.y.device)
        anchors = anchors_for(certifier, data.train)
    path, told = records_of_certificates(folder), _told(config, model, certifier)
    found = yield from _going_on(
        path,
        told,
        _with_known(path, told, records, certifier),
        lambda known, save: certifying(model, test, config.threat, certifier, known, save, anchors),
    )
    if isinstance(certifier, Smoothing):
        few = min(AUDITED, len(test))
        audit(model, test.first(few), certifier, found.rows(few), anchors)


def certify_unseen(
    config: TrialConfig, folder: Path, raw: RawData | None = None
) -> Iterator[float]:
    """The same for those of `evaluate.unseen` that can be certified, where the job certifies.

    To `test-unseen-certified.npz`; examples that `measure_unseen` has found fooled need none.

    Raises:
        ConfigError: a layer that cannot be bounded.
        DataError: the checkpoint or the data cannot be read.
    """
    final = config.evaluate.final
    unseen = [one for one in config.evaluate.unseen if one.certifiable]
    if not unseen or (final.certify or config.evaluate.certify) is None:
        return
    model, test = _model_and_test(config, folder, raw)
    test = test if final.examples is None else test.first(final.examples)
    path, told = records_of_unseen_certificates(folder), _told(config, model, *unseen)
    yield from _going_on(
        path,
        told,
        _with_known(path, told, _attacked(model, test, folder / "test-unseen.npz")),
        lambda known, save: certifying_changes(model, test, unseen, known, save),
    )


_Save = Callable[[Records], None]
_Told = dict[str, str]


def _told(config: TrialConfig, model: nn.Module, *by: Component) -> _Told:
    """What certificates are of, and what they were found by."""
    return {"identity": _identity(config, model), "by": "\n".join(c.model_dump_json() for c in by)}


def _said(path: Path) -> _Told:
    """The same as a file of certificates says it; empty where there is none."""
    arrays = read_arrays(path) if path.exists() else {}
    return {name: str(arrays.get(name, "")) for name in ("identity", "by")}


def _with_known(
    path: Path, told: _Told, records: Records, certifier: Certifier | None = None
) -> Records:
    """Records with the certificates of a file that are of the same model and examples.

    Those that the certifier found with other settings are left out, and all of them where one of
    both is about a smoothed classifier.

    Raises:
        SoundnessError: the attacks of the records contradict one.
    """
    said = _said(path)
    if said["identity"] != told["identity"]:
        return records
    known = replace(Records.load(path), attacked=records.attacked)
    if said == told:
        return known
    if certifier is None or isinstance(certifier, Smoothing) or known.smoothed:
        return records
    return known.without(certifier.name)


def _going_on(
    path: Path,
    told: _Told,
    records: Records,
    work: Callable[[Records, _Save], Iterator[tuple[float, Records]]],
) -> Generator[float, None, Records]:
    """Certificates that are kept in a file as they come."""

    def save(records: Records) -> None:
        _write_certificates(path, told, records)

    for share, found in work(records, save):
        yield share
        records = found
    save(records)
    return records


def _write_certificates(path: Path, told: _Told, records: Records) -> None:
    said = {name: np.array(value) for name, value in told.items()}
    write_bytes(path, replace(records, attacked={}).to_bytes(said))


def _attacked(model: nn.Module, test: Split, path: Path) -> Records:
    """Plain predictions, and what a whole attack on these examples has found, if there was one."""
    known = Records.load(path).attacked if path.exists() else {}
    whole = {k: v for k, v in known.items() if len(v) == len(test) and (v >= 0).all()}
    return Records(test.y.cpu().numpy(), plain_predictions(model, test), whole)


def export_final(
    config: TrialConfig, folder: Path, out: Path, timeout: float, raw: RawData | None = None
) -> tuple[int, list[str]]:
    """What other verifiers need to decide the examples that nothing here has decided.

    Writes `model.onnx`, `<threat>/<number>.vnnlib` and `instances.csv` to a new folder: of the
    examples of `measure_final` those that are right, not fooled and not proved, for all one knows.

    Returns:
        How many there are, for all threats that are boxes, and the names of the other threats.

    Raises:
        ConfigError: no threat is a box; a folder that exists.
        DataError: the checkpoint or the data cannot be read.
        RobustfrontError: onnx is not installed, or the exported model computes something else.
    """
    boxes = [threat for threat in config.threat if threat.is_box]
    if not boxes:
        require_box(config.threat[0])
    if out.exists():
        raise ConfigError("--out", [f"{out} exists"])
    model, test = _model_and_test(config, folder, raw)
    examples = config.evaluate.final.examples
    test = test if examples is None else test.first(examples)
    x, y = test.batch(slice(0, len(test)))
    records, weights = _known(config, folder, model, test), to_onnx(model, x)
    classes = model(x[:1]).shape[1]
    files = {
        f"{threat.name}/{number}.vnnlib": specification(
            x[number].cpu(), int(y[number]), classes, threat
        )
        for threat in boxes
        for number in np.flatnonzero(_undecided(records, threat)).tolist()
    }
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out / name, text.encode())
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "model.onnx", weights)
    write_bytes(out / "instances.csv", instances(files, timeout).encode())
    return len(files), [threat.name for threat in config.threat if not threat.is_box]


def import_verdicts(
    config: TrialConfig, folder: Path, threat: Threat, verdicts: Path, verifier: str
) -> dict[str, float]:
    """Certified errors with the proofs of another verifier added to those there are.

    They go to `test-certified.npz`, under the names of all verifiers.

    Returns:
        Certified errors on the test split by metric, and how many verdicts there are of each kind.

    Raises:
        DataError: verdicts that cannot be read, or that contradict what is known.
        SoundnessError: a proof that an attack contradicts.
    """
    found = read_verdicts(verdicts, threat.name)
    model, test = _model_and_test(config, folder, None)
    examples = config.evaluate.final.examples
    test = test if examples is None else test.first(examples)
    records, path = _known(config, folder, model, test), records_of_certificates(folder)
    own = _proofs(records, threat)
    before = max(own, key=lambda name: int((own[name] == 1).sum()), default="")
    known = own[before] if before else np.zeros(len(test), np.int8)
    proved = with_verdicts(known, found, str(verdicts))
    name = f"{before or threat.name + '/'}{'-' if before else ''}{verifier}"
    records = replace(records, certified={**records.certified, name: proved})
    # As the certifier's own: a later one goes on from them.
    told = {**_told(config, model), "by": _said(path)["by"]}
    _write_certificates(path, told, records)
    kinds = [*found.values()]
    counts = {f"test/verdicts/{kind}": float(kinds.count(kind)) for kind in sorted({*kinds})}
    return {f"test/certified_error/{name}": float((proved != 1).mean()), **counts}


def _known(config: TrialConfig, folder: Path, model: nn.Module, test: Split) -> Records:
    """All that attacks and certifiers have found out about these examples."""
    attacked = _attacked(model, test, records_of_test(folder, config.evaluate.final.attack))
    path = records_of_certificates(folder)
    return _with_known(path, {**_told(config, model), "by": _said(path)["by"]}, attacked)


def _undecided(records: Records, threat: Threat) -> np.ndarray:
    """Which examples are right, not fooled within a threat, and not proved by anybody, (N,)."""
    mine = [name for name in records.attacked if name.partition("/")[0] == threat.name]
    proofs = _proofs(records, threat).values()
    proved = np.any([found == 1 for found in proofs], axis=0) if proofs else False
    undecided: np.ndarray = ~records.union(mine) & ~np.asarray(proved, dtype=bool)
    return undecided


def _proofs(records: Records, threat: Threat) -> dict[str, np.ndarray]:
    """Certificates of the classifier itself within a threat, by the names of their verifiers."""
    parts = {name: name.partition("/") for name in records.certified}
    return {
        name: records.certified[name]
        for name, (own, _, verifier) in parts.items()
        if own == threat.name and verifier not in records.smoothed
    }


_CERTIFIED = tuple(
    f"test/{what}"
    for what in (
        "certified_error/",
        "smoothed_error/",
        "average_certified_radius/",
        "abstention_rate/",
        "class_spread/",
        "examples",
    )
)


def certified_errors(config: TrialConfig, folder: Path) -> dict[str, float]:
    """What `certify_final` and `certify_unseen` have found: certified errors on the test split.

    Raises:
        DataError: a file is damaged.
    """
    found: dict[str, float] = {}
    path = records_of_certificates(folder)
    if path.exists():
        errors = Records.load(path).errors("test")
        found |= {name: error for name, error in errors.items() if name.startswith(_CERTIFIED)}
    path = records_of_unseen_certificates(folder)
    if path.exists():
        proofs = Records.load(path).certified
        found |= {
            f"test/certified_error/{name}": float((p != 1).mean()) for name, p in proofs.items()
        }
    return found


def records_of_unseen_certificates(folder: Path) -> Path:
    """Where the certificates within perturbations other than the threats are."""
    return folder / "test-unseen-certified.npz"


def records_of_certificates(folder: Path) -> Path:
    """Where the certificates for the test split are."""
    return folder / "test-certified.npz"


def measure_unseen(
    config: TrialConfig, folder: Path, raw: RawData | None = None
) -> Iterator[float]:
    """The same within the perturbations of `evaluate.unseen`, on the same examples.

    Predictions go to `test-unseen.npz`, from which a later call goes on.

    Raises:
        DataError: the checkpoint or the data cannot be read.
    """
    unseen = config.evaluate.unseen
    if not unseen:
        return
    model, test = _model_and_test(config, folder, raw)
    examples, size = config.evaluate.final.examples, config.evaluate.batch_size
    test = test if examples is None else test.first(examples)
    stages = dict.fromkeys([one.name for one in unseen], 1)
    said = _identity(config, model, *unseen)
    progress = Progress(test.y, stages, folder / "test-unseen.npz", said)
    for _ in measuring_changed(model, test, unseen, ("evaluate", "test"), size, progress):
        yield progress.share


def unseen_errors(config: TrialConfig, folder: Path) -> dict[str, float]:
    """What `measure_unseen` has found: robust errors on the test split, by metric.

    Raises:
        DataError: it has not been called, or its file is damaged.
    """
    if not config.evaluate.unseen:
        return {}
    records = Records.load(folder / "test-unseen.npz")
    named = {one.name: f"test/robust_error/{one.name}" for one in config.evaluate.unseen}
    return {metric: float(records.union([name]).mean()) for name, metric in named.items()}


def corruption_errors(config: TrialConfig, folder: Path) -> dict[str, float]:
    """Standard errors on the images of `evaluate.corruptions`, by metric, and their mean.

    Raises:
        DataError: the checkpoint or the images cannot be read.
    """
    if config.evaluate.corruptions is None:
        return {}
    device = torch.device(config.resources.device)
    corrupted = Corrupted(Path(config.evaluate.corruptions), config.data)
    model, size = _selected(folder, device), config.evaluate.batch_size
    errors = measure_corrupted(model, corrupted, device, size)
    mean = sum(errors.values()) / len(errors)
    named = {f"test/corruption_error/{name}": error for name, error in errors.items()}
    return {"test/corruption_error": mean, **named}


def suspicions(config: TrialConfig, folder: Path, raw: RawData | None = None) -> Iterator[str]:
    """What speaks for masked gradients in a model that `measure_final` has measured.

    Raises:
        DataError: the checkpoint, the records or the data cannot be read.
    """
    if config.evaluate.gates is None:
        return
    model, test = _model_and_test(config, folder, raw)
    attack = config.evaluate.final.attack
    known = Records.load(records_of_test(folder, attack))
    few = min(config.evaluate.gates, len(known))
    for threat in config.threat:
        suite = known.part(f"{threat.name}/{attack.name}", few)
        key, batch_size = ("evaluate", "test"), config.evaluate.batch_size
        for reason in masking(model, test.first(few), threat, suite, key, batch_size):
            yield f"{threat.name}: {reason}"


def transferred(
    config: TrialConfig, folder: Path, siblings: Sequence[str], raw: RawData | None = None
) -> dict[str, dict[str, float]]:
    """How often adversarial examples of other trials of a sweep fool this one.

    By threat and trial, this one among them: the share of the first `evaluate.gates` test examples
    that this model gets wrong plainly or at what PGD-20 finds on that trial's model.

    Raises:
        DataError: a checkpoint or the data cannot be read.
    """
    if config.evaluate.gates is None or not siblings:
        return {}
    model, test = _model_and_test(config, folder, raw)
    few, size = test.first(config.evaluate.gates), config.evaluate.batch_size
    sources = {
        name: _selected(folder.parent / name, few.x.device) for name in (folder.name, *siblings)
    }
    key = ("evaluate", "test", "transfer")
    return {
        threat.name: {
            name: transfer_error(source, model, few, threat, key, size)
            for name, source in sources.items()
        }
        for threat in config.threat
    }


def stronger_siblings(threat: str, errors: Mapping[str, float], own: str) -> Iterator[str]:
    """What speaks for masked gradients: another model's examples fool more often than the own."""
    for name, error in errors.items():
        if error > errors[own] + POINT:
            yield (
                f"{threat}: examples of {name} fool {100 * error:.1f} %, "
                f"those by its own gradients {100 * errors[own]:.1f} %"
            )


def records_of_test(folder: Path, attack: Attack) -> Path:
    """Where the predictions on the test split under an attack are."""
    return folder / f"test-{attack.name}.npz"


def _model_and_test(
    config: TrialConfig, folder: Path, raw: RawData | None
) -> tuple[nn.Module, Split]:
    device = torch.device(config.resources.device)
    test = split_data(config.data, raw or config.data.load(), device).test
    return _selected(folder, device), test


def _selected(folder: Path, device: torch.device) -> nn.Module:
    return load_model(folder).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _identity(config: TrialConfig, model: nn.Module, *by: Component) -> str:
    """What a measurement depends on: model, data, threats, examples, and what it is made by."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    threats = [threat.model_dump(mode="json") for threat in config.threat]
    said = [
        config.data.model_dump(mode="json"),
        threats,
        config.evaluate.final.examples,
        *[component.model_dump(mode="json") for component in by],
    ]
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()
