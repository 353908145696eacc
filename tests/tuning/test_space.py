"""What is searched, around which defaults, and what explains the differences."""

import pytest

from ddfast.data.augment import FULL_STRATEGY
from ddfast.methods import method_class
from ddfast.tuning.importance import draw_importances, importances
from ddfast.tuning.space import counts_searched, iterations_of, longest_epochs, others_searched, settings_of

MTT = {
    "method": "mtt", "init": "real", "iterations": 100, "syn_steps": 20, "expert_epochs": 3, "min_start_epoch": 2,
    "max_start_epoch": 4, "current_max_start_epoch": None, "batch_syn": None, "lr_img": 100.0, "lr_teacher": 0.02,
    "lr_lr": 0.0, "lr_label": 0.0, "dsa_strategy": "none",
}  # fmt: skip


def by_name(space):
    return {one.name: one for one in space}


def test_every_range_holds_its_default_and_only_valid_values():
    counts, others = by_name(counts_searched(MTT, 10, [])), by_name(others_searched(MTT, 3, []))
    assert counts.keys() == {"syn_steps", "expert_epochs", "max_start_epoch", "batch_syn"}
    assert others.keys() == {"lr_img", "lr_teacher", "dsa_strategy"}  # a rate of zero is switched off, and stays
    assert all(one.low <= one.default <= one.high for one in [*counts.values(), others["lr_img"], others["lr_teacher"]])
    assert counts["max_start_epoch"].low == 3 and counts["batch_syn"].high == 10
    assert others["dsa_strategy"].choices[0] == "none" and FULL_STRATEGY in others["dsa_strategy"].choices
    method = method_class("mtt")
    for name, bound in (("low", 3), ("high", 8)):
        ends = {one.name: getattr(one, name) for one in counts.values()}
        assert ends["max_start_epoch"] == bound
        method.Settings(lr_img=1.0, lr_lr=0.0, lr_teacher=0.01, min_start_epoch=2, **ends)  # refuses what is not valid


def test_what_is_given_is_not_searched():
    assert "syn_steps" not in by_name(counts_searched(MTT, 10, ["syn_steps"]))
    assert by_name(others_searched(MTT, 3, ["lr_img", "dsa_strategy"])).keys() == {"lr_teacher"}
    assert not counts_searched(MTT | {"method": "dm"}, 10, [])  # which has none of them


def test_trials_take_the_time_of_the_defaults():
    assert iterations_of(MTT, {}, 10) == 100
    assert iterations_of(MTT, {"syn_steps": 40}, 10) == 50
    assert iterations_of(MTT, {"syn_steps": 10, "batch_syn": 5}, 10) == 400
    assert iterations_of(MTT | {"batch_syn": 5}, {"batch_syn": 10, "lr_img": 3.0}, 20) == 50
    assert iterations_of(MTT, {"syn_steps": 10, "batch_syn": 5}, 10, fixed=1.0) == 200  # a step takes as long
    assert iterations_of(MTT, {"batch_syn": 5}, 10, fixed=0.6) == 125
    assert iterations_of({"method": "dm", "iterations": 7}, {"lr_img": 3.0}, 10) == 7


def test_experts_are_as_long_as_the_longest_trial_needs():
    space = counts_searched(MTT, 10, [])
    assert longest_epochs(MTT, space, 6) == 8 - 1 + 6
    assert longest_epochs(MTT, space, 50) == 50 and longest_epochs({"method": "dm"}, [], 9) == 9


def test_a_drawn_rate_is_short_and_the_default_stays_as_it_is():
    space = [*counts_searched(MTT, 10, []), *others_searched(MTT | {"lr_teacher": 0.0123456}, 3, [])]
    drawn = {one.name: one.default for one in space}
    values = settings_of(space, drawn, 10)
    assert values["lr_teacher"] == 0.0123456 and values["batch_syn"] == "none" and values["syn_steps"] == 20
    assert settings_of(space, drawn | {"lr_img": 12.3456789, "batch_syn": 7}, 10)["lr_img"] == 12.35


@pytest.fixture
def compared():
    """Trials whose accuracy is a function of lr_img alone."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        rate, _, _ = (
            trial.suggest_float("lr_img", 1, 100, log=True),
            trial.suggest_int("syn_steps", 10, 40, log=True),
            trial.suggest_categorical("dsa_strategy", ("none", "crop")),
        )
        trial.report(min(rate, 60.0), 1)
    return study.get_trials(deepcopy=False)


def test_what_decides_is_what_matters(compared, tmp_path):
    shares = importances(compared)
    assert next(iter(shares)) == "lr_img" and shares["lr_img"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    draw_importances(compared, shares, tmp_path / "importance.png")
    assert (tmp_path / "importance.png").read_bytes().startswith(b"\x89PNG")
    assert importances(compared[:3]) == {}
