"""A job and a trial as frozen, fully resolved models; YAML becomes types here and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from robustfront.ablation import Ablation
from robustfront.attacks import ATTACKS, PGD, Attack, AttackField
from robustfront.certifiers import Certifier, CertifierField
from robustfront.certifiers import Smoothing as SmoothingCertifier
from robustfront.certifiers.smoothing import out_of_reach
from robustfront.cost import Cost
from robustfront.data import DataField
from robustfront.errors import ConfigError, DataError, nearest
from robustfront.methods import METHODS, Method, MethodField, Standard
from robustfront.models import Classifier, ModelField, build_model
from robustfront.models.conditioned import conditioned
from robustfront.problems import overlaid, read_mapping, validated
from robustfront.randomness import Noise
from robustfront.registry import Component
from robustfront.threats import Threat, TrainThreat, eps_text
from robustfront.training.optimizers import SGD, OptimizerField
from robustfront.training.schedules import Constant, EpsRamp, ScheduleField
from robustfront.unseen import Unseen, UnseenField
from robustfront.updates import Plain, UpdateField

GUARDED = 512  # training examples on which a guard looks for a collapse

C = TypeVar("C", bound=Certifier)

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Smoothing(Component):
    """Noise at the network's input during training; `sigma` is its deviation in pixel units."""

    sigma: NonNegativeFloat = 0.0
    noise: Noise = "gaussian"


