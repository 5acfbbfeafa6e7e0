# SPDX-License-Identifier: MIT
"""The options that say what a device is like, for the verbs that make one up: create, info --plan, replay."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from pmem_core import policyfile
from pmem_core.cli._common import SIZE, Function, policy_file_option
from pmem_core.errors import UsageError

if TYPE_CHECKING:
    from pmem_core.geometry import Geometry

PACKAGE = Path(__file__).resolve().parent.parent
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def policies(family: str, suffix: str = ".py") -> list[str]:
    """The names of a family's policies, from the names of its files: to import them would wait for numba."""
    return sorted(path.stem for path in (PACKAGE / family).glob(f"*{suffix}") if not path.stem.startswith("_"))


def levelings() -> list[str]:
    """The names of levelings, those of files among them."""
    return [*policies("leveling"), *(path.stem for path in policyfile.paths())]


def completes(names: Callable[[], list[str]], separator: str = "", files: bool = False) -> Complete:
    """A completion by names, for an option that takes other words too.

    separator: names may be several, with this between them.  files: a path may stand there as well.
    """

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, between, begun = incomplete.rpartition(separator) if separator else ("", "", incomplete)
        found = [CompletionItem(before + between + name) for name in names() if name.startswith(begun)]
        return [*found, CompletionItem(incomplete, type="file")] if files else found

    return complete


if TYPE_CHECKING:
    StringChoice = click.Choice[str]
else:
    StringChoice = click.Choice  # which takes no type before click 8.2


class LevelingName(StringChoice):
    """The name of a leveling: it completes those that are known, and leaves it to `choices.policy` to refuse one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return completes(levelings)(ctx, param, incomplete)


def parse_parameters(texts: tuple[str, ...], option: str = "--set") -> dict[str, int]:
    """Read ``name=value`` pairs, given to `option`; the values are whole numbers.  UsageError."""
    parameters: dict[str, int] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not name or not equals:
            raise UsageError(f"{option} {text}", "is no parameter", "name=value, such as interval=100")
        if name in parameters:
            raise UsageError(f"{option} {text}", f"{name} was set before", "each parameter once")
        try:
            parameters[name] = int(value, 0)
        except ValueError:
            raise UsageError(f"{option} {text}", f"'{value}' is not a whole number", f"{name}=NUMBER") from None
    return parameters


_PLACEMENT: dict[str, Any] = {
    "type": click.Choice(policies("placement")),
    "help": "Where pages and their descriptors lie.",
}
_OPTIONS = [
    click.option(
        "--leveling",
        type=LevelingName(policies("leveling")),
        default="start_gap",
        show_default=True,
        help="How wear is spread.",
    ),
    click.option(
        "--set", "parameters", metavar="NAME=VALUE", multiple=True, help="A parameter of the leveling; may be repeated."
    ),
    click.option(
        "--descriptor-bytes",
        type=SIZE,
        default=64,
        show_default=True,
        help="16 to 4096, a power of two; placement none has no descriptors.",
    ),
    click.option(
        "--descriptor-writes",
        type=click.Choice(["each", "coalesced"]),
        default="each",
        show_default=True,
        help="Write a descriptor to the medium at each write of its page, or collect such writes until the next flush.",
    ),
    click.option("--checksums/--no-checksums", default=True, show_default=True, help="Keep a crc32c of every page."),
    click.option("--frame-bytes", type=SIZE, default=4096, show_default=True, help="What leveling moves: 256 to 64K."),
    click.option(
        "--line-bytes", type=SIZE, default=256, show_default=True, help="What wear is counted in: 64 to 4096."
    ),
]


def _add(function: Function, *options: Any) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


def geometry_options(function: Function) -> Function:
    """Give a verb the options of a geometry, which arrive as keyword arguments for `plan_of`."""
    placement = click.option("--placement", default="interleaved", show_default=True, **_PLACEMENT)
    return _add(function, policy_file_option, placement, *_OPTIONS)


def plan_options(function: Function) -> Function:
    """The same where a placement need not be chosen: it arrives as None."""
    placement = click.option("--placement", show_default="all of them, side by side", **_PLACEMENT)
    return _add(function, policy_file_option, placement, *_OPTIONS)


def plan_of(size: int, options: dict[str, Any], **more: Any) -> "Geometry":
    """The geometry that the options ask for.  UsageError."""
    from pmem_core import geometry

    chosen = dict(options)
    return geometry.plan(
        size,
        placement_name=chosen.pop("placement"),
        leveling_name=chosen.pop("leveling"),
        parameters=parse_parameters(chosen.pop("parameters")),
        **chosen,
        **more,
    )
