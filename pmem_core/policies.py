# SPDX-License-Identifier: MIT
"""The placement and the leveling of a device, called by their addresses, which `run` has (binding.bind).

So requests are compiled once, and not once for each pair of policies; what is compiled for a pair takes seconds.
Where a call by address would cost too much, in a replay (offline.py), the family's own functions are called with the
policy's state, and compiled in.
"""

from .jit import call_at, do_at, four_at, hot, record_at


@hot
def page_at(run, page):
    """The placed address of page `page`."""
    return call_at(run["page_at"], (record_at(run["placement"]), page))


@hot
def descriptor_at(run, page):
    """The placed address of the descriptor of page `page`; -1 where there are none."""
    return call_at(run["descriptor_at"], (record_at(run["placement"]), page))


@hot
def translate(run, frame):
    """The medium frame that holds placed frame `frame`."""
    return call_at(run["translate"], (record_at(run["leveling"]), run, frame))


@hot
def tick(run, frame, lines):
    """Note one store into placed frame `frame`, of `lines` lines."""
    do_at(run["tick"], (record_at(run["leveling"]), run, frame, lines))


@hot
def settle(run, core, placed, count):
    """Make the moves that are due around `count` placed bytes; OK or a stop code."""
    return call_at(run["settle"], (record_at(run["leveling"]), run, core, placed, count))


@hot
def settle_page(run, core, page):
    """The same around `page`, and then its descriptor on the medium."""
    return call_at(run["settle_page"], (record_at(run["placement"]), record_at(run["leveling"]), run, core, page))


@hot
def where(run, page):
    """The placed address of `page`, where on the medium that is, and the same of its descriptor: -1 where none lies."""
    return four_at(run["where"], (record_at(run["placement"]), record_at(run["leveling"]), run, page))