class Train(Component):
    """How long, on what batches, with which optimiser."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    optimizer: OptimizerField = SGD(lr=0.1, momentum=0.9)
    schedule: ScheduleField = Constant()
    eps_ramp: EpsRamp = EpsRamp()
    clip_norm: PositiveFloat | None = None
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay; the average is what is measured
    select: Literal["last", "best"] = "last"  # best: lowest robust error on the validation split
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU


class Final(Component):
    """The strong attack that re-measures the members of the front on the test split."""

    attack: AttackField = PGD(steps=50, restarts=5)
    examples: PositiveInt | None = 1000  # the first ones; null: the whole split
    certify: CertifierField | None = None  # a tighter certifier than evaluate.certify

    @model_validator(mode="before")
    @classmethod
    def _short_or_long(cls, raw: Any) -> Any:
        return _with_attack_apart(raw)


def _with_attack_apart(raw: Any) -> Any:
    """The long form of `{type: pgd, steps: 50, examples: 1000}`, a final suite in short."""
    if not isinstance(raw, Mapping):
        return raw
    attack = {key: value for key, value in raw.items() if key not in Final.model_fields}
    rest = {key: value for key, value in raw.items() if key in Final.model_fields}
    if not attack:
        return raw
    whole = rest.get("attack", {})
    same = isinstance(whole, Mapping) and whole.get("type") in (None, attack.get("type"))
    if "type" not in attack or same:
        attack = {**whole, **attack}
    return {**rest, "attack": attack}


class Evaluate(Component):
    """What is measured: after each epoch, and at the end for the members of the front."""

    attack: AttackField = PGD(steps=20)
    final: Final = Final()
    unseen: tuple[UnseenField, ...] = ()  # perturbations to try the members of the front with too
    corruptions: str | None = None  # folder of corrupted test images, as CIFAR-10-C
    gates: PositiveInt | None = 200  # examples of the checks for masked gradients; null: none
    certify: CertifierField | None = None  # certified errors after each epoch; see final.certify
    batch_size: PositiveInt = 500

    @field_validator("unseen")
    @classmethod
    def _different_names(cls, unseen: tuple[Unseen, ...]) -> tuple[Unseen, ...]:
        names = [one.name for one in unseen]
        if len(set(names)) < len(names):
            raise ValueError(f"given twice ({', '.join(names)})")
        return unseen


def _share_or_auto(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError("one GPU (1), none (0), a share of one, or auto")
    if value > 1:
        raise ValueError("a worker uses one GPU or a share of it; `workers` takes more of them")
    return float(value)


class Resources(Component):
    """What a trial gets: so many workers, and what each of them holds.

    Args:
        cpu: cores of a worker.
        gpu: of a worker: one, none, or a share of one, which is bookkeeping only. `auto`: the first
            trial of a model, method and batch size gets a whole one and measures its memory, later
            ones get the share of it that they need.
        workers: that train one model together, each on its share of every batch.
    """

    cpu: PositiveInt = 1
    gpu: Annotated[float | Literal["auto"], PlainValidator(_share_or_auto)] = 0.0
    workers: PositiveInt = 1

    @field_validator("workers")
    @classmethod
    def _whole_gpus(cls, workers: int, info: ValidationInfo) -> int:
        if workers > 1 and info.data.get("gpu", 0) not in (0, 1, "auto"):
            raise ValueError("workers that train together use whole GPUs: set gpu to 1 (or 0)")
        return workers

    @property
    def device(self) -> str:
        """Where a trial trains."""
        return "cuda" if self.gpu else "cpu"

    @property
    def gpus(self) -> float:
        """GPUs of a worker while nothing is measured."""
        return 1.0 if self.gpu == "auto" else self.gpu


def _as_list(raw: Any) -> Any:
    return raw if isinstance(raw, list | tuple) else [raw]


def as_trained(certifier: C, smoothing: Smoothing) -> C:
    """The certifier; one of smoothing that names no noise or no sigma has those of training.

    Raises:
        ValueError: the certifier has no such noise.
    """
    if not isinstance(certifier, SmoothingCertifier):
        return certifier
    trained = {"noise": smoothing.noise, "sigma": smoothing.sigma or None}
    missing = {key: value for key, value in trained.items() if getattr(certifier, key) is None}
    found, problems = validated(type(certifier), {**certifier.model_dump(), **missing})
    if found is None:
        raise ValueError("; ".join(problems))
    return found


def _metric_names(threats: Sequence[Threat], evaluate: Evaluate, smoothing: Smoothing) -> list[str]:
    """The errors that every epoch report carries."""
    sets = [threat.name for threat in threats] + ["union"] * (len(threats) > 1)
    names = [f"val/robust_error/{name}/{evaluate.attack.name}" for name in sets]
    short = ["standard_error", "robust_error"]
    if evaluate.certify is not None:
        certifier = as_trained(evaluate.certify, smoothing)
        names += [f"val/certified_error/{name}/{certifier.name}" for name in sets]
        short.append("certified_error")
        if isinstance(certifier, SmoothingCertifier):
            names.append(f"val/smoothed_error/{certifier.name}")
            short.append("smoothed_error")
    return [*short, "val/standard_error", *names]


class TrialConfig(Component):
    """One configuration with all values resolved."""

    data: DataField
    model: ModelField
    init_from: str | None = None  # a trial's folder: training begins with its weights
    threat: Annotated[tuple[Threat, ...], BeforeValidator(_as_list), Field(min_length=1)]
    train_threat: TrainThreat = TrainThreat()
    method: MethodField = Standard()
    update: UpdateField = Plain()
    smoothing: Smoothing = Smoothing()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "standard_error",
        "robust_error",
    )
    resources: Resources = Resources()
    seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _train_threat_follows_threat(cls, raw: Any) -> Any:
        """What train_threat leaves out comes from the threat robustness is measured against."""
        if not isinstance(raw, Mapping):
            return raw
        given = raw.get("train_threat", {})
        threats = [validated(Threat, threat)[0] for threat in _as_list(raw.get("threat"))]
        whole = [threat for threat in threats if threat is not None]
        own = given.get("radii", {}) if isinstance(given, Mapping) else None
        if not whole or len(whole) < len(threats) or not isinstance(own, Mapping):
            return raw
        # Of two threats in one norm the first is the reference.
        radii = {threat.norm: eps_text(threat.eps) for threat in reversed(whole)} | dict(own)
        norm = given.get("norm", whole[0].norm)
        eps = {"eps": radii[norm]} if norm in [*radii] else {}
        return {**raw, "train_threat": {"norm": norm, **eps, **given, "radii": radii}}

    @model_validator(mode="before")
    @classmethod
    def _update_follows_method(cls, raw: Any) -> Any:
        """An update that is not named is the one that belongs to the method."""
        if not isinstance(raw, Mapping):
            return raw
        method, update = raw.get("method"), raw.get("update", {})
        kind = method.get("type") if isinstance(method, Mapping) else getattr(method, "type", None)
        default = METHODS.classes[kind].default_update if kind in METHODS.classes else "plain"
        if isinstance(update, Mapping) and "type" not in update:
            return {**raw, "update": {"type": default, **update}}
        return raw

    @field_validator("train_threat")
    @classmethod
    def _has_a_radius(cls, train_threat: TrainThreat, info: ValidationInfo) -> TrainThreat:
        """There is none to take over from a threat of another norm."""
        measured = [threat.norm for threat in info.data.get("threat", ())]
        given = "eps" in train_threat.model_fields_set or train_threat.norm in train_threat.radii
        if measured and not given and train_threat.norm not in measured:
            raise ValueError(f"eps: is missing; the job measures no {train_threat.norm} threat")
        return train_threat

    @field_validator("resources")
    @classmethod
    def _equal_shares(cls, resources: Resources, info: ValidationInfo) -> Resources:
        train = info.data.get("train")
        if train is not None and train.batch_size % resources.workers:
            raise ValueError(
                f"workers: got {resources.workers}, a batch of {train.batch_size} does not divide "
                "into equal shares"
            )
        update = info.data.get("update")
        if resources.workers > 1 and update is not None and update.alone:
            raise ValueError(
                f"workers: got {resources.workers}, the update {update.type!r} has one worker only"
            )
        return resources

    @field_validator("method")
    @classmethod
    def _attacks_for_training(cls, method: Method) -> Method:
        for name in type(method).model_fields:
            attack = getattr(method, name)
            if isinstance(attack, Attack) and attack.needs_labels:
                fit = [kind for kind, cls in ATTACKS.classes.items() if not cls().needs_labels]
                raise ValueError(
                    f"{name}: got {attack.name!r}, which is for evaluations (allowed for training: "
                    f"{', '.join(fit)})"
                )
        return method

    @field_validator("smoothing", "resources")
    @classmethod
    def _model_itself(cls, value: Any, info: ValidationInfo) -> Any:
        """Methods that look at layers get the model, not something around it."""
        method = info.data.get("method")
        if method is not None and method.looks_inside:
            if isinstance(value, Smoothing) and value.sigma:
                raise ValueError(f"sigma: got {value.sigma:g}, {method.type} trains without noise")
            if isinstance(value, Resources) and value.workers > 1:
                raise ValueError(f"workers: got {value.workers}, {method.type} has one worker only")
        return value

    @field_validator("smoothing")
    @classmethod
    def _noise_that_shows_gradients(cls, value: Smoothing, info: ValidationInfo) -> Smoothing:
        """Cells hide from a search what a change of the input does."""
        for one in (info.data.get("method"), info.data.get("update")):
            if one is not None and one.searches and value.noise == "splitting":
                raise ValueError(
                    f"noise: got 'splitting', {one.type} searches for adversarial examples, which "
                    "see no gradient through it (allowed: gaussian, uniform)"
                )
        return value

    @field_validator("threat")
    @classmethod
    def _different_threats(cls, threats: tuple[Threat, ...]) -> tuple[Threat, ...]:
        names = [threat.name for threat in threats]
        if len(set(names)) < len(names):
            raise ValueError(f"given twice ({', '.join(names)})")
        return threats

    @field_validator("evaluate")
    @classmethod
    def _attacks_for_these_threats(cls, evaluate: Evaluate, info: ValidationInfo) -> Evaluate:
        norms = {threat.norm for threat in info.data.get("threat", ())}
        asked: dict[str, Attack | Certifier | None] = {
            "attack": evaluate.attack,
            "final": evaluate.final.attack,
            "certify": evaluate.certify,
            "final.certify": evaluate.final.certify,
        }
        for key, one in asked.items():
            if one is not None and (missing := norms - {*one.norms}):
                allowed = ", ".join(one.norms)
                raise ValueError(
                    f"{key}: {one.name} has no {', '.join(sorted(missing))} (has: {allowed})"
                )
        return evaluate

    @field_validator("evaluate")
    @classmethod
    def _noise_and_draws_to_certify_with(cls, evaluate: Evaluate, info: ValidationInfo) -> Evaluate:
        """There is noise, and its draws can certify the radii, where it is the same everywhere."""
        smoothing, data = info.data.get("smoothing"), info.data.get("data")
        for key, one in (("certify", evaluate.certify), ("final.certify", evaluate.final.certify)):
            if not isinstance(one, SmoothingCertifier) or smoothing is None:
                continue
            try:
                one = as_trained(one, smoothing)
            except ValueError as error:
                raise ValueError(f"{key}.{error}") from None
            if not one.sigma:
                raise ValueError(f"{key}.sigma: is missing, and smoothing.sigma is 0")
            if data is None:
                continue
            try:
                dimension = int(np.prod(data.shape))
            except DataError:
                continue  # told where the data are read
            if problems := out_of_reach(one, one.sigma, info.data.get("threat", ()), dimension):
                raise ValueError(f"{key}.n: {'; '.join(problems)}")
        return evaluate

    @field_validator("objectives")
    @classmethod
    def _measured_objectives(
        cls, objectives: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        if len(set(objectives)) < len(objectives):
            raise ValueError("one is given twice")
        if {"threat", "evaluate", "smoothing"} <= info.data.keys():
            threats, evaluate = info.data["threat"], info.data["evaluate"]
            known = _metric_names(threats, evaluate, info.data["smoothing"])
            wrong = [name for name in objectives if name not in known]
            if wrong:
                raise ValueError(f"got {wrong[0]!r}{nearest(wrong[0], known)}")
        return objectives

    def build_model(
        self,
        shape: tuple[int, int, int],
        classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Classifier:
        """A fresh model for its method, in train mode; raises as `models.build_model`.

        Args:
            mean, std: of each channel; without, images are taken as they are.
        """
        mean, std = mean or [0.0] * shape[0], std or [1.0] * shape[0]
        model = build_model(self.model, shape, classes, mean, std)
        weight = self.method.condition
        return model if weight is None else conditioned(model, weight)

    def certifier(self, final: bool = False) -> Certifier | None:
        """What certifies after each epoch, or finally; smoothing with the noise of training."""
        found = (self.evaluate.final.certify if final else None) or self.evaluate.certify
        return found and as_trained(found, self.smoothing)

    @property
    def id(self) -> str:
        """Hash of all values that decide the outcome; where data lie and resources do not."""
        identity = self.model_dump(mode="json", exclude={"resources", "objectives"})
        measured = {"attack": identity["evaluate"]["attack"]}
        if self.evaluate.certify is not None:
            measured["certify"] = identity["evaluate"]["certify"]
            if isinstance(certifier := self.certifier(), SmoothingCertifier):
                measured["certify"]["noise"] = certifier.noise
        identity["evaluate"] = measured
        identity["data"].pop("root", None)
        if self.smoothing.noise == "gaussian":
            del identity["smoothing"]["noise"]
        if self.data.only_classes is None:
            del identity["data"]["only_classes"]
        if self.init_from is None:
            del identity["init_from"]
        else:
            folder = Path(self.init_from)
            # A trial's folder is named after all that decides its weights.
            identity["init_from"] = (folder.parent if folder.name == "checkpoint" else folder).name
        if "path" in identity["data"]:
            identity["data"]["path"] = Path(identity["data"]["path"]).name
        text = json.dumps(identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def forward_equivalents(self, train: int, val: int, epoch: int) -> float:
        """Cost of one epoch in forward passes of one example, its evaluation included.

        Args:
            train, val: examples that are trained on and measured.
            epoch: from 1; its middle says how far a ramp of the radii is.
        """
        guarded = 0.0
        if (guard := self.update.guard(self.method)) is not None:
            guards = len(self.train_threat.shares()) * (guard.forward_equivalents + 1)
            guarded = min(GUARDED, train) * (1 + guards)
        trained = train * self.step_equivalents(self.train.eps_ramp.factor(epoch - 0.5))
        return trained + val * self._measuring(final=False) + guarded

    def final_equivalents(self, test: int) -> float:
        """Forward passes of the final suite's attacks and draws, where no example is fooled.

        Args:
            test: examples of the test split.
        """
        return min(self.evaluate.final.examples or test, test) * self._measuring(final=True)

    def _measuring(self, final: bool) -> float:
        """Forward passes for each example that is measured: attacks and draws; no bounds."""
        attack = self.evaluate.final.attack if final else self.evaluate.attack
        certifier = self.certifier(final)
        draws = certifier.n0 + certifier.n if isinstance(certifier, SmoothingCertifier) else 0
        return 1 + len(self.threat) * (attack.forward_equivalents + 1) + draws

    def step_equivalents(self, strength: float = 1.0) -> float:
        """Cost of a training step for each example in forward passes."""
        norms = len(self.train_threat.shares()) * self.method.forward_equivalents_per_norm
        once = self.method.forward_equivalents_at(strength) + norms
        return self.update.steps_per_batch * once + self.update.own_equivalents

    def parameters(self) -> dict[str, str | int | float | bool]:
        """Every resolved value by its dotted key, and what follows from them."""
        flat = _flattened(self.model_dump(mode="json", exclude={"resources", "objectives"}))
        derived = {f"method.{name}": value for name, value in self.method.derived().items()}
        radii = {
            f"train_threat.radius.{norm}": eps_text(threat.eps)
            for norm, threat in self.train_threat.threats(
                int(np.prod(self.data.shape)), self.method.required_norms
            ).items()
        }
        return flat | derived | radii


def _flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list):
        value = dict(enumerate(value)) if any(isinstance(v, dict) for v in value) else str(value)
    if not isinstance(value, dict):
        return {prefix: value}
    join = prefix + "." if prefix else ""
    return {
        name: leaf
        for key, nested in value.items()
        for name, leaf in _flattened(nested, f"{join}{key}").items()
    }


def _count_or_auto(value: Any) -> Any:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("a whole number above 0, or auto")
    return value


class MoAsha(Component):
    """Early stopping by multi-objective asynchronous successive halving (arXiv:2106.12639).

    Args:
        grace_epochs: epochs that every trial gets.
        reduction_factor: of n trials that come to a rung, floor(n / reduction_factor) go on.
        mode: `stop` ends the others for good, and always lets the best go on; `promote` lets them
            pause, and go on when they are among the best after all.
        in_ramp: whether trials are judged while their training radius still grows.
    """

    type: Literal["mo_asha"] = "mo_asha"
    grace_epochs: PositiveInt = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    mode: Literal["stop", "promote"] = "stop"
    in_ramp: bool = False


class Budget(Component):
    """When a sweep stops: nothing new begins, and what is running pauses after its epoch."""

    epochs: PositiveInt | None = None
    cpu_hours: PositiveFloat | None = None
    gpu_hours: PositiveFloat | None = None

    def spent(self, cost: Cost) -> bool:
        """Whether a cost uses up the budget."""
        limits = (
            (self.epochs, cost.epochs),
            (self.cpu_hours, cost.cpu_seconds / 3600),
            (self.gpu_hours, cost.gpu_seconds / 3600),
        )
        return any(limit is not None and used >= limit for limit, used in limits)


class Search(Component):
    """How configurations are proposed and which of them are worth more epochs.

    All are trained with the first seed; the other seeds are for those that can still be on the
    front when the search has ended.

    Args:
        scheduler: null trains every trial to its end; a job file that does not speak of it gets
            `default_scheduler`.
        warm_start: earlier sweeps, by name or folder, that the sampler learns from.
    """

    sampler: Literal["random", "tpe", "nsga2", "gp", "grid"] = "tpe"
    trials: PositiveInt = 32
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    sampler_seed: NonNegativeInt = 0
    scheduler: MoAsha | None = None
    budget: Budget = Budget()
    warm_start: tuple[str, ...] = ()
    max_concurrent: Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)] = "auto"

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("one is given twice")
        return seeds


class LedgerStore(Component):
    """Where a sweep's events are kept.

    Args:
        url: of a PostgreSQL database, `postgresql://user@host/database`, where the sweep gets a
            schema of its own; null: SQLite in the sweep's folder. libpq finds the password in
            PGPASSWORD or ~/.pgpass.
    """

    url: str | None = None

    @field_validator("url")
    @classmethod
    def _postgresql_without_password(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme != "postgresql":
            raise ValueError(f"got {parts.scheme}:..., allowed is postgresql://user@host/database")
        if parts.password is not None:
            raise ValueError("holds a password; set PGPASSWORD or write it to ~/.pgpass")
        _ = parts.port  # raises where it is no number
        return url


class Tracking(Component):
    """Where MLflow keeps the sweep.

    Args:
        uri: of a tracking server or a database; null: an SQLite store beside the sweeps.
        artifacts: where a new experiment in a database keeps its files, for instance
            `s3://bucket/path`; null: beside the sweeps. A server decides itself.
    """

    uri: str | None = None
    artifacts: str | None = None
    experiment: Annotated[str, Field(min_length=1)] = "robustfront"


class Job(TrialConfig):
    """A sweep: the defaults of its trials, what is searched, and how."""

    name: Annotated[str, Field(pattern=NAME, max_length=100)]
    search_space: dict[str, Any] = {}
    ablation: Ablation | None = None
    search: Search = Field(default=Search(), validate_default=True)
    ledger: LedgerStore = LedgerStore()
    tracking: Tracking = Tracking()
    on_divergence: Literal["worst", "fail"] = "worst"
    retries: NonNegativeInt = 2  # of a trial after errors of its own
    infrastructure_retries: NonNegativeInt = 10  # after the loss of its worker or node
    progress_timeout: PositiveFloat | None = 3600.0  # seconds until a silent worker is replaced
    storage: str | None = None

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @field_validator("ablation")
    @classmethod
    def _tuned_for_an_objective(
        cls, ablation: Ablation | None, info: ValidationInfo
    ) -> Ablation | None:
        known = info.data.get("objectives", ())
        wanted = None if ablation is None else ablation.tune_for
        if wanted is not None and known and wanted not in known:
            raise ValueError(f"tune_for: got {wanted!r}{nearest(wanted, known)}")
        return ablation

    @field_validator("search")
    @classmethod
    def _search_follows_ablation(cls, search: Search, info: ValidationInfo) -> Search:
        """A design says itself how many trials there are, and all of them are seen whole."""
        ablation = info.data.get("ablation")
        if ablation is None:
            return search
        said = {"trials", "seeds", "scheduler", "warm_start"} & search.model_fields_set
        if said:
            raise ValueError(f"{', '.join(sorted(said))}: an ablation decides that")
        trials = len(ablation.cells()) * ablation.trials_per_cell
        design = {"trials": trials, "seeds": ablation.seeds, "scheduler": None}
        return search.model_copy(update=design)

    @field_validator("search")
    @classmethod
    def _search_fits_a_trial(cls, search: Search, info: ValidationInfo) -> Search:
        """A scheduler and a budget that a trial of these epochs and resources can meet."""
        train, resources = info.data.get("train"), info.data.get("resources")
        if train is None or resources is None:
            return search
        scheduler, budget, problems = search.scheduler, search.budget, []
        if search.warm_start and search.sampler not in ("tpe", "gp"):
            problems.append(f"warm_start: {search.sampler} does not learn from earlier sweeps")
        if scheduler is not None and scheduler.grace_epochs >= train.epochs:
            problems.append(
                f"scheduler.grace_epochs: got {scheduler.grace_epochs}, it would never stop "
                f"a trial of {train.epochs} epochs"
            )
        if budget.epochs is not None and budget.epochs < train.epochs:
            problems.append(
                f"budget.epochs: got {budget.epochs}, one trial has {train.epochs} epochs"
            )
        if budget.gpu_hours is not None and not resources.gpu:
            problems.append("budget.gpu_hours: would never be spent, resources.gpu is 0")
        if problems:
            raise ValueError("; ".join(problems))
        return search

    @model_validator(mode="wrap")
    @classmethod
    def _keep_what_was_given(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Trials start from what the file says, so that defaults follow what a trial changes."""
        job = handler(raw)
        if isinstance(raw, Mapping):
            job._given = {key: raw[key] for key in TrialConfig.model_fields if key in raw}
        return job

    @property
    def tuned_for(self) -> int:
        """The place among the objectives of the one that an ablation tunes for."""
        wanted = None if self.ablation is None else self.ablation.tune_for
        return len(self.objectives) - 1 if wanted is None else self.objectives.index(wanted)

    def trial(self, values: Mapping[str, Any], seed: int) -> TrialConfig:
        """The configuration of one trial: the job's settings with `values` (dotted keys) set.

        Raises:
            ConfigError: values outside their domain.
        """
        config, problems = validated(TrialConfig, overlaid(self._given, {**values, "seed": seed}))
        if config is None:
            raise ConfigError(f"{self.name}: {dict(values)}", problems)
        return config


