"""Learning-rate schedules and the ramp of the training radius: exact values."""

import numpy as np
import pytest
from pydantic import ValidationError

from robustfront.training.schedules import SCHEDULES, Constant, Cosine, EpsRamp, OneCycle, Step


@pytest.mark.parametrize(
    ("schedule", "epochs", "values"),
    [
        (Constant(), 10, {0: 1, 4.5: 1, 10: 1}),
        (
            Step(milestones=(2, 4), gamma=0.1),
            6,
            {0: 1, 1.99: 1, 2: 0.1, 3.5: 0.1, 4: 0.01, 5.9: 0.01},
        ),
        (Step(milestones=(4, 2), gamma=0.5), 6, {3: 0.5, 4: 0.25}),
        (Step(), 100, {74.9: 1, 75: 0.1, 90: 0.01}),
        (Cosine(), 8, {0: 1, 2: 0.853553391, 4: 0.5, 6: 0.146446609, 8: 0}),
        (Cosine(warmup=2), 10, {0: 0, 0.5: 0.25, 2: 1, 6: 0.5, 10: 0, 11: 0}),
        (OneCycle(), 10, {0: 0.1, 1.5: 0.55, 3: 1, 6.5: 0.5, 10: 0, 12: 0}),
        (OneCycle(peak=0.5, start=0), 4, {0: 0, 1: 0.5, 2: 1, 3: 0.5, 4: 0}),
    ],
)
def test_the_factor_after_so_many_epochs(schedule, epochs, values):
    for epoch, factor in values.items():
        assert schedule.factor(epoch, epochs) == pytest.approx(factor, abs=1e-9), epoch


def test_every_schedule_is_tried_here():
    assert set(SCHEDULES.classes.values()) == {Constant, Step, Cosine, OneCycle}


@pytest.mark.parametrize("kind", SCHEDULES.classes.values())
@pytest.mark.parametrize("epochs", [1, 2, 7, 200])
def test_a_factor_lies_between_0_and_1(kind, epochs):
    factors = [kind().factor(i / 10, epochs) for i in range(10 * epochs + 1)]
    assert min(factors) >= 0 and max(factors) <= 1 and max(factors) > 0


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        (EpsRamp(), {0: 1, 0.01: 1, 5: 1}),
        (EpsRamp(end=4), {0: 0, 1: 0.25, 2.5: 0.625, 4: 1, 9: 1}),
        (EpsRamp(start=1, end=3), {0: 0, 1: 0, 1.5: 0.25, 2: 0.5, 3: 1, 4: 1}),
        (EpsRamp(start=2, end=2), {0: 0, 1.9: 0, 2: 1}),
    ],
)
def test_the_share_of_the_radius_after_so_many_epochs(ramp, values):
    for epoch, share in values.items():
        assert ramp.factor(epoch) == pytest.approx(share, abs=1e-9), epoch


def test_a_ramp_that_ends_before_it_starts_is_refused():
    with pytest.raises(ValidationError):
        EpsRamp(start=3)
    with pytest.raises(ValidationError):
        EpsRamp(start=3, end=2)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Step, {"gamma": 0}),
        (Step, {"milestones": (0,)}),
        (Cosine, {"warmup": -1}),
        (OneCycle, {"peak": 0}),
        (OneCycle, {"peak": 1}),
        (OneCycle, {"start": 1.5}),
        (EpsRamp, {"start": -1}),
        (EpsRamp, {"end": float("inf")}),
    ],
)
def test_values_outside_their_domain_are_refused(kind, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        kind(**wrong)


def test_a_smooth_ramp_has_no_bend_and_ends_at_the_full_radius():
    ramp, middle = EpsRamp(start=1, end=5, shape="smooth"), 2.0
    at = np.linspace(1, 5, 4001)
    values = np.array([ramp.factor(time) for time in at])
    assert ramp.factor(0.5) == 0 and values[0] == 0 and values[-1] == 1
    slopes = np.diff(values) / np.diff(at)
    assert (slopes >= 0).all()
    assert np.abs(np.diff(slopes)).max() < 2e-3, "a bend"
    late = slopes[at[:-1] > middle + 0.01]
    assert late.std() < 1e-9, "linear after a quarter of the time"
    # a = 1 / ((t1 - tm) 4 (tm - t0)^3 + (tm - t0)^4), as the official code has it
    assert ramp.factor(1.5) == pytest.approx(0.5**4 / (3 * 4 + 1))
