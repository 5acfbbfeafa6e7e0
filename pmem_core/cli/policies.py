# SPDX-License-Identifier: MIT
"""The verb policies: what there is to choose from, and the test of a policy of one's own."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pmem_core import policyfile
from pmem_core.cli import _geometry
from pmem_core.cli._common import bar, emit, json_option, on_terminal, policy_file_option
from pmem_core.errors import UsageError

FAMILIES = ("leveling", "placement", "workload")


@click.command(short_help="List the policies, or test one of your own.")
@click.argument("family", type=click.Choice(FAMILIES), required=False)
@click.option(
    "--test",
    metavar="FILE|NAME",
    shell_complete=_geometry.completes(_geometry.levelings, files=True),
    help="Test this leveling policy against the contract; a FILE is run.",
)
@policy_file_option
@json_option
def policies(family: str | None, test: str | None, as_json: bool) -> None:
    """List levelings, placements and the workloads of replay, with their sources and parameters.

    With --test: drive a leveling policy over a medium in memory, in plain Python and then compiled with bounds checks,
    with several parameters, sizes and workloads, power cuts, kills and damaged tables. What breaks the contract
    (docs/adding-a-policy.md) is named in one sentence, and the exit status is 1.

    \b
    Examples:
      pmem-nbd policies
      pmem-nbd policies leveling -j
      pmem-nbd policies --policy-file mine.py
      pmem-nbd policies --test mine.py
      pmem-nbd policies --test start_gap
    """
    if test is not None:
        if family not in (None, "leveling"):
            raise UsageError("--test", f"not of a {family}", "a leveling policy")
        _test(test, as_json)
        return
    found = {name: known(name) for name in ([family] if family else FAMILIES)}
    if as_json:
        emit(found)
    else:
        for line in listed(found):
            click.echo(line)


def known(family: str) -> dict[str, Any]:
    """The policies of a family by name, ready for JSON."""
    from pmem_core import leveling, placement
    from pmem_core.replay import workloads

    package = {"leveling": leveling, "placement": placement, "workload": workloads}[family]
    outside = {str(path) for path in policyfile.paths()}
    return {
        name: {
            "about": (module.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " "),
            "source": getattr(module, "SOURCE", ""),
            "file": module.__file__ if module.__file__ in outside else None,
            "parameters": {
                parameter: {"default": default, "min": least, "max": most, "about": text}
                for parameter, (default, least, most, text) in getattr(module, "PARAMETERS", {}).items()
            },
        }
        for name, module in package.family.modules.items()
    }


def listed(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The same for people."""
    for number, (family, modules) in enumerate(found.items()):
        if number:
            yield ""
        for name, module in modules.items():
            own = f"  [{policyfile.shown(Path(module['file']))}]" if module["file"] else ""
            yield f"{family} {name}{own}"
            yield f"    {module['about']}"
            if module["source"]:
                yield f"    source: {module['source']}"
            for parameter, row in module["parameters"].items():
                yield f"    {parameter}={row['default']}  {row['min']} to {row['max']}: {row['about']}"


def _test(asked: str, as_json: bool) -> None:
    from pmem_core import policytest

    files = os.environ.get(policyfile.VARIABLE, "")
    if asked in _geometry.policies("leveling"):
        name = subject = asked
    else:
        path = Path(asked)
        known_paths = {file.stem: file for file in policyfile.paths()}
        if asked in known_paths:
            path = known_paths[asked]
        elif path.suffix != ".py":
            names = ", ".join(_geometry.policies("leveling"))
            raise UsageError(f"--test {asked}", "no such policy", f"a file such as {asked}.py, or one of {names}")
        name, subject = path.stem, policyfile.shown(Path(policyfile.joined([path])))
        files = policyfile.joined([*policyfile.paths(), path])
    with _watching() as watch:
        result = policytest.run(name, subject, files, watch)
    if as_json:
        emit({"policy": name, **vars(result)})
        return
    click.echo(
        f"{subject}: keeps the contract: {result.writes} writes in {result.drives} drives, {result.moves} moves,"
        f" {result.kills} kills, in {result.seconds} s"
    )


@contextlib.contextmanager
def _watching() -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, with what is being tried; nothing elsewhere."""
    if not on_terminal():
        yield lambda share, text: None
        return
    with bar("starting", 1.0) as update:
        yield lambda share, text: update(completed=share, description=text)
