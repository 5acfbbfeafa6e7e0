# SPDX-License-Identifier: MIT
"""What the verbs share: sizes as people write them, JSON output, and progress that only a terminal sees."""

import contextlib
import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pmem_core import policyfile
from pmem_core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

Function = TypeVar("Function", bound=Callable[..., Any])

STATUS = "pmem_core.cli.status"  # in a verb's context: what it is to end with, though nobody reads all that it prints

SIZE_EXPECTED = "a size such as 4096, 64K, 1.5G or 8GiB"
SIZE_MAX = 2**63 - 1
SIZE_TEXT_MAX = 100  # Python makes no number of thousands of digits
UNITS = "KMGTPE"
PAGE_BYTES = 4096


class FilePath(click.Path):
    """A path, as it was typed; an empty one, of a variable that is not set, would mean the folder one is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("is empty", param, ctx)
        return super().convert(value, param, ctx)


# Whether it can be read is found out by whoever reads it; click would call a refusal a mistake in typing.
PATH = FilePath(readable=False, path_type=Path)
IMAGE = click.argument("image", type=PATH)


def parse_size(text: str) -> int:
    """Read a size in bytes: K, M, G, T (or Ki, KiB, …) count in 1024s, KB, MB, … in 1000s; fractions are welcome.

    Raises UsageError where the text is no size, is not a whole number of bytes above zero, or passes 2**63 - 1.
    """
    if len(text) > SIZE_TEXT_MAX:
        raise UsageError("a size", f"has {len(text)} characters", SIZE_EXPECTED)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:([KMGTPE])(i?B?)|B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(repr(text), "is not a size", SIZE_EXPECTED)
    number, unit, suffix = match.groups()
    base = 1000 if (suffix or "").upper() == "B" else 1024
    size = Fraction(number.rstrip(".")) * (base ** (UNITS.index(unit.upper()) + 1) if unit else 1)
    if size == 0:
        raise UsageError(repr(text), "is zero", SIZE_EXPECTED)
    if size.denominator != 1:
        unit_bytes = PAGE_BYTES if size > PAGE_BYTES else 1
        near = math.ceil(size / unit_bytes) * unit_bytes
        raise UsageError(repr(text), "is not a whole number of bytes", f"a size such as {near}")
    if size > SIZE_MAX:
        raise UsageError(repr(text), "is too large", f"at most {SIZE_MAX} bytes")
    return int(size)


if TYPE_CHECKING:
    IntParameter = click.ParamType[int]
else:
    IntParameter = click.ParamType  # which takes no type before click 8.3


class SizeType(IntParameter):
    """A size on the command line; the value is an int, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()


def _take_policy_files(context: click.Context, _: click.Parameter, files: tuple[Path, ...]) -> None:
    """Name the files in the environment: servers and other processes that the verb starts inherit it."""
    if not files:
        return
    before = os.environ.get(policyfile.VARIABLE)

    def restore() -> None:
        if before is None:
            os.environ.pop(policyfile.VARIABLE, None)
        else:
            os.environ[policyfile.VARIABLE] = before

    context.call_on_close(restore)
    os.environ[policyfile.VARIABLE] = policyfile.joined([*policyfile.paths(), *files])


def policy_file_option(function: Function) -> Function:
    """Give a verb ``--policy-file``.  Eager, and such a verb's module imports no hot module at its top: what is
    compiled is cached by these files too."""
    return click.option(
        "--policy-file",
        metavar="FILE",
        type=PATH,
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=_take_policy_files,
        help=f"A file with a leveling policy of your own, which is run; may be repeated.  [env: {policyfile.VARIABLE}]",
    )(function)


def typed(*names: str) -> list[str]:
    """Those of the parameters `names` of the verb at hand that were given where it was called."""
    context, given = click.get_current_context(), click.core.ParameterSource.COMMANDLINE
    return [name for name in names if context.get_parameter_source(name) is given]


def refuse(why: str, expected: str, *names: str) -> None:
    """UsageError where one of the parameters `names` was given: it would do nothing."""
    for name in typed(*names):
        option = next(one for one in click.get_current_context().command.params if one.name == name)
        raise UsageError("/".join([max(option.opts, key=len), *option.secondary_opts]), why, expected)


def human_bytes(count: float) -> str:
    """Write a number of bytes as people read it: ``0 B``, ``4 KiB``, ``1.5 GiB``."""
    value, unit = float(count), "B"
    for letter in UNITS:
        if abs(value) < 1024:
            break
        value, unit = value / 1024, f"{letter}iB"
    return f"{value:.4g} {unit}" if abs(value) < 1000 else f"{value:.0f} {unit}"


def json_option(function: Function) -> Function:
    """Give a verb ``-j/--json``, which arrives as the parameter ``as_json``."""
    return click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(function)


def emit(data: Any) -> None:
    """Print ``data`` as JSON on stdout; numbers of numpy are welcome, other strangers are printed as text."""

    def plain(stranger: Any) -> Any:
        return stranger.tolist() if hasattr(stranger, "tolist") else str(stranger)

    sys.stdout.write(json.dumps(data, indent=2, default=plain) + "\n")


def plain_console(**options: Any) -> "Console":
    """What prints for people, each text as it is: a path may look like markup, or hold the name of an emoji."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, **options)


def on_terminal() -> bool:
    """Whether someone watches stderr; only then is progress shown."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def working(message: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner beside ``message`` on a terminal, and nothing elsewhere; yields a function that changes it."""
    if not on_terminal():
        yield lambda _: None
        return
    from rich.text import Text

    with plain_console(stderr=True).status(Text(message)) as status:
        yield lambda text: status.update(Text(text))


@contextlib.contextmanager
def bar(description: str, total: float | None = None, *, counts: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar, with the time that is left; counts: with how many of how many, in place of a share.

    Yields a function that changes it: ``completed``, ``total`` and ``description``, by name.  For a terminal.
    """
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    told = TextColumn("{task.description}", style="progress.description", markup=False)
    _, drawn, share, left = Progress.get_default_columns()
    columns = (told, drawn, MofNCompleteColumn() if counts else share, left)
    with Progress(*columns, console=plain_console(stderr=True), transient=True) as shown:
        yield functools.partial(shown.update, shown.add_task(description, total=total))


@contextlib.contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal, and nothing elsewhere; yields a function that takes what has been done so far."""
    if not on_terminal():
        yield lambda _: None
        return
    with bar(description, total) as update:
        yield lambda done: update(completed=done)
