"""Where caches are taken from and written to, as values, and the words that name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from pybuild.errors import UsageError
from pybuild.export.members import Members, near, split
from pybuild.oci.reference import DEFAULT_TAG, Reference, parse_reference, with_default_tag
from pybuild.values import dataclass

_ELSEWHERE = {"gha": "GitHub's cache", "s3": "S3", "azblob": "Azure's blob storage"}


class CacheMode(Enum):
    """Which steps are written: those that the image consists of, or all of the build."""

    MIN = "min"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryImport:
    """``type=registry``: a cache, or an image with one in it, at a registry."""

    ref: Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalImport:
    """``type=local``: the same in an OCI image layout, which is the folder or tar ``src``."""

    src: str
    tag: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryExport:
    """``type=registry``: a registry's artifact under ``ref``, which has a tag.

    ``mounts`` are the ids of cache mounts that go with it. With ``ignore_error`` a cache that
    can't be written is a warning.
    """

    ref: Reference
    mode: CacheMode = CacheMode.MIN
    mounts: tuple[str, ...] = ()
    ignore_error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalExport:
    """``type=local``: an OCI image layout in the folder ``dest``; see :class:`RegistryExport`."""

    dest: str
    tag: str = DEFAULT_TAG
    mode: CacheMode = CacheMode.MIN
    mounts: tuple[str, ...] = ()
    ignore_error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineExport:
    """``type=inline``: the image itself, which then says of its layers which steps made them."""


CacheImport = RegistryImport | LocalImport
CacheExport = RegistryExport | LocalExport | InlineExport


def parse_cache_from(text: str) -> tuple[CacheImport, ...]:
    """What ``--cache-from`` names: ``type=…,key=value``, or images with commas between.

    Raises UsageError.
    """
    fields = _split("--cache-from", text)
    if not any("=" in field for field in fields):
        return tuple(RegistryImport(ref=_reference("--cache-from", text, name)) for name in fields)
    members = _Members("--cache-from", text, _joined(fields))
    kind = members.kind()
    found: CacheImport
    match kind:
        case "registry":
            found = RegistryImport(ref=_reference("--cache-from", text, members.needed("ref")))
        case "local":
            found = LocalImport(
                src=members.needed("src"), tag=members.take("tag"), digest=members.take("digest")
            )
        case "inline":
            raise members.error(
                "type=inline is for --cache-to", "name the image: type=registry,ref=…"
            )
        case _:
            raise members.unknown_kind(kind, ("registry", "local"))
    members.check_empty(kind)
    return (found,)


def parse_cache_to(text: str) -> CacheExport:
    """What ``--cache-to`` names: ``type=…,key=value``, or the name of an image at a registry.

    Raises UsageError.
    """
    fields = _split("--cache-to", text)
    if len(fields) == 1 and "=" not in fields[0]:
        fields = ["type=registry", f"ref={fields[0]}"]
    members = _Members("--cache-to", text, _joined(fields))
    kind = members.kind()
    if kind not in _EXPORTS:
        raise members.unknown_kind(kind, tuple(_EXPORTS))
    found = _EXPORTS[kind](members)
    members.check_empty(kind)
    return found


def _split(flag: str, text: str) -> list[str]:
    fields = split(flag, text)
    if not all(fields):
        raise UsageError(f'{flag} "{text}": a part of it is empty')
    if not fields:
        raise UsageError(f"{flag} names nothing", hint="for example type=registry,ref=NAME")
    return fields


def _joined(fields: Sequence[str]) -> list[str]:
    """The fields, of which ``mounts=a,b`` is one."""
    joined: list[str] = []
    for field in fields:
        before = joined[-1].partition("=")[0] if joined else ""
        if "=" not in field and Members.key_of(before) == "mounts":
            joined[-1] += f",{field}"
        else:
            joined.append(field)
    return joined


class _Members(Members):
    """What caches have in common."""

    def kind(self) -> str:
        kind = self.take("type")
        if not kind:
            raise self.error("it has no type", "for example type=registry,ref=NAME")
        return kind

    def unknown_kind(self, kind: str, known: Sequence[str]) -> UsageError:
        if kind in _ELSEWHERE:
            return self.error(
                f"caches in {_ELSEWHERE[kind]} (type={kind}) are not supported",
                f"use one of {', '.join(known)}",
            )
        return self.error(f'there is no type "{kind}"', near(kind, known))

    def needed(self, key: str) -> str:
        value = self.take(key)
        if not value:
            raise self.error(f"it has no {key}")
        return value

    def mode(self) -> CacheMode:
        text = self.take("mode") or CacheMode.MIN.value
        try:
            return CacheMode(text)
        except ValueError:
            raise self.error(f'the mode "{text}" is not min or max') from None

    def mounts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(x for x in (self.take("mounts") or "").split(",") if x))

    def check_blobs(self) -> None:
        """Take what docker says of the form of blobs, as far as it is the form they have."""
        compression = self.take("compression")
        if compression not in {None, "gzip"} or self.take("compression-level") is not None:
            raise self.error(
                "layers go into a cache as they are stored, with gzip's fastest level",
                "leave compression and its level away",
            )
        if self.flag("force-compression", default=False):
            raise self.error("layers go into a cache as they are stored", "leave it away")
        for key in ("oci-mediatypes", "image-manifest"):
            if not self.flag(key, default=True):
                raise self.error(f"a cache is always an OCI image manifest, never {key}=false")


def _registry(members: _Members) -> CacheExport:
    name = members.needed("ref")
    reference = _reference("--cache-to", name, name)
    if reference.digest is not None:
        raise members.error("a cache is written under a tag, not a digest")
    members.check_blobs()
    return RegistryExport(
        ref=reference,
        mode=members.mode(),
        mounts=members.mounts(),
        ignore_error=members.flag("ignore-error", default=False),
    )


def _local(members: _Members) -> CacheExport:
    members.check_blobs()
    return LocalExport(
        dest=members.needed("dest"),
        tag=members.take("tag") or DEFAULT_TAG,
        mode=members.mode(),
        mounts=members.mounts(),
        ignore_error=members.flag("ignore-error", default=False),
    )


def _inline(members: _Members) -> CacheExport:
    if members.mode() is CacheMode.MAX:
        raise members.error("an image has its own layers alone, so mode=max is for other types")
    if members.mounts():
        raise members.error("an image has no room for cache mounts", "use type=registry")
    return InlineExport()


_EXPORTS: Mapping[str, Callable[[_Members], CacheExport]] = {
    "registry": _registry,
    "local": _local,
    "inline": _inline,
}


def _reference(flag: str, text: str, name: str) -> Reference:
    try:
        return with_default_tag(parse_reference(name))
    except UsageError as error:
        raise UsageError(f'{flag} "{text}": {error.message}', hint=error.hint) from None
