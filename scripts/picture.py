# SPDX-License-Identifier: MIT
"""Draw the picture of the README: the wear of a real run, folded at 65 pages, without and with leveling.

    .venv/bin/python scripts/picture.py [-o docs/img/stripe.png] [--size 64M] [--writes 60]

Three images are made: without leveling, with Start-Gap at its default interval, and with an interval of 5, which shows
in as many writes where the default would be after twenty times more.  The same random 4 KiB writes go to all (--writes
for each page, on average); the wear file is then drawn, one row a stripe of 65 pages of the medium.
"""

import argparse
import random
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

from pmem_core import device, geometry, image, layout
from pmem_core.cli._common import parse_size

mpl.use("Agg")
import matplotlib.pyplot as plt

STRIPE_PAGES = 65
CHOICES = [
    ("no leveling", "none", {}),
    ("start_gap, interval 100", "start_gap", {}),
    ("start_gap, interval 5", "start_gap", {"interval": 5}),
]


def wear_of(
    path: Path, size: int, leveling: str, parameters: dict[str, int], writes: int, seed: int
) -> tuple[np.ndarray, float]:
    """Run random page writes on a new image.

    The hottest line of each page of the medium, uint32[pages], and the mean of all lines.
    """
    plan = geometry.plan(size, leveling_name=leveling, parameters=parameters)
    image.create(path, plan)
    generator = random.Random(seed)
    page = generator.randbytes(layout.PAGE_BYTES)
    with device.Device(path) as served:
        for _ in range(writes * plan.info.page_count):
            served.write(page, generator.randrange(plan.info.page_count) * layout.PAGE_BYTES)
    lines = np.fromfile(path / "wear", "<u4")
    pages = lines[layout.FRAMES_AT // plan.info.line_bytes :].reshape(-1, layout.PAGE_BYTES // plan.info.line_bytes)
    return pages.max(axis=1), float(pages.mean())


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/img/stripe.png"))
    parser.add_argument("--size", type=parse_size, default=64 << 20)
    parser.add_argument("--writes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True, constrained_layout=True)
    with tempfile.TemporaryDirectory() as folder:
        wears = {
            title: wear_of(Path(folder) / title, chosen.size, name, parameters, chosen.writes, chosen.seed)
            for title, name, parameters in CHOICES
        }
    top = max(int(wear.max()) for wear, _ in wears.values())
    for axis, (name, (wear, mean)) in zip(axes, wears.items(), strict=True):
        rows = wear[: len(wear) // STRIPE_PAGES * STRIPE_PAGES].reshape(-1, STRIPE_PAGES)
        drawn = axis.imshow(rows, aspect="auto", cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
        figures = f"hottest line {int(wear.max())}, mean {mean:.0f}"
        print(f"{name}: {figures}, ratio {int(wear.max()) / mean:.2f}")
        axis.set_title(f"{name}\n{figures}", fontsize=10)
        axis.set_xlabel("page of the medium, modulo 65")
    axes[0].set_ylabel("stripe")
    figure.colorbar(drawn, ax=axes, label="writes of the page's hottest 256-byte line")
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(chosen.output, dpi=110)


if __name__ == "__main__":
    main()
