# SPDX-License-Identifier: MIT
"""The page: sections of text, figures and tables as one HTML file that loads nothing."""

import dataclasses
import html
import io
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from .. import __version__
from . import figures

FORMATS = ("svg", "png")
PNG_DPI = 160
REM_AN_INCH = 6.2


@dataclasses.dataclass(frozen=True)
class Key:
    """A figure that is seen first; the note says what of."""

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row is its name."""

    rows: list[list[str]]
    head: list[str] = dataclasses.field(default_factory=list)
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure.  name: [a-z-]+, of its file and its ids; alt: what it shows, in words, for those who do not see it."""

    name: str
    figure: Figure
    alt: str
    caption: str

    @property
    def width(self) -> float:
        """In the page, rem."""
        return round(float(self.figure.get_figwidth()) * REM_AN_INCH, 1)

    @property
    def svg(self) -> Markup:
        """For a page: see `inline`."""
        return Markup(inline(self.figure, self.name, self.alt))


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    text: list[str] = dataclasses.field(default_factory=list)
    drawings: list[Drawing] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole page.  data: what it was made of, ready for JSON; it is in the page too."""

    title: str
    lead: str
    sections: list[Section]
    key: list[Key] = dataclasses.field(default_factory=list)
    alarms: list[str] = dataclasses.field(default_factory=list)
    data: Any = None

    @property
    def drawings(self) -> list[Drawing]:
        """Every figure of it."""
        return [drawing for section in self.sections for drawing in section.drawings]


def _saved(figure: Figure, kind: str, name: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    with figures.style({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, metadata=nothing, **how)
    return buffer.getvalue()


def inline(figure: Figure, name: str, alt: str) -> str:
    """The figure as an element <svg> of HTML: no address in it, ids of its own, texts in the page's colour."""
    text = _saved(figure, "svg", name, transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace(" xlink:href=", " href=")
    text = re.sub(r' id="([^"]*)"', rf' id="{name}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = text.replace(figures.INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def as_file(drawing: Drawing, kind: str) -> bytes:
    """The figure as a file of its own, on white; kind: svg or png."""
    return _saved(drawing.figure, kind, drawing.name, facecolor="white", dpi=PNG_DPI)


def render(page: Page) -> str:
    """The HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    fields = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    return environment.get_template("page.html").render(**fields, version=__version__).lstrip()
