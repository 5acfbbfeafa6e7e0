# SPDX-License-Identifier: MIT
"""What an image may be asked to be: sizes, formats, policies and their parameters; UsageError says what else."""

from typing import Any

from . import layout, placement
from .errors import UsageError

SIZE_MAX = 1 << 46


def power_of_two(name: str, value: int, least: int, most: int) -> None:
    """UsageError where `value` is no power of two, or out of range."""
    if value < least or value > most or value & (value - 1):
        raise UsageError(f"{name}={value}", "not possible", f"a power of two from {least} to {most}")


def check_descriptor_bytes(value: int) -> None:
    """UsageError where no descriptor can have so many bytes."""
    power_of_two("descriptor-bytes", value, layout.DESCRIPTOR_BYTES_MIN, layout.DESCRIPTOR_BYTES_MAX)


def check_sizes(size: int, descriptor_bytes: int, frame_bytes: int, line_bytes: int) -> None:
    """UsageError where a medium, or what it is divided into, cannot have this size in bytes."""
    check_descriptor_bytes(descriptor_bytes)
    power_of_two("frame-bytes", frame_bytes, 256, 65536)
    power_of_two("line-bytes", line_bytes, 64, 4096)
    if line_bytes > frame_bytes:
        raise UsageError(f"line-bytes={line_bytes}", "larger than a frame", f"at most frame-bytes={frame_bytes}")
    if size <= 0 or size > SIZE_MAX:
        raise UsageError(f"size={size}", "not possible", f"1 to {SIZE_MAX >> 40}T")
    if size % layout.PAGE_BYTES:
        near = -(-size // layout.PAGE_BYTES) * layout.PAGE_BYTES
        raise UsageError(f"size={size}", "not a whole number of pages", f"a multiple of 4096, such as {near}")


def check_initialise(name: str, descriptor_bytes: int, placing: Any) -> None:
    """UsageError where descriptors of placement `placing` cannot come into being by strategy `name`."""
    if name not in layout.INITIALISE:
        raise UsageError(f"initialise={name}", "no such choice", f"one of {', '.join(layout.INITIALISE)}")
    if name != "zeros" and not placing.ON_MEDIUM:
        raise UsageError(f"initialise={name}", "not where no descriptors lie on the medium", "zeros")
    if name == "buddy" and descriptor_bytes < layout.DESCRIPTOR.itemsize:
        expected = f"descriptor-bytes={layout.DESCRIPTOR.itemsize} or more: smaller ones have no room for an order"
        raise UsageError(f"initialise={name}", f"not with descriptor-bytes={descriptor_bytes}", expected)


def policy(family: Any, kind: str, name: str) -> Any:
    """The module of policy `name`; UsageError where there is none."""
    module = family.modules.get(name)
    if module is None:
        own = f", or your own with --policy-file {name}.py" if family.takes_files else ""
        raise UsageError(f"{kind}={name}", "no such policy", f"one of {', '.join(family.modules)}{own}")
    return module


def parameters_of(module: Any, given: dict[str, int], subject: str, medium_frames: int = 0) -> dict[str, int]:
    """The parameters of a leveling policy: `given` over its defaults, checked; UsageError."""
    chosen = {name: spec[0] for name, spec in module.PARAMETERS.items()}
    if hasattr(module, "suited"):
        chosen |= module.suited(medium_frames, given)
    for name, value in given.items():
        if name not in module.PARAMETERS:
            known = ", ".join(module.PARAMETERS) or "none: this policy has no parameters"
            raise UsageError(
                f"{subject}: {name}", "no such parameter", f"one of {known}" if module.PARAMETERS else known
            )
        _, least, most, _ = module.PARAMETERS[name]
        if not least <= value <= most:
            raise UsageError(f"{subject}: {name}={value}", "out of range", f"{least} to {most}")
        chosen[name] = value
    return chosen


def suited_format(placement_name: str, descriptor_bytes: int, wanted: int | None, initialise: str) -> int:
    """The format of descriptors of a size: the one wanted, or the newest that fits.  UsageError."""
    on_medium = policy(placement.family, "placement", placement_name).ON_MEDIUM
    fits = 2 if on_medium and descriptor_bytes >= layout.DESCRIPTOR_2.itemsize else 1
    if initialise != "zeros":
        # A free descriptor must say nothing, for then one stored by half has nothing to lose; format 2 tells of stores.
        if wanted == 2:
            raise UsageError(
                "descriptor-format=2", f"not with initialise={initialise}", "format 1, or initialise=zeros"
            )
        fits = 1
    if wanted is not None and wanted not in layout.DESCRIPTOR_FORMATS:
        raise UsageError(f"descriptor-format={wanted}", "no such format", "1 or 2")
    if wanted is not None and wanted > fits:
        least = f"--descriptor-bytes {layout.DESCRIPTOR_2.itemsize} at least" if on_medium else "descriptors"
        raise UsageError(f"descriptor-format={wanted}", f"it does not fit {descriptor_bytes} bytes", least)
    return wanted or fits
