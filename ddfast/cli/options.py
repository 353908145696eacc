"""Command-line options, made from the options that are declared in the library, and help in groups."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from ddfast.run.config import OF_METHODS, default_of, only_for, read_config_file, run_options
from ddfast.runtime.options import SECTIONS, Declared, alternatives, check_option, choices_of, expected, parse_option

log = logging.getLogger("ddfast")

PATH = click.Path(path_type=Path)
AT_LEAST_0 = click.IntRange(min=0)
AT_LEAST_1 = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)


class OptionType(click.ParamType):
    """What a declared option takes, from a text of the command line or a value of a file."""

    def __init__(self, option: Declared) -> None:
        self.option = option
        self.name = option.metavar or _metavar(option)

    def get_metavar(self, param: Any, ctx: Any) -> str:
        """As it is written, not in capitals."""
        return self.name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse a text, check a value."""
        try:
            if isinstance(value, str):
                return parse_option(self.option, value)
            check_option(self.option, value)
            return value
        except ValueError as error:
            self.fail(str(error).removeprefix(f"{self.option.name}: "), param, ctx)


def _metavar(option: Declared) -> str:
    names = {"a number": "NUMBER", "a positive number": "NUMBER", "a whole number": "N"}
    words = expected(option.type)
    found = "|".join(choices_of(option.type)) or next(
        (n for word, n in names.items() if words.startswith(word)), "TEXT"
    )
    return f"{found} or none" if option.switches_off and option.section in OF_METHODS else found


class SectionOption(click.Option):
    """An option with its section of the help."""

    def __init__(self, *arguments: Any, section: str = "Run", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.section = section


def option(*names: str, section: str = "Run", **how: Any) -> Callable:
    """A click option in a section of the help."""
    return click.option(*names, cls=SectionOption, section=section, **how)


def click_option(declared: Declared) -> SectionOption:
    """The option of the command line that gives a declared one; None where it is not given."""
    flag = declared.name.replace("_", "-")
    words = f"{declared.help}{only_for(declared.name)}  [default: {default_of(declared)}]"
    how: dict[str, Any] = {"help": words, "default": None, "section": declared.section}
    if bool in alternatives(declared.type):
        return SectionOption([f"--{flag}/--no-{flag}", declared.name], **how)
    return SectionOption([f"--{flag}", declared.name], type=OptionType(declared), **how)


class Command(click.Command):
    """A command whose options are its own and declared ones, with grouped help, files of options and old names.

    declared: the declared options, called whenever the command is, for methods may have been registered meanwhile.
    renamed: options by the names that they had in the version before, and their names now.
    takes_files: whether it has --config.
    """

    def __init__(
        self,
        *arguments: Any,
        declared: Callable[[], Iterable[Declared]] = tuple,
        renamed: dict[str, str] | None = None,
        takes_files: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._declared, self._renamed, self._takes_files = declared, renamed or {}, takes_files

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own options come first in their sections, but for help."""
        made = [click_option(one) for one in self._declared()]
        if self._takes_files:
            made.append(
                SectionOption(
                    ["--config"],
                    type=PATH,
                    is_eager=True,
                    expose_value=False,
                    callback=self._read,
                    help="A .yaml, .toml or .json file of these options, or a run's config.json; what is given beside "
                    "it comes first.",
                )
            )
        own = super().get_params(ctx)
        help_option = [one for one in own if "--help" in one.opts]
        return [*(one for one in own if one not in help_option), *made, *help_option]

    def _read(self, ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
        if path is not None:
            known = [
                one.name for one in self.get_params(ctx) if isinstance(one, SectionOption) and one.name != "config"
            ]
            ctx.default_map = read_config_file(path, known)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, once options have their names of today."""
        return super().parse_args(ctx, [self._today(arg) for arg in args])

    def _today(self, arg: str) -> str:
        name, equals, value = arg.partition("=")
        new = self._renamed.get(name.replace("_", "-"))
        if new is None:
            return arg
        log.warning("%s is called %s now", name, new)
        return f"{new}{equals}{value}"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, section by section."""
        records: dict[str, list[tuple[str, str]]] = {section: [] for section in (*SECTIONS, "Images", "Other")}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                section = getattr(param, "section", "Other")
                records[section].append(record)
        for section, rows in records.items():
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)


def declared(*names: str) -> list[Declared]:
    """Declared options by name; without names, all of `distill`."""
    known = run_options()
    return [known[name] for name in names] if names else list(known.values())
