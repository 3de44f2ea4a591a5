"""Metrics, records on disk, and what `evaluate` refuses."""

import io
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import robustfront as rf
from robustfront.attacks import FGSM, PGD
from robustfront.config import TrialConfig
from robustfront.data import Split
from robustfront.errors import ConfigError, DataError, SoundnessError
from robustfront.evaluation.evaluate import evaluate, measure, transfer_error
from robustfront.evaluation.metrics import mistakes
from robustfront.evaluation.records import Records
from robustfront.executors.task import Task
from robustfront.executors.worker import work
from robustfront.threats import Threat
from robustfront.tracking.tables import records_table
from robustfront.training.trial import run_trial

LABEL = np.array([0, 1, 2, 3, 0])
PLAIN = np.array([0, 1, 2, 0, 1])  # the last two are wrong
FIRST = np.array([0, 2, 2, 3, 1])  # breaks the second; the fourth is right by luck
SECOND = np.array([1, 2, 2, 0, 1])  # breaks the first and the second
ONE = Records(LABEL, PLAIN, {"linf_0.1/pgd20": FIRST})
TWO = Records(LABEL, PLAIN, {"linf_0.1/pgd20": FIRST, "l2_0.5/pgd20": SECOND})


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def test_standard_error_is_the_share_of_wrong_plain_predictions():
    assert mistakes(LABEL, PLAIN).mean() == 2 / 5
    assert mistakes(LABEL, LABEL).mean() == 0
    assert mistakes(LABEL, LABEL + 1).mean() == 1


def test_an_example_is_robust_only_if_right_plainly_and_under_every_attack():
    assert mistakes(LABEL, PLAIN, []).mean() == 2 / 5
    assert mistakes(LABEL, PLAIN, [FIRST]).mean() == 3 / 5
    assert mistakes(LABEL, PLAIN, [SECOND]).mean() == 4 / 5
    assert mistakes(LABEL, PLAIN, [FIRST, SECOND]).mean() == 4 / 5
    assert mistakes(LABEL, PLAIN, [LABEL]).mean() == 2 / 5


def test_a_union_is_taken_for_each_example():
    first, second = LABEL.copy(), LABEL.copy()
    first[0], second[1] = 9, 9
    assert mistakes(LABEL, LABEL, [first, second]).mean() == 2 / 5


def precisions() -> list[str]:
    """Of products of float32 numbers, on a GPU and on a CPU."""
    backends = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
    return [part.fp32_precision for part in parts]


@pytest.fixture
def in_haste() -> Iterator[list[str]]:
    """A process that computes in TF32 and bf16, as a notebook or the trial before may leave it."""
    threads = torch.get_num_threads()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(2)
    yield precisions()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads)


class Watching(nn.Module):
    """Notes how precisely it is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.seen = model(), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(precisions())
        return self.model(x)


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x, y: rf.evaluate(net, x, y, ["linf:1/10"], FGSM()),
        lambda net, x, y: rf.certify(net, x, y, "linf:1/10", "ibp"),
        lambda net, x, y: rf.bounds(net, x, "linf:1/10"),
    ],
    ids=["evaluate", "certify", "bounds"],
)
def test_errors_and_proofs_are_computed_in_full_precision(run, in_haste):
    net, x, y = Watching(), torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    run(net, x, y)
    assert net.seen and all(seen == ["ieee"] * 3 for seen in net.seen)
    assert precisions() == in_haste, "as it was, afterwards"


@pytest.mark.parametrize("kind", ["measure", "certify"])
def test_a_worker_measures_with_the_threads_and_the_precision_of_training(kind, tmp_path, in_haste):
    config = TrialConfig.model_validate(
        {
            "data": {"type": "digits", "train_size": 50, "val_size": 20},
            "model": {"type": "linear"},
            "threat": {"norm": "linf", "eps": "1/10"},
            "train": {"epochs": 1},
            "evaluate": {"attack": {"type": "fgsm"}, "certify": {"type": "ibp"}, "gates": None},
        }
    )
    for _ in run_trial(config, tmp_path):
        pass
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(2)
    seen = []
    hook = register_module_forward_hook(
        lambda *_: seen.append((torch.get_num_threads(), *precisions()[::2]))
    )
    *_, end = work(Task(kind, "t", config.model_dump(mode="json"), str(tmp_path)), None)
    hook.remove()
    assert end == {"end": "finished", "reason": ""}
    assert {*seen} == {(1, "ieee", "ieee")}


@pytest.mark.parametrize("label", [-1, 3, 9])
def test_a_label_without_a_logit_is_refused(label):
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, label])
    with pytest.raises(DataError, match=f"labels lie in 0 to 2.*got {min(label, 0)} to"):
        evaluate(model(), x, y, ["linf:1/10"], FGSM())


class NeedsMemory(nn.Module):
    """Runs out of memory on more than so many examples at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.model, self.most, self.seen = model(), most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no room")
        return self.model(x)


