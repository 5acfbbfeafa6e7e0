# SPDX-License-Identifier: MIT
"""A page in headless Chromium: what became of it, what it looks like, and what its console said."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser")
WIDTH, HEIGHT = 1280, 4000


def program() -> str | None:
    """The browser there is."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@dataclasses.dataclass
class Seen:
    """dom: as text, after scripts have run; pixels: uint8[rows, columns, 3]; console: lines, errors of loading too."""

    dom: str
    pixels: np.ndarray
    console: list[str]


def look(page: Path, folder: Path, *, dark: bool = False) -> Seen:
    """Open a file; `folder` is for the browser's own."""
    picture = folder / "picture.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{HEIGHT}"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", f"--screenshot={picture}"]
    command = [program(), *flags, page.absolute().as_uri()]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    pixels = (matplotlib.image.imread(picture)[:, :, :3] * 255).round().astype(np.uint8)
    return Seen(told.stdout, pixels, re.findall(r".*CONSOLE.*", told.stderr))
