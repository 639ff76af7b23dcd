"""What a RUN sees besides its root: bind mounts, tmpfs, /etc/hosts and /etc/resolv.conf."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pybuild.backend import (
    Activity,
    BindMount,
    CacheMount,
    Mount,
    Process,
    SecretMount,
    SshMount,
    TmpfsMount,
)
from pybuild.errors import PybuildError, StepFailed
from pybuild.files.mountsource import TOP, copied
from pybuild.files.trees import Tree, resolve
from pybuild.oci.layerindex import Kind
from pybuild.sandbox import spec
from pybuild.sandbox.process import name_files
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.space import Space

_APT_FOLDER = "/etc/apt/apt.conf.d"
_APT_FILE = f"{_APT_FOLDER}/zz-pybuild-one-id"
# apt sees that it didn't become the user it wanted to be for downloads, and gives up
_APT_AS_ROOT = b'APT::Sandbox::User "root";\n'


@contextmanager
def prepared_mounts(
    space: Space, process: Process, mounts: Sequence[Mount], tree: Tree, activity: Activity
) -> Iterator[tuple[spec.Mount, ...]]:
    """The mounts for the sandbox, outer ones first. What was made for them goes at the end.

    Raises StepFailed for a mount whose source or target doesn't allow it.
    """
    with ExitStack() as undo:
        made: list[spec.Mount] = [*name_files(process)]
        if not space.machine.keeps_owners and _has_apt(tree):
            made.append(spec.SmallFile(_APT_FILE, _APT_AS_ROOT))
        caches: dict[str, bytes] = {}
        if any(isinstance(mount, CacheMount) for mount in mounts):
            from pybuild_embedded.cachefolders import taken_caches  # noqa: PLC0415 - for these alone

            caches = undo.enter_context(taken_caches(space, mounts, activity))
        for mount in sorted(mounts, key=lambda mount: _depth(mount.target)):
            match mount:
                case TmpfsMount(target=target, size=size):
                    made.append(spec.Tmpfs(target, size, _tmpfs_mode(tree, target)))
                case BindMount(target=target, readonly=readonly):
                    folder = _copy(space, mount, activity)
                    undo.callback(space.store.discard, folder)
                    source = bytes(folder.fs) + b"/" + TOP
                    made.append(spec.Bind(target, source, readonly))
                case CacheMount(target=target, ident=ident, readonly=readonly, inside=inside):
                    made.append(spec.Bind(target, caches[ident], readonly, inside))
                case SecretMount(target, content, mode, uid, gid):
                    made.append(spec.SmallFile(target, content, mode, uid, gid))
                case SshMount(target, socket, mode, uid, gid):
                    made.append(spec.Socket(target, bytes(socket), mode, uid, gid))
        yield tuple(made)


def _has_apt(tree: Tree) -> bool:
    try:
        entry = tree.get(resolve(tree, _APT_FOLDER.encode()))
    except PybuildError:
        return False  # links in a circle: whatever it is, apt can't use it
    return entry is not None and entry.kind is Kind.DIRECTORY


def _depth(target: str) -> int:
    return sum(part not in ("", ".") for part in target.split("/"))


def _tmpfs_mode(tree: Tree, target: str) -> int:
    """That of the folder which it covers, as other builders have it."""
    try:
        entry = tree.get(resolve(tree, target.encode("utf-8", "surrogateescape")))
    except PybuildError as error:
        raise StepFailed(f"the mount target {target} can't be resolved: {error.message}") from error
    return entry.mode if entry is not None and entry.kind is Kind.DIRECTORY else 0o1777


def _copy(space: Space, mount: BindMount, activity: Activity) -> LayerFolder:
    """A folder of our own with a copy of the mount's source, owned and marked as it says."""
    from pybuild_embedded.filling import fill  # noqa: PLC0415 - for a bind mount

    folder = space.store.new_folder()
    try:
        fill(space, folder, copied(mount.tree, mount.path, mount.target), activity)
    except BaseException:
        space.store.discard(folder)
        raise
    return folder
