"""Keep the tables of a study as JSON beside its page, and write them into the page.

    python tools/study_tables.py --read docs/results/NAME.md     page → NAME.json
    python tools/study_tables.py docs/results/NAME.json          NAME.json → the page's tables

For studies whose script prints a page. The JSON has `tables`, in the order of the page: `columns`,
`align` (of Markdown) and `rows`. A cell is a number with the digits that were printed, or a text.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgexnas.whole_files import write_whole

TABLE = re.compile(r"^\|.*\|\n\|[ :|-]+\|\n(?:\|.*\|(?:\n|\Z))*", re.MULTILINE)
NUMBER = re.compile(r"-?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?")


class Number(str):
    """The literal of a JSON number, with its trailing zeros."""


class Table(NamedTuple):
    """One table of a page."""

    columns: list[str]
    align: list[str]
    rows: list[list[str]]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]


def read_tables(page: str) -> list[Table]:
    """Read the Markdown tables of a page; numbers lose the commas of their thousands."""
    found = []
    for block in TABLE.findall(page):
        columns, align, *rows = map(cells, block.splitlines())
        numbers = [
            [Number(cell.replace(",", "")) if NUMBER.fullmatch(cell) else cell for cell in row]
            for row in rows
        ]
        found.append(Table(columns, align, numbers))
    return found


def shown(cell: str) -> str:
    """Write a cell: a whole number with commas, any other as it stands."""
    return f"{int(cell):,}" if isinstance(cell, Number) and "." not in cell else str(cell)


def markdown(table: Table) -> str:
    """Write a table in Markdown."""
    lines = [table.columns, table.align, *([shown(cell) for cell in row] for row in table.rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(tables: list[Table]) -> str:
    """Write tables as JSON, a row on a line."""
    parts = []
    for table in tables:
        rows = ",\n".join(
            f"    [{', '.join(c if isinstance(c, Number) else quoted(c) for c in row)}]"
            for row in table.rows
        )
        parts.append(
            f'  {{\n   "columns": {quoted(table.columns)},\n   "align": {quoted(table.align)},\n'
            f'   "rows": [\n{rows}\n   ]\n  }}'
        )
    return '{\n "tables": [\n' + ",\n".join(parts) + "\n ]\n}\n"


def quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def from_json(text: str) -> list[Table] | None:
    """Read the tables of a study's JSON; None if its script writes the page from other keys."""
    kept = json.loads(text, parse_float=Number, parse_int=Number)
    return [Table(**table) for table in kept["tables"]] if "tables" in kept else None


def with_tables(page: str, tables: list[Table]) -> str:
    """Put tables in the place of those of a page.

    Raises
    ------
    ValueError
        If the page has another number of tables.
    """
    blocks = len(TABLE.findall(page))
    if blocks != len(tables):
        raise ValueError(f"the page has {blocks} tables, and its JSON {len(tables)}")
    following: Iterator[Table] = iter(tables)
    return TABLE.sub(lambda _: markdown(next(following)), page)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, nargs="+", help="NAME.json, or with --read NAME.md")
    parser.add_argument("--read", action="store_true", help="write NAME.json from the page")
    options = parser.parse_args()
    for study in options.study:
        page, kept = study.with_suffix(".md"), study.with_suffix(".json")
        tables = read_tables(page.read_text()) if options.read else from_json(kept.read_text())
        if tables is None:
            parser.error(f"{kept} has no tables: the script that its page names writes both")
        if options.read:
            write_whole(kept, to_json(tables).encode())
        write_whole(page, with_tables(page.read_text(), tables).encode())


if __name__ == "__main__":
    main()
