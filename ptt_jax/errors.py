"""What somebody got wrong, in a sentence."""

from typing import Any


class UserError(Exception):
    """What the person at the keyboard got wrong: one sentence that says what, where, and what would be accepted."""


def brief(value: Any) -> str:
    """Returns a value for an error, of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]} ... ({len(text)} characters)"
