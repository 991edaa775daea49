"""Count the lines of Python of this repository, so that sizes can be compared over time.

Run: python tools/count_lines.py

Every line is counted once, as the first of these that it is:

code       part of a statement or an expression; a string over several lines with all its lines
docstring  of a string that stands alone as a statement, below a definition or an attribute
comment    nothing but a comment
blank      all others

"comments per 100" is lines of nothing but a comment for each 100 lines of code; "of package" is all
lines of a part for each line of the package.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("edgexnas", "tests", "samples", "host", "device", "tools")
KINDS = ("code", "docstring", "comment", "blank")

_LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def count_lines(source: str) -> Counter[str]:
    """Count the lines of a Python source by kind; the kinds are `KINDS`."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(lines)
        elif token.type not in _LAYOUT and not docstrings.issuperset(lines):
            code.update(lines)
    counts = Counter(code=len(code), docstring=len(docstrings - code))
    counts["comment"] = len(comments - docstrings - code)
    counts["blank"] = sum(1 for _ in io.StringIO(source)) - counts.total()
    return counts


def count_files(paths: Iterable[Path]) -> Counter[str]:
    """Add up the lines of files, and the number of files as "files"."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts += count_lines(path.read_text(encoding="utf-8")) + Counter(files=1)
    return counts


def main() -> None:
    """Print a line for each part."""
    counts = {part: count_files((ROOT / part).rglob("*.py")) for part in PARTS}
    lines = {part: sum(counts[part][kind] for kind in KINDS) for part in PARTS}
    heads = ("files", "lines", *KINDS)
    print(f"{'':9}", *(f"{head:>9}" for head in heads), " comments per 100  of package")
    for part in PARTS:
        numbers = {**counts[part], "lines": lines[part]}
        per_100 = 100 * counts[part]["comment"] / max(1, counts[part]["code"])
        print(
            f"{part:9}",
            *(f"{numbers.get(head, 0):9,}" for head in heads),
            f"{per_100:17.1f} {lines[part] / lines[PARTS[0]]:11.2f}",
        )


if __name__ == "__main__":
    main()
