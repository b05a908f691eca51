"""A table as rows of cells, which becomes HTML, Markdown or JSON and says the same in each."""

from __future__ import annotations

from dataclasses import dataclass

from bench.markup import Markup, join, number, tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """`text` is for people; `value` is the exact figure, None where the cell is words or has nothing to say."""

    text: str
    value: float | None = None
    low: str = ""
    high: str = ""
    mood: str = ""

    def plain(self) -> str:
        return f"{self.text} ({self.low}–{self.high})" if self.low else self.text

    def markup(self, side: str, *, hidden: bool) -> Markup:
        """As <td>, of that class besides its mood."""
        shown = number(self.value, self.text) if self.value is not None else join([self.text])
        spread = (" ", tag("small", f"{self.low}–{self.high}")) if self.low else ()
        content = tag("span", shown, class_="hidden") if hidden else join([shown, *spread])
        return tag("td", content, class_=" ".join(filter(None, (side, self.mood))) or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`keys` name the columns in JSON, `heads` for people; the first `words` columns are set flush left."""

    keys: tuple[str, ...]
    heads: tuple[str, ...]
    words: int
    rows: tuple[tuple[Cell, ...], ...]

    def html(self, caption: str = "", *, grouped: bool = False) -> Markup:
        """Grouped: the rows of one first cell belong together, which is shown once, and extremes stand in the line."""
        rows, before = [], None
        for row in self.rows:
            same = grouped and row[0].text == before
            before = row[0].text
            cells = [cell.markup(self._side(at), hidden=same and at == 0) for at, cell in enumerate(row)]
            rows.append(tag("tr", *cells, class_="same" if same else None))
        heads = [tag("th", head, scope="col", class_=self._side(at) or None) for at, head in enumerate(self.heads)]
        title = tag("caption", caption) if caption else Markup()
        table = tag("table", title, tag("thead", tag("tr", *heads)), tag("tbody", *rows))
        return tag("div", table, class_="wide grouped" if grouped else "wide")

    def _side(self, column: int) -> str:
        return "" if column < self.words else "n"

    def markdown(self) -> str:
        """Its columns are level, so that it reads well as it is too."""
        lines = [
            [_markdown(one) for one in line] for line in (self.heads, *(map(Cell.plain, row) for row in self.rows))
        ]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * width if at < self.words else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
        level = [
            [one.ljust(width) if at < self.words else one.rjust(width) for at, (one, width) in enumerate(pairs)]
            for pairs in (list(zip(line, widths, strict=True)) for line in lines)
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in (level[0], rule, *level[1:]))

    def json(self) -> list[dict[str, float | str | None]]:
        """A figure as it is, words as text, and nothing as null."""
        return [
            {key: cell.text if cell.value is None and cell.text not in ("", "–") else cell.value
             for key, cell in zip(self.keys, row, strict=True)}
            for row in self.rows
        ]  # fmt: skip


def _markdown(text: str) -> str:
    """A cell's text; what would end the cell or begin markup is escaped."""
    line = " ".join(text.split())
    return "".join(f"\\{one}" if one in "\\|`<*_[" else one for one in line)