def default_scheduler(job: Job) -> MoAsha | None:
    """What stops trials early in a job that does not say: the winner of benchmarks/search.md.

    A grid is there to be seen whole, and trials no longer than the grace cannot be stopped.
    """
    scheduler = MoAsha(mode="promote")
    whole = job.search.sampler == "grid" or job.train.epochs <= scheduler.grace_epochs
    return None if whole else scheduler


# Keys that hold paths: relative to the file they stand in, or to the current folder after --set.
_PATHS = (
    ("data", "root"),
    ("data", "path"),
    ("evaluate", "corruptions"),
    ("init_from",),
    ("search_space",),
    ("storage",),
)


def absolute_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same settings, every path in them made absolute against `folder`."""
    result = json.loads(json.dumps(raw, default=str))
    for *parents, leaf in _PATHS:
        section = result
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or leaf not in section:
            continue
        value = section[leaf]
        if isinstance(value, str):
            section[leaf] = str((folder / Path(value).expanduser()).resolve())
        elif isinstance(value, list):
            section[leaf] = [str((folder / Path(str(v)).expanduser()).resolve()) for v in value]
    return result  # type: ignore[no-any-return]


def read_settings(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file with command-line overrides, paths absolute.

    Raises:
        ConfigError: the file cannot be read.
    """
    raw = absolute_paths(_long_form(read_mapping(path)), path.absolute().parent)
    given = absolute_paths(overlaid({}, overrides), Path.cwd())
    resolved = {key: _lookup(given, key, value) for key, value in overrides.items()}
    return overlaid(raw, resolved)


def _long_form(raw: dict[str, Any]) -> dict[str, Any]:
    """`evaluate.final` with its attack apart, so that another attack leaves `examples` alone."""
    evaluate = raw.get("evaluate")
    if not isinstance(evaluate, dict) or "final" not in evaluate:
        return raw
    return {**raw, "evaluate": {**evaluate, "final": _with_attack_apart(evaluate["final"])}}


def _lookup(nested: Mapping[str, Any], dotted: str, default: Any) -> Any:
    value: Any = nested
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def load_trial(path: Path, overrides: Mapping[str, Any] | None = None) -> TrialConfig:
    """A trial from a job file (its search is left aside) or from a resolved `config.json`.

    Raises:
        ConfigError: with every problem of the file.
    """
    raw = read_settings(path, overrides or {})
    job_only = set(Job.model_fields) - set(TrialConfig.model_fields)
    config, problems = validated(
        TrialConfig, {key: value for key, value in raw.items() if key not in job_only}
    )
    if config is None:
        raise ConfigError(str(path), problems)
    return config
