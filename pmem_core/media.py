# SPDX-License-Identifier: MIT
# long: bytes and their counters together, so that nothing else has to touch either
"""The medium: bytes are stored, loaded and moved here, and wear is counted here and nowhere else.

Addresses are bytes from the start of the medium.  A store never begins before the host has room for it
(reservations.py).

A process can be killed between any two instructions.  So that the totals stay exact, the run of lines being counted is
described in UNIT first, and recovery finishes the count from it (recovery.finish_count).
"""

import numba

from . import reservations
from .jit import (
    LINE,
    call_at,
    clear_bytes,
    copy_bytes,
    fallocate,
    hot,
    i64_at,
    int64,
    order_streams,
    pread,
    publish,
    pwrite,
    stream_bytes,
    u8_at,
    u32_at,
)
from .layout import (
    CAUSE_MOVE,
    ERRNO_SHIFT,
    FRAMES_AT,
    HOST,
    OK,
    PAGE_BYTES,
    UNIT_CAUSE,
    UNIT_FIRST,
    UNIT_LINES,
    UNIT_SUM,
    UNIT_TALLY,
    UNIT_TOTAL,
)

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


@hot
def wear_lines(run, core, cause, first, count):
    """Count one write of each of `count` lines from line `first` on."""
    wear = u32_at(run["wear"], run["line_count"])
    tally = core["tally"]
    worn = tally["worn"]
    total, hottest = 0, 0
    for i in range(first, first + count):
        total += int64(wear[i])
        hottest = max(hottest, int64(wear[i]))
    unit = core["unit"]
    unit[UNIT_FIRST] = first
    unit[UNIT_LINES] = count
    unit[UNIT_SUM] = total
    unit[UNIT_TOTAL] = worn[cause]
    publish(unit, UNIT_CAUSE, cause + 1)
    for i in range(first, first + count):
        wear[i] += numba.uint32(1)
    worn[cause] += count
    if hottest >= tally["hottest"]:
        tally["hottest"] = hottest + 1
    publish(unit, UNIT_CAUSE, 0)


@hot
def begin_count(core):
    """To be called before any of layout.SUMMED is added to; returns what `end_count` wants.

    Meanwhile the sum is marked as unknown: what a kill leaves half counted must not pass for a flipped bit.
    """
    unit = core["unit"]
    held = unit[UNIT_TALLY]
    publish(unit, UNIT_TALLY, 0)
    return held


@hot
def end_count(core, held, added):
    """After it: `added` is what was added to all of them together."""
    if held:
        publish(core["unit"], UNIT_TALLY, held + added)


@hot
def count_page_write(core):
    """Count one more page written for the host; how many that makes, which is the write's sequence number."""
    held = begin_count(core)
    core["tally"]["page_writes"] += 1
    end_count(core, held, 1)
    return core["tally"]["page_writes"]


@hot
def count_bytes(run, core, cause, at, count):
    """Count one write of each line under `count` bytes at `at`, within a frame, in a replay; how many lines.

    A unit is a page, or a frame where that is smaller.  A unit written whole has one counter for all of its lines
    (`units`: that counter, and the largest of the counters of single lines in it); a line's wear is the sum of its own
    and its unit's.  There is no kill to outlive, but lines die.
    """
    lines = lines_under(run, at, count)
    tally, units = core["tally"], u32_at(run["units"], 2 * run["unit_count"])
    tally["worn"][cause] += lines
    unit, hottest = at >> run["unit_shift"], int64(0)
    if count < 1 << run["unit_shift"]:
        own = u32_at(run["wear"], run["line_count"])
        first = at >> run["line_shift"]
        for i in range(first, first + lines):
            own[i] += numba.uint32(1)
            hottest = max(hottest, int64(own[i]))
        if hottest > units[2 * unit + 1]:
            units[2 * unit + 1] = hottest
        hottest += int64(units[2 * unit])
    for whole in range(unit, unit + (count >> run["unit_shift"])):
        units[2 * whole] += numba.uint32(1)
        hottest = max(hottest, int64(units[2 * whole]) + int64(units[2 * whole + 1]))
    if hottest > tally["hottest"]:
        tally["hottest"] = hottest
    if hottest >= run["weakest"]:
        _note_deaths(run, core, at >> run["line_shift"], lines)
    return lines


@hot
def replayed_wear(run, line):
    """The wear of `line` in a replay."""
    unit = line >> (run["unit_shift"] - run["line_shift"])
    own = u32_at(run["wear"], run["line_count"])[line]
    return int64(own) + int64(u32_at(run["units"], 2 * run["unit_count"])[2 * unit])


@hot
def _note_deaths(run, core, first, count):
    for line in range(first, first + count):
        survives = run["weakest"]
        if run["endurance"]:
            survives = int64(u32_at(run["endurance"], run["line_count"])[line])
        if replayed_wear(run, line) == survives:
            if run["death_count"] < run["deaths_room"]:
                deaths = i64_at(run["deaths"], 2 * run["deaths_room"])
                deaths[2 * run["death_count"]] = core["tally"]["page_writes"]
                deaths[2 * run["death_count"] + 1] = line
            run["death_count"] += 1


