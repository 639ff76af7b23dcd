"""An image in a backend's store, as a value to ask, to run and to send on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from subprocess import CalledProcessError, CompletedProcess
from typing import TYPE_CHECKING, Literal, overload

from pybuild.backend import Backend, BaseImage, BindMount, ImageSpec, Network
from pybuild.errors import InvalidImage, UnsupportedByBackend, UsageError
from pybuild.export.exporting import check_output, export_images
from pybuild.export.images import TargetImages, WantedImages, image_name
from pybuild.export.outputs import (
    BackendLoadOutput,
    DockerLoadOutput,
    DockerOutput,
    OciOutput,
    RegistryOutput,
)
from pybuild.files.context import open_context_directory
from pybuild.files.filesystem import FileSystem
from pybuild.files.memorycontext import FilesInMemory, MemoryContext
from pybuild.files.trees import Tree
from pybuild.oci.descriptor import DOCKER_MANIFEST, Descriptor, LayerDiff, digest_of
from pybuild.oci.image_config import ImageConfig, parse_config
from pybuild.oci.manifest import (
    MAX_CONFIG_SIZE,
    MAX_MANIFEST_SIZE,
    Documents,
    ImageDocuments,
    parse_manifest,
)
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference, parse_reference
from pybuild.run.activity import CancelToken, Events
from pybuild.running import image_command, run_process_in
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.oci.registry import RegistryClient

MountSource = str | Path | FilesInMemory | Tree
"""A folder on this machine, files in memory by their paths, or files as a tree."""

UseBackend = Callable[[CancelToken | None], AbstractContextManager[tuple[Backend, CancelToken]]]
"""Gives an open backend for one operation, and what cancels that; the caller's token does.

Raises UsageError when it is closed.
"""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as a backend has it: for its layers, and for its documents as they are stored."""

    base: BaseImage
    documents: ImageDocuments
    annotations: Mapping[str, str]


def stored_image(backend: Backend, digest: str, reference: Reference) -> StoredImage:
    """The image whose manifest has this digest; `reference` says where layers come from.

    Raises ImageNotFound, InvalidImage.
    """
    manifest_bytes = _read(backend, digest, MAX_MANIFEST_SIZE)
    manifest = parse_manifest(manifest_bytes)
    config_bytes = _read(backend, manifest.config.digest, MAX_CONFIG_SIZE)
    config = parse_config(config_bytes)
    if len(config.diff_ids) != len(manifest.layers):
        raise InvalidImage(
            f"the image {digest} has {len(manifest.layers)} layers, "
            f"but its config names {len(config.diff_ids)}"
        )
    layers = tuple(map(LayerDiff, config.diff_ids, manifest.layers))
    described = Descriptor(manifest.media_type, digest, len(manifest_bytes))
    documents = ImageDocuments(
        manifest.config, config_bytes, described, manifest_bytes, manifest.layers
    )
    base = BaseImage(reference, digest, config, layers)
    return StoredImage(base, documents, manifest.annotations)


