# SPDX-License-Identifier: MIT
# long: the whole road of a page in one place, to be read from top to bottom
"""One page, straight through: page -> placement -> leveling -> media, and its descriptor down the same road.

A page is written in this order, which is what makes a kill at any instruction recoverable:

1. its section is durably marked dirty                     else stop SECTION
2. every frame it will touch has settled its moves         else stop CHECKPOINT
3. the host has room for every byte it will store          else stop HOST
   and nothing that a crash left lies behind the page      else stop CHECKPOINT
4. INTENT names the page
5. data, and then it is counted; descriptor, and then it is counted
6. INTENT is cleared

A kill between 4 and 6 leaves data and descriptor of that one page apart; opening the image brings them together again.
A page is either not begun or finished, so nothing is done twice when a stopped request goes on.
"""

from . import descriptor, media, policies, reservations
from .crc32c import MASK, page_crc, words_crc
from .jit import call_at, clear_bytes, copy_bytes, do_at, hot, i64_at, prefetch, publish, u8_at, u32_at
from .layout import (
    BAD_DATA,
    BAD_DESCRIPTOR,
    CAUSE_DESCRIPTOR,
    CAUSE_HOST,
    CHECKPOINT,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    PENDING_HEAD_WORDS,
    PENDING_SLOTS,
    PG_UPTODATE,
    SECTION,
    SECTION_DIRTY,
    SECTION_RECENT,
    SECTION_SUSPECT,
    SECTION_TOUCHED,
)
from .roads import AT, DESCRIBED, DESCRIBED_AT, PLACED

# What a page holds: nothing, so that it reads as zeros; data; data whose checksum has still to be compared.
ZEROS, DATA, SUMMED_DATA = range(3)

# ---- placed addresses: translated a frame at a time ----


@hot
def medium_at(run, placed):
    frame = placed >> run["frame_shift"]
    within = placed - (frame << run["frame_shift"])
    return media.frame_at(run, policies.translate(run, frame)) + within


@hot
def piece(run, placed, count):
    """How many of `count` bytes at `placed` lie in its frame."""
    frame_bytes = 1 << run["frame_shift"]
    return min(count, frame_bytes - (placed & (frame_bytes - 1)))


@hot
def load(run, placed, target, target_at, count):
    """Copy `count` placed bytes into target[target_at:], uint8[]."""
    load_from(run, placed, medium_at(run, placed), target, target_at, count)


@hot
def load_from(run, placed, at, target, target_at, count):
    """`load` where it is known already where on the medium that begins: at `at`."""
    done = 0
    while done < count:
        size = piece(run, placed + done, count - done)
        if done:
            at = medium_at(run, placed + done)
        media.load(run, at, target, target_at + done, size)
        done += size


@hot
def store(run, core, cause, placed, source, source_at, count):
    """Store `count` bytes of source[source_at:], uint8[]; how many lines that wears."""
    return store_from(run, core, cause, placed, medium_at(run, placed), source, source_at, count)


@hot
def store_from(run, core, cause, placed, at, source, source_at, count):
    """`store` where it is known already where on the medium that begins: at `at`."""
    done, worn = 0, 0
    while done < count:
        size = piece(run, placed + done, count - done)
        if done:
            at = medium_at(run, placed + done)
        lines = media.store(run, core, cause, at, source, source_at + done, size)
        policies.tick(run, (placed + done) >> run["frame_shift"], lines)
        done, worn = done + size, worn + lines
    return worn


@hot
def put_data(run, placed, at, source, source_at, count):
    """Bring `count` bytes of source[source_at:], a page's data, to `placed`, which begins at `at` on the medium."""
    done = 0
    while done < count:
        size = piece(run, placed + done, count - done)
        if done:
            at = medium_at(run, placed + done)
        media.put_data(run, at, source, source_at + done, size)
        done += size