@hot
def lines_under(run, at, count):
    """How many lines `count` bytes at `at` touch."""
    return ((at + count - 1) >> run["line_shift"]) - (at >> run["line_shift"]) + 1


@hot
def frame_wear(run, frame):
    """The counter of the most worn line of medium frame `frame`; 0 where the host has no counters of it yet."""
    hottest = 0
    if not run["media"]:
        units = u32_at(run["units"], 2 * run["unit_count"])
        unit = frame_at(run, frame) >> run["unit_shift"]
        for i in range(unit, unit + (1 << (run["frame_shift"] - run["unit_shift"]))):
            hottest = max(hottest, int64(units[2 * i]) + int64(units[2 * i + 1]))
        return hottest
    at = frame_at(run, frame)
    if not reservations.has_counters(run, at, 1 << run["frame_shift"]):
        return 0
    wear, first = u32_at(run["wear"], run["line_count"]), at >> run["line_shift"]
    for i in range(first, first + (1 << (run["frame_shift"] - run["line_shift"]))):
        hottest = max(hottest, int64(wear[i]))
    return hottest


@hot
def punch(run, at, count):
    """Give the host back the space of `count` bytes at `at`; they read as zeros.  OK or HOST."""
    note_rewritten(run, at, count)
    error = fallocate(run["media_fd"], FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, at, count)
    reservations.forget(run, at, count)
    return error << ERRNO_SHIFT | HOST if error else OK


@hot
def is_blank(run, at, count):
    """True where all of `count` bytes at `at`, multiples of 8, are zeros."""
    words = i64_at(run["media"] + at, count >> 3)
    for i in range(count >> 3):
        if words[i]:
            return False
    return True


@hot
def blank(run, at, count):
    """Make `count` bytes at `at`, within a frame, zeros; the next commit of moves waits for them.  No line is worn."""
    # No flush waits for that: the page has nothing to lose, and is not written before the commit.
    clear_bytes(u8_at(run["media"], run["medium_bytes"]), at, count)
    note_filled(run, (at - FRAMES_AT) >> run["frame_shift"])


@hot
def load(run, at, target, target_at, count):
    """Copy `count` bytes at `at` into target[target_at:], uint8[]."""
    if not _load_by_call(run, at, target, target_at, count):
        copy_bytes(target, target_at, u8_at(run["media"], run["medium_bytes"]), at, count)


@hot
def _load_by_call(run, at, target, target_at, count):
    """`load` where a store's room is not known; True where that was done."""
    if not run["tmpfs"] or reservations.is_reserved(run, at):
        return False
    # This may be a hole.  A read call sees zeros there and takes no room.
    return pread(run["media_fd"], target, target_at, count, at) == count


@hot
def store(run, core, cause, at, source, source_at, count):
    """Copy source[source_at : source_at + count] to `at` and wear the lines it touches; how many."""
    put(run, at, source, source_at, count)
    return wear(run, core, cause, at, count)


@hot
def begin_write(run, count):
    """Before the first store of a request that writes `count` bytes, and again where it goes on."""
    run["by_call"] = run["large"] != 0 and count >= run["large"]


@hot
def goes_by_call(run, at):
    """True where a page's data, or a part of it, had better go to `at` by a call than by a store; notes that one did.

    The first store to a page since it was written back is a fault, and where pages are adjacent a call takes half of
    that.  What is still to be written back a store changes in a third of the time: so not where since the last sync as
    many calls went to the reservation as it has pages, twice.
    """
    if not run["by_call"]:
        return False
    return reservations.note_call(run, at)


@hot
def put(run, at, source, source_at, count):
    """The bytes of `store`, whose lines the caller wears."""
    note_rewritten(run, at, count)
    copy_bytes(u8_at(run["media"], run["medium_bytes"]), at, source, source_at, count)


@hot
def stream(run, at, source, source_at, count):
    """`put` past the processor's caches, where that is a page or more; whoever calls ends with order_streams.

    So do Linux's drivers of persistent memory (memcpy_flushcache).  A copy by way of the caches first fetches each line
    that it overwrites, and throws out of them what the next request wants.
    """
    note_rewritten(run, at, count)
    _stream_bytes(run, at, source, source_at, count)


@hot
def _stream_bytes(run, at, source, source_at, count):
    if count >= PAGE_BYTES and ((run["media"] + at) | count) & (LINE - 1) == 0:
        stream_bytes(u8_at(run["media"], run["medium_bytes"]), at, source, source_at, count)
    else:
        copy_bytes(u8_at(run["media"], run["medium_bytes"]), at, source, source_at, count)


