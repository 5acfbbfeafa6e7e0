# SPDX-License-Identifier: MIT
"""The rules of the contract, each as a check that says in one sentence what breaks it: Fault."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..policyfile import told
from .memory import NOTHING, Memory

SEED = 0x5EED5EED5EED5EED5EED5EED5EED5EED  # as large as that of an image, which is its uuid
MEDIA = (13, 40, 150)  # frames of the media that are tried, the smallest that will do first
PLANNED = (0, 1, 2, 3, 5, 64, 1000, 1 << 18)  # frames of media that are planned only
VALUES = (1, 2, 4, 8)


class Fault(Exception):
    """A rule that the policy breaks.  what, expected: as of an error's text."""

    def __init__(self, what: str, expected: str = "") -> None:
        super().__init__(what, expected)
        self.what, self.expected = what, expected


def chosen_text(parameters: dict[str, int]) -> str:
    """Parameters as messages name them."""
    return " ".join(f"{name}={value}" for name, value in parameters.items()) or "no parameters"


def variants(module: Any) -> list[dict[str, int]]:
    """Parameters to try a policy with, whatever they mean: all of them small, switches both ways."""
    found: list[dict[str, int]] = []
    for value in VALUES:
        for switch in (0, 1):
            chosen = {
                name: min(max(switch if most == 1 else value, least), most)
                for name, (_, least, most, _) in module.PARAMETERS.items()
            }
            if chosen not in found:
                found.append(chosen)
    return found


# ---- plan ----


def planned(module: Any, parameters: dict[str, int], frames: int) -> int:
    """The placed frames that `plan` gives, its answer checked; 0 where it refuses such parameters."""
    asked = f"plan({frames}, {chosen_text(parameters)})"
    answers = []
    for _ in range(2):
        try:
            answers.append(module.plan(frames, dict(parameters), SEED))
        except ValueError:
            return 0
        except Exception as error:
            raise Fault(f"{asked}: fails", told(error, None)) from None
    for answer in answers:
        _require_plan(module, answer, asked, frames)
    for name, first, second in zip(("state", "placed frames", "table", "tick words"), *answers, strict=True):
        if np.asarray(first).tobytes() != np.asarray(second).tobytes():
            raise Fault(f"{asked}: gives other {name} when it is asked again", "the same, it runs at every open")
    return int(answers[0][1])


def _require_plan(module: Any, answer: Any, asked: str, frames: int) -> None:
    if not isinstance(answer, tuple) or len(answer) != 4:
        raise Fault(f"{asked}: gives {type(answer).__name__}", "state, placed frames, table, tick words")
    state, placed, table, ticks = answer
    if not isinstance(state, np.ndarray) or state.shape != () or state.dtype != module.STATE:
        raise Fault(f"{asked}: its state is no STATE[()]", "np.zeros((), STATE), filled in")
    for name, count in (("placed frames", placed), ("tick words", ticks)):
        if not isinstance(count, int | np.integer) or count < 0:
            raise Fault(f"{asked}: {name} are {count!r}", "a whole number, 0 or more")
    if placed > frames:
        raise Fault(f"{asked}: places {placed} frames", f"at most {frames}")
    if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 1:
        raise Fault(f"{asked}: its table is no int64[]", "an array of int64 words")


def suited(module: Any, frames: int) -> dict[str, int]:
    """All parameters as `create` would choose them, what `suited` gives being checked."""
    chosen = {name: row[0] for name, row in module.PARAMETERS.items()}
    if hasattr(module, "suited"):
        try:
            given = dict(module.suited(frames, {}))
        except Exception as error:
            raise Fault(f"suited({frames}, {{}}): fails", told(error, None)) from None
        for name, value in given.items():
            row = module.PARAMETERS.get(name)
            if row is None or not row[1] <= value <= row[2]:
                raise Fault(f"suited({frames}, {{}}): gives {name}={value}", "a parameter, within its range")
        chosen |= given
    return chosen


# ---- the map ----


