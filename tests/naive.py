# SPDX-License-Identifier: MIT
"""The whole device as dicts and loops: the oracle that every compiled function is compared with.

Written from the documents, for reading rather than for speed.  It imports nothing of pmem_core, because an oracle that
shares code with its subject agrees with its mistakes; sizes and names come in as plain numbers and strings.
"""

import struct

PAGE = 4096
INFO_BYTES = 8192  # two info blocks, in front of the frames
PENDING_SLOTS = 4096
LINEAR_ALIGN = 2 << 20
UPTODATE = 8
RESERVED, BUDDY = 1 << 2, 1 << 4
CAUSES = ("host", "descriptor", "move", "info")


# ---- checksums ----


def crc32c_step(crc, byte):
    """Advance a crc32c over one byte, bit by bit."""
    crc ^= byte
    for _ in range(8):
        crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc


CRC_OF_BYTE = [crc32c_step(0, byte) for byte in range(256)]


def crc32c_raw(crc, data):
    """Advance `crc` over `data`, with no inversion before or after."""
    for byte in data:
        crc = (crc >> 8) ^ CRC_OF_BYTE[(crc ^ byte) & 255]
    return crc


def crc32c(data):
    """crc32c as RFC 3720 has it: inverted before and after."""
    return crc32c_raw(0xFFFFFFFF, data) ^ 0xFFFFFFFF


# ---- placements: lists of placed addresses ----


