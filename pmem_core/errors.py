# SPDX-License-Identifier: MIT
"""What can go wrong, one class per fault that a caller can act on.

The text of every error is one line, ``subject: what: expected``, lower case; the command prints it as it is and exits
with status 1.  ``errno`` is what an NBD client is told when the fault happens while it is being served.
"""

import errno as errno_

# What a server says when it has not closed the image well begins so; its other lines are for people to know.
NOT_CLOSED = "pmem-nbd: error: "


class PmemError(Exception):
    """The base of every error this package raises on purpose."""

    errno = errno_.EIO

    def __init__(self, subject: object, what: str, expected: str = "") -> None:
        self.subject, self.what, self.expected = str(subject), what, expected
        super().__init__(": ".join(part for part in (self.subject, what, expected) if part))

    def __reduce__(self) -> tuple[type["PmemError"], tuple[str, str, str]]:
        # Processes hand errors to each other, and the text alone would not make one.
        return type(self), (self.subject, self.what, self.expected)


class UsageError(PmemError):
    """The request makes no sense as it was typed (sizes, names, parameters); exit status 2."""

    errno = errno_.EINVAL


class NotAnImage(PmemError):
    """The path is missing, or is not an image of ours."""


class DamagedImage(PmemError):
    """The image is ours, and a part that nothing else holds is damaged."""


class UnsupportedImage(PmemError):
    """The image is ours, but newer than this program or with a feature that it does not know."""


class ImageBusy(PmemError):
    """Another process holds the image."""

    errno = errno_.EBUSY


class HostFull(PmemError):
    """The host's filesystem has no room left, or the journal none in its own limit."""

    errno = errno_.ENOSPC


class HostError(PmemError):
    """The host refused something (permissions, I/O error, a port in use)."""


class MissingProgram(PmemError):
    """A program or a kernel feature this needs is not there."""


class ServerError(PmemError):
    """A server did not start, did not answer, or did not stop."""


class BadData(PmemError):
    """Data on the medium does not match its descriptor's checksum."""


class DoesNotFit(PmemError):
    """The device is to become smaller, and holds data where it would end."""

    errno = errno_.ENOSPC


class BadLog(PmemError):
    """The file is no log of writes, or a damaged or unknown one, or it does not hold what was asked for."""


class BadTrace(PmemError):
    """The file is no trace that we read, or a damaged one; the text names the line or the byte."""


class BadPolicy(PmemError):
    """The file with a leveling policy is missing, is no policy, or breaks the contract of one."""


class CheckFailed(PmemError):
    """The command that somebody checks with said no."""