def require_map(memory: Memory, places: np.ndarray, when: str, *, spares: bool = True) -> None:
    """Placed frames are one to one on the medium, and not on what `spare_frames` names."""
    require_inside(memory, places, when)
    owner = np.full(memory.medium_frames, NOTHING)
    for frame, place in enumerate(places.tolist()):
        if owner[place] != NOTHING:
            raise Fault(f"{when} frames {owner[place]} and {frame} are both on medium frame {place}", "one each")
        owner[place] = frame
    if not spares:
        return
    try:
        named, count = memory.spares(), memory.spare_count()
    except Exception as error:
        raise Fault(f"spare_frames: fails {when}", told(error, None)) from None
    if count != len(named):
        raise Fault(f"{when} spare_count says {count}", f"{len(named)}, as many as spare_frames names")
    seen: set[int] = set()
    for place in named.tolist():
        if not 0 <= place < memory.medium_frames:
            raise Fault(f"{when} spare_frames names medium frame {place}", f"0 to {memory.medium_frames - 1}")
        if place in seen:
            raise Fault(f"{when} spare_frames names medium frame {place} twice", "each once")
        if owner[place] != NOTHING:
            raise Fault(f"{when} frame {owner[place]} is on medium frame {place}", "none that spare_frames names")
        seen.add(place)


def require_inside(memory: Memory, places: np.ndarray, when: str) -> None:
    """No placed frame is outside of the medium."""
    for frame in np.flatnonzero((places < 0) | (places >= memory.medium_frames)).tolist():
        raise Fault(f"{when} frame {frame} is on medium frame {places[frame]}", f"0 to {memory.medium_frames - 1}")


def lost(memory: Memory, places: np.ndarray) -> Iterator[tuple[int, str]]:
    """Frames whose data is not where `places` has it, and what is there, in words."""
    found = memory.contents[places]
    for frame in np.flatnonzero((found != np.arange(memory.frames)[:, None]).any(axis=1)).tolist():
        words = set(found[frame].tolist())
        other = words.pop()
        there = "nothing" if other == NOTHING else f"that of frame {other}"
        yield frame, f"medium frame {places[frame]} holds {'a mixture' if words else there}"


def require_data(memory: Memory, places: np.ndarray, moves: int) -> None:
    """Every placed frame has its data, after move number `moves`."""
    for frame, there in lost(memory, places):
        raise Fault(f"move {moves} lost the data of frame {frame}: {there}", "its own")


def require_durable(memory: Memory, when: str) -> None:
    """What a power cut would bring back is whole."""
    places = memory.durable_places()
    require_map(memory, places, f"{when}, after a power cut,", spares=False)
    for frame, there in lost(memory, places):
        what = f"{when} a power cut would lose the data of frame {frame}: {there}"
        raise Fault(what, "CHECKPOINT before a move onto what the durable table still points to")


def require_ticks(memory: Memory, when: str) -> None:
    """An open refuses tick words that no stores made."""
    worn = int(memory.core["tally"]["worn"][0].sum())
    for word in np.flatnonzero((memory.ticks < 0) | (memory.ticks > worn)).tolist():
        raise Fault(f"{when} tick word {word} is {memory.ticks[word]}", f"0 to {worn}, the line writes so far")


def require_stall(memory: Memory, when: str) -> None:
    """`stall_nanoseconds`, where there is one, gives a time."""
    if not hasattr(memory.module, "stall_nanoseconds"):
        return
    try:
        stall = float(memory.module.stall_nanoseconds(memory.state, memory.table.copy()))
    except Exception as error:
        raise Fault(f"stall_nanoseconds: fails {when}", told(error, None)) from None
    if not 0 <= stall < float("inf"):
        raise Fault(f"stall_nanoseconds gives {stall} {when}", "0 or more")


def require_sane(memory: Memory, when: str) -> None:
    """The policy accepts a table of its own."""
    if not asked_sane(memory, memory.table, f"its own table {when}"):
        raise Fault(f"table_is_sane refuses its own table {when}", "True")


def asked_sane(memory: Memory, table: np.ndarray, what: str) -> bool:
    """What `table_is_sane` says of `table`."""
    try:
        return bool(memory.module.table_is_sane(memory.state, table.copy()))
    except Exception as error:
        raise Fault(f"table_is_sane: fails on {what}", told(error, None)) from None


def nonsense(table: np.ndarray, random: np.random.Generator, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Tables that no policy made, with what they are."""
    limits = np.iinfo(np.int64)
    for value in (-1, limits.max, limits.min):
        yield f"a table of {value}", np.full(len(table), value, np.int64)
    for number in range(count):
        if number % 3 == 0:
            yield "a random table", random.integers(limits.min, limits.max, len(table), endpoint=True)
        elif number % 3 == 1:
            yield "a table of small random words", random.integers(-200, 200, len(table))
        else:
            flipped, word, bit = table.copy(), random.integers(len(table)), random.integers(64)
            flipped[word] ^= np.int64(1 << bit) if bit < 63 else limits.min
            yield f"its own table with bit {bit} of word {word} flipped", flipped