class Interleaved:
    """Every (4096 / B + 1)th page is a page of the descriptors of the pages behind it."""

    def __init__(self, placed_bytes, descriptor_bytes):
        stride = PAGE // descriptor_bytes + 1
        self.pages, self.descriptors = [], []
        for number in range(placed_bytes // PAGE):
            group, within = divmod(number, stride)
            if within:
                self.pages.append(number * PAGE)
                self.descriptors.append(group * stride * PAGE + (within - 1) * descriptor_bytes)


class Linear:
    """One array of descriptors, then the pages, which begin on a multiple of 2 MiB of the medium."""

    def __init__(self, placed_bytes, descriptor_bytes):
        most = placed_bytes // PAGE
        data_at = 0
        while data_at < INFO_BYTES + most * descriptor_bytes:
            data_at += LINEAR_ALIGN
        self.pages = list(range(data_at - INFO_BYTES, placed_bytes - PAGE + 1, PAGE))
        self.descriptors = [page * descriptor_bytes for page in range(len(self.pages))]


class NoDescriptors:
    """Pages side by side, and nothing else."""

    def __init__(self, placed_bytes, descriptor_bytes):
        self.pages = list(range(0, placed_bytes - PAGE + 1, PAGE))
        self.descriptors = None


class InMemory:
    """Pages side by side from 2 MiB of the medium on; what is known of them lasts until the device is closed."""

    def __init__(self, placed_bytes, descriptor_bytes):
        self.pages = list(range(LINEAR_ALIGN - INFO_BYTES, placed_bytes - PAGE + 1, PAGE))
        self.descriptors = None


PLACEMENTS = {"interleaved": Interleaved, "linear": Linear, "none": NoDescriptors, "ram": InMemory}


# ---- levelings ----


class Fixed:
    """Nothing moves."""

    def __init__(self, medium_frames):
        self.frames = medium_frames

    def where(self, frame):
        """The medium frame of placed frame `frame`."""
        return frame

    def tick(self, frame, lines):
        """A store of `lines` lines into `frame`."""

    def due(self, frame):
        """The moves that are due around `frame`, as (source, target), each made in the map when it is asked for."""
        return iter(())

    def spare(self):
        """The medium frames that hold nothing."""
        return []


def feistel(frame, frames, keys):
    """A keyed permutation of 0 .. frames - 1: swap and mix two halves, again until the number is in range."""
    half = 1
    while 1 << (2 * half) < frames:
        half += 1
    while True:
        left, right = divmod(frame, 1 << half)
        for key in keys:
            mixed = ((right ^ key) * 0x45D9F3B) // 65536 % (1 << half)
            left, right = right, left ^ mixed
        frame = left * (1 << half) + right
        if frame < frames:
            return frame


class StartGap:
    """Rings of frames with a gap of K free ones; the frame below the gap hops over it."""

    def __init__(self, medium_frames, interval, region_frames, gap_frames, keys=None):
        self.interval, self.region_frames, self.gap_frames, self.keys = interval, region_frames, gap_frames, keys
        self.rings, self.gaps, self.firsts, self.ticks, self.places = [], [], [], [], []
        self.frames, first = 0, 0
        while medium_frames - first > gap_frames:
            size = min(region_frames, medium_frames - first - gap_frames)
            self.rings.append([*range(size), *[None] * gap_frames])
            self.places.append({x: x for x in range(size)})  # the ring backwards: where x is
            self.gaps.append(size)
            self.firsts.append(first)
            self.ticks.append(0)
            self.frames += size
            first += size + gap_frames

    def _find(self, frame):
        if self.keys is not None:
            frame = feistel(frame, self.frames, self.keys)
        return divmod(frame, self.region_frames)

    def where(self, frame):
        """The medium frame of placed frame `frame`."""
        region, x = self._find(frame)
        return self.firsts[region] + self.places[region][x]

    def tick(self, frame, lines):
        """A store of `lines` lines into `frame`."""
        self.ticks[self._find(frame)[0]] += 1

    def due(self, frame):
        """The moves that are due around `frame`, as (source, target), each made in the map when it is asked for."""
        region, _ = self._find(frame)
        ring = self.rings[region]
        while self.ticks[region] >= self.interval:
            source = (self.gaps[region] - 1) % len(ring)
            target = (self.gaps[region] + self.gap_frames - 1) % len(ring)
            ring[target], ring[source] = ring[source], None
            self.places[region][ring[target]] = target
            self.gaps[region] = source
            self.ticks[region] -= self.interval
            yield self.firsts[region] + source, self.firsts[region] + target

    def spare(self):
        """The medium frames that hold nothing."""
        rings = zip(self.firsts, self.rings, strict=True)
        return [first + at for first, ring in rings for at, x in enumerate(ring) if x is None]


def scatter(x):
    """Scatter a number of 31 bits."""
    for _ in range(2):
        x = ((x // 65536 ^ x) * 0x45D9F3B) % 2**31
    return x // 65536 ^ x


def draw(key, number, below):
    """The draw of this number, 0 .. below - 1."""
    low = scatter(number % 2**31 ^ key)
    high = scatter(low ^ number // 2**31 ^ 0x2545F491)
    return (high * 2**31 + low) % below


class Exchanging:
    """Blocks of frames, any two of which may change places, by way of two queues of free places."""

    device = None  # whose wear decides

    def __init__(self, medium_frames, block_frames, spare_blocks, key):
        self.size, self.key = block_frames, key
        self.blocks = medium_frames // block_frames - 2 * spare_blocks
        self.frames = self.blocks * block_frames
        self.place = {block: block for block in range(self.blocks)}
        free = range(self.blocks, self.blocks + 2 * spare_blocks)
        self.young, self.old = list(free[:spare_blocks]), list(free[spare_blocks:])
        self.exchanges = 0

    def where(self, frame):
        """The medium frame of placed frame `frame`."""
        return self.place[frame // self.size] * self.size + frame % self.size

    def spare(self):
        """The medium frames that hold nothing."""
        return [place * self.size + i for place in self.young + self.old for i in range(self.size)]

    def other(self, block, number):
        """The draw of this number among the blocks that are not `block`."""
        found = draw(self.key, number, self.blocks - 1)
        return found if found < block else found + 1

    def wear(self, block):
        """The writes of the most worn line where `block` is."""
        return max(self.device.frame_wear(self.place[block] * self.size + i) for i in range(self.size))

    def exchange(self, x, y):
        """Let x take the place that has been free longest of those little-worn, and y of those much-worn."""
        for block, here, there in ((x, self.young, self.old), (y, self.old, self.young)):
            source, target = self.place[block], here.pop(0)
            for i in range(self.size):
                yield source * self.size + i, target * self.size + i
            self.place[block] = target
            there.append(source)
        self.exchanges += 1


class TableSwap(Exchanging):
    """A block that was written `interval` times changes places with the least worn of some drawn at random."""

    def __init__(self, medium_frames, interval, block_frames, candidates, spare_blocks, key):
        super().__init__(medium_frames, block_frames, spare_blocks, key)
        self.interval, self.candidates = interval, candidates
        self.ticks = dict.fromkeys(range(self.blocks), 0)

    def tick(self, frame, lines):
        """A store of `lines` lines into `frame`."""
        self.ticks[frame // self.size] += 1

    def due(self, frame):
        """The moves that are due around `frame`, as (source, target)."""
        block = frame // self.size
        if self.ticks[block] < self.interval:
            return
        if self.blocks > 1:
            numbers = range(self.exchanges * self.candidates, (self.exchanges + 1) * self.candidates)
            drawn = [self.other(block, number) for number in numbers]
            yield from self.exchange(block, min(drawn, key=self.wear))
        self.ticks[block] = 0


class SampledSwap(Exchanging):
    """Of the stores sampled, one to a much-worn frame moves its block where that frame meets little wear."""

    def __init__(self, medium_frames, interval, sample, block_frames, spare_blocks, key):
        super().__init__(medium_frames, block_frames, spare_blocks, key)
        self.interval, self.sample = interval, sample
        self.stores, self.credit, self.looked = 0, 0, 0
        self.standing = draw(key, 0, self.blocks)

    def tick(self, frame, lines):
        """A store of `lines` lines into `frame`."""
        self.stores += 1
        self.credit += lines

    def due(self, frame):
        """The moves that are due around `frame`, as (source, target)."""
        sampled = scatter(scatter(frame % 2**31 ^ self.key) ^ self.stores % 2**31) % self.sample == 0
        if not sampled or self.looked == self.stores:
            return
        self.looked = self.stores
        block, drawn = frame // self.size, draw(self.key, self.stores, self.blocks)

        def met(there):
            return self.device.frame_wear(self.place[there] * self.size + frame % self.size)

        self.standing = min(drawn, self.standing, key=met)
        least, most = met(self.standing), self.device.hottest()
        above = met(block) - least
        price = self.interval * self.size * self.device.frame_bytes // self.device.line_bytes
        if self.credit >= price and above > 0 and above >= self.interval / 4 and above >= (most - least) * 7 / 8:
            yield from self.exchange(block, self.standing)
            self.credit = min(self.credit, 16 * price) - price
            self.standing = drawn


class SecurityRefresh(Exchanging):
    """Each address in turn changes places with address ^ k0 ^ k1; within sub-regions, and across them."""

    def __init__(self, medium_frames, interval, sub_regions, outer_interval, block_frames, spare_blocks, key):
        super().__init__(medium_frames, block_frames, spare_blocks, key)
        self.intervals = [outer_interval] + [interval] * sub_regions
        size = 1
        while size < max(self.blocks, sub_regions):
            size *= 2
        self.sizes = [size] + [size // sub_regions] * sub_regions  # addresses of the outer level, and of each inner one
        self.refreshed = [0] * (1 + sub_regions)
        self.ticks = [0] * (1 + sub_regions)
        self.intermediate = {address: address for address in range(size)}
        self.addresses = {address: address for address in range(size)}  # the same backwards

    def round_key(self, level, number):
        """The key of a round."""
        return draw(self.key, number * len(self.sizes) + level, self.sizes[level]) if number else 0

    def level_of(self, frame):
        """The inner level, from 1 on, that placed frame `frame` is in."""
        return 1 + self.intermediate[frame // self.size] // self.sizes[1]

    def tick(self, frame, lines):
        """A store of `lines` lines into `frame`."""
        self.ticks[self.level_of(frame)] += 1
        if len(self.sizes) > 2:
            self.ticks[0] += 1

    def pairs(self, level):
        """The addresses that change places now at a level, as pairs."""
        while self.ticks[level] >= self.intervals[level]:
            self.ticks[level] -= self.intervals[level]
            number, address = divmod(self.refreshed[level], self.sizes[level])
            self.refreshed[level] += 1
            pair = address ^ self.round_key(level, number) ^ self.round_key(level, number + 1)
            if pair > address:
                yield address, pair

    def due(self, frame):
        """The moves that are due around `frame`, as (source, target)."""
        for x, y in self.pairs(0):
            yield from self.change(x, y)
            self.intermediate[x], self.intermediate[y] = self.intermediate[y], self.intermediate[x]
            self.addresses[self.intermediate[x]], self.addresses[self.intermediate[y]] = x, y
        level = self.level_of(frame)
        first = (level - 1) * self.sizes[level]
        for x, y in self.pairs(level):
            yield from self.change(self.addresses[first + x], self.addresses[first + y])

    def change(self, x, y):
        """Exchange two addresses if both are blocks."""
        return self.exchange(x, y) if max(x, y) < self.blocks else ()


class Optane(Exchanging):
    """A block that was written `threshold` times 256 bytes changes places with any other one."""

    def __init__(self, medium_frames, threshold, block_frames, spare_blocks, key, line_bytes):
        super().__init__(medium_frames, block_frames, spare_blocks, key)
        self.threshold, self.line_bytes = threshold, line_bytes
        self.writes = dict.fromkeys(range(self.blocks), 0)

    def tick(self, frame, lines):
        """A store of `lines` lines into `frame`."""
        self.writes[frame // self.size] += -(-lines * self.line_bytes // 256)

    def due(self, frame):
        """The moves that are due around `frame`, as (source, target)."""
        block = frame // self.size
        if self.writes[block] < self.threshold:
            return
        self.writes[block] = 0
        if self.blocks > 1:
            yield from self.exchange(block, self.other(block, self.exchanges))


LEVELINGS = {
    "none": Fixed,
    "start_gap": StartGap,
    "table_swap": TableSwap,
    "sampled_swap": SampledSwap,
    "security_refresh": SecurityRefresh,
    "optane": Optane,
}


# ---- the device ----


class Naive:
    """A device.  `info` is the 8192 bytes of its info blocks; `leveling_parameters` are those of the class above."""

    def __init__(
        self,
        info,
        *,
        size,
        placement,
        leveling,
        frame_bytes,
        line_bytes,
        descriptor_bytes,
        coalesced,
        checksums,
        section_pages,
        leveling_parameters,
        descriptor_format=1,
        session=0,
        initialise="zeros",
    ):
        self.descriptor_format, self.session = descriptor_format, session
        self.frame_bytes, self.line_bytes, self.descriptor_bytes = frame_bytes, line_bytes, descriptor_bytes
        self.checksums, self.section_pages = checksums, section_pages
        self.leveling = LEVELINGS[leveling]((size - INFO_BYTES) // frame_bytes, **leveling_parameters)
        self.leveling.device = self
        placed_bytes = size - INFO_BYTES if leveling == "none" else self.leveling.frames * frame_bytes
        self.placement = PLACEMENTS[placement](placed_bytes, descriptor_bytes)
        self.has_descriptors = self.placement.descriptors is not None
        self.has_memory = isinstance(self.placement, InMemory)
        self.freed = set()  # pages remembered as given back; everything else holds what the medium has
        self.coalesced = coalesced and self.has_descriptors
        self.medium = bytearray(size)
        self.medium[:INFO_BYTES] = info
        self.wear = dict.fromkeys(range(INFO_BYTES // line_bytes), 1)
        self.most = 1
        self.worn = dict.fromkeys(CAUSES, 0) | {"info": INFO_BYTES // line_bytes}
        self.moves = self.page_writes = 0
        self.requests = dict.fromkeys(("reads", "writes", "read_bytes", "written_bytes", "flushes"), 0)
        self.requests |= dict.fromkeys(("trims", "trimmed_bytes", "zeros", "zeroed_bytes"), 0)
        self.touched, self.dirty, self.recent = set(), set(), set()  # sections: ever, lately, very lately written
        self.fields = {}  # page -> what its descriptor says, where the page was written
        self.more = {}  # page -> what only format 2 says: data, descriptor, session, first
        self.pending = {}  # slot -> page
        self.initialise = initialise
        self.per_page = PAGE // descriptor_bytes
        self.group_pages = max(self.per_page, {"section": 32768, "subsection": 512}.get(initialise, 1))
        self.up = set()  # first pages of pages of descriptors that were brought up
        self.heads = {}  # first page of a free group -> its order
        if initialise == "eager":
            for first in range(0, self.page_count, self.per_page):
                self.settle_descriptors(first)
                self.fill(first)
            self.count_wear("info", 0, INFO_BYTES)  # that it is done
        elif initialise == "buddy":
            self.cover()

    @property
    def page_count(self):
        """Pages the client sees."""
        return len(self.placement.pages)

    # -- placed addresses --

    def pieces(self, placed, count):
        """The bytes from `placed` on, cut at frames: (placed frame, medium address, bytes)."""
        found = []
        while count:
            frame, within = divmod(placed, self.frame_bytes)
            size = min(count, self.frame_bytes - within)
            found.append((frame, INFO_BYTES + self.leveling.where(frame) * self.frame_bytes + within, size))
            placed, count = placed + size, count - size
        return found

    def load(self, placed, count):
        """The bytes at `placed`."""
        return b"".join(bytes(self.medium[at : at + size]) for _, at, size in self.pieces(placed, count))

    def count_wear(self, cause, at, count):
        """One more write of each line that `count` bytes at medium address `at` touch."""
        for line in range(at // self.line_bytes, (at + count - 1) // self.line_bytes + 1):
            self.wear[line] = self.wear.get(line, 0) + 1
            self.most = max(self.most, self.wear[line])
            self.worn[cause] += 1

    def store(self, cause, placed, data):
        """Store at `placed`; one tick for each frame touched.  How many lines that wears."""
        done, before = 0, self.worn[cause]
        for frame, at, size in self.pieces(placed, len(data)):
            self.medium[at : at + size] = data[done : done + size]
            self.count_wear(cause, at, size)
            self.leveling.tick(frame, (at + size - 1) // self.line_bytes - at // self.line_bytes + 1)
            done += size
        return self.worn[cause] - before

    def settle(self, placed, count):
        """Make the moves that are due in the frames of `count` bytes at `placed`."""
        for frame in range(placed // self.frame_bytes, (placed + count - 1) // self.frame_bytes + 1):
            for source, target in self.leveling.due(frame):
                source, target = INFO_BYTES + source * self.frame_bytes, INFO_BYTES + target * self.frame_bytes
                self.medium[target : target + self.frame_bytes] = self.medium[source : source + self.frame_bytes]
                self.count_wear("move", target, self.frame_bytes)
                self.moves += 1

    def frame_wear(self, frame):
        """The writes of the most worn line of medium frame `frame`."""
        first = (INFO_BYTES + frame * self.frame_bytes) // self.line_bytes
        return max(self.wear.get(first + i, 0) for i in range(self.frame_bytes // self.line_bytes))

    def hottest(self):
        """The writes of the most worn line of the medium."""
        return self.most

    # -- descriptors --

    def descriptor(self, page):
        """The bytes of the descriptor of `page`."""
        if page in self.fields:
            crc, holds, writes, generation = self.fields[page]
            rest = struct.pack("<IIIQiiQ", crc, UPTODATE if holds else 0, writes, generation, int(holds), 0, page)
        elif page in self.heads:
            rest = struct.pack("<IIIQiiQB", 0, BUDDY, 0, 0, 0, 0, page, self.heads[page])
        elif page - page % self.per_page in self.up:
            rest = struct.pack("<IIIQiiQ", 0, RESERVED, 0, 0, 0, 0, page)
        else:
            return bytes(self.descriptor_bytes)
        if self.descriptor_format == 2:
            more = self.more[page]
            rest = rest.ljust(60, b"\0")
            rest += struct.pack("<QQQQ", more["data"], more["descriptor"], more["session"], more["first"])
        rest = bytes(4) + rest.ljust(self.descriptor_bytes, b"\0")[: self.descriptor_bytes - 4]
        return struct.pack("<I", crc32c_raw(page % 2**32, rest)) + rest[4:]

    def holds(self, page):
        """True where the page holds data."""
        if not self.has_descriptors:
            return page not in self.freed
        return page in self.fields and self.fields[page][1]

    def goes_to_medium(self, page):
        """Whose descriptor the medium gets when that of `page` is stored: its own, the evicted one, or None."""
        if not self.coalesced:
            return page if self.has_descriptors else None
        waiting = self.pending.get(page % PENDING_SLOTS)
        return None if waiting == page else waiting

    def settle_descriptor(self, page):
        """Settle what `store_descriptor` will write."""
        target = self.goes_to_medium(page)
        if target is not None:
            self.settle(self.placement.descriptors[target], self.descriptor_bytes)

    def change_descriptor(self, page, crc, holds, writes, data_lines=0):
        """Give `page` a new descriptor, on the medium or among the pending ones."""
        target = self.goes_to_medium(page)
        more = self.more.setdefault(page, {"data": 0, "descriptor": 0, "first": self.page_writes})
        more["data"] += data_lines
        more["session"] = self.session
        self.fields[page] = (crc, holds, writes, self.page_writes)
        if target is not None:
            self.store_descriptor(target)
        if self.coalesced:
            self.pending[page % PENDING_SLOTS] = page

    def store_descriptor(self, page):
        """Put the descriptor of `page` on the medium: it counts what this store wears."""
        self.more[page]["descriptor"] += max(1, self.descriptor_bytes // self.line_bytes)
        self.store("descriptor", self.placement.descriptors[page], self.descriptor(page))

    def writes_of(self, page):
        """How often the page was written."""
        return self.fields[page][2] if page in self.fields else 0

    # -- how descriptors come into being --

    def settle_descriptors(self, first):
        """Settle the page of descriptors that begins with that of `first`."""
        count = min(self.per_page, self.page_count - first)
        self.settle(self.placement.descriptors[first], count * self.descriptor_bytes)

    def store_descriptors(self, first):
        """Store the page of descriptors that begins with that of `first`, as they are on the medium, or will be."""
        pages = range(first, min(first + self.per_page, self.page_count))
        self.store("descriptor", self.placement.descriptors[first], b"".join(map(self.descriptor, pages)))

    def fill(self, first):
        """Bring up the pages with descriptors in one page."""
        self.up.add(first)
        self.heads.pop(first, None)
        self.store_descriptors(first)

    def store_head(self, page):
        """Store the descriptor of a page that is, or was, a head."""
        self.store("descriptor", self.placement.descriptors[page], self.descriptor(page))

    def cover(self):
        """Cover a device that was never written with the largest groups."""
        page = 0
        while page < self.page_count:
            order = self.per_page.bit_length() - 1
            while page % 2 ** (order + 1) == 0 and page + 2 ** (order + 1) <= self.page_count:
                order += 1
            self.heads[page] = order
            self.store_head(page)
            page += 2**order

    def bring_up(self, page):
        """Before the first write to `page`: what has to be done for it to have a descriptor."""
        if self.initialise in ("zeros", "eager") or page - page % self.per_page in self.up:
            return
        first = page - page % self.group_pages
        halves = self.halves_around(page) if self.initialise == "buddy" else []
        for half, _ in halves:
            self.settle(self.placement.descriptors[half], self.descriptor_bytes)
        pages = range(first, min(first + self.group_pages, self.page_count), self.per_page)
        for at in pages:
            self.settle_descriptors(at)
        if halves:
            del self.heads[self.head_over(page)]
        for half, order in halves:
            self.heads[half] = order
            self.store_head(half)
        for at in pages:
            self.fill(at)

    def head_over(self, page):
        """The head of the free group that covers `page`."""
        (head,) = [head for head, order in self.heads.items() if head <= page < head + 2**order]
        return head

    def halves_around(self, page):
        """What is left of the free group around `page` when it is halved until nothing but its own pages is left."""
        head, found = self.head_over(page), []
        size = 2 ** self.heads[head]
        while size > self.per_page:
            size //= 2
            lower, upper = head, head + size
            head = upper if page >= upper else lower
            found.append((lower if head == upper else upper, size.bit_length() - 1))
        return found[::-1]

    def give_back(self, first):
        """Take the descriptors of a group away; with each free buddy it becomes a free group twice as large."""
        if first not in self.up:
            return
        self.mark(first)
        size, head, joined = self.per_page, first, []
        while True:
            buddy = head + size if head % (2 * size) == 0 else head - size
            if self.heads.get(buddy) != size.bit_length() - 1 or max(head, buddy) + size > self.page_count:
                break
            joined.append(buddy)
            head, size = min(head, buddy), 2 * size
        for buddy in joined:
            self.settle(self.placement.descriptors[buddy], self.descriptor_bytes)
        self.settle_descriptors(first)
        self.up.remove(first)
        for page in range(first, first + self.per_page):
            self.fields.pop(page, None)
            if self.pending.get(page % PENDING_SLOTS) == page:
                del self.pending[page % PENDING_SLOTS]
        for buddy in joined:
            del self.heads[buddy]
        self.heads[head] = size.bit_length() - 1
        self.store_descriptors(first)
        for buddy in [head] * (head != first) + [buddy for buddy in joined if buddy != head]:
            self.store_head(buddy)

    # -- pages --

    def mark(self, page):
        """Note that the section of `page` is written to."""
        for marks in (self.touched, self.dirty, self.recent):
            marks.add(page // self.section_pages)

    def write_page(self, page, at, data):
        """Write a page, or a part of it."""
        self.mark(page)
        self.bring_up(page)
        placed = self.placement.pages[page]
        self.settle(placed, PAGE)
        self.settle_descriptor(page)
        if not self.holds(page):
            data, at = bytes(at) + data + bytes(PAGE - at - len(data)), 0
        lines = self.store("host", placed + at, data)
        self.page_writes += 1
        self.freed.discard(page)
        if self.has_descriptors:
            crc = crc32c(self.load(placed, PAGE)) if self.checksums else 0
            self.change_descriptor(page, crc, True, self.writes_of(page) + 1, lines)

    def trim_page(self, page):
        """Give a page back; one that is free costs nothing."""
        if page // self.section_pages not in self.touched:
            return
        if self.has_descriptors:
            if not self.holds(page):
                return
            self.mark(page)
            self.settle_descriptor(page)
            self.change_descriptor(page, 0, False, self.writes_of(page))
        if self.has_memory:
            self.freed.add(page)
        self.erase(page)

    def erase(self, page):
        """Nothing lies behind a page any more."""
        for _, at, size in self.pieces(self.placement.pages[page], PAGE):
            self.medium[at : at + size] = bytes(size)

    def read_page(self, page):
        """The 4096 bytes of a page."""
        if page // self.section_pages not in self.touched or not self.holds(page):
            return bytes(PAGE)
        return self.load(self.placement.pages[page], PAGE)

    # -- requests --

    def parts(self, offset, count):
        """The pages of a range: (page, first byte within it, bytes)."""
        found = []
        while count:
            page, at = divmod(offset, PAGE)
            size = min(count, PAGE - at)
            found.append((page, at, size))
            offset, count = offset + size, count - size
        return found

    def note(self, name, bytes_name, count):
        """Count a request."""
        self.requests[name] += 1
        self.requests[bytes_name] += count

    def read(self, count, offset):
        """`count` bytes at `offset`."""
        self.note("reads", "read_bytes", count)
        return b"".join(self.read_page(page)[at : at + size] for page, at, size in self.parts(offset, count))

    def write(self, data, offset, fua=False):
        """Write `data` at `offset`."""
        done = 0
        for page, at, size in self.parts(offset, len(data)):
            self.write_page(page, at, data[done : done + size])
            done += size
        self.note("writes", "written_bytes", len(data))
        if fua:
            self.drain()

    def trim(self, count, offset):
        """Give back the whole pages of a range."""
        self.free([page for page, _, size in self.parts(offset, count) if size == PAGE])
        self.note("trims", "trimmed_bytes", count)

    def free(self, pages):
        """Give whole pages back; of those of a buddy group all at once."""
        for page in pages:
            first = page - page % self.per_page
            last = min(first + self.per_page, self.page_count) - 1
            if self.initialise == "buddy" and first in pages and last in pages:
                if page == first:
                    self.give_back(first)
                self.erase(page)
            else:
                self.trim_page(page)

    def zero(self, count, offset, may_trim=True):
        """Make a range read as zeros."""
        for page, at, size in self.parts(offset, count):
            if may_trim and size == PAGE:
                whole = [page for page, _, size in self.parts(offset, count) if size == PAGE]
                if page == whole[0]:
                    self.free(whole)
            elif not may_trim or page // self.section_pages in self.touched:
                self.write_page(page, at, bytes(size))
        self.note("zeros", "zeroed_bytes", count)

    def flush(self):
        """Make everything durable: descriptors that are pending go to the medium."""
        self.drain()
        self.requests["flushes"] += 1

    def settle_sections(self):
        """Call the sections clean that were not written since the last time; with them go pending descriptors."""
        quiet = self.dirty - self.recent
        self.recent = set()
        if quiet:
            self.dirty -= quiet
            self.drain()

    def close(self):
        """Leave nothing pending and no section dirty."""
        self.drain()
        self.forget()
        self.dirty, self.recent = set(), set()

    def forget(self):
        """The server is gone, and its memory with it."""
        self.freed = set()

    def drain(self):
        """Write every pending descriptor to the medium, in the order of the slots."""
        for slot in sorted(self.pending):
            placed = self.placement.descriptors[self.pending[slot]]
            self.settle(placed, self.descriptor_bytes)
            self.store_descriptor(self.pending[slot])
        self.pending = {}

    def extents(self, count, offset):
        """(offset, bytes, holds data), neighbours joined."""
        found = []
        for page, at, size in self.parts(offset, count):
            holds = page // self.section_pages in self.touched and self.holds(page)
            if found and found[-1][2] == holds:
                found[-1] = (found[-1][0], found[-1][1] + size, holds)
            else:
                found.append((page * PAGE + at, size, holds))
        return found
