"""Files of options, and the table of all of them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import ddfast
from ddfast.cli import cli
from ddfast.methods import METHODS
from ddfast.run.config import config_file, methods_with, read_config_file, run_options, table
from ddfast.run.presets import load_presets
from ddfast.run.resolve import resolve
from ddfast.runtime.options import SECTIONS, check_option

GIVEN = {"iterations": 3, "lr_img": 0.5, "batch_syn": None, "networks": ["mlp", "convnet"], "zca": False, "ipc": 2}
FILES = {
    "a.yaml": "# mine\niterations: 3\nlr-img: 0.5\nbatch_syn: null\nnetworks: [mlp, convnet]\nzca: false\nipc: 2\n",
    "a.toml": 'iterations = 3\nlr_img = 0.5\nbatch_syn = "none"\nnetworks = ["mlp", "convnet"]\nzca = false\nipc = 2\n',
    "a.json": json.dumps(GIVEN),
}
QUICK = "--num-experts 1 --train-epochs 1 --batch-train 500 --syn-steps 2 --expert-epochs 1 --max-start-epoch 1"


def run(*args: str):
    return CliRunner().invoke(cli, args)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_options_is_read(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    assert read_config_file(tmp_path / name, run_options()) == GIVEN | {"batch_syn": "none"}


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("a.yaml", "itertions: 3", r"unknown option in .*a.yaml: 'itertions'; did you mean 'iterations'\?"),
        ("a.yaml", "iterations: [", "a.yaml: while parsing a flow"),
        ("a.toml", "iterations = ", "a.toml: Invalid value"),
        ("a.json", "{", "a.json: Expecting property name"),
        ("a.json", "[1]", "a.json: expected options and their values, got list"),
        ("a.ini", "", "config: expected a .yaml, .toml or .json file, got"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_config_file(tmp_path / name, run_options())


def test_a_missing_file_and_a_bad_value_in_one_are_told(tmp_path):
    missing = run("distill", "--config", str(tmp_path / "none.yaml"))
    assert isinstance(missing.exception, OSError) and "none.yaml: cannot be read" in str(missing.exception)
    (tmp_path / "a.yaml").write_text("syn_steps: 0")
    refused = run("distill", "--config", str(tmp_path / "a.yaml"))
    assert refused.exit_code == 2 and "'--syn-steps': expected a whole number of at least 1, got 0" in refused.output


def test_the_command_line_comes_before_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("iterations: 3\nnum_eval: 2\nsyn_momentum: 0.5\n")
    printed = run("distill", "--config", str(tmp_path / "a.yaml"), "--iterations", "4", "--print-config")
    lines = printed.output.splitlines()
    assert {"iterations: 4", "num_eval: 2", "syn_momentum: 0.5", "syn_steps: 20"} <= set(lines)


def test_printed_settings_and_those_of_a_run_make_the_same_run(tmp_path):
    """What is printed, and the config.json of the run, give the same set, bit for bit."""
    given = ["--iterations", "2", "--num-eval", "1", "--eval-epochs", "1", "--ema-decay", "none", *QUICK.split()]
    printed = run("distill", *given, "--seed", "3", "--print-config").output
    (tmp_path / "a.yaml").write_text(printed[printed.index("# Data") :])
    ends = []
    for name, how in (("first", [*given, "--seed", "3"]), ("second", ["--config", str(tmp_path / "a.yaml")])):
        done = run("distill", *how, "--output", str(tmp_path / name))
        assert done.exit_code in (0, 3), done.output
        ends.append(ddfast.SyntheticSet.load(tmp_path / name / "synthetic").images)
    again = run("distill", "--config", str(tmp_path / "first" / "config.json"), "--output", str(tmp_path / "third"))
    assert again.exit_code in (0, 3), again.output
    ends.append(ddfast.SyntheticSet.load(tmp_path / "third" / "synthetic").images)
    assert ends[0].equal(ends[1]) and ends[0].equal(ends[2])


def test_rates_that_are_probed_for_are_not_written_down(pair):
    job = resolve(
        {"dataset": pair, "iterations": 2, "num_experts": 1, "num_eval": 1, "eval_epochs": 1, "network": "mlp"}
    )
    assert job.config["probed"] == ["lr_teacher", "lr_img", "lr_lr"]
    assert not {"lr_teacher", "lr_img", "lr_lr"} & {
        line.partition(":")[0] for line in config_file(job.config).split("\n")
    }


def test_every_option_has_a_section_and_a_sentence():
    for name, option in run_options().items():
        assert option.section in SECTIONS and option.help.rstrip(".…").strip(), name
    assert methods_with("pruning_threshold") == ["pp"] and methods_with("drop_ratio") == ["pad", "edf"]
    assert methods_with("iterations") is None


@pytest.mark.parametrize("method", METHODS)
def test_presets_hold_options_of_their_method_and_values_that_they_take(method):
    known = run_options(METHODS[method])
    for preset in load_presets(method).values():
        for name, value in preset.settings.items():
            assert name in known, (preset.name, name)
            check_option(known[name], value)


def test_the_table_in_the_docs_is_that_of_the_options():
    file = Path(__file__).parents[2] / "docs" / "options.md"
    assert file.read_text(encoding="utf-8") == "\n".join(table()) + "\n", "ddfast options > docs/options.md"