@hot
def wear_data(run, core, placed, at, count):
    """Count what `put_data` stored; how many lines that wore."""
    done, worn = 0, 0
    while done < count:
        size = piece(run, placed + done, count - done)
        if done:
            at = medium_at(run, placed + done)
        lines = media.wear(run, core, CAUSE_HOST, at, size)
        policies.tick(run, (placed + done) >> run["frame_shift"], lines)
        done, worn = done + size, worn + lines
    return worn


@hot
def reserve(run, placed, count):
    """Make sure that the host has room for `count` placed bytes; OK or HOST."""
    return reserve_from(run, placed, medium_at(run, placed), count)


@hot
def reserve_from(run, placed, at, count):
    """`reserve` where it is known already where on the medium that begins: at `at`."""
    done = 0
    while done < count:
        size = piece(run, placed + done, count - done)
        if done:
            at = medium_at(run, placed + done)
        code = reservations.reserve(run, at, size)
        if code:
            return code
        done += size
    return OK


@hot
def page_checksum(run, placed):
    """crc32c of the page at `placed`, as it lies on the medium."""
    return page_checksum_from(run, placed, medium_at(run, placed))


@hot
def page_checksum_from(run, placed, at):
    """`page_checksum` where it is known already where on the medium that begins: at `at`."""
    if run["frame_shift"] >= PAGE_SHIFT:
        return page_crc(i64_at(run["media"] + at, PAGE_BYTES >> 3), 0)
    crc, done = MASK, 0
    while done < PAGE_BYTES:
        size = piece(run, placed + done, PAGE_BYTES - done)
        words = i64_at(run["media"] + medium_at(run, placed + done), size >> 3)
        crc = words_crc(crc, words, 0, size >> 3)
        done += size
    return crc ^ MASK


@hot
def inside(run, road, at):
    """Where on the medium byte `at` of a page is; road: what policies.where says of the page."""
    if run["frame_shift"] >= PAGE_SHIFT:
        return road[AT] + at
    return medium_at(run, road[PLACED] + at)


@hot
def anticipate(run, page):
    """Bring near what a request for `page` will look at first: places far apart, so that their misses are one."""
    _, at, _, described_at = policies.where(run, page)
    _anticipate_at(run, at)
    if run["descriptors"]:
        prefetch(run["descriptors"] + page * run["descriptor_bytes"])
    elif run["descriptor_bytes"]:
        _anticipate_at(run, described_at)


@hot
def _anticipate_at(run, at):
    prefetch(run["media"] + at)  # where a page is to be written, only for its translation
    prefetch(run["wear"] + ((at >> run["line_shift"]) << 2))
    prefetch(run["reserved"] + (at >> reservations.RESERVE_SHIFT))


@hot
def anticipate_data(run, at):
    """Bring near the page that begins at `at` on the medium: a processor's own prefetching ends at every 4096 bytes."""
    for i in range(min(PAGE_BYTES, 1 << run["frame_shift"]) >> 6):
        prefetch(run["media"] + at + (i << 6))


# ---- descriptors: in scratch while they are worked on ----


@hot
def pending_slot(run, page):
    """The pending slot of `page`, as int64[]: page + 1, one unused word, then the descriptor."""
    words = PENDING_HEAD_WORDS + (run["descriptor_bytes"] >> 3)
    return i64_at(run["pending"] + 8 * words * (page % PENDING_SLOTS), words)


@hot
def kept_descriptor(run, page):
    """The descriptor of `page` where those are kept in memory, as int64[]; all zero: the page was not touched yet."""
    return i64_at(run["descriptors"] + page * run["descriptor_bytes"], run["descriptor_bytes"] >> 3)


@hot
def load_descriptor(run, page):
    """Bring the descriptor of `page` into scratch; its status."""
    return load_descriptor_from(run, page, policies.where(run, page))


