# SPDX-License-Identifier: MIT
"""What keeps a device in order between requests: the hot half of checkpoints, of recovery and of repair.

Compiled, because these steps must not mix with a request: numpy lets go of the GIL, compiled code is one call, for
which there is a turn (see datapath).  `device` and the answers are those of datapath.
"""

from . import descriptor, media, onepage, policies
from .jit import call_at, copy_bytes, hot, int64, publish, u8_at
from .layout import (
    CAUSE_INFO,
    CHECKPOINT,
    ERRNO_SHIFT,
    HOST,
    INFO_BYTES,
    OK,
    PENDING_SLOTS,
    PG_ERROR,
    PG_UPTODATE,
    SECTION_DIRTY,
    SECTION_RECENT,
    SECTION_TOUCHED,
    STOP_SHIFT,
    TRIM_END,
    TRIM_FIRST,
)
from .reservations import EPOCHS
from .roads import AT, PLACED

FLUSH_BEGUN, FLUSH_SYNC, FLUSH_SYNCED = range(3)
SYNC = -1

# ---- checkpoints ----


@hot
def drain(device, done):
    """Write every pending descriptor to the medium; `done` counts slots."""
    run, core = device[0][0], device[1][0]
    if run["coalesced"]:
        while done < PENDING_SLOTS:
            slot = onepage.pending_slot(run, done)
            if slot[0]:
                placed = policies.descriptor_at(run, slot[0] - 1)
                code = policies.settle(run, core, placed, run["descriptor_bytes"])
                if code == OK:
                    code = onepage.reserve(run, placed, run["descriptor_bytes"])
                if code:
                    return done << STOP_SHIFT | code
                onepage.drain_slot(run, core, done)
            done += 1
    return OK


@hot
def flush(device, step, number):
    """Take a step of a flush; see flush_at."""
    run = device[0][0]
    return call_at(run["flush_at"], (run, device[1][0], step, number))


@hot
def flush_at(run, core, step, number):
    """`flush`, for a caller that has the records RUN and CORE.  The sync is no step: nobody's turn is kept meanwhile.

    ============ ============================ ==================================================================
    step         number                       answer
    ============ ============================ ==================================================================
    FLUSH_BEGUN  1: it is counted             CHECKPOINT: what moved must be committed, and then all is done;
                                              else how many syncs had begun << STOP_SHIFT
    FLUSH_SYNC   that                         OK: one that began later has ended well, and all is done; SYNC; or HOST,
                                              without an errno: an earlier sync failed
    FLUSH_SYNCED the errno of the sync, or 0  OK, or HOST with the errno: it failed, or another while it went on
    ============ ============================ ==================================================================
    """
    if step == FLUSH_BEGUN:
        if number:
            held = media.begin_count(core)
            core["tally"]["flushes"] += 1
            media.end_count(core, held, 1)
        if run["rewritten"] != run["committed"]:
            return int64(CHECKPOINT)
        return run["syncs_begun"] << STOP_SHIFT
    if step == FLUSH_SYNC:
        if run["syncs_ended"] > number:
            return int64(OK)
        if run["sync_failed"]:
            return int64(HOST)
        run["syncs_begun"] += 1
        run["epoch"] = run["epoch"] % EPOCHS + 1
        return int64(SYNC)
    if number:
        run["sync_failed"] = number
    if run["sync_failed"]:
        return run["sync_failed"] << ERRNO_SHIFT | HOST
    run["syncs_ended"] = run["syncs_begun"]
    return int64(OK)


@hot
def _copy_words(target, address, count):
    """Copy `count` words from `address` on into `target`, int64[]."""
    copy_bytes(u8_at(target.ctypes.data, 8 * count), 0, u8_at(address, 8 * count), 0, 8 * count)


@hot
def take_moves(device, table, frames):
    """Copy the leveling's table into `table`, and the frames moved since the last call into `frames` (both int64[]).

    How many frames; more than len(frames) where not all of them are known.  One call, so that no move comes between.
    """
    run = device[0][0]
    _copy_words(table, run["table"], table.size)
    count = run["moved_count"]
    _copy_words(frames, run["moved"], min(count, frames.size))
    media.forget_filled(run)
    run["wanted"] = 0
    return count


