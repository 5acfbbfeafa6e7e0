# SPDX-License-Identifier: MIT
"""Page maps: where the descriptor of a page is, how it is made, and who shares it.  One module is one page map;
docs/adding-a-page-map.md.

A device of `page_count` pages.  A process maps a file: the file's *extents*, runs of adjacent pages of the device, are
handed over one by one, and again when it unmaps it; extents of several mappings may overlap.  Somebody holds a page by
a *reference* to its descriptor, or does I/O on it.  The answer is the address of the descriptor's 64 bytes, which are
as layout.DESCRIPTOR has them (flags, refcount, mapcount, index, order), really written; or NONE; or NO_ROOM.

Hot, in every module; `state` is a record of the module's STATE, `page` 0 to page_count - 1:

    bring_up(state, pages)             what discovery of the device has to do for the next `pages` pages (fewer at the
                                       end); returns the pages brought up in all, state["covered"]
    map_extent(state, first, count)    a mapping begins to cover these pages; OK or NO_ROOM, nothing having changed
    unmap_extent(state, first, count)  it ends: just as it was mapped
    lookup(state, page)                the descriptor, and nothing else is done; NONE where there is none now
    get_page(state, page)              the descriptor, with a reference held; NONE or NO_ROOM: nothing is held
    put_page(state, page, descriptor)  give that reference back; with NONE or NO_ROOM nothing is done
    begin_io(state, page)              the descriptor of one I/O on the page, held until its end (get_page, but where
    end_io(state, page, descriptor)    descriptors live for an I/O)

A page that was not brought up may be used all the same: what its first use needs is made then, as Linux's deferred
initialisation does.

SHARED: as long as somebody holds a page's descriptor, everybody who asks gets the same one.  Cold, in every module:

    TITLE, SOURCE       a few words; and whose idea it is
    WHERE               where descriptors are: "medium", "memory" or "nowhere"
    SHARED              True or False, see above
    PARAMETERS          name -> (default, least, most, what it is), as levelings have them
    STATE               FIELDS, then the module's own int64 fields
    plan(page_count, parameters, arena)
                        the state (STATE[1]) of a device that is just discovered; every parameter given; memory from
                        `arena` (arena.Arena), which has to outlive it.  page_count: 1 to PAGES_MAX
    figures(states)     name -> number: what else is to be told of it now, beyond FIELDS

What is "on the medium" is anonymous memory here, standing for it: the figures are about time, bytes and stores.  One
thread uses a state; what locks would cost is not seen.
"""

from ..jit import hot
from ..layout import OK
from ..plugins import Family
from ._descriptors import FIELDS, NO_ROOM, NONE, PAGES_MAX, refcount_of

__all__ = [
    "FIELDS",
    "NONE",
    "NO_ROOM",
    "PAGES_MAX",
    "begin_io",
    "bring_up",
    "end_io",
    "family",
    "get_page",
    "lookup",
    "map_extent",
    "map_extents",
    "put_page",
    "refcount_of",
    "unmap_extent",
    "unmap_extents",
]

family = Family(__name__, __path__)


@family.generic
def bring_up(state, pages):
    """Do what discovery has to do for the next `pages` pages; the pages brought up in all."""


@family.generic
def map_extent(state, first, count):
    """A mapping begins to cover `count` (1 or more) pages from `first` on; OK or NO_ROOM."""


@family.generic
def unmap_extent(state, first, count):
    """That mapping ends."""


@family.generic
def lookup(state, page):
    """The address of the descriptor of page `page`; NONE where there is none."""


@family.generic
def get_page(state, page):
    """The same, made where need be, with a reference held; NONE or NO_ROOM."""


@family.generic
def put_page(state, page, descriptor):
    """Give back a reference that `get_page` answered with `descriptor`."""


@family.generic
def begin_io(state, page):
    """The address of the descriptor of an I/O on page `page`, held until its end; NONE or NO_ROOM."""


@family.generic
def end_io(state, page, descriptor):
    """The I/O that `begin_io` answered with `descriptor` ends."""


@hot
def map_extents(state, extents):
    """Map a whole file; extents: int64[n, 2], first page and count of each.  OK; or NO_ROOM, and none is mapped."""
    for i in range(extents.shape[0]):
        if map_extent(state, extents[i, 0], extents[i, 1]) != OK:
            for k in range(i - 1, -1, -1):
                unmap_extent(state, extents[k, 0], extents[k, 1])
            return NO_ROOM
    return OK


@hot
def unmap_extents(state, extents):
    """Unmap it."""
    for i in range(extents.shape[0]):
        unmap_extent(state, extents[i, 0], extents[i, 1])
