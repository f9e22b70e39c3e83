"""Text as a person sees it: what a user has named is shown as it is, and interpreted by nothing."""

import csv
import io
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from rich.console import Console

# Control characters move a cursor or end a line; lone surrogates are what Python reads for those
# bytes of a file's name that are no UTF-8, and can be written nowhere.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def visible(text: object, encoding: str = "utf-8") -> str:
    r"""The text with escapes, `\x1b`, for what is no character or moves a cursor.

    And for what the encoding lacks. Lines and tabs stay; a second call changes nothing.
    """
    escaped = _UNSEEN.sub(_escape, str(text))
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def one_line(name: object) -> str:
    r"""`visible`, and a line's end as `\n`: of names inside of texts."""
    return visible(name).replace("\n", "\\n")


def _escape(match: re.Match) -> str:
    number = ord(match[0])
    byte = 0xDC80 <= number <= 0xDCFF  # as PEP 383 has it
    return ascii(chr(number - 0xDC00 if byte else number))[1:-1]


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as a .csv file's text."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def show(text: object, file: TextIO | None = None) -> None:
    """Prints a text, on standard output if no file is given, whatever its encoding is."""
    file = sys.stdout if file is None else file
    print(visible(text, getattr(file, "encoding", None) or "utf-8"), file=file)


class PlainConsole(Console):
    """rich's console, to which strings are text: neither markup nor emoji, nor escapes."""

    def __init__(self, **settings):
        super().__init__(**settings, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Nobody reads what is printed any more, of `ssl-zoo train ... | head`: work goes on."""
        self.quiet = True
        # What is left in its buffer has to go somewhere when the process ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def render_str(self, text: str, **settings):
        return super().render_str(visible(text, self.encoding), **settings)
