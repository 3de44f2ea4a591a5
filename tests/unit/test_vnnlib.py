"""Files for complete verifiers, read back by a parser of our own and by onnxruntime."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from robustfront.errors import ConfigError, DataError, RobustfrontError
from robustfront.evaluation import vnnlib
from robustfront.models import CNN7, MLP, WideResNet, build_model
from robustfront.threats import Threat

LINF = Threat(norm="linf", eps="8/255")


def parsed(text: str) -> tuple[np.ndarray, np.ndarray, int, set[int]]:
    """Ends of the inputs, the label, the classes that would be counterexamples."""
    inputs = len(re.findall(r"\(declare-const X_\d+ Real\)", text))
    ends = np.full((2, inputs), np.nan)
    for sign, index, value in re.findall(r"\(assert \(([<>])= X_(\d+) ([\d.]+)\)\)", text):
        ends[int(sign == "<"), int(index)] = float(value)
    pairs = re.findall(r"\(and \(>= Y_(\d+) Y_(\d+)\)\)", text)
    (label,) = {int(b) for _, b in pairs}
    return ends[0], ends[1], label, {int(a) for a, _ in pairs}


def image() -> Tensor:
    x = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0], x[1, 2, 3] = 0, 1
    return x


def test_a_specification_holds_all_that_is_allowed_and_hardly_more() -> None:
    x = image()
    low, high, label, others = parsed(vnnlib.specification(x, 2, 5, LINF))
    assert label == 2
    assert others == {0, 1, 3, 4}
    exact = x.double().flatten().numpy()
    assert (low <= np.maximum(exact - 8 / 255, 0)).all()
    assert (high >= np.minimum(exact + 8 / 255, 1)).all()
    np.testing.assert_allclose(low, np.maximum(exact - 8 / 255, 0), atol=1e-12)
    np.testing.assert_allclose(high, np.minimum(exact + 8 / 255, 1), atol=1e-12)
    ends = [end.double().flatten().numpy() for end in LINF.ends(x[None])]
    assert (low - 1e-7 <= ends[0]).all() and (ends[1] <= high + 1e-7).all()
    segment = Threat(norm="segment", eps="1/10")
    low, high, *_ = parsed(vnnlib.specification(x, 2, 5, segment))
    assert (low[1:] == exact[1:]).all() and (high[1:] == exact[1:]).all()
    tiny = vnnlib.specification(1e-7 + 0 * x, 0, 2, Threat(norm="linf", eps="0"))
    assert not re.search(r"\de[-+]?\d", tiny)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_ball_that_is_no_box_is_refused(norm: str) -> None:
    with pytest.raises(ConfigError, match="boxes only"):
        vnnlib.specification(image(), 0, 2, Threat.model_validate({"norm": norm, "eps": 1}))


@pytest.mark.parametrize(
    "config", [MLP(hidden=(8,)), CNN7(width=2), WideResNet(depth=10, width=1)], ids=lambda c: c.type
)
def test_the_exported_model_computes_the_same(config: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(config, (3, 8, 8), 5, (0.3, 0.4, 0.5), (0.2, 0.4, 0.3)).eval()  # type: ignore[arg-type]
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    x = torch.rand(7, 3, 8, 8)
    session = onnxruntime.InferenceSession(vnnlib.to_onnx(model, x))
    (found,) = session.run(["Y"], {"X": x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_model_that_changes_on_its_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(MLP(hidden=(8,)), (1, 4, 4), 3, (0.3,), (0.2,)).eval()
    true = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda self, *a: [true(self, *a)[0] + 0.01]
    )
    with pytest.raises(RobustfrontError, match=r"differ by 0\.01"):
        vnnlib.to_onnx(model, torch.rand(2, 1, 4, 4))


def test_a_model_that_predicts_another_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(MLP(hidden=(8,)), (1, 4, 4), 3, (0.3,), (0.2,)).eval()
    x = torch.rand(2, 1, 4, 4)
    with torch.no_grad():
        model.body[-1].weight.zero_()  # type: ignore[index, operator, union-attr]
        model.body[-1].bias.copy_(torch.tensor([1e-6, 0, 0]))  # type: ignore[index, union-attr]
    moved = np.array([0, 2e-6, 0], np.float32)
    true = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda self, *a: [true(self, *a)[0] + moved]
    )
    with pytest.raises(RobustfrontError, match="2 of 2 predictions"):
        vnnlib.to_onnx(model, x)


def test_verdicts_of_several_verifiers_are_read(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text(
        "category,onnx,vnnlib,prepare,result,time\n"
        "mnist,model.onnx,linf_0.1/3.vnnlib,0.1,unsat,2.5\n"
        "mnist,model.onnx,/somewhere/linf_0.1/12.vnnlib.gz,0.1,sat,0.5\n"
        "mnist,model.onnx,linf_0.1/4.vnnlib,0.1,timeout,100\n"
        "\n"
        "linf_0.1/5.vnnlib,safe-incomplete,1.0\n"
        "linf_0.1/5.vnnlib,safe-incomplete,1.0\n"
        "linf_0.05/5.vnnlib,sat,1.0\n"
        "linf_0.05/6.vnnlib,unsat,1.0\n"
    )
    assert vnnlib.read_verdicts(file, "linf_0.05") == {5: "refuted", 6: "proved"}
    with pytest.raises(DataError, match=r"on linf_0.2 \(only on linf_0.05, linf_0.1\)"):
        vnnlib.read_verdicts(file, "linf_0.2")
    found = vnnlib.read_verdicts(file, "linf_0.1")
    assert found == {3: "proved", 12: "refuted", 4: "open", 5: "proved"}
    known = np.array([1, 0, -1, 0, 0, 0, *[0] * 8], np.int8)
    added = vnnlib.with_verdicts(known, found, "results.csv")
    assert np.flatnonzero(added).tolist() == [0, 3, 5]
    assert {*added.tolist()} == {0, 1}


BAD = {
    "nothing": ("", "holds no verdict"),
    "a word that is no verdict": ("a,b\nt/1.vnnlib,perhaps\n", "with a verdict"),
    "no property": ("a,b\nunsat,3\n", "not a property"),
    "a property of no threat": ("1.vnnlib,unsat\n", "not a property <threat>/<number>"),
    "two verdicts": ("t/1.vnnlib,unsat\nt/1.vnnlib,sat\n", "another verdict on 1"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_are_no_verdicts_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        vnnlib.read_verdicts(file, "t")
    with pytest.raises(DataError, match="cannot be read"):
        vnnlib.read_verdicts(tmp_path / "nowhere.csv", "t")


def test_verdicts_that_contradict_what_is_known_are_refused() -> None:
    known = np.array([1, 0], np.int8)
    with pytest.raises(DataError, match="refutes example 0, which is proved"):
        vnnlib.with_verdicts(known, {0: "refuted"}, "results.csv")
    with pytest.raises(DataError, match="has example 2, there are 2"):
        vnnlib.with_verdicts(known, {2: "proved"}, "results.csv")
