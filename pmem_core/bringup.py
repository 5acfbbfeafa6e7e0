# SPDX-License-Identifier: MIT
# long: a group's whole life in one place: what a crash leaves of one step is what the others have to bear
"""How descriptors come into being, where an all-zero one is not enough: groups are brought up, split, given back.

A page is *up* when it has a descriptor of its own.  With strategy `zeros` nothing here is run: a descriptor of zeros is
that of a page never written, and the medium is taken to read as zeros when it is new.  Else the first write to a page
that is not up brings up its group first: each page of it gets a free descriptor, a page of descriptors in one store.

With `buddy` pages that are not up are covered by free groups of 2 ** order pages, each at a multiple of its size, and
the descriptor of a group's first page is its *head* (Ingo Molnar on linux-kernel, 7 May 2015: "dividing continuous pmem
ranges into power-of-two groups of blocks, and organizing them like the buddy allocator does"; D. Knuth, The Art of
Computer Programming, volume 1, section 2.5, has the buddy system).  To bring up a page, its group is halved down to
the pages of one page of descriptors, and each half that stays free gets a head.  A trim of all these pages gives their
descriptors back, and the group joins its buddy where that is free, and so on upwards.  Only the last group of the
device may be cut off by its end; it has no buddy.

What a crash may do, without any record but those on the medium:

* A descriptor that is no head counts for its page, whatever heads claim.  Heads are only ever stored over heads and
  empty descriptors, so no claim costs a page that is up.
* Heads and free descriptors hold no data, so one that is torn has nothing to lose: if no field of it speaks of data,
  it is empty (descriptor.status), in whichever section.  So these stores need no section marked, though a split
  stores heads far from the page that is written.
* A power cut leaves any mixture, that is heads that are missing or stale.  What they are of reads as zeros.  A page
  that no head covers is brought up alone, and `check --repair` makes the groups cover the device once again.
* Moves and room on the host are seen to before the first store, so nothing stops in the middle.  INTENT has what a kill
  may cut short, and `finish` does it again: every step may be done twice.
"""

from . import descriptor, onepage, policies
from .jit import clear_bytes, copy_bytes, hot, publish, u8_at
from .layout import (
    CAUSE_DESCRIPTOR,
    HEAD_ORDER,
    HEAD_PAGE,
    INITIALISE_BUDDY,
    INITIALISE_EAGER,
    OK,
    ORDER_MAX,
    PAGE_BYTES,
    RAISED,
    RETURNED,
    SECTION,
    SECTION_DIRTY,
    SECTION_RECENT,
    STOP_SHIFT,
)

NOTHING, UP = -1, -2  # beside the orders of heads

# ---- where things are ----


@hot
def _per_page(run):
    """The descriptors of one page of them."""
    return PAGE_BYTES // run["descriptor_bytes"]


@hot
def _buddy(page, order):
    """The first page of the buddy of the group of 2 ** order pages that `page` is in."""
    return ((page >> order) ^ 1) << order


@hot
def _group_end(run, first):
    """The end of the group that is brought up as one and begins with page `first`."""
    return min(first + (1 << run["group_shift"]), run["page_count"])


@hot
def fits(run, head, order):
    """True where a group of this order may begin with page `head`."""
    shift = run["group_shift"]
    if order < shift or head < 0 or head >> order << order != head:
        return False
    return head + (1 << order) <= run["page_count"] or (order == shift and head < run["page_count"])


@hot
def look(run, page):
    """What the descriptor of `page` is: its order if it is a head, NOTHING or UP."""
    status = onepage.load_descriptor(run, page)
    if status == descriptor.EMPTY:
        return NOTHING
    order = descriptor.order_of_head(run) if status == descriptor.VALID else -1
    return order if order >= 0 else UP


@hot
def covering(run, page):
    """First page and order of the free group that covers `page`, which is not up: the smallest that is claimed.

    Where there is none, and with strategies without heads, it is what is brought up together.
    """
    shift = run["group_shift"]
    alone, order, before = page >> shift << shift, shift, -1
    while run["initialise"] == INITIALISE_BUDDY and 1 << order <= run["page_count"]:
        head = page >> order << order
        if head != before:
            found = look(run, head)
            if found >= 0 and fits(run, head, found) and page >> found << found == head:
                return head, found
            if found == UP or head == 0:
                break
            before = head
        order += 1
    return alone, shift


