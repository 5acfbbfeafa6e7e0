# SPDX-License-Identifier: MIT
"""What a check can find, in words."""

import collections
import dataclasses
import enum
from typing import Any

DETAILS_MAX = 100_000  # findings of a kind that are kept one by one; further ones are only counted


class Severity(enum.Enum):
    """How bad a finding is; with notes only, an image is clean."""

    NOTE = "note"  # worth knowing, and nothing is wrong
    WRONG = "wrong"  # a figure or a spare copy is wrong, and no data depends on it
    DAMAGE = "damage"  # data is lost, or what leads to it


class Kind(enum.Enum):
    """A kind of finding: its name, how bad it is, what it means, and what --repair does about it ("": nothing)."""

    INFO_TORN = ("info_torn", Severity.WRONG, "a copy of the info block is damaged", "writes it again from the other")
    INFO_DIFFERS = (
        "info_differs",
        Severity.WRONG,
        "the copies of the info block differ",
        "the newer one replaces the other",
    )
    INFO_LOST = ("info_lost", Severity.DAMAGE, "no info block can be believed, so nothing else can be checked", "")
    MEDIA_SHORT = ("media_short", Severity.DAMAGE, "the medium is shorter than its info block says", "")
    MEDIA_LONG = ("media_long", Severity.NOTE, "the medium is longer than its info block says", "")
    WEAR_LOST = (
        "wear_lost",
        Severity.WRONG,
        "the wear file is missing or too short",
        "counts what is lost from zero again",
    )
    WEAR_LONG = ("wear_long", Severity.NOTE, "the wear file is longer than the medium has lines", "")
    STATE_LOST = (
        "state_lost",
        Severity.WRONG,
        "the state file is missing or not of this image",
        "writes it from the journal",
    )
    STATE_HEAD = (
        "state_head",
        Severity.WRONG,
        "the head or the length of the state file is wrong",
        "writes the head again, and cuts off what is too much",
    )
    STATE_DAMAGED = ("state_damaged", Severity.DAMAGE, "the state file cannot be right", "writes it from the journal")
    STATE_DIFFERS = (
        "state_differs",
        Severity.DAMAGE,
        "state and journal differ though the image was closed",
        "keeps what the descriptors and the wear counters agree with",
    )
    JOURNAL_LOST = ("journal_lost", Severity.WRONG, "the journal is missing", "makes it anew from the state")
    JOURNAL_FOREIGN = (
        "journal_foreign",
        Severity.DAMAGE,
        "the journal is another image's",
        "makes it anew from the state",
    )
    JOURNAL_DAMAGED = (
        "journal_damaged",
        Severity.DAMAGE,
        "the journal cannot be read or cannot be right",
        "makes it anew from the state and from what can be read",
    )
    JOURNAL_RECORDS = (
        "journal_records",
        Severity.WRONG,
        "records of the past in the journal are damaged",
        "drops them; the rest of the journal is kept",
    )
    REPAIR_UNFINISHED = (
        "repair_unfinished",
        Severity.DAMAGE,
        "a repair that made the journal anew did not come to its end",
        "goes on with it: pages that fail are marked as damaged",
    )
    MAP_LOST = ("map_lost", Severity.DAMAGE, "neither state nor journal says which frame is where", "")
    MAP_DOUBTFUL = (
        "map_doubtful",
        Severity.DAMAGE,
        "too many pages fail their checksums where they should be, and nothing better is known",
        "",
    )
    WEAR_SUM = (
        "wear_sum",
        Severity.WRONG,
        "the wear counters do not add up to the totals",
        "notes the difference in the totals",
    )
    WEAR_UNCHECKPOINTED = (
        "wear_uncheckpointed",
        Severity.NOTE,
        "lines were written after the last checkpoint before a power cut",
        "notes how many in the totals",
    )
    HOTTEST_WRONG = (
        "hottest_wrong",
        Severity.WRONG,
        "the largest wear counter is not what the totals say",
        "corrects it",
    )
    TOTALS_WRONG = (
        "totals_wrong",
        Severity.WRONG,
        "the totals of requests and moves do not add up to the sum kept of them",
        "makes the sum anew; one of the totals stays wrong",
    )
    DESCRIPTOR_DAMAGED = (
        "descriptor_damaged",
        Severity.DAMAGE,
        "a descriptor fails its checksum",
        "builds it anew from the page's data, which nothing can verify then",
    )
    DESCRIPTOR_LOST = (
        "descriptor_lost",
        Severity.DAMAGE,
        "a descriptor is missing: the page reads as zeros, and has bytes on the medium",
        "builds it anew from the page's data, which nothing can verify then",
    )
    DATA_DAMAGED = (
        "data_damaged",
        Severity.DAMAGE,
        "the data of a page does not match its descriptor",
        "marks the page: reads fail until it is written whole",
    )
    LINES_WRONG = (
        "lines_wrong",
        Severity.WRONG,
        "descriptors tell of more line writes, or of earlier ones, than there were",
        "",
    )
    CONDEMNED = ("condemned", Severity.NOTE, "a page is marked as damaged: reads fail until it is written whole", "")
    UNSETTLED = (
        "unsettled",
        Severity.NOTE,
        "a page was being written when the last session ended",
        "brings its descriptor into line with its data",
    )
    EXTENTS_DIFFER = ("extents_differ", Severity.WRONG, "extents do not say what the descriptors say", "")
    SECTION_UNMARKED = (
        "section_unmarked",
        Severity.DAMAGE,
        "a section holds something and is marked as never written",
        "marks it as written, and checks it",
    )
    LEAKED_DATA = ("leaked_data", Severity.NOTE, "a page that holds nothing has bytes on the medium", "gives them back")
    GROUP_GAP = (
        "group_gap",
        Severity.WRONG,
        "pages are neither initialised nor covered by the head of a free group",
        "initialises them, or stores heads",
    )
    GROUP_OVERLAP = (
        "group_overlap",
        Severity.WRONG,
        "a group lies where the head of a free group claims the pages",
        "splits the free group around it, or clears its head",
    )
    STRANGE_FILE = ("strange_file", Severity.NOTE, "a file does not belong in the image", "")

    def __init__(self, word: str, severity: Severity, sentence: str, mend: str) -> None:
        self.word, self.severity, self.sentence, self.mend = word, severity, sentence, mend


