"""What ADD and build contexts may name on the network, as values. Pure: nothing is fetched.

The forms are those of BuildKit's `dfgitutil`. Whatever goes to the git command is checked
here: no option, no second refspec and no helper can be smuggled in.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from pybuild.errors import UsageError
from pybuild.oci.http import split_url
from pybuild.values import dataclass, field, replace

_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
_SCP_STYLE = re.compile(r"([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):(.*)", re.DOTALL)
_HEX = r"[0-9a-f]{4,64}"
_DIGEST = r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}"
_COMMIT = r"[0-9a-f]{40}|[0-9a-f]{64}"
# git-check-ref-format(1), and nothing that could be an option
_NO_REF = r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-/.]|[/.]$|\.lock(/|$)"
_LOGIN = r"(?i)(https?://)[^/?#\s]*@"
_UNNAMED = "__unnamed__"
_LONGEST = 4096
_SWITCHES = frozenset({"keep-git-dir", "submodules", "fetch-by-commit"})
_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}


@dataclass(frozen=True, slots=True)
class WebLocation:
    """A file to be fetched over http or https. ``url`` has no login; ``login`` is ``user:password``.

    ``checksum`` is an OCI digest by sha256, sha384 or sha512.
    """

    url: str
    login: str = field(default="", repr=False)
    checksum: str = ""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The file's name as BuildKit's ADD has it: the end of the path, whatever the server says."""
        name = posixpath.basename(unquote(urlsplit(self.url).path).rstrip("/"))
        usable = name not in {"", ".", ".."} and name.isprintable()
        return name if usable else _UNNAMED


@dataclass(frozen=True, slots=True)
class GitLocation:
    """Files in a git repository, at a commit.

    ``remote`` is what git is given, without a login for http; ``ref`` a branch, tag, commit
    or empty for the default branch; ``subdir`` relative, without ``..``; ``checksum`` the
    beginning of a commit's id. With ``commit_times`` files are as old as the commit.
    """

    remote: str
    login: str = field(default="", repr=False)
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool = False
    submodules: bool = True
    fetch_by_commit: bool = False
    commit_times: bool = False

    def __str__(self) -> str:
        tail = f"#{self.ref}" if self.ref or self.subdir else ""
        return f"{self.remote}{tail}{f':{self.subdir}' if self.subdir else ''}"

    @property
    def is_commit(self) -> bool:
        """Whether ``ref`` is a whole commit id."""
        return is_commit(self.ref)


Location = WebLocation | GitLocation


def is_commit(text: str) -> bool:
    """Whether `text` is a commit id, whole and in lower case."""
    return re.fullmatch(_COMMIT, text) is not None


def is_git(source: str) -> bool:
    """Whether an ADD source is a git repository: ``https://host/x.git``, ``git@host:x``."""
    if source.startswith(("./", "../", "github.com/")):
        return False
    match = _SCHEME.match(source)
    if match is None:
        return _SCP_STYLE.fullmatch(source) is not None
    scheme = match[1].lower()
    if scheme in {"http", "https"}:
        path = re.split(r"[?#]", source[match.end() :], maxsplit=1)[0]
        return "/" in path and path.endswith(".git")
    return scheme in {"git", "ssh"}


def is_url(source: str) -> bool:
    """Whether an ADD source is a file to be fetched over http."""
    return source.startswith(("http://", "https://")) and not is_git(source)


def parse_context_location(text: str) -> Location | None:
    """What a build context names on the network; None for a path.

    As for ADD, and ``github.com/owner/name`` is a repository. Raises UsageError.
    """
    if text.startswith("github.com/"):
        return parse_git(f"https://{text}")
    if is_git(text):
        return parse_git(text)
    return parse_web(text) if is_url(text) else None


def parse_web(text: str, checksum: str = "") -> WebLocation:
    """The file that an URL names. Raises UsageError."""
    if checksum and not re.fullmatch(_DIGEST, checksum):
        raise UsageError(
            f'invalid checksum "{checksum[:200]}"',
            hint="it is sha256:, sha384: or sha512: and the hexadecimal digits",
        )
    url, login = _without_login(text.partition("#")[0])
    if split_url(url) is None or len(url) > _LONGEST:
        raise UsageError(f'invalid URL "{redacted(text)[:200]}"')
    return WebLocation(url, login, checksum)


def parse_git(text: str) -> GitLocation:
    """The repository, commit and folder that a git URL names. Raises UsageError."""
    if not text.isprintable() or " " in text or len(text) > _LONGEST:
        raise _invalid(text, "it has characters that no URL has")
    rest, _, fragment = text.partition("#")
    remote, _, query = rest.partition("?")
    scp = None if _SCHEME.match(remote) else _SCP_STYLE.fullmatch(remote)
    login = ""
    if scp is not None:
        _check_ssh(text, scp[1], scp[2], scp[3])
    else:
        remote, login = _checked_url(text, remote)
    ref, _, subdir = fragment.partition(":")
    location = GitLocation(remote, login, ref, _relative(subdir))
    location = _with_query(location, query, text)
    if location.ref and re.search(_NO_REF, location.ref):
        raise _invalid(text, f'"{location.ref}" is no name of a branch, tag or commit')
    if location.fetch_by_commit and not (location.is_commit or is_commit(location.checksum)):
        raise _invalid(text, "fetch-by-commit needs a whole commit id")
    return location