# ---- what is stored ----


@hot
def _store_now(run, core, page):
    """Store the scratch descriptor of `page` on the medium, also where descriptors wait."""
    scratch, size = u8_at(run["scratch"], PAGE_BYTES), run["descriptor_bytes"]
    onepage.store(run, core, CAUSE_DESCRIPTOR, policies.descriptor_at(run, page), scratch, 0, size)


@hot
def _store_head(run, core, page, order):
    """Make `page` a head, unless it is up."""
    if look(run, page) != UP:
        descriptor.note_head(run, page, order)
        _store_now(run, core, page)


@hot
def _fill(run, core, first):
    """Give a free descriptor to those that have none of the pages with descriptors in one page, from `first` on."""
    size, missing = run["descriptor_bytes"], 0
    count = min(_per_page(run), run["page_count"] - first)
    placed = policies.descriptor_at(run, first)
    scratch, whole = u8_at(run["scratch"], PAGE_BYTES), u8_at(run["scratch"] + 2 * PAGE_BYTES, PAGE_BYTES)
    onepage.load(run, placed, whole, 0, count * size)
    for i in range(count):
        copy_bytes(scratch, 0, whole, i * size, size)
        status = descriptor.status(run, first + i)
        if status == descriptor.EMPTY or (status == descriptor.VALID and descriptor.order_of_head(run) >= 0):
            descriptor.note_free(run, first + i)
            copy_bytes(whole, i * size, scratch, 0, size)
            missing += 1
    if missing:
        onepage.store(run, core, CAUSE_DESCRIPTOR, placed, whole, 0, count * size)
    return missing


@hot
def _ready(run, core, placed, count, with_room):
    """Settle, or reserve, for a store."""
    if with_room:
        return onepage.reserve(run, placed, count)
    return policies.settle(run, core, placed, count)


@hot
def _prepare(run, core, page, order, first, end):
    """Settle and reserve for the heads around `page` below `order`, and descriptors of pages `first` to `end` - 1."""
    size, step = run["descriptor_bytes"], _per_page(run)
    for with_room in (False, True):
        for at in range(run["group_shift"], order):
            code = _ready(run, core, policies.descriptor_at(run, _buddy(page, at)), size, with_room)
            if code:
                return code
        for at in range(first, end, step):
            count = min(step, end - at) * size
            code = _ready(run, core, policies.descriptor_at(run, at), count, with_room)
            if code:
                return code
    return OK


@hot
def _name(core, word, value, head, order):
    """Say in INTENT what is about to be stored."""
    intent = core["intent"]
    intent[HEAD_PAGE] = head
    intent[HEAD_ORDER] = order
    publish(intent, word, value)


@hot
def _forget(core, word):
    """It is done."""
    intent = core["intent"]
    publish(intent, word, 0)
    intent[HEAD_PAGE] = 0
    intent[HEAD_ORDER] = 0


# ---- bringing up ----


@hot
def ensure(run, core, page):
    """See to it that `page`, about to be written, is up; OK, or why not yet."""
    if run["initialise"] <= INITIALISE_EAGER or look(run, page) == UP:
        return OK
    sections, at = onepage.section_of(run, page)
    if not sections[at] & SECTION_DIRTY:
        return SECTION
    head, order = covering(run, page)
    return _raise_group(run, core, page, head, order)


@hot
def _raise_group(run, core, page, head, order):
    """Bring up the group of `page`, which a free group of 2 ** order pages from `head` on covers; OK or a stop code."""
    first = page >> run["group_shift"] << run["group_shift"]
    code = _prepare(run, core, page, order, first, _group_end(run, first))
    if code:
        return code
    _name(core, RAISED, page + 1, head, order)
    for at in range(run["group_shift"], order):
        _store_head(run, core, _buddy(page, at), at)
    for at in range(first, _group_end(run, first), _per_page(run)):
        _fill(run, core, at)
    _forget(core, RAISED)
    return OK


# ---- giving back ----


@hot
def give_back(run, core, first):
    """Take the descriptors from the group that begins with `first`, and join it with its buddies; OK or a stop code."""
    up = False
    for page in range(first, _group_end(run, first)):
        up = up or look(run, page) == UP
    if not up:
        return OK
    sections, at = onepage.section_of(run, first)
    if not sections[at] & SECTION_DIRTY:
        return SECTION
    sections[at] |= SECTION_RECENT
    head, order = first, run["group_shift"]
    while fits(run, min(head, _buddy(head, order)), order + 1) and look(run, _buddy(head, order)) == order:
        head = min(head, _buddy(head, order))
        order += 1
    return _return_group(run, core, first, head, order)


