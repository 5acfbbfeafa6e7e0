# SPDX-License-Identifier: MIT
"""Write the man pages of the command and of each verb to docs/man, from the help that the command prints.

    .venv/bin/python scripts/man.py            write them
    .venv/bin/python scripts/man.py --check    exit 1 where one is not what would be written

(click-man knows only commands that a group has in memory, and ours imports its verbs one at a time.)
"""

import argparse
import sys
from pathlib import Path

import click

from pmem_core import __version__
from pmem_core.cli import PROGRAM, VERBS, group

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "man"
EXIT_STATUS = """.TP
.B 0
done; for check: nothing was found.
.TP
.B 1
it could not be done, and one line on standard error says why; for check: something was found.
.TP
.B 2
the request makes no sense as it was typed: an unknown option, a size that is none, a name that is taken.
.TP
.B 130
it was interrupted, by Ctrl\\-C, SIGTERM or SIGHUP."""
ENVIRONMENT = {
    "PMEM_NBD_RUNTIME_DIR": "where servers keep their sockets and records (default: /run/pmem-nbd for root, else "
    "pmem-nbd in XDG_RUNTIME_DIR, else /tmp/pmem-nbd-UID).",
    "PMEM_NBD_POLICY_FILES": "files with leveling policies of your own, as --policy-file.",
    "PMEM_NBD_DEBUG": "if set, errors are told with a traceback.",
    "XDG_CACHE_HOME": "compiled code is kept in its pmem-nbd (default: ~/.cache).",
    "TMPDIR": "where copies and sockets are made for a while.",
}


def _plain(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")


def _paragraphs(help_text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a help text, and the lines of its examples."""
    prose, examples = [], []
    for block in help_text.strip().split("\n\n"):
        lines = [line for line in block.splitlines() if line.strip() != "\b"]
        if lines and lines[0].strip() == "Examples:":
            examples += [line.strip() for line in lines[1:]]
        elif lines:
            prose.append(" ".join(line.strip() for line in lines))
    return prose, examples


def _options(command: click.Command, context: click.Context) -> list[str]:
    out = []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Argument):
            continue  # the synopsis names it, the description says what becomes of it
        record = parameter.get_help_record(context)
        if record:
            out += [".TP", f".B {_plain(record[0])}", _plain(record[1])]
    return out


def page(name: str, command: click.Command, line: str) -> str:
    """The man page of a command called `name`, whose one line is `line`."""
    names = group.context_settings["help_option_names"]
    words = name if name == PROGRAM else f"{PROGRAM} {name.removeprefix(PROGRAM + '-')}"
    context = click.Context(command, info_name=words, help_option_names=names)
    prose, examples = _paragraphs(command.help or "")
    synopsis = " ".join(command.collect_usage_pieces(context))
    out = [
        f'.TH {name.upper()} 1 "" "{PROGRAM} {__version__}" "{PROGRAM} manual"',
        ".SH NAME",
        f"{_plain(name)} \\- {_plain(line[:1].lower() + line[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_plain(words)}",
        _plain(synopsis),
        ".SH DESCRIPTION",
    ]
    for paragraph in prose:
        out += [_plain(paragraph), ".PP"]
    if name == PROGRAM:
        out.append(".SH VERBS")
        for verb, (_, text) in VERBS.items():
            out += [".TP", f".B {PROGRAM.replace('-', chr(92) + '-')}\\-{verb}(1)", _plain(text)]
    out += [".SH OPTIONS", *_options(command, context)]
    if examples:
        out += [".SH EXAMPLES", ".nf", *[_plain(example) for example in examples], ".fi"]
    out += [".SH EXIT STATUS", EXIT_STATUS, ".SH ENVIRONMENT"]
    for variable, told in ENVIRONMENT.items():
        out += [".TP", f".B {variable}", _plain(told)]
    others = "nbdkit(1), nbd\\-client(8), nbdfuse(1), fio(1)"
    see = others if name == PROGRAM else f"{_plain(PROGRAM)}(1), {others}"
    out += [".SH SEE ALSO", see, ""]
    return "\n".join(out)


def pages() -> dict[Path, str]:
    """Every page, by its file."""
    out = {FOLDER / f"{PROGRAM}.1": page(PROGRAM, group, "emulate persistent memory over NBD and read its wear")}
    for verb, (_, line) in VERBS.items():
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        out[FOLDER / f"{PROGRAM}-{verb}.1"] = page(f"{PROGRAM}-{verb}", command, line)
    return out


def main() -> int:
    """Write or check the pages; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    wrong = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    stale = set(FOLDER.glob("*.1")) - set(pages())
    if check:
        for path in [*wrong, *stale]:
            print(f"{path.name}: not what the help says: run scripts/man.py", file=sys.stderr)
        return int(bool(wrong or stale))
    for path in stale:
        path.unlink()
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
