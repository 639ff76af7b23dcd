"""The ``key=value`` pairs of flags that are a line of CSV: ``--output``, ``--cache-to``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pybuild.errors import UsageError


def split(flag: str, text: str) -> list[str]:
    """The parts between commas, which a line of CSV may quote. Raises UsageError."""
    import csv  # noqa: PLC0415  (most builds have no such flag)

    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise UsageError(f'{flag} "{text}": {error}') from None


class Members:
    """The pairs of one flag; what was not taken in the end is unknown."""

    def __init__(self, flag: str, text: str, fields: Sequence[str]) -> None:
        """Raises UsageError for what is no pair, or given twice."""
        self._flag = flag
        self._text = text
        self._left: dict[str, str] = {}
        self._asked: set[str] = set()
        for field in fields:
            name, equals, value = field.partition("=")
            key = self.key_of(name)
            if not equals or not key:
                raise self.error(f'"{field}" is not KEY=VALUE')
            if key in self._left:
                raise self.error(f"{key} is given twice")
            self._left[key] = value

    @staticmethod
    def key_of(name: str) -> str:
        """The key that `name` spells."""
        return name.strip().lower()

    def error(self, problem: str, hint: str | None = None) -> UsageError:
        """What is wrong with the flag."""
        return UsageError(f'{self._flag} "{self._text}": {problem}', hint=hint)

    def take(self, key: str) -> str | None:
        """The value of `key`, which is known from now on."""
        self._asked.add(key)
        return self._left.pop(key, None)

    def flag(self, key: str, *, default: bool) -> bool:
        """The value of `key` as true or false. Raises UsageError."""
        text = self.take(key)
        if text is None:
            return default
        if text.lower() not in {"true", "false", "1", "0"}:
            raise self.error(f'{key} is "{text}", not true or false')
        return text.lower() in {"true", "1"}

    def check_empty(self, kind: str) -> None:
        """Raise UsageError for a key that nobody asked for."""
        if self._left:
            unknown = next(iter(self._left))
            raise self.error(
                f'type={kind} has no option "{unknown}"', near(unknown, sorted(self._asked))
            )


def near(word: str, known: Iterable[str]) -> str:
    """A hint for a wrong word: the one that was meant, or all there are."""
    from difflib import get_close_matches  # noqa: PLC0415  (for a wrong word only)

    words = list(known)
    found = get_close_matches(word, words, n=1)
    return f"did you mean {found[0]}?" if found else f"there are: {', '.join(words)}"
