"""What a failed call means: grpc's status codes, as errors of pybuild.

Each class here is a BackendError, so one that nobody catches ends the build with a message;
the backend itself catches the narrow ones, where containerd's answer is part of its protocol.
"""

from __future__ import annotations

from pybuild.errors import BackendError, BackendFailed, BackendUnavailable


class CallFailed(BackendFailed):
    """containerd answered a call with an error. ``details`` is its text, ``call`` the method."""

    def __init__(self, message: str, *, call: str, details: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.call = call
        self.details = details


class NotFound(CallFailed):
    """The thing, or the lease or namespace that the call was made under, isn't there."""


class AlreadyExists(CallFailed):
    """There is one with this name, key or digest already."""


class FailedPrecondition(CallFailed):
    """Not in this state: a parent with children, a digest or size that differs."""


class InvalidArgument(CallFailed):
    """The request makes no sense to this containerd, or names a snapshotter it hasn't."""


class OutOfRange(CallFailed):
    """An offset beyond what is there."""


class Unimplemented(CallFailed):
    """A call, or a variant of it, that this containerd is too old for."""


class Locked(CallFailed):
    """Someone else is writing the same ref; try again later."""


class CallCancelled(CallFailed):
    """The call was cancelled by us, or its connection was closed."""


class TimedOut(CallFailed):
    """containerd didn't answer in time."""


class PermissionRefused(CallFailed):
    """containerd, or a proxy in front of it, refuses the call to this user."""


class DaemonGone(BackendUnavailable):
    """There is no containerd at the socket any more."""

    def __init__(self, message: str, *, call: str, details: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.call = call
        self.details = details


_LONGEST_DETAILS = 2000

STATUS_ERRORS: dict[str, type[CallFailed | DaemonGone]] = {
    "OK": CallFailed,
    "CANCELLED": CallCancelled,
    "UNKNOWN": CallFailed,
    "INVALID_ARGUMENT": InvalidArgument,
    "DEADLINE_EXCEEDED": TimedOut,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": PermissionRefused,
    "RESOURCE_EXHAUSTED": CallFailed,
    "FAILED_PRECONDITION": FailedPrecondition,
    "ABORTED": CallFailed,
    "OUT_OF_RANGE": OutOfRange,
    "UNIMPLEMENTED": Unimplemented,
    "INTERNAL": CallFailed,
    "UNAVAILABLE": DaemonGone,
    "DATA_LOSS": CallFailed,
    "UNAUTHENTICATED": PermissionRefused,
}

_HINTS: dict[type[BackendError], str] = {
    DaemonGone: "see whether containerd is running, and start the build again",
    TimedOut: "containerd is overloaded or hangs; its own log may say why",
    Unimplemented: "a newer containerd may be needed",
    PermissionRefused: "use the socket as root or as a member of its group",
}


def translate(call: str, code: str, details: str | None) -> CallFailed | DaemonGone:
    """The error for a call that ended with the status `code`, e.g. ``NOT_FOUND``.

    `call` names the method, as in ``Snapshots.Prepare``; `details` is the daemon's text.
    """
    text = "".join(c if c.isprintable() else " " for c in details or "")
    text = " ".join(text.split())[:_LONGEST_DETAILS] or code.lower()
    kind = STATUS_ERRORS[code]
    if kind is DaemonGone and "locked" in text:
        kind = Locked  # containerd reports a held ref with the code of a dead connection
    hint = _HINTS.get(kind)
    if "no space left on device" in text:
        hint = "make room on the disk that holds containerd's root folder"
    if kind is DaemonGone:
        message = f"the connection to containerd broke in {call}: {text}"
    elif kind is TimedOut:
        message = f"containerd didn't answer {call} in time: {text}"
    else:
        message = f"containerd refused {call}: {text}"
    return kind(message, call=call, details=text, hint=hint)
