"""Outputs as values, and the words that name them on a command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import BinaryIO

from pybuild.export.members import Members, near, split
from pybuild.oci.compression import Compression, Packing
from pybuild.values import dataclass, field

DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"

Destination = str | BinaryIO
"""A path, or an open binary stream, which stays open."""

STANDARD_OUTPUT = "-"
"""The destination that the command line replaces by its standard output."""


def place_of(dest: Destination) -> str:
    """The path, or - for a stream."""
    return dest if isinstance(dest, str) else STANDARD_OUTPUT


_COMPRESSIONS = {
    "gzip": Compression.GZIP,
    "zstd": Compression.ZSTD,
    "uncompressed": Compression.NONE,
}
_LEVELS = {
    Compression.GZIP: range(10),
    Compression.ZSTD: range(1, 23),
    Compression.NONE: range(0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How an image is written.

    ``names`` are added to the build's tags, ``annotations`` to the build's, as are
    ``index_annotations``, which only an index can have. With ``packing``
    the layers that the build made are compressed so; with ``force_compression`` the base
    image's as well. Without ``oci_media_types`` the media types are those of Docker.
    """

    names: tuple[str, ...] = ()
    packing: Packing | None = None
    force_compression: bool = False
    oci_media_types: bool = True
    annotations: Mapping[str, str] = field(default_factory=dict)
    index_annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOutput:
    """``type=image``: the backend's own store; with ``push`` the registries as well."""

    push: bool = False
    by_digest: bool = False
    image: ImageOptions = ImageOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOutput:
    """``type=registry``: the registries that the names say.

    With ``by_digest`` no tag is set there.
    """

    by_digest: bool = False
    image: ImageOptions = ImageOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class OciOutput:
    """``type=oci``: an OCI image layout, as a tar archive or, without ``tar``, as a folder.

    A folder may be a layout already: the image joins those in there.
    """

    dest: Destination
    tar: bool = True
    image: ImageOptions = ImageOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerOutput:
    """``type=docker,dest=…``: an archive for ``docker load``, which is an OCI layout too."""

    dest: Destination
    image: ImageOptions = ImageOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerLoadOutput:
    """``type=docker``: a running Docker. ``host`` is the address of its socket, unix://…"""

    host: str = DEFAULT_DOCKER_HOST
    image: ImageOptions = ImageOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendLoadOutput:
    """The store of another backend, which is opened with ``options``."""

    backend: str
    options: Mapping[str, object] = field(default_factory=dict)
    image: ImageOptions = ImageOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class TarOutput:
    """``type=tar``: the image's files as one tar archive."""

    dest: Destination


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOutput:
    """``type=local``: the image's files in the folder ``dest``."""

    dest: str


Output = (
    ImageOutput
    | RegistryOutput
    | OciOutput
    | DockerOutput
    | DockerLoadOutput
    | BackendLoadOutput
    | TarOutput
    | LocalOutput
)


def parse_output(text: str) -> Output:
    """The output that `text` names, in the words of ``docker build --output``.

    ``type=TYPE,key=value,…`` as a line of CSV, a folder, or ``-`` for a tar archive on
    standard output, whose destination here is :data:`STANDARD_OUTPUT`. Raises UsageError.
    """
    fields = split("--output", text)
    if len(fields) == 1 and "=" not in fields[0] and fields[0]:
        dest = fields[0]
        return TarOutput(dest=dest) if dest == STANDARD_OUTPUT else LocalOutput(dest=dest)
    members = _Members("--output", text, fields)
    kind = members.take("type") or ""
    if kind not in _PARSERS:
        problem = f'there is no type "{kind}"' if kind else "it has no type"
        raise members.error(problem, near(kind, _PARSERS))
    output = _PARSERS[kind](members)
    members.check_empty(kind)
    return output


class _Members(Members):
    """What outputs have in common."""

    @staticmethod
    def key_of(name: str) -> str:
        return name.strip() if name.startswith("annotation") else name.strip().lower()

    def destination(self) -> str | None:
        dest = self.take("dest")
        if dest == "":
            raise self.error("dest is empty")
        return dest

    def image(self) -> ImageOptions:
        names = tuple(name for name in (self.take("name") or "").split(",") if name)
        self.flag("rewrite-timestamp", default=True)  # with an epoch, times always are
        return ImageOptions(
            names=names,
            packing=self._packing(),
            force_compression=self.flag("force-compression", default=False),
            oci_media_types=self.flag("oci-mediatypes", default=True),
            annotations=self._annotations("annotation", "annotation-manifest"),
            index_annotations=self._annotations("annotation-index"),
        )

    def _packing(self) -> Packing | None:
        name, level_text = self.take("compression"), self.take("compression-level")
        if name is None and level_text is None:
            return None
        compression = _COMPRESSIONS.get(name or "gzip")
        if compression is None:
            raise self.error(
                f'the compression "{name}" isn\'t known', near(name or "", _COMPRESSIONS)
            )
        if level_text is None:
            return Packing(compression)
        levels = _LEVELS[compression]
        if not levels:
            raise self.error("without compression there is no compression-level")
        if not level_text.isdecimal() or int(level_text[:4]) not in levels:
            raise self.error(f'compression-level "{level_text}" is not {levels[0]} to {levels[-1]}')
        return Packing(compression, int(level_text))

    def _annotations(self, *kinds: str) -> dict[str, str]:
        found = {}
        for key in list(self._left):
            kind, _, name = key.partition(".")
            if kind in kinds and name:
                found[name] = self._left.pop(key)
        return found


def _image(members: _Members) -> Output:
    return ImageOutput(
        push=members.flag("push", default=False),
        by_digest=members.flag("push-by-digest", default=False),
        image=members.image(),
    )


def _registry(members: _Members) -> Output:
    if not members.flag("push", default=True):
        raise members.error("type=registry always pushes", "use type=image")
    by_digest = members.flag("push-by-digest", default=False)
    return RegistryOutput(by_digest=by_digest, image=members.image())


def _oci(members: _Members) -> Output:
    tar, dest = members.flag("tar", default=True), members.destination()
    if not tar and dest in {None, STANDARD_OUTPUT}:
        raise members.error("a folder needs dest")
    return OciOutput(dest=dest or STANDARD_OUTPUT, tar=tar, image=members.image())


def _docker(members: _Members) -> Output:
    dest = members.destination()
    if dest is None:
        return DockerLoadOutput(image=members.image())
    return DockerOutput(dest=dest, image=members.image())


def _tar(members: _Members) -> Output:
    return TarOutput(dest=members.destination() or STANDARD_OUTPUT)


def _local(members: _Members) -> Output:
    dest = members.destination()
    if dest in {None, STANDARD_OUTPUT}:
        raise members.error("type=local needs dest, a folder", "or type=tar for standard output")
    return LocalOutput(dest=dest or "")


_PARSERS: Mapping[str, Callable[[_Members], Output]] = {
    "image": _image,
    "registry": _registry,
    "oci": _oci,
    "docker": _docker,
    "tar": _tar,
    "local": _local,
}
