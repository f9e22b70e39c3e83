"""What a user got wrong, in words."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A problem, in one sentence, with the dotted `key`, `method.memory.size`.

    `nearest` is the closest valid name; `where`, `file:line`, is filled in by `Config`.
    """

    def __init__(self, key: str, problem: str, *, found="", expected="", nearest="", where=""):
        super().__init__(key, problem)
        self.key, self.problem, self.where = key, problem, where
        self.found, self.expected, self.nearest = found, expected, nearest

    def __str__(self) -> str:
        first = ": ".join(part for part in (self.where, self.key, self.problem) if part)
        details = {"found": self.found, "expected": self.expected, "nearest": self.nearest}
        margin = "\n" + 12 * " "  # of what has several lines
        shown = {f"  {n + ':':<10}": str(x).replace("\n", margin) for n, x in details.items() if x}
        return "\n".join([first, *(name + text for name, text in shown.items())])


def not_among(key: str, problem: str, name: object, choices: Iterable) -> ConfigError:
    """The error about a name that is none of the choices; one a line where they have commas."""
    names = list(map(str, choices))
    listed = "\n" + "\n".join(names) if any("," in n for n in names) else " " + ", ".join(names)
    expected = f"one of{listed}" if names else "none at all"
    return ConfigError(
        key, problem, found=repr(name), expected=expected, nearest=closest(str(name), names)
    )


def closest(name: str, candidates: Iterable) -> str:
    """The candidate whose spelling is closest to `name`, or ''. Case does not count."""
    by_lower = {str(c).lower(): str(c) for c in candidates}
    match = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[match[0]] if match else ""


def describe(value: object) -> str:
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def join(key: str, name: object) -> str:
    """`name` below the dotted `key`."""
    return f"{key}.{name}" if key else str(name)