@hot
def clear_dirty(device, all_of_them, cleared):
    """Clear DIRTY where nothing was written since the last call (or everywhere), and RECENT everywhere.

    cleared (int64[], one a section): the sections cleared; returns how many.  Compiled, because numpy lets go of the
    GIL and a request may change a mark meanwhile.
    """
    run = device[0][0]
    sections, count = u8_at(run["sections"], run["section_count"]), 0
    for i in range(run["section_count"]):
        if sections[i] & SECTION_DIRTY and (all_of_them or not sections[i] & SECTION_RECENT):
            sections[i] &= ~SECTION_DIRTY & 0xFF
            cleared[count] = i
            count += 1
        sections[i] &= ~SECTION_RECENT & 0xFF
    return count


@hot
def restore_dirty(device, cleared):
    """Take the clearing of sections back.  Of no other: a mark that the journal lacks lets writes pass unmarked."""
    run = device[0][0]
    sections = u8_at(run["sections"], run["section_count"])
    for i in cleared:
        sections[i] |= SECTION_DIRTY | SECTION_TOUCHED


# ---- recovery and check ----


@hot
def heal(device, page):
    """Bring the descriptor of `page` into line with its data; OK (nothing to do, or done) or a stop code."""
    run, core = device[0][0], device[1][0]
    if not run["descriptor_bytes"]:
        return OK
    road = policies.where(run, page)
    status = onepage.load_descriptor_from(run, page, road)
    crc = onepage.page_checksum_from(run, road[PLACED], road[AT]) if run["checksums"] else 0
    if descriptor.is_free(run, status):
        return onepage.scrub(run, page)
    if status == descriptor.VALID and (descriptor.is_bad(run) or crc == descriptor.data_checksum(run)):
        return OK
    return _describe(run, core, page, crc)


@hot
def rebuild(device, page):
    """Make a descriptor for `page`, which has lost its own, of what lies there; OK or a stop code."""
    run, core = device[0][0], device[1][0]
    road = policies.where(run, page)
    crc = onepage.page_checksum_from(run, road[PLACED], road[AT]) if run["checksums"] else 0
    return _describe(run, core, page, crc)


@hot
def _describe(run, core, page, crc):
    """Let the descriptor of `page` say that it holds data with the checksum `crc`; OK or a stop code."""
    code, road = onepage.begin(run, core, page, False)
    if code:
        return code
    if onepage.load_descriptor_from(run, page, road) == descriptor.DAMAGED:
        descriptor.clear(run)
    descriptor.note_data(run, page, PG_UPTODATE, crc)
    onepage.store_descriptor(run, core, page, road)
    held = media.begin_count(core)
    core["tally"]["healed"] += 1
    media.end_count(core, held, 1)
    publish(core["intent"], 0, 0)
    return OK


@hot
def finish_trim(device):
    """After a kill in a trim: give back the space of pages whose descriptors say so already; how many pages.

    A host that refuses is passed over: it would have refused the trim.
    """
    run, core = device[0][0], device[1][0]
    intent = core["intent"]
    count, held_at, held = 0, 0, 0
    if run["descriptor_bytes"]:
        for page in range(intent[TRIM_FIRST], intent[TRIM_END]):
            if descriptor.is_free(run, onepage.load_descriptor(run, page)):
                held_at, held, _ = onepage.punch(run, page, held_at, held)
                count += 1
        if held:
            media.punch(run, held_at, held)
    return count


@hot
def condemn(device, page):
    """Mark the data of `page` as damaged, so that reads of it fail until it is written whole; OK or a stop code."""
    run, core = device[0][0], device[1][0]
    code, road = onepage.begin(run, core, page, False)
    if code:
        return code
    if onepage.load_descriptor_from(run, page, road) == descriptor.DAMAGED:
        descriptor.clear(run)
    descriptor.note_data(run, page, PG_UPTODATE | PG_ERROR, descriptor.data_checksum(run))
    onepage.store_descriptor(run, core, page, road)
    publish(core["intent"], 0, 0)
    return OK


@hot
def store_info(device, block, at):
    """Store `block`, uint8[4096], as the info block at byte `at` of the medium."""
    media.store(device[0][0], device[1][0], CAUSE_INFO, at, block, 0, INFO_BYTES)


@hot
def medium_address(device, placed):
    """The address on the medium of placed byte `placed`."""
    return onepage.medium_at(device[0][0], placed)


@hot
def places(device, page, found):
    """Fill `found`, int64[n], with the addresses on the medium of `page` and those after it."""
    run = device[0][0]
    for i in range(found.size):
        found[i] = onepage.medium_at(run, policies.page_at(run, page + i))


@hot
def page_address(device, page):
    """The placed address of `page`."""
    return policies.page_at(device[0][0], page)
