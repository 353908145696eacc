"""What a job is expected to take, and how that is corrected."""

import logging

import pytest

from ddfast.runtime.forecast import Forecast, parse_budget_of_time, words_of_time


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize(
    ("said", "seconds"), [("90s", 90), ("20min", 1200), (" 1.5 h", 5400), ("2d", 172800), (".5min", 30)]
)
def test_a_budget_of_time_is_a_number_and_a_unit(said, seconds):
    assert parse_budget_of_time(said) == seconds


@pytest.mark.parametrize("said", ["20", 20, "min", "0min", "-5min", "20 apples", "", None, "1e3s", "20GiB"])
def test_any_other_budget_is_refused_with_an_example(said):
    with pytest.raises(ValueError, match="budget: expected a time such as 90s, 20min or 2h"):
        parse_budget_of_time(said)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h"), (172800, "2 days")],
)
def test_times_are_told_in_the_unit_that_fits(seconds, words):
    assert words_of_time(seconds) == words


def test_before_the_job_begins_all_of_it_is_told(clock, caplog):
    forecast = Forecast({"experts": 60.0, "images": 600.0, "evaluation": 0.0}, clock)
    with caplog.at_level(logging.INFO, "ddfast"):
        forecast.say()
    assert "about 11 min in all: experts 60 s, images 10 min (from timed steps)" in caplog.text
    assert forecast.left() == 660


def test_a_forecast_without_stages_says_nothing(clock, caplog):
    forecast = Forecast(None, clock)
    with caplog.at_level(logging.INFO, "ddfast"):
        forecast.say()
        forecast.begin("images", 10)
        clock.now = 1000.0
        forecast.did()
    assert not caplog.text and forecast.left() == 0


def test_what_is_left_follows_the_progress_of_the_stage_and_its_pace_goes_for_the_later_ones(clock):
    forecast = Forecast({"experts": 100.0, "images": 200.0}, clock)
    forecast.begin("experts", 10)
    clock.now = 40.0  # twice as slow as expected
    forecast.did(2)
    assert forecast.left() == pytest.approx(160 + 400)
    clock.now = 100.0
    forecast.did(8)  # after all as fast
    assert forecast.left() == pytest.approx(200)
    forecast.begin("images", 4)
    clock.now = 150.0
    assert forecast.left() == pytest.approx(150)
    forecast.did()
    assert forecast.left() == pytest.approx(150)
    clock.now = 300.0
    forecast.did(3)
    forecast.end()
    assert forecast.left() == 0


def test_a_stage_that_needs_no_time_is_not_waited_for(clock):
    forecast = Forecast({"experts": 0.0, "images": 50.0}, clock)
    forecast.begin("images", 1)
    assert forecast.left() == 50
    forecast.expect("experts", 7.0)
    forecast.expect("nothing", 7.0)
    assert forecast.left() == 57


def test_a_long_stage_tells_what_is_left_now_and_then(clock, caplog):
    forecast = Forecast({"images": 1000.0}, clock)
    forecast.begin("images", 100)
    with caplog.at_level(logging.INFO, "ddfast"):
        for _ in range(20):
            clock.now += 12.0
            forecast.did()
    assert [record.message for record in caplog.records] == [
        "images: 5%, about 19 min left in all",
        "images: 10%, about 18 min left in all",
        "images: 15%, about 17 min left in all",
        "images: 20%, about 16 min left in all",
    ]


def test_a_stage_that_its_first_units_tell_is_told_after_them(clock, caplog):
    forecast = Forecast({"images": 10.0, "evaluation": 5.0}, clock, told_by_units="images")
    with caplog.at_level(logging.INFO, "ddfast"):
        forecast.say()
        forecast.begin("images", 100)
        for seconds in (3.0, 1.0):  # the first one warms up
            forecast.saw(seconds)
            clock.now += seconds
            forecast.did()
        assert not caplog.text and not forecast.is_known
        forecast.saw(1.5)
    assert "about 2 min in all: images 2 min, evaluation 5 s" in caplog.text and caplog.text.count("time: ") == 1
    forecast.did()
    assert forecast.is_known and forecast.share == 0.03
    assert forecast.left() == pytest.approx(4 / 0.03 - 4 + 5 * (4 / 0.03) / 110)


@pytest.mark.parametrize(("units", "seconds"), [(100, 5.0), (1, 0.1)])
def test_one_unit_tells_a_stage_when_it_is_long_or_the_only_one(clock, units, seconds):
    forecast = Forecast({"images": 0.0}, clock, told_by_units="images")
    forecast.saw(seconds)  # of no stage
    forecast.begin("images", units)
    forecast.saw(seconds)
    assert forecast.is_known and forecast.left() == pytest.approx(units * seconds)