@hot
def _return_group(run, core, first, head, order):
    """Take their descriptors from the group that begins with `first`, which becomes part of that of `head`."""
    end, size = _group_end(run, first), run["descriptor_bytes"]
    code = _prepare(run, core, first, order, first, end)
    if code:
        return code
    _name(core, RETURNED, first + 1, head, order)
    whole = u8_at(run["scratch"] + 2 * PAGE_BYTES, PAGE_BYTES)
    clear_bytes(whole, 0, PAGE_BYTES)
    if head == first:
        descriptor.note_head(run, first, order)
        copy_bytes(whole, 0, u8_at(run["scratch"], PAGE_BYTES), 0, size)
    placed = policies.descriptor_at(run, first)
    onepage.store(run, core, CAUSE_DESCRIPTOR, placed, whole, 0, (end - first) * size)
    if run["coalesced"]:
        for page in range(first, end):
            slot = onepage.pending_slot(run, page)
            if slot[0] == page + 1:
                publish(slot, 0, 0)
    if head != first:
        _store_head(run, core, head, order)
    for at in range(run["group_shift"], order):
        joined = _buddy(first, at)
        if joined != head and look(run, joined) != UP:
            descriptor.clear(run)
            _store_now(run, core, joined)
    _forget(core, RETURNED)
    return OK


# ---- whole devices ----


@hot
def cover(device, first, last):
    """Cover pages `first` to `last` - 1, none of which is up, with free groups, as few as can be; OK or a stop code."""
    run, core = device[0][0], device[1][0]
    page, shift = first, run["group_shift"]
    while page < last:
        order = shift
        while fits(run, page, order + 1) and page + (2 << order) <= last:
            order += 1
        code = onepage.reserve(run, policies.descriptor_at(run, page), run["descriptor_bytes"])
        if code:
            return code
        _store_head(run, core, page, order)
        page += 1 << order
    return OK


@hot
def mend(device, page, head, order, last):
    """Make groups cover each page once again, where `page` is the first of a page of descriptors; OK or a stop code.

    head, order: of the free group that claims it, order -1 if none does; last: the end of the pages that none claims.
    """
    run, core = device[0][0], device[1][0]
    end, up = min(page + _per_page(run), run["page_count"]), False
    for at in range(page, end):
        up = up or look(run, at) == UP
    if order >= 0 and up:
        return _raise_group(run, core, page, head, order)
    code = _prepare(run, core, page, run["group_shift"], page, end)
    if code:
        return code
    if up or run["initialise"] != INITIALISE_BUDDY:
        _fill(run, core, page)
        return OK
    for at in range(page, end):
        if look(run, at) >= 0:
            descriptor.clear(run)
            _store_now(run, core, at)
    return cover(device, page, last) if order < 0 else OK


@hot
def fill(device, first, end, done):
    """Give a free descriptor to each page of [first + done, end) that has none; first: of a page of descriptors."""
    run, core = device[0][0], device[1][0]
    step, end = _per_page(run), min(end, run["page_count"])
    while first + done < end:
        page = first + done
        code = _prepare(run, core, page, run["group_shift"], page, min(page + step, run["page_count"]))
        if code:
            return done << STOP_SHIFT | code
        _fill(run, core, page)
        done += step
    return OK


@hot
def finish(device, page):
    """After a kill: bring up, or give back, the group that INTENT names; OK or a stop code.  page: not used."""
    run, core = device[0][0], device[1][0]
    intent = core["intent"]
    raised, returned, head, order = intent[RAISED] - 1, intent[RETURNED] - 1, intent[HEAD_PAGE], intent[HEAD_ORDER]
    # What the state says is not taken on trust: an index out of bounds would be a store anywhere.  That these words are
    # none, or pages of the device, recovery.require_sane has seen to.
    if order > ORDER_MAX or not fits(run, head, order):
        return OK
    if raised >= 0 and raised >> order << order == head:
        return _raise_group(run, core, raised, head, order)
    if fits(run, returned, run["group_shift"]) and returned >> order << order == head:
        return _return_group(run, core, returned, head, order)
    return OK