def test_out_of_memory_halves_the_batch_and_changes_no_prediction():
    x, y = torch.rand(50, 1, 2, 2), torch.randint(3, (50,))
    split, threats, attack = Split(x, y, 1.0), [Threat.parse("linf:0.2")], PGD(steps=3)
    whole = measure(model(), split, threats, attack, (0,), batch_size=40)
    needy = NeedsMemory(most=12)
    halved = measure(needy, split, threats, attack, (0,), batch_size=40)
    assert max(needy.seen) == 40 and needy.seen[:3] == [40, 20, 10]
    assert (halved.plain == whole.plain).all()
    assert (halved.attacked["linf_0.2/pgd3"] == whole.attacked["linf_0.2/pgd3"]).all()
    with pytest.raises(torch.OutOfMemoryError):
        measure(NeedsMemory(most=0), split, threats, attack, (0,), batch_size=4)


def test_errors_under_one_threat():
    assert ONE.errors("val") == {
        "standard_error": 2 / 5,
        "robust_error": 3 / 5,
        "val/standard_error": 2 / 5,
        "val/examples": 5,
        "val/robust_error/linf_0.1/pgd20": 3 / 5,
    }


def test_errors_under_several_threats():
    assert TWO.errors("test") == {
        "standard_error": 2 / 5,
        "robust_error": 4 / 5,
        "test/standard_error": 2 / 5,
        "test/examples": 5,
        "test/robust_error/linf_0.1/pgd20": 3 / 5,
        "test/robust_error/l2_0.5/pgd20": 4 / 5,
        "test/robust_error/union/pgd20": 4 / 5,
    }


def test_records_come_back_from_disk(tmp_path):
    path = tmp_path / "records.npz"
    path.write_bytes(TWO.to_bytes())

    found = Records.load(path)

    assert len(found) == 5 and found.errors("val") == TWO.errors("val")
    assert np.array_equal(found.label, LABEL) and np.array_equal(found.plain, PLAIN)
    assert list(found.attacked) == list(TWO.attacked)
    for name, prediction in TWO.attacked.items():
        assert np.array_equal(found.attacked[name], prediction)
    with np.load(io.BytesIO(TWO.to_bytes()), allow_pickle=False) as arrays:
        assert all(array.dtype == np.int64 for array in arrays.values())


def with_objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, label=LABEL, plain=np.array([{}, {}], dtype=object))
    return buffer.getvalue()


def without_a_part() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, label=LABEL)
    return buffer.getvalue()


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, LABEL)
    return buffer.getvalue()


def damaged() -> bytes:
    content = bytearray(TWO.to_bytes())
    content[60:80] = bytes(20)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        with_objects(),
        without_a_part(),
        single_array(),
        damaged(),
        TWO.to_bytes()[:-30],
        pickle.dumps(LABEL),
        b"no archive",
        b"",
    ],
    ids=["objects", "a part", "one array", "damaged", "truncated", "pickle", "text", "empty"],
)
def test_what_are_no_records_is_refused(tmp_path, content):
    path = tmp_path / "records.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"records\.npz"):
        Records.load(path)


def test_records_that_are_missing_are_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.npz"):
        Records.load(tmp_path / "missing.npz")


# --- evaluate ---------------------------------------------------------------------------------


def test_evaluate_gives_the_predictions_of_the_model():
    net, x = model(), torch.rand(6, 1, 2, 2)
    y = torch.arange(6) % 3
    records = evaluate(net, x, y, ["linf:8/255", "l2:0.5"], "fgsm")
    assert np.array_equal(records.label, y.numpy())
    assert np.array_equal(records.plain, net(x).argmax(1).numpy())
    assert list(records.attacked) == ["linf_8_255/fgsm", "l2_0.5/fgsm"]
    same = evaluate(net, x, y, ["linf:8/255"], FGSM())
    assert np.array_equal(same.attacked["linf_8_255/fgsm"], records.attacked["linf_8_255/fgsm"])


def test_evaluate_attacks_by_pgd_unless_told_otherwise():
    records = evaluate(model(), torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), ["l2:1"])
    assert list(records.attacked) == [f"l2_1/{PGD().name}"]


