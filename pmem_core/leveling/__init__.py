# SPDX-License-Identifier: MIT
"""Leveling: which medium frame holds a placed frame, and when frames move.  One module is one policy;
docs/adding-a-policy.md.

The contract, for every placed frame f of a device with state s:

* `translate` is one-to-one into the medium's frames, at every moment;
* `tick` is called once for each store into f, with the number of lines that it wore;
* `settle` is called before a page is written, for every frame that the write will touch.  It makes the moves that are
  due, one `media.move` and then one `publish` each, and answers OK; or CHECKPOINT where a move would overwrite a frame
  whose last tenant's move is not durable yet; or what `media.move` answered.  Called again it goes on.
  It sets run["wanted"] when a checkpoint soon would spare a stop later.
* a move is switched by one store; where more words change with it, `finish(state, table)` makes the others out of it.
"""

from ..plugins import Family

family = Family(__name__, __path__, takes_files=True)


@family.generic
def translate(state, run, frame):
    """The medium frame that holds placed frame `frame`."""


@family.generic
def tick(state, run, frame, lines):
    """Note one store into placed frame `frame`, of `lines` lines."""


@family.generic
def settle(state, run, core, frame):
    """Make the moves that are due around placed frame `frame`; OK or a stop code."""
