# SPDX-License-Identifier: MIT
"""The command: ``pmem-nbd VERB …``.

A verb's module is imported when the verb is used, so that ``--help`` need not wait for numba.  Every error is one line
on stderr: exit status 2 for a request that makes no sense as it was typed, 1 for everything else.
"""

import atexit
import contextlib
import gc
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import click

from pmem_core import __version__, policyfile
from pmem_core.cli._common import STATUS
from pmem_core.cli._signals import signals_as_interrupt
from pmem_core.errors import PmemError, UsageError

PROGRAM = "pmem-nbd"

# verb: (module:command, its line in --help; here, because asking the module would import it)
VERBS = {
    "create": ("pmem_core.cli.image:create", "Create an image."),
    "info": ("pmem_core.cli.image:info", "Show what an image is: geometry, capacity, overhead, policies."),
    "serve": ("pmem_core.cli.serve:serve", "Serve an image over NBD."),
    "stop": ("pmem_core.cli.serve:stop", "Stop the server of an image."),
    "list": ("pmem_core.cli.serve:list_", "List the servers that run, and what they cost."),
    "mount": ("pmem_core.cli.mount:mount", "Serve an image, attach it, and mount the filesystem on it."),
    "unmount": ("pmem_core.cli.mount:unmount", "Undo mount."),
    "attach": ("pmem_core.cli.mount:attach", "Make an image a block device of this machine."),
    "detach": ("pmem_core.cli.mount:detach", "Undo attach."),
    "stats": ("pmem_core.cli.stats:stats", "Show the wear, of an image that is served too."),
    "replay": ("pmem_core.cli.replay:replay", "Wear a device out without data, and say how long it lived."),
    "policies": ("pmem_core.cli.policies:policies", "List the policies, or test one of your own."),
    "study": ("pmem_core.cli.study:study", "Compare levelings: placement, unit, descriptor writes, workload."),
    "pagemaps": ("pmem_core.cli.pagemaps:pagemaps", "Compare where page descriptors may be."),
    "report": ("pmem_core.cli.report:report", "Write the wear of an image as an HTML page with figures."),
    "convert": ("pmem_core.cli.convert:convert", "Give an image descriptors of another size or format."),
    "check": ("pmem_core.cli.check:check", "Look for damage in an image, and repair it if told to."),
    "log": ("pmem_core.cli.log:log", "List a log of writes, or put a mark into it."),
    "replay-log": ("pmem_core.cli.log:replay_log", "Replay a log of writes onto a file or a block device."),
    "trace": ("pmem_core.cli.trace:trace", "Show what is in a recorded workload."),
    "completion": ("pmem_core.cli:completion", "Print the completion script of a shell."),
}


class Verbs(click.Group):
    """The verbs of VERBS, imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _reader_may_leave({}):
            return super().make_context(*arguments, **options)  # which prints the help of --help

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_may_leave(ctx.meta):
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


@contextlib.contextmanager
def _reader_may_leave(known: dict[str, Any]) -> Iterator[None]:
    """Let it be no error that the reader of stdout has seen enough (`| head`).

    known: of the verb's context, where its status may stand already.
    """
    try:
        yield
    except (BrokenPipeError, SystemExit) as error:
        # rich makes a SystemExit of it.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _discard_output()
        raise click.exceptions.Exit(known.get(STATUS, 0)) from None


def _discard_output() -> None:
    """Let what stdout still buffers go nowhere: it would fail again at exit."""
    with contextlib.suppress(io.UnsupportedOperation):  # a stand-in of a test's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    cls=Verbs,
    epilog="Every verb has examples: pmem-nbd VERB --help",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
def group() -> None:
    """An emulated persistent-memory disk, served over NBD, whose wear can be read line by line.

    \b
    Examples:
      pmem-nbd create disk.pmem --size 1G
      pmem-nbd mount disk.pmem /mnt --mkfs
      pmem-nbd stats disk.pmem
      pmem-nbd unmount /mnt
    """


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
def completion(shell: str | None) -> None:
    """Print the completion script of a shell (default: that of $SHELL).

    \b
    Examples:
      eval "$(pmem-nbd completion bash)"
      pmem-nbd completion fish > ~/.config/fish/completions/pmem-nbd.fish
    """
    from click.shell_completion import get_completion_class

    name = shell or os.path.basename(os.environ.get("SHELL", ""))  # noqa: PTH119 (a name, not a path to follow)
    if name not in ("bash", "zsh", "fish"):
        raise UsageError("shell", f"{name or 'unknown'} has no completion here", "bash, zsh or fish")
    shell_class = get_completion_class(name)
    assert shell_class is not None
    click.echo(shell_class(group, {}, PROGRAM, "_PMEM_NBD_COMPLETE").source())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: the process's) and return its exit status.

    A verb may return its status; None is 0.  Nothing but the exit status and one line on stderr tells of an error; with
    PMEM_NBD_DEBUG set the traceback is printed before that line.
    """
    # Most of a short command are imports, and what they make stays: to look through it for garbage takes a tenth of
    # their time meanwhile, and half of it when Python ends.
    gc.set_threshold(1_000_000)
    atexit.register(gc.freeze)
    _open_what_was_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: a file's name may be no text
    try:
        with signals_as_interrupt():
            result = group.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as error:
        if isinstance(error.code, str):
            click.echo(error.code, err=True)
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except Exception as error:
        if os.environ.get("PMEM_NBD_DEBUG"):
            traceback.print_exc()
        return _report(error)
    return result if isinstance(result, int) else 0


def _open_what_was_closed() -> None:
    """Open stdin, stdout and stderr where the caller has closed them (`>&-`).

    Else the next file that is opened has that number, and it may be one of an image.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, errors="backslashreplace", closefd=False))


def _report(error: Exception) -> int:
    """Say in one line what went wrong; return the exit status."""
    status = 1
    if not isinstance(error, PmemError | click.ClickException):
        error = policyfile.blamed(error) or error
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)  # the help
        return 2
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else PROGRAM
        # click's sentences begin with a capital and end with a full stop; ours do neither.
        message = error.format_message().rstrip(".")
        text, status = f"{path}: {message[:1].lower()}{message[1:]}: see {path} --help", 2
    elif isinstance(error, PmemError):
        text, status = str(error), 2 if isinstance(error, UsageError) else 1
    elif isinstance(error, click.ClickException):
        text = f"{PROGRAM}: {error.format_message()}"
    elif isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:
            _discard_output()  # most likely it was stdout that could not be written
        text = f"{error.filename or PROGRAM}: {(error.strerror or str(error)).lower()}"
    else:
        text = f"{PROGRAM}: internal error: {type(error).__name__}: {error}: PMEM_NBD_DEBUG=1 shows where"
    click.echo(" ".join(text.split()), err=True)
    return status
