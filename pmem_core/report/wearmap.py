# SPDX-License-Identifier: MIT
"""The cells of a heat map: pages of the medium, behind the info blocks, by where they are."""

import numpy as np

ROWS_MAX = 256


class WearMap:
    """Wear by position, gathered part by part (`add` is a counters.See).

    With `stripe` = n > 0 a row is one stripe of n pages, or `share` of them where the medium has more than `rows_max`:
    column c is the pages whose number on the medium is c modulo n.  With stripe = 0 the medium runs through the cells
    row by row, `share` pages a cell.

    All arrays are [rows, columns]:

    pages: pages of the cell, int64; 0 behind the end of the medium.
    line_sum: line writes.
    hottest_sum, hottest_max: of the pages' hottest lines, the sum and the largest.
    page_max: the most line writes that one page has.
    """

    def __init__(
        self, pages: int, page_lines: int, info_lines: int, *, stripe: int, columns: int = 128, rows_max: int = ROWS_MAX
    ) -> None:
        """pages: of the medium behind info; page_lines: lines a page; info_lines: lines of the info blocks."""
        self.stripe, self.columns = stripe, stripe or min(columns, pages)
        self._info_lines, self._page_lines = info_lines, page_lines
        if stripe:
            stripes = -(-pages // stripe)
            self.share = -(-stripes // rows_max)
            self.rows = -(-stripes // self.share)
        else:
            self.share = -(-pages // (self.columns * rows_max))
            self.rows = -(-pages // (self.columns * self.share))
        cells = self.rows * self.columns
        self.line_sum, self.hottest_sum, self.hottest_max, self.page_max = np.zeros(
            (4, self.rows, self.columns), np.int64
        )
        self.pages = np.zeros((self.rows, self.columns), np.int64)
        if stripe:
            edges = np.minimum(np.arange(self.rows + 1) * stripe * self.share, pages)
            places = np.arange(stripe)
            self.pages[:] = np.diff(-(-(edges[:, None] - places).clip(0) // stripe), axis=0)
        else:
            self.pages.flat[:] = np.diff(np.minimum(np.arange(cells + 1) * self.share, pages))

    def _cells(self, page: np.ndarray) -> np.ndarray:
        if self.stripe:
            return page // (self.stripe * self.share) * self.columns + page % self.stripe
        return page // self.share

    def add(self, first_line: int, counters: np.ndarray) -> None:
        """Count uint32 `counters` of whole pages, the first of which is line `first_line` of the medium."""
        skip = max(0, self._info_lines - first_line)
        whole = counters[skip : skip + (len(counters) - skip) // self._page_lines * self._page_lines]
        if not len(whole):
            return
        by_page = whole.reshape(-1, self._page_lines)
        first_page = (first_line + skip - self._info_lines) // self._page_lines
        cells = self._cells(first_page + np.arange(len(by_page)))
        sums, hottest = by_page.sum(axis=1, dtype=np.int64), by_page.max(axis=1).astype(np.int64)
        np.add.at(self.line_sum.reshape(-1), cells, sums)
        np.add.at(self.hottest_sum.reshape(-1), cells, hottest)
        np.maximum.at(self.hottest_max.reshape(-1), cells, hottest)
        np.maximum.at(self.page_max.reshape(-1), cells, sums)

    def mean(self, by: str) -> np.ndarray:
        """Mean of the cells' pages, float64; of their hottest lines (by="max") or of all lines (by="mean").

        NaN behind the end of the medium.
        """
        sums = self.hottest_sum if by == "max" else self.line_sum / self._page_lines
        return np.where(self.pages, sums / np.maximum(self.pages, 1), np.nan)

    def most(self, by: str) -> np.ndarray:
        """The hottest page of each cell, as `mean` measures pages, float64."""
        most = self.hottest_max if by == "max" else self.page_max / self._page_lines
        return np.where(self.pages, most, np.nan)

    def profile(self, by: str) -> np.ndarray:
        """The mean of each column's pages, float64[columns]; NaN where it has none."""
        sums = (self.hottest_sum if by == "max" else self.line_sum / self._page_lines).sum(axis=0)
        pages = self.pages.sum(axis=0)
        return np.where(pages, sums / np.maximum(pages, 1), np.nan)
