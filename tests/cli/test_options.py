"""Options of the command line: grouped, generated, and told what was meant."""

import pytest
from click.testing import CliRunner

from ddfast.cli import cli
from ddfast.run.config import run_options
from ddfast.runtime.options import SECTIONS


def run(*args: str) -> str:
    return " ".join(CliRunner().invoke(cli, args).output.split())


@pytest.mark.parametrize("command", ["distill", "tune", "experts", "evaluate", "convert"])
def test_help_is_grouped_and_shows_an_option_once(command):
    text = CliRunner().invoke(cli, [command, "--help"]).output
    headings = [line.removesuffix(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [section for section in (*SECTIONS, "Images", "Other") if section in headings]
    names = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert len(names) == len(set(names)) and "Data" in headings


def test_distill_has_every_declared_option():
    text = CliRunner().invoke(cli, ["distill", "--help"]).output
    missing = [name for name in run_options() if f"--{name.replace('_', '-')}" not in text]
    assert not missing


@pytest.mark.parametrize(
    "args, sentence",
    [
        ("distill --itertions 3", "No such option '--itertions'. (Did you mean one of:"),
        (
            "distill --distance cosin",
            "expected one of squared, l1, cosine, layerwise, unnormalised, got 'cosin'; did you",
        ),
        ("distill --batch-syn some", "'--batch-syn': expected a whole number of at least 1, got 'some'"),
        ("distill --keep-epochs forty", "expected a first and a last epoch as 40-61, needed, or all, got 'forty'"),
        ("distill --value-range 9,3", "expected auto, or the values of black and white as 0,4095, got '9,3'"),
        ("distill --image-size 0x4", "expected a side or HxW in pixels, got '0x4'"),
    ],
)
def test_a_bad_name_or_value_is_told_what_was_meant(args, sentence):
    assert sentence in run(*args.split())
