# SPDX-License-Identifier: MIT
"""How what goes wrong in the plugin is told: to a client as an errno, to people as one line, never as a traceback."""

import errno
import functools
import os
import sys
import traceback

import nbdkit

from nbd_plugin import pace, threads
from pmem_core import policyfile
from pmem_core.errors import PmemError


class Refused(Exception):
    """A request failed, in words and with its errno set."""


def _in_words(kind, *arguments, _formatted=traceback.format_exception, **options):
    """What nbdkit writes to its log: it asks this function of `traceback` for every exception."""
    return [str(arguments[0])] if kind is Refused else _formatted(kind, *arguments, **options)


traceback.format_exception = _in_words


def reported(callback):
    """Make whatever goes wrong in `callback` the right errno for the client, and one line in the server's log."""

    @functools.wraps(callback)
    def run(*arguments):
        if threads.pin():
            pace.join()
        try:
            return callback(*arguments)
        except Refused:
            raise
        except PmemError as error:
            nbdkit.set_error(error.errno)
            nbdkit.debug(str(error))
            raise Refused(str(error)) from None
        except Exception as error:
            nbdkit.set_error(errno.EIO)
            raise Refused(f"{callback.__name__}: {error!r}: a bug in pmem-nbd") from None

    return run


def may_trim(flags, can_be_fast):
    """Whether a request for zeros may give its pages back; Refused where it must be fast and is not.

    can_be_fast: on this device, for one that may.
    """
    trims = bool(flags & nbdkit.FLAG_MAY_TRIM)
    if flags & nbdkit.FLAG_FAST_ZERO and not (trims and can_be_fast):
        # Zeros that must be stored are no faster than a write.
        nbdkit.set_error(errno.EOPNOTSUPP)
        raise Refused("zero: not fast without permission to trim and descriptors on the medium")
    return trims


def or_fail(callback):
    """Make what goes wrong in `callback`, before the server is up, one line and the end."""

    @functools.wraps(callback)
    def run():
        try:
            return callback()
        except PmemError as error:
            fail(error)
        except Exception as error:
            if found := policyfile.blamed(error):
                fail(found)
            raise

    return run


def fail(error):
    """Say one line and end: before the server is up nobody else can tell the user."""
    print(f"pmem-nbd: {error}", file=sys.stderr, flush=True)
    # Not sys.exit(): nbdkit prints a traceback for every exception, this one too.
    os._exit(1)