@hot
def load_descriptor_from(run, page, road):
    """`load_descriptor` where it is known already where it lies; road: what policies.where says of `page`."""
    count = run["descriptor_bytes"]
    if run["descriptors"]:
        words, kept = descriptor.large_words(run), kept_descriptor(run, page)
        for i in range(count >> 3):
            words[i] = kept[i]
        return descriptor.status(run, page)
    scratch = u8_at(run["scratch"], PAGE_BYTES)
    if run["coalesced"]:
        slot = pending_slot(run, page)
        if slot[0] == page + 1:
            words = descriptor.large_words(run)
            for i in range(count >> 3):
                words[i] = slot[PENDING_HEAD_WORDS + i]
            return descriptor.status(run, page)
    load_from(run, road[DESCRIBED], road[DESCRIBED_AT], scratch, 0, count)
    return descriptor.status(run, page)


@hot
def store_descriptor(run, core, page, road):
    """Store the scratch descriptor of `page`, on the medium, among the pending ones or in memory.

    road: what policies.where says of `page`.
    """
    count = run["descriptor_bytes"]
    if run["descriptors"]:
        words, kept = descriptor.large_words(run), kept_descriptor(run, page)
        for i in range(count >> 3):
            kept[i] = words[i]
        return
    if run["coalesced"]:
        slot = pending_slot(run, page)
        if slot[0] and slot[0] != page + 1:
            do_at(run["drain_slot"], (run, core, page))
        words = descriptor.large_words(run)
        for i in range(count >> 3):
            slot[PENDING_HEAD_WORDS + i] = words[i]
        publish(slot, 0, page + 1)
        return
    scratch = u8_at(run["scratch"], PAGE_BYTES)
    store_from(run, core, CAUSE_DESCRIPTOR, road[DESCRIBED], road[DESCRIBED_AT], scratch, 0, count)


@hot
def drain_slot(run, core, page):
    """Write the pending descriptor that lies in the slot of `page` to the medium; it need not be that page's."""
    slot, count = pending_slot(run, page), run["descriptor_bytes"]
    second = u8_at(run["scratch"] + PAGE_BYTES, PAGE_BYTES)
    words = i64_at(run["scratch"] + PAGE_BYTES, PAGE_BYTES >> 3)
    for i in range(count >> 3):
        words[i] = slot[PENDING_HEAD_WORDS + i]
    descriptor.note_drain(run, slot[0] - 1, u32_at(run["scratch"] + PAGE_BYTES, PAGE_BYTES >> 2), words)
    store(run, core, CAUSE_DESCRIPTOR, policies.descriptor_at(run, slot[0] - 1), second, 0, count)
    publish(slot, 0, 0)


@hot
def prepare_descriptor(run, core, page):
    """Settle and reserve for what `store_descriptor` will store."""
    target = page
    if run["descriptors"]:
        return OK
    if run["coalesced"]:
        held = pending_slot(run, page)[0]
        if held == 0 or held == page + 1:
            return OK
        target = held - 1
    placed = policies.descriptor_at(run, target)
    code = policies.settle(run, core, placed, run["descriptor_bytes"])
    if code:
        return code
    return reserve(run, placed, run["descriptor_bytes"])


@hot
def section_of(run, page):
    """The sections' bytes, and the index of the one of `page`."""
    return u8_at(run["sections"], run["section_count"]), page >> run["section_shift"]


@hot
def scrub(run, page):
    """Blank what a write that a crash cut short left behind `page`, if that holds nothing.

    CHECKPOINT until that is durable, also to a write that finds it blanked by another.  The page reads as zeros.  Were
    its next write torn by a power cut, those bytes would come to light: neither what was there before nor what was
    written.
    """
    if not descriptor.is_free(run, load_descriptor(run, page)):
        return OK
    placed, done = policies.page_at(run, page), 0
    while done < PAGE_BYTES:
        size = piece(run, placed + done, PAGE_BYTES - done)
        at = medium_at(run, placed + done)
        if not media.is_blank(run, at, size):
            media.blank(run, at, size)
            run["blanked"] += 1
        done += size
    return OK if run["blanked"] == run["blanked_durably"] else CHECKPOINT


