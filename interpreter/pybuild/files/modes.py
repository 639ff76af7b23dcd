"""The mode of ``COPY --chmod``: octal, or symbolic as in chmod(1)."""

from __future__ import annotations

import re

from pybuild.errors import CopyFailed
from pybuild.values import dataclass

_SET_UID, _SET_GID, _STICKY = 0o4000, 0o2000, 0o1000
_STANDARD = _SET_UID | _SET_GID | 0o777
_WHO = {"u": _SET_UID | 0o700, "g": _SET_GID | 0o070, "o": 0o007, "a": _STANDARD}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111}
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_CLAUSE = r"([augo]*)((?:[-+=][rwxXstugo]*)+)"
_ACTION = r"([-+=])([rwxXstugo]*)"


@dataclass(frozen=True, slots=True)
class _Action:
    """`op` with `letters` for those in `who`, 0 meaning all (the umask counts for nothing)."""

    who: int
    op: str
    letters: str


@dataclass(frozen=True, slots=True)
class Mode:
    """A parsed mode. ``octal`` is None for a symbolic one."""

    octal: int | None = None
    actions: tuple[_Action, ...] = ()

    def apply(self, mode: int, *, folder: bool) -> int:
        """The twelve bits that come out for a file or `folder` that had `mode`."""
        if self.octal is not None:
            return self.octal
        # X asks for the mode before any change
        executable = folder or bool(mode & 0o111)
        for action in self.actions:
            mode = _act(action, mode, executable=executable)
        return mode


def parse_mode(text: str) -> Mode:
    """Parse `text`. Raises CopyFailed for what chmod(1), as BuildKit reads it, doesn't know."""
    if re.fullmatch("[0-7]+", text) and len(text) < 12 and int(text, 8) <= 0o7777:
        return Mode(int(text, 8))
    if text[:1].isdigit():
        raise CopyFailed(
            f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        )
    actions = []
    for clause in text.split(","):
        found = re.fullmatch(_CLAUSE, clause)
        if found is None:
            raise CopyFailed(f"invalid chmod parameter: '{text}'")
        who = 0
        for letter in found[1]:
            who |= _WHO[letter]
        actions += [_Action(who, op, letters) for op, letters in re.findall(_ACTION, found[2])]
    return Mode(actions=tuple(actions))


def _act(action: _Action, mode: int, *, executable: bool) -> int:
    who = action.who
    others_only = who == _WHO["o"]
    bits = 0
    copied = ""
    for letter in action.letters:
        if letter in _BITS:
            bits |= _BITS[letter]
        elif letter == "X":
            bits |= 0o111 if executable or action.op == "-" else 0
        elif letter == "s" and not others_only:
            bits |= _SET_UID | _SET_GID
        elif letter == "t" and not others_only:
            bits |= _STICKY
            who |= _STICKY if who else 0
        elif letter in _SHIFTS:
            copied += letter
    chosen = bits & (who or 0o7777)
    if action.op == "-":
        mode &= ~chosen
    elif action.op == "+":
        mode |= chosen
    elif bits or not copied:
        mode = mode & ~(who or _STANDARD) | chosen
    for letter in copied:
        mode = _copy_bits(action, mode, letter)
    return mode


def _copy_bits(action: _Action, mode: int, letter: str) -> int:
    """Give those in `who` the permissions that `letter` has, for all three bits of each."""
    value = mode >> _SHIFTS[letter] & 0o7
    for shift in _SHIFTS.values():
        if action.who and not action.who & (0o4 << shift):
            continue
        if action.op == "=":
            mode = mode & ~(0o7 << shift) | value << shift
        elif action.op == "+":
            mode |= value << shift
        else:
            mode &= ~(value << shift)
    return mode