@dataclasses.dataclass
class Finding:
    """One finding.  subject: a file of the image; offset: bytes into `media`; repaired: what was done, or ""."""

    kind: Kind
    subject: str
    detail: str = ""
    page: int | None = None
    offset: int | None = None
    repaired: str = ""

    def __str__(self) -> str:
        where = f"{self.subject}: " + (f"page {self.page} at {self.offset}: " if self.page is not None else "")
        detail = f" ({self.detail})" if self.detail else ""
        done = f"; {self.repaired}" if self.repaired else ""
        return f"{self.kind.severity.value}: {where}{self.kind.sentence}{detail}{done}"

    def as_dict(self) -> dict[str, Any]:
        """The finding for JSON."""
        return {
            "kind": self.kind.word,
            "severity": self.kind.severity.value,
            "subject": self.subject,
            "page": self.page,
            "offset": self.offset,
            "detail": self.detail or self.kind.sentence,
            "repaired": self.repaired or None,
        }


class Report:
    """What a check found.

    counts: findings by kind, also those past DETAILS_MAX; checked: what was looked at, in numbers; unchecked: what
    could not be, in words; session: how the last session ended and what opening will do, in words.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.counts: collections.Counter[Kind] = collections.Counter()
        self.repairs: collections.Counter[Kind] = collections.Counter()
        self.checked: dict[str, Any] = {}
        self.unchecked: list[str] = []
        self.session = ""

    def add(
        self, kind: Kind, subject: str, detail: str = "", *, page: int | None = None, offset: int | None = None
    ) -> Finding:
        """Note a finding; the answer can still be marked with `done`."""
        finding = Finding(kind, subject, detail, page, offset)
        self.counts[kind] += 1
        if self.counts[kind] <= DETAILS_MAX:
            self.findings.append(finding)
        return finding

    def done(self, finding: Finding, what: str) -> None:
        """Note that `finding` was repaired, and how."""
        finding.repaired = what
        self.repairs[finding.kind] += 1

    def has(self, *kinds: Kind) -> bool:
        """True where one of `kinds` was found."""
        return any(self.counts[kind] for kind in kinds)

    def of(self, *kinds: Kind) -> list[Finding]:
        """The findings of `kinds`."""
        return [finding for finding in self.findings if finding.kind in kinds]

    @property
    def clean(self) -> bool:
        """True where everything could be checked and nothing but notes was found."""
        return not self.unchecked and all(kind.severity is Severity.NOTE for kind in +self.counts)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {
            "clean": self.clean,
            "findings": [finding.as_dict() for finding in self.findings],
            "counts": {kind.word: count for kind, count in self.counts.items()},
            "repaired": {kind.word: count for kind, count in self.repairs.items()},
            "session": self.session,
            "checked": self.checked,
            "unchecked": self.unchecked,
        }