class Image:
    """An image for one platform in the store of a :class:`~pybuild.builder.Builder`.

    ``digest`` is its manifest's; ``config`` what is set for its processes; ``layers`` are
    bottom first; ``names`` those that it is known to have, normalised; ``fs`` reads its files
    without unpacking them. What does more than tell these needs the builder to be open, and
    raises UsageError otherwise. Safe in threads.
    """

    def __init__(
        self,
        stored: StoredImage,
        names: Sequence[str],
        use: UseBackend,
        registry: Callable[[], AbstractContextManager[RegistryClient]],
    ) -> None:
        """`registry` gives a client for one push."""
        self.digest: str = stored.base.digest
        self.config_digest: str = stored.documents.config.digest
        self.config: ImageConfig = stored.base.config
        self.platform: Platform = stored.base.config.platform
        self.layers: tuple[LayerDiff, ...] = stored.base.layers
        self.names: tuple[str, ...] = tuple(names)
        self.fs = FileSystem(self._tree)
        self._stored = stored
        self._use = use
        self._registry = registry

    def __repr__(self) -> str:
        return f"<pybuild.Image {' '.join((*self.names, self.digest))}>"

    @overload
    def run(
        self,
        args: Sequence[str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        mounts: Mapping[str, MountSource] | None = None,
        network: Network | str = Network.DEFAULT,
        user: str | None = None,
        cwd: str | None = None,
        check: bool = False,
        text: Literal[False] = False,
        cancel: CancelToken | None = None,
    ) -> CompletedProcess[bytes]: ...

    @overload
    def run(
        self,
        args: Sequence[str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        mounts: Mapping[str, MountSource] | None = None,
        network: Network | str = Network.DEFAULT,
        user: str | None = None,
        cwd: str | None = None,
        check: bool = False,
        text: Literal[True],
        cancel: CancelToken | None = None,
    ) -> CompletedProcess[str]: ...

    def run(
        self,
        args: Sequence[str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        mounts: Mapping[str, MountSource] | None = None,
        network: Network | str = Network.DEFAULT,
        user: str | None = None,
        cwd: str | None = None,
        check: bool = False,
        text: bool = False,
        cancel: CancelToken | None = None,
    ) -> CompletedProcess[bytes] | CompletedProcess[str]:
        """Run a process on the image's files, to the end; what it changes is thrown away.

        `args` is the whole command, as in :func:`subprocess.run`; None runs the image's own.
        `env` is added to the image's; `user` and `cwd` stand in for the image's. `mounts` are
        by the absolute paths where the process sees them, read-only and as root's. `network`
        is ``default`` or ``none``. There is no standard input. The result has the exit code,
        128+n for signal n, and the output: bytes, or with `text` what they say in UTF-8, with
        U+FFFD for what isn't. With `check` CalledProcessError is raised for a code other than 0.
        """
        try:
            chosen = Network(network)
        except ValueError:
            raise UsageError(f'the network "{network}" is not default, none or host') from None
        if isinstance(args, str):
            raise UsageError("args is a text, not a list", hint=f'say ["sh", "-c", {args!r}]')
        command = image_command(self.config, (), self.digest) if args is None else tuple(args)
        with self._use(cancel) as (backend, token), ExitStack() as stack:
            done = run_process_in(
                backend,
                self._stored.base,
                command,
                env=env,
                user=user,
                workdir=cwd,
                network=chosen,
                mounts=[_mount(target, of, stack) for target, of in (mounts or {}).items()],
                cancel=token,
            )
        result = _as_text(done) if text else done
        if check and result.returncode:
            raise CalledProcessError(result.returncode, command, result.stdout, result.stderr)
        return result

    def save(
        self,
        path: str | Path,
        type: Literal["oci", "docker"] = "oci",  # noqa: A002 - as in --output type=oci
        *,
        cancel: CancelToken | None = None,
    ) -> None:
        """Write an archive: an OCI image layout, or with ``docker`` one for ``docker load``.

        Raises ExportFailed; what was at `path` before stays then.
        """
        if type not in {"oci", "docker"}:
            raise UsageError(f'the type "{type}" is not oci or docker')
        dest = str(path)
        self._export(OciOutput(dest=dest) if type == "oci" else DockerOutput(dest=dest), cancel)

    def push(self, name: str, *, cancel: CancelToken | None = None) -> None:
        """Push to the registry that `name` says, as the tag in it. Raises RegistryError."""
        self._export(RegistryOutput(), cancel, names=(image_name(name),))

    def load_into(
        self, output: DockerLoadOutput | BackendLoadOutput, *, cancel: CancelToken | None = None
    ) -> None:
        """Hand the image, under its names, to a running Docker or to another backend's store.

        Raises ExportFailed, BackendError.
        """
        if isinstance(output, BackendLoadOutput) and self._spec().documents().manifest != (
            self._stored.documents.manifest
        ):
            raise UnsupportedByBackend(
                "the image wasn't built by pybuild, and would get another digest there",
                hint="save it, and import the archive there",
            )
        self._export(output, cancel)

    def _export(
        self,
        output: OciOutput | DockerOutput | RegistryOutput | DockerLoadOutput | BackendLoadOutput,
        cancel: CancelToken | None,
        names: tuple[Reference, ...] | None = None,
    ) -> None:
        known = self._references() if names is None else names
        check_output(output, known, as_index=False)
        wanted = WantedImages((self._spec(),), known, None, Documents((self._stored.documents,)))
        with self._use(cancel) as (backend, token), ExitStack() as stack:

            def client() -> RegistryClient:
                return stack.enter_context(self._registry())

            nobody = Events(None).silent(token)
            export_images(TargetImages(backend, (), known), wanted, output, client, nobody)

    def _spec(self) -> ImageSpec:
        return ImageSpec(
            self.config,
            self.layers,
            self._references(),
            self._stored.annotations,
            docker_media_types=self._stored.documents.manifest.media_type == DOCKER_MANIFEST,
        )

    def _references(self) -> tuple[Reference, ...]:
        return tuple(map(parse_reference, self.names))

    @contextmanager
    def _tree(self) -> Iterator[Tree]:
        with self._use(None) as (backend, cancel):
            nobody = Events(None).silent(cancel)
            with backend.checkout(self._stored.base, nobody) as layer:
                yield layer.tree()


def _read(backend: Backend, digest: str, limit: int) -> bytes:
    with backend.open_blob(digest) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit or digest_of(content) != digest:
        raise InvalidImage(f"the stored blob {digest} is damaged", hint="build the image again")
    return content


def _mount(target: str, source: MountSource, stack: ExitStack) -> BindMount:
    if not target.startswith("/"):
        raise UsageError(f'the mount point "{target}" is no absolute path')
    match source:
        case Tree():
            return BindMount(target, source)
        case str() | Path():
            return BindMount(target, stack.enter_context(open_context_directory(source)))
        case _:
            return BindMount(target, MemoryContext(source))


def _as_text(done: CompletedProcess[bytes]) -> CompletedProcess[str]:
    output = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    return CompletedProcess(done.args, done.returncode, *output)