@hot
def begin(run, core, page, with_data):
    """Steps 1 to 4 for a write to `page`; OK, or why not yet, and what policies.where then says of the page."""
    code, road = prepare(run, core, page, with_data)
    if code == OK:
        publish(core["intent"], 0, page + 1)
    return code, road


@hot
def prepare(run, core, page, with_data):
    """Steps 1 to 3; answers as `begin` does."""
    sections, at = section_of(run, page)
    if not sections[at] & SECTION_DIRTY:
        return SECTION, (-1, -1, -1, -1)
    sections[at] |= SECTION_RECENT
    stored = run["descriptor_bytes"] != 0 and run["descriptors"] == 0 and run["coalesced"] == 0
    code = OK
    if with_data and stored:
        code = policies.settle_page(run, core, page)
    elif with_data:
        code = policies.settle(run, core, policies.page_at(run, page), PAGE_BYTES)
    if code == OK and run["descriptor_bytes"] and not (with_data and stored):
        code = prepare_descriptor(run, core, page)
    road = policies.where(run, page)
    if code == OK and with_data:
        if stored:
            code = reserve_from(run, road[DESCRIBED], road[DESCRIBED_AT], run["descriptor_bytes"])
        if code == OK:
            code = reserve_from(run, road[PLACED], road[AT], PAGE_BYTES)
        if code == OK and sections[at] & SECTION_SUSPECT and run["descriptor_bytes"] and not run["descriptors"]:
            code = call_at(run["scrub"], (run, page))
    return code, road


# ---- one page ----


@hot
def meet(run, core, page):
    """The first touch of a page whose descriptor is kept in memory: what the medium has is its data; returns DATA."""
    if run["tmpfs"]:
        return DATA  # this may be a hole, and there a look at it would take room
    road = policies.where(run, page)
    crc = page_checksum_from(run, road[PLACED], road[AT]) if run["checksums"] else 0
    descriptor.note_data(run, page, PG_UPTODATE, crc)
    store_descriptor(run, core, page, road)
    return DATA


@hot
def look(run, core, page, road):
    """Look at the page's descriptor, left in scratch: ZEROS, DATA, SUMMED_DATA, or -stop code."""
    if not run["descriptor_bytes"]:
        return DATA
    sections, at = section_of(run, page)
    # One in memory is of this session: no power cut has been between it and its page.
    suspect = sections[at] & SECTION_SUSPECT != 0 and run["descriptors"] == 0
    status = load_descriptor_from(run, page, road)
    if status == descriptor.EMPTY:
        return call_at(run["meet"], (run, core, page)) if run["descriptors"] else ZEROS
    if status == descriptor.DAMAGED:
        if not suspect:
            return -BAD_DESCRIPTOR
        descriptor.clear(run)
        return DATA
    if descriptor.is_bad(run):
        return -BAD_DATA
    if not descriptor.holds_data(run):
        return ZEROS
    return SUMMED_DATA if run["checksums"] and not suspect else DATA


@hot
def judge(run, core, page, road):
    """`look` at the page, and at its data where there is a checksum of them: ZEROS, DATA, or -stop code."""
    holds = look(run, core, page, road)
    if holds != SUMMED_DATA:
        return holds
    return DATA if page_checksum_from(run, road[PLACED], road[AT]) == descriptor.data_checksum(run) else -BAD_DATA


@hot
def count_error(core):
    """Count a request that is refused because of a checksum."""
    held = media.begin_count(core)
    core["tally"]["checksum_errors"] += 1
    media.end_count(core, held, 1)


