"""A terminal for a process in a sandbox, joined to the user's own.

The process gets one that is made for it, and never the user's: what it does to it, or types
into it, ends there.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from pybuild.errors import UsageError
from pybuild.values import dataclass

_PIECE = 1 << 14
_TICK = 200  # milliseconds between looks at the window's size
_END_OF_INPUT = b"\x04"


@dataclass(frozen=True, slots=True)
class Terminal:
    """The user's terminal: the descriptors to read what is typed from, and to show it on."""

    keyboard: int
    screen: int

    @contextmanager
    def lent(self) -> Iterator[int]:
        """A descriptor of a terminal that is joined to this one while the context lasts.

        Until then this one passes on each key, Ctrl-C included, as it is. When the context
        ends, all that was written is shown, and this one is as it was. The new terminal must
        be open nowhere else then. Raises UsageError if this one is none.
        """
        import termios  # noqa: PLC0415 - Windows has none
        import tty  # noqa: PLC0415 - as above

        with ExitStack() as stack:
            try:
                before = termios.tcgetattr(self.keyboard)
                ours, theirs = os.openpty()
            except (OSError, termios.error) as error:
                raise UsageError(f"there is no terminal to work with: {error}") from error
            stack.callback(os.close, ours)
            with suppress(OSError, termios.error):
                termios.tcsetwinsize(theirs, termios.tcgetwinsize(self.screen))
            relay = threading.Thread(target=self._relay, args=(ours,), name="pybuild-terminal")
            stack.callback(_put_back, self.keyboard, before)
            try:
                tty.setraw(self.keyboard)
                relay.start()
                stack.callback(relay.join)
                yield theirs
            finally:
                os.close(theirs)

    def _relay(self, ours: int) -> None:
        """Pass on what is typed and what is shown, until nobody has the other end any more."""
        poll = select.poll()
        poll.register(self.keyboard, select.POLLIN)
        poll.register(ours, select.POLLIN)
        os.set_blocking(ours, False)
        typed, size = b"", _size(self.screen)
        while True:
            # what isn't read there yet is not read here either
            poll.modify(ours, select.POLLIN | (select.POLLOUT if typed else 0))
            for fd, event in poll.poll(_TICK):
                if fd == ours and event & ~select.POLLOUT:
                    shown = _read(ours)
                    if not shown:
                        return
                    _write(self.screen, shown)
                elif fd == ours:
                    with suppress(OSError):
                        typed = typed[os.write(ours, typed) :]
                elif not typed:
                    typed = _read(fd)
                    if not typed:
                        poll.unregister(fd)
                        typed = _END_OF_INPUT
            now = _size(self.screen)
            if now != size:
                size = now
                _resize(ours, now)


def _put_back(keyboard: int, attributes: list[object]) -> None:
    import termios  # noqa: PLC0415 - as above

    # a terminal that has gone needs nothing
    with suppress(OSError, termios.error):
        termios.tcsetattr(keyboard, termios.TCSADRAIN, attributes)  # type: ignore[arg-type]  # what tcgetattr gave


def _size(screen: int) -> tuple[int, int]:
    """Lines and columns; (0, 0) where nobody knows."""
    try:
        columns, lines = os.get_terminal_size(screen)
    except OSError:
        return 0, 0
    return lines, columns


def _resize(ours: int, size: tuple[int, int]) -> None:
    import termios  # noqa: PLC0415 - as above

    with suppress(OSError, termios.error):
        termios.tcsetwinsize(ours, size)


def _read(descriptor: int) -> bytes:
    """What is there to be read; empty at the end, which a terminal tells by an error."""
    try:
        return os.read(descriptor, _PIECE)
    except OSError:
        return b""


def _write(screen: int, shown: bytes) -> None:
    """Show all of it, or nothing more if the user's terminal has gone."""
    with suppress(OSError):
        while shown:
            shown = shown[os.write(screen, shown) :]