X, Y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[0], Y, r"x \(N, C, H, W\)"),
        (X.flatten(1), Y, r"x \(N, C, H, W\)"),
        (X, Y[:2], r"x \(N, C, H, W\)"),
        (X[:0], Y[:0], r"x \(N, C, H, W\)"),
        (X - 1, Y, r"lie in \[0, 1\]"),
        (X * 255, Y, r"lie in \[0, 1\]"),
        (X * torch.nan, Y, r"lie in \[0, 1\]"),
    ],
)
def test_inputs_that_are_no_images_are_refused(x, y, message):
    with pytest.raises(DataError, match=message):
        evaluate(model(), x, y, ["linf:0.1"])


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("pdg", "did you mean 'pgd'"),
        ({"type": "pgd", "step": 5}, "suite.step: unknown key; did you mean 'steps'"),
        ({"steps": 5}, "suite: `type` is missing"),
        (["pgd"], "suite: "),
    ],
)
def test_a_suite_that_is_none_is_refused_with_a_guess(suite, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(model(), X, Y, ["linf:0.1"], suite)


def test_a_suite_may_be_given_by_its_settings_and_one_threat_alone():
    given = evaluate(model(), X, Y, "linf:0.1", {"type": "pgd", "steps": 5})
    same = evaluate(model(), X, Y, ["linf:0.1"], PGD(steps=5))
    assert given.attacked.keys() == same.attacked.keys() == {"linf_0.1/pgd5"}
    assert (given.attacked["linf_0.1/pgd5"] == same.attacked["linf_0.1/pgd5"]).all()


@pytest.mark.parametrize(
    ("threat", "message"),
    [
        ("linf", "NORM:EPS"),
        ("linf:eight", "8/255"),
        ("l3:0.1", "allowed: linf, l2, l1"),
        ("linf:8", "did you mean 8/255"),
        ("l2:-1", "0 or more"),
        (0.1, "NORM:EPS"),
    ],
)
def test_a_text_that_is_no_threat_is_refused_in_one_line(threat, message):
    with pytest.raises(ConfigError, match=message) as caught:
        evaluate(model(), X, Y, ["l2:0.5", threat])
    (problem,) = caught.value.problems
    assert "\n" not in problem and "pydantic" not in problem


def test_a_threat_given_twice_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        evaluate(model(), X, Y, ["linf:0.1", "linf:1/10"])


@pytest.mark.parametrize("channels", [1, 2])
def test_the_layout_of_a_model_s_weights_is_as_it_was_and_predictions_too(channels):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 4, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 36, 3),
    )
    seen = []
    net[0].register_forward_hook(
        lambda module, _, out: seen.append((module.weight.stride(), out.stride()))
    )
    x, y = torch.rand(6, channels, 8, 8), torch.zeros(6, dtype=torch.int64)
    weight = net[0].weight.data
    plain = net(x).argmax(1).numpy()
    before, _ = seen.pop()
    records = evaluate(net, x, y, ["linf:1/10"], PGD(steps=2))
    assert {out for _, out in seen} == {(4 * 36, 1, 4 * 6, 4)}, "measured in another layout"
    assert net[0].weight.data_ptr() == weight.data_ptr()
    assert net[0].weight.stride() == before
    np.testing.assert_array_equal(records.plain, plain)


def test_a_union_over_any_threats_comes_from_the_records():
    label = np.zeros(6, dtype=int)
    plain = np.array([1, 0, 0, 0, 0, 0])
    attacked = {
        "linf_0.1/pgd20": np.array([1, 1, 0, 0, 0, 0]),
        "linf_0.1/square": np.array([1, 0, 1, 0, 0, 0]),
        "l2_1/pgd20": np.array([1, 0, 0, 1, 0, 0]),
        "l1_5/pgd20": np.array([1, 0, 0, 0, 1, 0]),
    }
    records = Records(label, plain, attacked)
    assert records.union(["linf_0.1"]).tolist() == [1, 1, 1, 0, 0, 0]
    assert records.union(["linf_0.1/pgd20", "l1_5"]).tolist() == [1, 1, 0, 0, 1, 0]
    assert records.union([]).tolist() == [1, 0, 0, 0, 0, 0]
    assert records.union().tolist() == [1, 1, 1, 1, 1, 0]
    with pytest.raises(ConfigError, match="got 'l2'; did you mean 'l2_1'"):
        records.union(["l2"])