def with_checksum(location: GitLocation, checksum: str) -> GitLocation:
    """`location`, whose commit id must begin with `checksum`. Raises UsageError."""
    if location.checksum and location.checksum != checksum.lower():
        raise UsageError(f'checksum mismatch: "{checksum}" and "{location.checksum}"')
    if not re.fullmatch(_HEX, checksum.lower()):
        raise UsageError(
            f'invalid checksum "{checksum[:200]}" for a git repository',
            hint="it is the beginning of a commit's id, in hexadecimal digits",
        )
    return replace(location, checksum=checksum.lower())


def redacted(text: str) -> str:
    """`text` without what stands before the @ of http URLs in it."""
    return re.sub(_LOGIN, r"\1xxxxx:xxxxx@", text)


def masked(text: str) -> str:
    """As :func:`redacted`, in as many characters as `text` has."""
    return re.sub(
        _LOGIN, lambda found: f"{found[1]}{'x' * (len(found[0]) - len(found[1]) - 1)}@", text
    )


def _without_login(url: str) -> tuple[str, str]:
    found = re.match(_LOGIN, url)
    if found is None:
        return url, ""
    login = url[len(found[1]) : found.end() - 1]
    user, _, password = login.partition(":")
    return found[1] + url[found.end() :], f"{unquote(user)}:{unquote(password)}"


def _checked_url(text: str, remote: str) -> tuple[str, str]:
    url, login = _without_login(remote)
    try:
        parts = urlsplit(url)
        host, port, user = parts.hostname or "", parts.port, parts.username or ""
    except ValueError:
        raise _invalid(text, "it is no URL") from None
    if parts.scheme.lower() not in {"http", "https", "git", "ssh"}:
        raise _invalid(text, "only http, https, git and ssh are spoken")
    if parts.password is not None:
        raise _invalid(text, "a password in it would be seen by every process")
    if port == 0:
        raise _invalid(text, "0 is no port")
    _check_ssh(text, user, host, parts.path)
    return url, login


def _check_ssh(text: str, user: str, host: str, path: str) -> None:
    """None of these may become an option of ssh, whoever starts it."""
    if not host or not path.strip("/") or any(word.startswith("-") for word in (user, host, path)):
        raise _invalid(text, "it names no host and path")


def _relative(subdir: str) -> str:
    return posixpath.normpath(f"/{subdir}").strip("/")


def _with_query(location: GitLocation, query: str, text: str) -> GitLocation:
    seen: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in seen:
            raise _invalid(text, f'"{name}" is given twice')
        if not value and name not in _SWITCHES:
            raise _invalid(text, f'"{name}" has no value')
        seen[name] = value
    if "tag" in seen and "branch" in seen:
        raise _invalid(text, "a branch and a tag contradict each other")
    for name, value in seen.items():
        match name:
            case "ref" | "tag" | "branch":
                prefix = {"ref": "", "tag": "refs/tags/", "branch": "refs/heads/"}[name]
                ref = prefix + value.removeprefix(prefix)
                location = replace(location, ref=_agreed(text, name, location.ref, ref))
            case "subdir":
                subdir = _agreed(text, name, location.subdir, _relative(value))
                location = replace(location, subdir=subdir)
            case "checksum" | "commit":
                location = with_checksum(location, value)
            case "mtime" if value in {"checkout", "commit"}:
                location = replace(location, commit_times=value == "commit")
            case "keep-git-dir":
                location = replace(location, keep_git_dir=_switch(text, name, value))
            case "submodules":
                location = replace(location, submodules=_switch(text, name, value))
            case "fetch-by-commit":
                location = replace(location, fetch_by_commit=_switch(text, name, value))
            case _:
                raise _invalid(text, f'"{name}={value}" means nothing in a git URL')
    return location


def _agreed(text: str, name: str, before: str, now: str) -> str:
    if before and before != now:
        raise _invalid(text, f'{name} conflicts: "{before}" and "{now}"')
    return now


def _switch(text: str, name: str, value: str) -> bool:
    if value and value.lower() not in _TRUE | _FALSE:
        raise _invalid(text, f'{name} is true or false, not "{value}"')
    return not value or value.lower() in _TRUE


def _invalid(text: str, reason: str) -> UsageError:
    shown = "".join(c if c.isprintable() else "?" for c in redacted(text)[:200])
    return UsageError(f'invalid git URL "{shown}": {reason}')
