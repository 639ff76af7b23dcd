"""Signal names as STOPSIGNAL takes them: Linux's, whatever machine the builder runs on."""

from __future__ import annotations

import re

_NAMES = (
    "ABRT|ALRM|BUS|CHLD|CLD|CONT|FPE|HUP|ILL|INT|IO|IOT|KILL|PIPE|POLL|PROF|PWR|QUIT|SEGV|"
    "STKFLT|STOP|SYS|TERM|TRAP|TSTP|TTIN|TTOU|URG|USR1|USR2|VTALRM|WINCH|XCPU|XFSZ|"
    r"RTMIN(\+([1-9]|1[0-5]))?|RTMAX(-([1-9]|1[0-4]))?"
)
_NUMBER = r"[+-]?[0-9]{1,18}"


def is_signal(text: str) -> bool:
    """Whether `text` is a signal: a number but 0, or a name with or without SIG in any case."""
    if re.fullmatch(_NUMBER, text):
        return int(text) != 0
    return re.fullmatch(_NAMES, text.upper().removeprefix("SIG")) is not None