@hot
def read(run, core, page, at, target, target_at, count):
    sections, section = section_of(run, page)
    holds = ZEROS
    road = policies.where(run, page)
    if sections[section] & (SECTION_TOUCHED | SECTION_DIRTY):
        holds = look(run, core, page, road) if count == PAGE_BYTES else judge(run, core, page, road)
    if holds > ZEROS:
        load_from(run, road[PLACED] + at, inside(run, road, at), target, target_at, count)
    if holds == SUMMED_DATA:
        # What is summed is what the client gets, and it is near by now: a copy brings it quicker than a sum does.
        crc = page_crc(i64_at(target.ctypes.data + target_at, PAGE_BYTES >> 3), 0)
        if crc != descriptor.data_checksum(run):
            holds = -BAD_DATA
    if holds <= ZEROS:
        clear_bytes(target, target_at, count)
    if holds < ZEROS:
        count_error(core)
        return -holds
    return OK


@hot
def _sum_written(run, road, source, source_at, count):
    """The checksum of a page of which `count` bytes were just stored; 0 where none is kept."""
    if not run["descriptor_bytes"] or not run["checksums"]:
        return 0
    if count < PAGE_BYTES:
        return page_checksum_from(run, road[PLACED], road[AT])
    # Of the client's bytes: they are near, those on the medium are not.
    return page_crc(i64_at(source.ctypes.data + source_at, PAGE_BYTES >> 3), 0)


@hot
def write(run, core, page, at, source, source_at, count):
    code, road = begin(run, core, page, True)
    if code:
        return code
    if count == PAGE_BYTES:
        if run["descriptor_bytes"] and load_descriptor_from(run, page, road) == descriptor.DAMAGED:
            descriptor.clear(run)
    else:
        holds = judge(run, core, page, road)
        if holds < 0:
            publish(core["intent"], 0, 0)
            count_error(core)
            return -holds
        if not holds:
            # What lies there is not the page's: the rest of it must become zeros.
            blank = u8_at(run["scratch"] + PAGE_BYTES, PAGE_BYTES)
            clear_bytes(blank, 0, PAGE_BYTES)
            copy_bytes(blank, at, source, source_at, count)
            source, source_at, at, count = blank, 0, 0, PAGE_BYTES
    placed, begins_at = road[PLACED] + at, inside(run, road, at)
    put_data(run, placed, begins_at, source, source_at, count)
    # Here, because a sum stores nothing: the next store waits for these bytes to leave the processor, and it need not.
    crc = _sum_written(run, road, source, source_at, count)
    lines = wear_data(run, core, placed, begins_at, count)
    number = media.count_page_write(core)
    if run["descriptor_bytes"]:
        descriptor.note_write(run, page, crc, number, lines)
        store_descriptor(run, core, page, road)
    publish(core["intent"], 0, 0)
    return OK


@hot
def trim(run, core, page):
    """Make the descriptor of `page` say that it is free; OK where it already does."""
    sections, at = section_of(run, page)
    if not sections[at] & (SECTION_TOUCHED | SECTION_DIRTY):
        return OK
    if not run["descriptor_bytes"]:
        code, _ = begin(run, core, page, False)
        if code == OK:
            publish(core["intent"], 0, 0)
        return code
    status = load_descriptor(run, page)
    # Of an EMPTY one in memory nothing is known yet.
    if descriptor.is_free(run, status) and not (status == descriptor.EMPTY and run["descriptors"]):
        return OK
    code, road = begin(run, core, page, False)
    if code:
        return code
    if load_descriptor_from(run, page, road) == descriptor.DAMAGED:
        descriptor.clear(run)
    descriptor.note_trim(run, page, core["tally"]["page_writes"])
    store_descriptor(run, core, page, road)
    publish(core["intent"], 0, 0)
    return OK


@hot
def punch(run, page, held_at, held):
    """Add `page` to the held run of medium bytes to punch; punch what is not adjacent.  Returns at, count, code."""
    placed = policies.page_at(run, page)
    done = 0
    while done < PAGE_BYTES:
        size = piece(run, placed + done, PAGE_BYTES - done)
        at = medium_at(run, placed + done)
        if held and at == held_at + held:
            held += size
        else:
            if held:
                code = media.punch(run, held_at, held)
                if code:
                    return held_at, 0, code
            held_at, held = at, size
        done += size
    return held_at, held, OK