def test_examples_of_a_model_fool_itself_and_a_twin_but_not_one_that_looks_elsewhere():
    torch.manual_seed(0)
    x, y = torch.rand(60, 1, 2, 2) * 0.4 + 0.3, torch.arange(60) % 2

    def net(pixel):
        # looks at one pixel, whose value tells the class
        linear = torch.nn.Linear(4, 2)
        with torch.no_grad():
            linear.weight.zero_()
            linear.weight[:, pixel] = torch.tensor([-1.0, 1.0])
            linear.bias.copy_(torch.tensor([0.5, -0.5]))
        return torch.nn.Sequential(torch.nn.Flatten(), linear)

    for pixel in (0, 1):
        x.flatten(1)[:, pixel] = torch.where(y == 1, 0.58, 0.42)
    threat, split = Threat(norm="l2", eps="1/10"), Split(x, y, 1.0)
    first, twin, other = net(0), net(0), net(1)
    assert transfer_error(first, first, split, threat, ("t",)) == 1
    assert transfer_error(first, twin, split, threat, ("t",), batch_size=7) == 1
    assert transfer_error(first, other, split, threat, ("t",)) == 0


def test_a_proof_that_is_contradicted_is_an_error():
    label, plain = np.array([0, 1, 2]), np.array([0, 1, 1])
    attacked = {"linf_0.1/pgd20": np.array([0, 2, 1]), "l2_1/pgd20": np.array([1, 1, 1])}
    Records(label, plain, attacked, {"linf_0.1/ibp": np.array([1, 0, 0])})
    Records(label, plain, attacked, {"l2_1/ibp": np.array([0, 1, 0])})
    with pytest.raises(SoundnessError, match=r"1 certified .* contradicted by linf_0.1/pgd20"):
        Records(label, plain, attacked, {"linf_0.1/ibp": np.array([1, 1, 0])})
    with pytest.raises(SoundnessError, match="contradicted by no attack"):
        Records(label, plain, {}, {"linf_0.1/ibp": np.array([0, 0, 1])})


def test_certified_errors_of_several_threats_and_verifiers():
    label = plain = np.zeros(4, np.int64)
    records = Records(
        label,
        plain,
        {},
        {
            "linf_0.1/ibp": np.array([1, 1, 0, -1], np.int8),
            "l2_1/ibp": np.array([1, 0, 1, 1], np.int8),
            "linf_0.1/crown": np.array([1, 1, 1, 0], np.int8),
            "l2_1/crown": np.array([0, 1, 1, 1], np.int8),
        },
    )
    errors = records.errors("test")
    assert errors["test/certified_error/linf_0.1/ibp"] == 0.5, "nobody has tried is not certified"
    assert errors["test/certified_error/union/ibp"] == 0.75
    assert errors["test/certified_error/union/crown"] == 0.5
    assert errors["certified_error"] == 0.25, "each verifier's proofs count"
    again = Records.joined([records, records])
    assert len(again.certified["l2_1/ibp"]) == 8


def test_a_verifier_of_one_threat_does_not_stand_for_the_union():
    label = plain = np.zeros(4, np.int64)
    proofs = {
        "linf_0.1/ibp": np.array([1, 0, 0, 0], np.int8),
        "l2_1/ibp": np.array([1, 0, 0, 0], np.int8),
        "linf_0.1/ibp-other": np.array([1, 1, 1, 1], np.int8),
    }
    errors = Records(label, plain, {}, proofs).errors("test")
    assert errors["certified_error"] == 0.75, "three are proved within linf only"
    assert errors["test/certified_error/union/ibp"] == 0.75
    assert "test/certified_error/union/ibp-other" not in errors


def test_proofs_of_a_smoothed_classifier_are_not_put_together_with_those_of_the_model():
    label = plain = np.zeros(4, np.int64)
    records = Records(
        label,
        plain,
        {},
        {
            "l2_1/ibp": np.array([0, 0, 1, 1], np.int8),
            "l2_1/smoothing": np.array([1, 0, 0, 0], np.int8),
        },
        smoothed={"smoothing": label},
    )
    assert records.errors("test")["certified_error"] == 0.75


def test_the_table_of_records_holds_what_is_certified_too():
    label, plain = np.array([0, 1]), np.array([0, 0])
    records = Records(
        label,
        plain,
        {"l2_1/pgd20": plain},
        certified={"l2_1/smoothing": np.array([1, 0], np.int8)},
        smoothed={"smoothing": np.array([0, -2])},
        radii={"l2/smoothing": np.array([1.5, 0.0])},
    )
    table = records_table(records)
    assert list(table.columns) == [
        "label",
        "plain",
        "l2_1/pgd20",
        "certified:l2_1/smoothing",
        "smoothed:smoothing",
        "radii:l2/smoothing",
    ]
    assert table.iloc[0].tolist() == [0, 0, 0, 1, 0, 1.5]
