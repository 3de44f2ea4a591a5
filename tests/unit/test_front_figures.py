import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustfront.evaluation.intervals import clopper_pearson
from robustfront.search.plan import load_plan
from robustfront.tracking import front_html, front_png
from robustfront.tracking.front import Front, is_error
from robustfront.tracking.front_labels import (
    metric_label,
    parameter_labels,
    parameter_lines,
    telling_parameter,
)
from robustfront.tracking.front_view import View
from robustfront.tracking.tables import _long_names
from tiny_job import JOB, write_job

PARAMETERS = (
    "train_threat.eps",
    "method.type",
    "method.beta",
    "train_threat.mix.linf",
    "train_threat.mix.l2",
)
EVIL = "</script><script>alert(1)</script>"
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_probability_of_being_on_the_front_stands_beside_it() -> None:
    trials = make_trials(6)
    chances = {number: 0.1 * number for number in range(5)}
    front = Front("s", "standard_error", "robust_error", trials, (), "", (), chances)
    column = front.table.set_index("number")["pareto_probability"]
    for number, chance in chances.items():
        if number in column.index:
            assert column[number] == pytest.approx(chance)
    assert "pareto_probability" in front.to_csv().splitlines()[0]
    assert "pareto_probability" in json.loads(front.to_json())["trials"][0]
    row = dict(front.table.iloc[0]) | {"pareto_probability": 0.25}
    assert any("probability 0.25" in line for line in View(front).hover(row))
    without = Front("s", "standard_error", "robust_error", trials, (), "")
    assert "pareto_probability" not in without.table


def test_the_front_of_radii_is_captioned_by_what_certified_them() -> None:
    trials = make_trials(6).assign(**{"val/average_certified_radius/l2/smoothing": 0.5})
    names = {"standard_error": "val/standard_error", "robust_error": "val/robust_error/l2_1/pgd20"}
    front = Front("s", "standard_error", "robust_error", trials, (), "digits", names=names)
    assert front.subtitle == "digits, l2 1, pgd20, val split"
    assert front.of_radii is not None
    assert front.of_radii.subtitle == "digits, l2, smoothing, val split"


def test_a_caption_names_the_noise_that_a_certifier_has_from_training(tmp_path: Path) -> None:
    changes = {
        "threat": {"norm": "l1", "eps": "1/4"},
        "method": {"type": "standard"},
        "search_space": {},
        "smoothing": {"sigma": 0.25, "noise": "uniform"},
        "evaluate": {**JOB["evaluate"], "certify": {"type": "smoothing"}},
    }
    names = _long_names(load_plan(write_job(tmp_path, **changes)).job)
    assert names["certified_error"] == "val/certified_error/l1_0.25/uniform_smoothing"