@hot
def put_data(run, at, source, source_at, count):
    """The bytes of a page's data, or of a part of it, within a frame; the caller wears their lines."""
    if goes_by_call(run, at):
        put_by_call(run, at, source, source_at, count)
    else:
        stream(run, at, source, source_at, count)


@hot
def put_by_call(run, at, source, source_at, count):
    """The same by a system call; what the host does not take so is put all the same."""
    done = max(0, pwrite(run["media_fd"], source, source_at, count, at))
    note_rewritten(run, at, done)
    put(run, at + done, source, source_at + done, count - done)


@hot
def put_pages_by_call(run, at, source, source_at, count):
    """The same of whole pages: by one call where the page cache has all of them already, else page by page.

    New pages that come by one call share a folio, and from then on a store to one of them has all of them written back.
    """
    step = count if count == PAGE_BYTES or reservations.is_cached(run, at, count) else PAGE_BYTES
    for done in range(0, count, step):
        put_by_call(run, at + done, source, source_at + done, step)


@hot
def wear(run, core, cause, at, count):
    """Wear the lines that a store of `count` bytes to `at` touches; how many."""
    lines = lines_under(run, at, count)
    wear_lines(run, core, cause, at >> run["line_shift"], lines)
    return lines


@hot
def frame_at(run, frame):
    """The address of medium frame `frame`."""
    return FRAMES_AT + (frame << run["frame_shift"])


@hot
def note_filled(run, frame):
    """The next commit of moves must wait for medium frame `frame`.  Without room for it, nobody commits them."""
    if run["moved_room"] == 0:
        return
    if run["moved_count"] < run["moved_room"]:
        i64_at(run["moved"], run["moved_room"])[run["moved_count"]] = frame
    run["moved_count"] += 1
    i64_at(run["fresh"], run["fresh_words"])[frame >> 6] |= int64(1) << (frame & 63)


@hot
def note_rewritten(run, at, count):
    """`count` bytes at `at` change: where they had moved there, their old place no longer holds the same.

    From then on a flush has to commit the leveling's table.
    """
    if run["moved_count"] == 0 or at < FRAMES_AT:
        return
    fresh = i64_at(run["fresh"], run["fresh_words"])
    last = (at + count - 1 - FRAMES_AT) >> run["frame_shift"]
    for frame in range((at - FRAMES_AT) >> run["frame_shift"], last + 1):
        run["rewritten"] += fresh[frame >> 6] >> (frame & 63) & 1


@hot
def forget_filled(run):
    """The commit that begins takes all that `note_filled` noted."""
    fresh, count = i64_at(run["fresh"], run["fresh_words"]), run["moved_count"]
    if count <= run["moved_room"]:
        moved = i64_at(run["moved"], run["moved_room"])
        for i in range(count):
            fresh[moved[i] >> 6] = 0
    else:
        for i in range(fresh.size):
            if fresh[i]:  # to store to all of it would fill memory that nobody has touched
                fresh[i] = 0
    run["moved_count"] = 0
    run["rewritten"] += 1


@hot
def move(run, core, source, target):
    """Copy medium frame `source` over medium frame `target`; OK or HOST.  The caller then switches the map.

    Where there is no medium, in a replay, only wear is counted.
    """
    if run["media"]:
        return call_at(run["move"], (run, core, source, target))
    count_bytes(run, core, CAUSE_MOVE, frame_at(run, target), 1 << run["frame_shift"])
    core["tally"]["moves"] += 1
    return OK


@hot
def move_bytes(run, core, source, target):
    """`move` where there is a medium."""
    count = 1 << run["frame_shift"]
    to, of = frame_at(run, target), frame_at(run, source)
    # On a sparse medium most moves are between holes.
    used = reservations.is_reserved(run, of) or reservations.is_reserved(run, to)
    code = reservations.reserve(run, to, count) if used else reservations.reserve_exactly(run, to, count)
    if code:
        return code
    media, step = u8_at(run["media"], run["medium_bytes"]), min(count, PAGE_BYTES)
    for done in range(0, count, step):
        if goes_by_call(run, to + done):
            put_by_call(run, to + done, media, of + done, step)
        elif not _load_by_call(run, of + done, media, to + done, step):
            _stream_bytes(run, to + done, media, of + done, step)
    order_streams()
    wear_lines(run, core, CAUSE_MOVE, to >> run["line_shift"], lines_under(run, to, count))
    held = begin_count(core)
    core["tally"]["moves"] += 1
    end_count(core, held, 1)
    note_filled(run, target)
    return OK


@hot
def table_of(run):
    """The leveling's table, int64[]."""
    return i64_at(run["table"], run["table_words"])


@hot
def durable_table_of(run):
    """The leveling's table as the last checkpoint has it, int64[]."""
    return i64_at(run["durable"], run["table_words"])


@hot
def ticks_of(run):
    """The leveling's words that need not survive a power cut, int64[]."""
    return i64_at(run["ticks"], run["tick_words"])
