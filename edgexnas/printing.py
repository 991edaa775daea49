"""Text from outside in messages: without characters that a terminal or a log would obey."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Escape control characters, so that text from a stranger's file is safe in a message."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