def make_trials(n: int = 24, seeds: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(n + seeds)
    eps = rng.uniform(0, 0.2, n)
    standard = np.rint(360 * (0.03 + eps**1.5 + rng.exponential(0.02, n))) / 360
    robust = np.rint(360 * (0.25 + 0.6 * np.exp(-28 * eps) + rng.exponential(0.02, n))) / 360
    method = np.array(["pgd_at", "trades", "dale"])[np.arange(n) % 3]
    trials = pd.DataFrame(
        {
            "trial": [f"{number + 7 * 16**11:012x}" for number in range(n)],
            "number": np.arange(n),
            "seed": np.arange(n) % seeds,
            "state": np.where(np.arange(n) % 6 == 5, "pruned", "finished"),
            "standard_error": standard,
            "robust_error": np.minimum(robust, 1.0),
            "val_examples": 360.0,
            "train_threat.eps": eps,
            "method.type": method,
            "method.beta": np.where(method == "trades", 6.0, np.nan),
            "train_threat.mix.linf": 0.75,
            "train_threat.mix.l2": 0.25,
        }
    )
    if n > 12:
        trials.loc[7, ["state", "standard_error", "robust_error"]] = ["diverged", 1.0, 1.0]
        trials.loc[9, ["state", "standard_error", "robust_error"]] = ["failed", np.nan, np.nan]
    return trials


def make_front(trials: pd.DataFrame, name: str = "digits") -> Front:
    parameters = tuple(name for name in PARAMETERS if name in trials)
    return Front(name, "standard_error", "robust_error", trials, parameters, "digits, pgd20")


class Page(HTMLParser):
    """What a browser would load, and what it would show as text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.scripts = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts += data
        else:
            self.text += data


def test_members_are_those_of_a_brute_force_search() -> None:
    trials = make_trials()
    # a copy of a member is a member too; a better trial that was pruned is none
    first = make_front(trials).members.iloc[0]
    trials.loc[0, ["standard_error", "robust_error"]] = [first.standard_error, first.robust_error]
    trials.loc[5, ["standard_error", "robust_error"]] = [0.0, 0.0]
    done = trials[trials["state"] == "finished"]
    points = done[["standard_error", "robust_error"]].to_numpy()
    expected = [
        not any((other <= point).all() and (other < point).any() for other in points)
        for point in points
    ]
    members = make_front(trials).members
    assert set(members["trial"]) == set(done["trial"][expected])
    assert len(members) >= 3
    assert members["standard_error"].is_monotonic_increasing


def test_hypervolume_and_share_of_diverged_trials() -> None:
    trials = make_trials(4).assign(
        standard_error=[0.1, 0.3, 0.4, 1.0],
        robust_error=[0.8, 0.5, 0.6, 1.0],
        state=["finished", "finished", "running", "diverged"],
    )
    front = make_front(trials)
    assert front.hypervolume == pytest.approx(0.2 * 0.2 + 0.7 * 0.5)
    assert front.diverged_share == pytest.approx(1 / 3)


def test_csv_and_json_agree_with_the_front() -> None:
    front = make_front(make_trials())
    record = json.loads(front.to_json(), parse_constant=pytest.fail)
    table = list(csv.DictReader(io.StringIO(front.to_csv())))
    assert record["objectives"] == ["standard_error", "robust_error"]
    assert record["reference"] == [1, 1]
    assert record["hypervolume"] == front.hypervolume
    assert len(table) == len(record["trials"]) == 23
    for cells, row in zip(table, record["trials"], strict=True):
        assert cells == {key: "" if value is None else str(value) for key, value in row.items()}
    assert [row["trial"] for row in record["front"]] == front.members["trial"].tolist()
    on_front = [row for row in record["trials"] if row["pareto"]]
    assert sorted(on_front, key=lambda row: row["standard_error"]) == record["front"]
    assert {float(cells["robust_error"]) for cells in table} == set(front.table["robust_error"])


def test_values_that_json_does_not_know() -> None:
    trials = make_trials(3).astype(object)
    trials["method.beta"] = [np.float64("inf"), pd.NA, np.int64(3)]
    trials["train_threat.eps"] = [None, [1, np.float32(0.5)], {"a": (np.bool_(True),)}]
    front = make_front(trials)
    rows = json.loads(front.to_json(), parse_constant=pytest.fail)["trials"]
    assert [row["method.beta"] for row in rows] == [None, None, 3]
    assert [row["train_threat.eps"] for row in rows] == [None, [1, 0.5], {"a": [True]}]
    assert list(csv.DictReader(io.StringIO(front.to_csv())))[1]["train_threat.eps"] == "[1, 0.5]"


def test_intervals_stand_beside_their_errors() -> None:
    front = make_front(make_trials())
    row = front.table.iloc[0]
    wrong = round(row["robust_error"] * 360)
    expected = stats.beta.ppf([0.025, 0.975], [wrong, wrong + 1], [361 - wrong, 360 - wrong])
    assert [row["robust_error_low"], row["robust_error_high"]] == pytest.approx(expected)
    columns = list(front.table.columns)
    place = columns.index("robust_error")
    assert columns[place + 1 : place + 3] == ["robust_error_low", "robust_error_high"]
    without = make_front(make_trials().drop(columns="val_examples"))
    assert not any(column.endswith("_low") for column in without.table)


def test_examples_of_another_split_do_not_count() -> None:
    trials = make_trials(3).assign(**{"test/robust_error/union/apgd": 0.5})
    front = make_front(trials)
    assert "test/robust_error/union/apgd_low" not in front.table
    front = make_front(trials.assign(test_examples=100))
    assert front.table["test/robust_error/union/apgd_low"].iloc[0] == pytest.approx(0.398, abs=5e-4)


@pytest.mark.parametrize("n", [1, 10, 10_000])
def test_interval_at_both_ends(n: int) -> None:
    assert clopper_pearson(0, n) == pytest.approx((0.0, 1 - 0.025 ** (1 / n)))
    assert clopper_pearson(n, n) == pytest.approx((0.025 ** (1 / n), 1.0))


def test_interval_covers_and_is_elementwise() -> None:
    errors = np.arange(21)
    low, high = clopper_pearson(errors, 20, 0.9)
    covered = [
        stats.binom.pmf(errors, 20, p)[(low <= p) & (p <= high)].sum()
        for p in np.linspace(0.01, 0.99, 50)
    ]
    assert min(covered) >= 0.9
    assert clopper_pearson(5, 20, 0.9) == pytest.approx((low[5], high[5]))
    for wrong in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="between 0 and the number"):
            clopper_pearson(*wrong)
    with pytest.raises(ValueError, match="confidence"):
        clopper_pearson(1, 3, 1.0)


def test_write_leaves_four_whole_files(tmp_path: Path) -> None:
    front = make_front(make_trials())
    for _ in range(2):
        front.write(tmp_path / "front")
    names = {path.name for path in (tmp_path / "front").iterdir()}
    assert names == {f"pareto.{kind}" for kind in ("csv", "json", "png", "html")}
    assert (tmp_path / "front" / "pareto.png").read_bytes().startswith(PNG)
    assert (tmp_path / "front" / "pareto.html").read_text() == front_html.render(front)


def test_page_loads_nothing_and_names_every_trial() -> None:
    trials = make_trials()
    source = front_html.render(make_front(trials))
    page = Page(source)
    assert page.addresses == []
    assert not {"link", "iframe", "img", "base"} & set(page.tags)
    assert "default-src 'none'" in source
    assert '"showSendToCloud": false' in source
    assert all(trial in page.scripts + page.text for trial in trials["trial"])
    assert "ε (train) " in page.text
    assert "mix linf 0.75 · l2 0.25" in page.text


def test_text_from_outside_stays_text() -> None:
    plain = Page(front_html.render(make_front(make_trials())))
    trials = make_trials()
    trials["method.type"] = EVIL
    trials["trial"] = EVIL + trials["trial"]
    front = Front(EVIL, "standard_error", "robust_error", trials, PARAMETERS, EVIL)
    page = Page(front_html.render(front))
    assert page.tags.count("script") == plain.tags.count("script")
    assert EVIL in page.text
    assert EVIL not in page.scripts
    # plotly reads markup in labels: for it the text is escaped once more
    assert page.scripts.count("\\u003cscript") == plain.scripts.count("\\u003cscript")


def test_text_with_dollars_is_not_mathematics() -> None:
    trials = make_trials()
    trials["method.type"] = "$x_{$"
    assert front_png.render(make_front(trials, "$y^{$")).startswith(PNG)


@pytest.mark.parametrize(
    ("trials", "yet"),
    [
        (pd.DataFrame(), True),
        (make_trials(3).assign(state="running", robust_error=np.nan), True),
        (make_trials().assign(state="pruned"), True),
        (make_trials(1), False),
        (make_trials(3).drop(columns=["method.type", "val_examples"]), False),
        (make_trials(60, seeds=3), False),
    ],
    ids=["empty", "running", "pruned", "one", "plain", "seeds"],
)
def test_fronts_of_every_size_are_drawn(trials: pd.DataFrame, yet: bool) -> None:
    front = make_front(trials)
    assert front_png.render(front).startswith(PNG)
    assert ("no finished trial yet" in Page(front_html.render(front)).scripts) == yet
    assert (front.hypervolume == 0) == yet
    assert json.loads(front.to_json())["front"] == [] or not yet


def test_far_trials_do_not_squeeze_the_front() -> None:
    trials = make_trials()
    trials.loc[[2, 3], ["standard_error", "robust_error"]] = 0.9
    view = View(make_front(trials))
    assert view.x.high < 40
    assert view.note == (
        "not shown: 2 finished, 1 diverged beyond the axes, 1 failed without a result"
    )
    assert view.inside(view.front.members).all()


def test_outline_passes_through_the_members_and_leaves_the_picture() -> None:
    view = View(make_front(make_trials()))
    members = view.points(view.front.members)
    outline = view.outline
    assert all((outline == member).all(axis=1).any() for member in members)
    assert outline[0, 1] > view.y.high
    assert outline[-1, 0] > view.x.high
    assert ((np.diff(outline, axis=0) == 0).sum(axis=1) >= 1).all()


def test_attainment_lies_between_the_best_and_the_worst_seed() -> None:
    trials = make_trials(2).assign(seed=[0, 1], standard_error=[0.1, 0.2], robust_error=[0.5, 0.4])
    view = View(make_front(trials))
    assert view.seeds == 2
    assert view.attained(1.0)[1].tolist() == [20, 50]
    assert view.attained(0.5)[1].tolist() == [10, 50]


def test_labels() -> None:
    assert metric_label("robust_error") == "Robust error"
    assert metric_label("val/robust_error/linf_8_255/pgd20") == (
        "Robust error, linf 8 255, pgd20, val"
    )
    assert is_error("test/certified_error/l2_0.5/smoothing")
    assert not is_error("train_seconds")
    assert parameter_labels(
        ["method.beta", "smoothing.sigma", "threat.eps", "a.x.lr", "b.x.lr"]
    ) == {
        "method.beta": "β",
        "smoothing.sigma": "σ",
        "threat.eps": "ε (threat)",
        "a.x.lr": "a.x.lr",
        "b.x.lr": "b.x.lr",
    }
    row = {"a.mix.linf": 0.5, "a.mix.l2": 0.5, "method.beta": None, "method.type": "trades"}
    assert parameter_lines(row, list(row)) == ["method trades", "mix linf 0.50 · l2 0.50"]


def test_telling_parameter_follows_the_front() -> None:
    members = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [2.0, 9.0, 1.0], "c": [3.0, np.nan, 1.0]})
    assert telling_parameter(members, ["b", "a", "c"]) == "a"
    assert telling_parameter(members, ["c"]) is None
    renamed = members.rename(columns={"a": "train.optimizer.lr"})
    assert telling_parameter(renamed, ["train.optimizer.lr"]) is None


def test_the_front_is_known_without_its_pictures() -> None:
    code = (
        "import sys, robustfront.tracking.front; "
        "sys.exit(any(name in sys.modules for name in ('plotly', 'matplotlib', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_trial_measured_at_several_weights_is_drawn_as_a_curve(tmp_path: Path) -> None:
    trials = make_trials()
    front = make_front(trials)
    assert View(front).curves() == []
    # in no order, and as text: 10 is more than 2
    for weight, x, y in (("10", 0.09, 0.3), ("0", 0.03, 0.9), ("2", 0.05, 0.5)):
        trials[f"standard_error/weight_{weight}"] = np.nan
        trials[f"robust_error/weight_{weight}"] = np.nan
        trials.loc[3, f"standard_error/weight_{weight}"] = x
        trials.loc[3, f"robust_error/weight_{weight}"] = y
    with_curve = make_front(trials)
    ((series, points),) = View(with_curve).curves()
    assert series.label == trials["method.type"][3]
    np.testing.assert_allclose(points, [[3, 90], [5, 50], [9, 30]])
    assert front_png.render(with_curve) != front_png.render(front)
    assert f"{series.label} by weight" in front_html.render(with_curve)


def test_what_a_theory_says_stands_in_a_table_of_its_own(tmp_path: Path) -> None:
    trials = make_trials()
    front = make_front(trials)
    front.write(tmp_path / "without")
    assert not (tmp_path / "without" / "audit.csv").exists()
    trials["val/audit/gap"] = np.where(trials["number"] < 2, 0.25, np.nan)
    front = make_front(trials)
    assert list(front.audits.columns) == ["trial", "number", "seed", *PARAMETERS, "gap"]
    assert sorted(front.audits["number"]) == [0, 1]
    front.write(tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "audit.csv").read_text())))
    assert [row["gap"] for row in rows] == ["0.25", "0.25"]


def test_how_far_examples_carry_over_is_a_table_and_a_map(tmp_path: Path) -> None:
    trials = make_trials()
    front = make_front(trials)
    assert front.transfer.empty
    first, second = list(front.members["trial"])[:2]
    column = trials["trial"]
    for source, errors in ((first, (0.5, 0.2)), (second, (0.1, 0.4)), ("nobody", (0.3, 0.3))):
        name = f"test/transfer/linf_0.1/{source}"
        trials[name] = column.map(dict(zip((first, second), errors, strict=True)))
    front = make_front(trials)
    found = front.transfer.set_index(["source", "target"])["error"].to_dict()
    expected = {(first, first): 0.5, (first, second): 0.2}
    assert found == expected | {(second, first): 0.1, (second, second): 0.4}
    front.write(tmp_path)
    assert (tmp_path / "transfer.png").read_bytes().startswith(PNG)
    assert len((tmp_path / "transfer.csv").read_text().splitlines()) == 5


def test_radii_have_a_front_of_their_own_where_more_is_better(tmp_path: Path) -> None:
    trials = make_trials(12).assign(smoothed_error=lambda t: t["standard_error"])
    radius = "val/average_certified_radius/l2/smoothing"
    trials[radius] = np.random.default_rng(0).uniform(0.2, 0.8, 12).round(3)
    front = make_front(trials)
    own = front.of_radii
    assert own is not None and own.y == radius and own.reference == [1.0, 0.0]
    finished = trials[trials["state"] == "finished"]
    best = {
        row["trial"]
        for _, row in finished.iterrows()
        if not (
            (finished["standard_error"] <= row["standard_error"])
            & (finished[radius] >= row[radius])
            & (
                (finished["standard_error"] < row["standard_error"])
                | (finished[radius] > row[radius])
            )
        ).any()
    }
    assert {*own.members["trial"]} == best and 0 < len(best) < len(finished)
    corners = own.members[["standard_error", radius]].to_numpy()
    left = [*corners[:, 0], 1.0]
    volume = sum(r * (left[i + 1] - left[i]) for i, r in enumerate(corners[:, 1]))
    assert own.hypervolume == pytest.approx(volume)
    # The staircase rises, and ends below the picture on the left.
    outline = View(own).outline
    assert (np.diff(outline[:, 1]) >= 0).all() and outline[0, 1] < View(own).y.low
    assert View(own).attained(1.0)[0, 1] < View(own).y.low
    assert View(own).y.label == "Average certified radius, l2, smoothing, val"
    front.write(tmp_path)
    assert (tmp_path / "radius.png").read_bytes().startswith(PNG)
    assert len(pd.read_csv(tmp_path / "radius.csv")) == len(own.table)
    assert make_front(make_trials(12)).of_radii is None


def test_three_objectives_are_drawn_from_three_sides_and_in_space(tmp_path: Path) -> None:
    trials = make_trials(12)
    trials["certified_error"] = trials["robust_error"] + 0.1
    names = ("standard_error", "robust_error", "certified_error")
    front = replace(make_front(trials), objectives=names)
    front.write(tmp_path)
    assert (tmp_path / "projections.png").stat().st_size > 20_000
    page = (tmp_path / "pareto.html").read_text()
    assert 'id="space"' in page and "scatter3d" in page
    assert "ertified error (%)" in page
    two = tmp_path / "two"
    make_front(trials).write(two)
    assert not (two / "projections.png").exists()
    assert 'id="space"' not in (two / "pareto.html").read_text()
