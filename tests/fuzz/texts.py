"""Texts that look like what a reader of the language takes, and often are wrong somewhere."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

_ODD = st.sampled_from(
    [*"\t\n\r\x00\x1c\x85\xa0\u2028\ufeff\udcff\\`'\"$<{}[]!*?^-=,:/#% ", "\r\n", "\\\n", "`\n"]
)
_NAMES = st.sampled_from(["a", "b", "c", "HOME", "_x1", "1", "12", "@", "?", "\xe9", "", "a-b"])
_PLAIN = st.text(st.sampled_from("abx012/._-*? \xe9"), min_size=1, max_size=8)
_FORMS = ["", "-", ":-", "+", ":+", "?", ":?", "#", "##", "%", "%%", "/", "//", ":", "^", "!"]


def _spoiled(texts: SearchStrategy[str], most: int) -> SearchStrategy[str]:
    """`texts`, or these with something odd put in, taken out or cut off."""
    changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), _ODD), max_size=most)

    def change(text: str, places: list[tuple[float, int, str]]) -> str:
        for place, taken, put in places:
            at = int(place * len(text))
            text = text[:at] + put + text[at + taken :]
        return text

    return st.one_of(texts, st.builds(change, texts, changes))


def _variable(inner: SearchStrategy[str]) -> SearchStrategy[str]:
    def braced(name: str, form: str, word: str, other: str) -> str:
        return f"${{{name}{form}{word}{'/' + other if form[:1] == '/' else ''}}}"

    return st.one_of(
        st.builds("${}".format, _NAMES),
        st.builds(braced, _NAMES, st.sampled_from(_FORMS), inner, inner),
    )


def _quoted(inner: SearchStrategy[str]) -> SearchStrategy[str]:
    return st.builds("{0}{1}{0}".format, st.sampled_from(["'", '"', "\\", "`"]), inner)


def _several(inner: SearchStrategy[str]) -> SearchStrategy[str]:
    return st.lists(inner, min_size=1, max_size=3).map("".join)


_WORD = st.recursive(
    _PLAIN, lambda inner: st.one_of(_variable(inner), _quoted(inner), _several(inner)), max_leaves=6
)
WORDS = _spoiled(st.one_of(_WORD, st.lists(_WORD, max_size=4).map(" ".join)), 3)
"""Words with variables in any form, nested and quoted."""


def _pairs(
    keys: list[str], values: SearchStrategy[str], joint: str = ","
) -> SearchStrategy[list[str]]:
    pair = st.one_of(
        st.builds("{}={}".format, st.sampled_from(keys), values),
        st.sampled_from(keys),
        st.builds('"{}={}"'.format, st.sampled_from(keys), st.text("a,\"'= ", max_size=5)),
    )
    return st.lists(pair, max_size=6).map(joint.join)


_NUMBERS = st.sampled_from(
    ["0", "1", "0755", "07777", "755", "-1", "0x1f", "1k", "1g", "9" * 30, "4294967296", "1e3", ""]
)
_SWITCHES = st.sampled_from(["true", "false", "1", "0", "TRUE", "yes", ""])
_PATHS = st.lists(st.sampled_from(["a", "b", ".", "..", "", "a b", "$a", "\xe9"]), max_size=4).map(
    "/".join
)
_TYPES = st.sampled_from(["bind", "cache", "tmpfs", "secret", "ssh", "Cache", "x", ""])
_MOUNT_KEYS = ["type", "target", "dst", "destination", "source", "src", "from", "id", "sharing"]
_MOUNT_KEYS += ["readonly", "ro", "rw", "readwrite", "required", "mode", "uid", "gid", "size"]
_MOUNT_KEYS += ["env", "", "Target", "x"]
_SHARING = st.sampled_from(["shared", "private", "locked"])
_VALUES = st.one_of(_NUMBERS, _SWITCHES, _PATHS, _SHARING, WORDS)
_GOOD_OPTIONS = {
    "bind": ["target=/a", "source=b", "from=c", "ro", "rw=true", '"target=/a,b"'],
    "cache": ["target=/a", "id=b", "sharing=locked", "mode=0755", "uid=1", "from=c", "source=b"],
    "tmpfs": ["target=/a", "size=1g"],
    "secret": ["id=a", "target=/b", "env=C", "required", "mode=0400", "uid=1"],
    "ssh": ["id=a", "target=/b", "required=true", "mode=0600", "gid=1"],
}
_GOOD_MOUNT = st.sampled_from(sorted(_GOOD_OPTIONS)).flatmap(
    lambda kind: st.lists(
        st.sampled_from(_GOOD_OPTIONS[kind]), min_size=1, max_size=5, unique=True
    ).map(lambda options: ",".join([f"type={kind}", *options]))
)
_MOUNT = _GOOD_MOUNT | st.builds("type={},{}".format, _TYPES, _pairs(_MOUNT_KEYS, _VALUES))
MOUNTS = _spoiled(_MOUNT, 3)
"""Values of RUN --mount."""

_DEVICE = st.one_of(
    _pairs(["name", "required", "x", "vendor.com/class=name", "a.b/c=*", "/=", "a/b"], _VALUES),
    st.builds("{}/{}={}".format, _NAMES, _NAMES, _NAMES),
)
DEVICES = _spoiled(_DEVICE, 3)
"""Values of RUN --device."""

_GLOB = st.lists(
    st.sampled_from(
        ["a", "b", "*", "**", "?", "/", "[a-b]", "[^a]", "[", "\\*", "..", ".", "\xe9"]
    ),
    max_size=7,
).map("".join)
_RULE = st.builds("{}{}".format, st.sampled_from(["", "!", "/", " ", "# ", "!/", "! "]), _GLOB)
_RULES = st.lists(_RULE, max_size=6).map("\n".join)
_ASKED = st.lists(
    st.text(st.sampled_from("aab/.*\\[\xe9\udcff"), max_size=12), min_size=1, max_size=6
)
IGNORE_FILES = st.builds("{}\0{}".format, _spoiled(_RULES, 2), _ASKED.map("\0".join))
"""A .dockerignore, and the paths asked about, each after a zero byte."""

_GOOD_LINES = ["FROM a AS b", "RUN --mount=type=cache,target=/a make", "COPY --from=b --link a /b/"]
_GOOD_LINES += ["ENV a=b c=$d", "ARG a=${b:-c}", 'CMD ["a", "b"]', "ADD --chmod=755 https://a/b /c"]
_GOOD_LINES += ["HEALTHCHECK --interval=1s CMD a", "ONBUILD COPY . /a", 'SHELL ["a"]', "USER a:b"]
_GOOD_LINES += [
    "RUN <<EOF\na\nEOF",
    "COPY <<-'E' /a\n\tb\n\tE",
    "LABEL a='b c' d=\"$e\"",
    "EXPOSE 1-3/udp",
]
_KEYWORDS = ["FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "LABEL", "CMD", "ENTRYPOINT", "WORKDIR"]
_KEYWORDS += ["USER", "EXPOSE", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "SHELL", "MAINTAINER"]
_KEYWORDS += ["ONBUILD", "ONBUILD RUN", "onbuild copy", "from", "Nothing"]
_FLAG_NAMES = ["from", "chown", "chmod", "link", "parents", "exclude", "checksum", "keep-git-dir"]
_FLAG_NAMES += ["platform", "network", "security", "interval", "retries", "timeout", "unpack", ""]
_FLAG = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(_FLAG_NAMES), _VALUES),
    st.builds("--{}".format, st.sampled_from(_FLAG_NAMES)),
    st.builds("--mount={}".format, _MOUNT),
    st.builds("--device={}".format, _DEVICE),
)
_JSON = st.lists(
    st.sampled_from(['"a"', '"a b"', '"\\n"', '"\\u00e9"', '"\\ud800"', '"$a"', "1", "null", "'a'"])
).map(lambda items: f"[{', '.join(items)}]")
_ARGUMENT = st.one_of(
    WORDS, _JSON, st.builds("{}={}".format, _NAMES, WORDS), st.sampled_from(["NONE", "CMD", "AS b"])
)
_ARGUMENTS = st.lists(_ARGUMENT, max_size=3).map(" ".join)
_FLAGS = st.lists(_FLAG, max_size=2).map(" ".join)
_LINE = st.builds("{} {} {}".format, st.sampled_from(_KEYWORDS), _FLAGS, _ARGUMENTS)


def _heredoc(head: str, mark: str, name: str, body: str, end: str) -> str:
    return f"{head} {mark}{name} /x\n{body}\n{end or name}"


_HEREDOC = st.builds(
    _heredoc,
    st.sampled_from(["RUN", "COPY", "ADD", "RUN sh", "COPY --chmod=1 a"]),
    st.sampled_from(["<<", "<<-", "<< ", "3<<", "<<a <<"]),
    st.sampled_from(["EOF", "'EOF'", '"E F"', "E$a", "", "-"]),
    st.lists(WORDS, max_size=3).map("\n\t".join),
    st.sampled_from(["", "", "EOF", "\tEOF", "EOF ", "E F"]),
)
_DIRECTIVES = ["# escape=`", "# syntax=docker/dockerfile:1", "#check=skip=all", "# ESCAPE = \\"]
_LINES = st.one_of(
    st.sampled_from(_GOOD_LINES),
    _LINE,
    _HEREDOC,
    st.sampled_from([*_DIRECTIVES, "# x", "", "ARG a=b", "\\"]),
)
_STAGES = st.sampled_from(["FROM scratch\n", "FROM a AS b\n", "ARG a=b\nFROM $a\n"] * 3 + [""])
_LINE_ENDS = st.sampled_from(["\n", "\n", "\r\n", "\\\n"])
DOCKERFILES = _spoiled(
    st.builds(
        lambda first, end, lines: first + end.join(lines),
        _STAGES,
        _LINE_ENDS,
        st.lists(_LINES, max_size=7),
    ),
    3,
)
"""Whole Dockerfiles."""

TRIGGERS = _spoiled(st.one_of(_LINE, _HEREDOC), 2)
"""Instructions as ONBUILD has them."""
