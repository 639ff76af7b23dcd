"""An error as text: message, place, the source line with a caret, and what to do.

::

    error: unknown flag --form; did you mean --from?
      --> Dockerfile:7:6
     7 | COPY --form=build /out /out
       |      ^^^^^^
"""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.errors import AuthenticationRequired, PybuildError, RunFailed, SourceRange
from pybuild.remotes.locations import masked
from pybuild.run.output import cut, width, without_escapes

_TAB = 4
_MAX_LINES = 8
_MAX_COLUMNS = 200


def describe_error(
    error: PybuildError, files: Mapping[str, bytes], *, with_output: bool = True
) -> str:
    """The text for `error`, without a newline at the end.

    `files` holds the text of the files that places may name. `with_output` says whether a
    failed RUN's last lines are repeated; where its whole output was shown they needn't be.
    """
    lines = [f"error: {_shown(error.message)}"]
    if error.where is not None:
        lines += _frame(error.where, files.get(error.where.file))
    if isinstance(error, RunFailed) and error.output and with_output:
        lines.append("last output:")
        lines += [f"  | {_shown(line)}" for line in error.output]
    if error.hint:
        lines.append(f"hint: {_shown(error.hint)}")
    elif isinstance(error, AuthenticationRequired):
        lines.append("hint: log in with docker login, or put the credentials into its config.json")
    return "\n".join(lines)


def _frame(where: SourceRange, data: bytes | None) -> list[str]:
    lines = [f"  --> {_shown(str(where))}"]
    if data is None:
        return lines
    source = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    last = min(where.end_line, len(source))
    shown = list(range(where.start_line, min(last, where.start_line + _MAX_LINES - 1) + 1))
    if not shown or where.start_line < 1:
        return lines
    margin = len(str(shown[-1]))
    for number in shown:
        text = masked(source[number - 1].decode("utf-8", "replace").removesuffix("\r"))
        lines.append(f" {number:>{margin}} | {cut(_shown(text), _MAX_COLUMNS)}".rstrip())
        if number == where.start_line and where.start_column is not None:
            caret = _caret(text, where)
            if caret:
                lines.append(f" {'':>{margin}} | {caret}")
    if last > shown[-1]:
        lines.append(f" {'':>{margin}} | ... {last - shown[-1]} more lines")
    return lines


def _caret(text: str, where: SourceRange) -> str:
    """Spaces and carets below what columns `where` means, as wide as it is shown."""
    start = (where.start_column or 1) - 1
    several = where.end_line > where.start_line
    end = len(text) if several else (where.end_column or start + 2) - 1
    before = width(_shown(text[:start]))
    if before >= _MAX_COLUMNS:
        return ""
    marked = max(1, width(_shown(text[start : max(end, start + 1)])))
    return " " * before + "^" * min(marked, _MAX_COLUMNS - before)


def _shown(text: str) -> str:
    """`text` with tabs as spaces and other control characters as escapes: nothing in an error
    can draw on the terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    spaced = text.replace("\t", " " * _TAB)
    return "".join(
        c if without_escapes(c) else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"
        for c in spaced
    )
