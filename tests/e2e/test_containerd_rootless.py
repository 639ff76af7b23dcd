"""A rootless containerd: in a user namespace of an ordinary user, with subordinate ids."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.backend import BindMount, Network
from pybuild.errors import BackendFailed
from pybuild.files.trees import MemoryTree
from pybuild.oci.layerindex import Kind
from pybuild.testkit.baseimages import busybox_entries
from pybuild.testkit.containerd import (
    PrivateContainerd,
    check_nothing_left,
    private_containerd,
)
from pybuild.testkit.validate import validate
from pybuild.testkit.workbench import Workbench, file
from pybuild_containerd.backend import ContainerdBackend, open_backend

pytestmark = [pytest.mark.root, pytest.mark.containerd]

USER = 20_000
SUBORDINATES = 200_000

# Root maps the ids from outside, as newuidmap would by /etc/subuid.
_ROOTLESS = """
own=$(readlink /proc/self/ns/user)
user=$1
subordinates=$2
network=$3
shift 3
(
  while [ "$(readlink /proc/$$/ns/user)" = "$own" ]; do sleep 0.02; done
  for map in uid_map gid_map; do
    printf '0 %s 1\\n1 %s 65535\\n' "$user" "$subordinates" > "/proc/$$/$map"
  done
) &
exec setpriv --reuid "$user" --regid "$user" --clear-groups \
  unshare --user --mount $network --propagation slave sh -c '
    until [ "$(id -u)$(id -g)" = 00 ]; do sleep 0.02; done
    mount -t tmpfs none /run && exec "$@"' sh "$@"
"""


@pytest.fixture(scope="module", params=["--net", ""], ids=["own network", "host's network"])
def rootless(request: pytest.FixtureRequest) -> Iterator[PrivateContainerd]:
    def wrapper(folder: Path) -> list[str]:
        os.chown(folder, USER, USER)
        return ["sh", "-c", _ROOTLESS, "sh", str(USER), str(SUBORDINATES), request.param]

    if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        pytest.skip("inherent: the kernel allows no user namespaces")
    with private_containerd(wrapper=wrapper) as daemon:
        yield daemon


def test_root_outside_builds_through_containerd_alone(rootless: PrivateContainerd) -> None:
    options = {"address": rootless.address, "namespace": "outside"}
    with open_backend(options) as backend, Workbench(backend, "") as bench:
        assert isinstance(backend, ContainerdBackend)
        # it can read the files, but they aren't its owners that it sees
        assert ("reads snapshots itself", "no") in backend.describe()
        base = bench.put(bench.scratch(), *busybox_entries(), file(b"old", b"", uid=5, gid=6))
        mount = BindMount("/mnt/in", MemoryTree([file(b"f", b"seen", uid=7)]), readonly=False)
        script = """
            set -e
            stat -c '%u %g' /old
            stat -c %u /mnt/in/f
            cp /mnt/in/f /f
            rm -r /home /old
            mkdir /d && chown 3:4 /d
            ! echo > /sys/kernel/profiling
            echo no >&2
        """
        ran = bench.run(base, script, [mount])
        assert (ran.code, ran.out) == (0, "5 6\n7\n"), ran
        assert ran.err.endswith("no\n")
        assert ran.layer.diff is not None
        assert sorted(
            (e.path, e.kind, e.uid, e.gid) for e in backend._files.index(ran.layer.diff)
        ) == [
            (b"d", Kind.DIRECTORY, 3, 4),
            (b"f", Kind.FILE, 0, 0),
            (b"home", Kind.WHITEOUT, 0, 0),
            (b"old", Kind.WHITEOUT, 0, 0),
        ]
        assert bench.run(ran.layer, "ls -d /old /home /f 2>/dev/null").out == "/f\n"
        assert bench.run(base, "exit 3").code == 3
        assert bench.run(base, "ls /sys/class/net", network=Network.NONE).out == "lo\n"
        validate(backend, bench.create(ran.layer, "rootless"))
    check_nothing_left(rootless.address, "outside", rootless.folder)


def test_a_snapshotter_that_hides_its_user_namespace_is_named(rootless: PrivateContainerd) -> None:
    options = {"address": rootless.address, "namespace": "native", "snapshotter": "native"}
    with open_backend(options) as backend, Workbench(backend, "") as bench:
        base = bench.put(bench.scratch(), *busybox_entries())
        with pytest.raises(BackendFailed) as caught:
            bench.run(base, "true")
    assert "overlayfs" in (caught.value.hint or "")
    check_nothing_left(rootless.address, "native", rootless.folder)


_BUILD = """
import ctypes, os, sys
from isal import igzip, igzip_lib, isal_zlib
from pybuild.backend import BindMount
from pybuild.files.trees import MemoryTree
from pybuild.testkit.baseimages import busybox_entries
from pybuild.testkit.workbench import Workbench, file
from pybuild_containerd.backend import open_backend

address, namespace, user, target, reads = sys.argv[1:]
os.setgroups([])
if target:
    # only now: that user may not read where Python itself is
    libc = ctypes.CDLL(None, use_errno=True)
    spaces = [os.open(f"/proc/{target}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt")]
    for space in spaces:
        if libc.setns(space, 0):
            raise OSError(ctypes.get_errno(), "setns")
os.setresgid(*[int(user)] * 3)
os.setresuid(*[int(user)] * 3)
with open_backend({"address": address, "namespace": namespace}) as backend:
    assert ("reads snapshots itself", reads) in backend.describe(), backend.describe()
    with Workbench(backend, "") as bench:
        base = bench.put(bench.scratch(), *busybox_entries())
        mount = BindMount("/mnt/in", MemoryTree([file(b"f", b"seen")]))
        script = "cp /mnt/in/f /f; chown 3 /f; rm -r /var; mkdir /var; id -u; echo no >&2"
        ran = bench.run(base, script, [mount])
        assert (ran.code, ran.out, ran.err) == (0, "0\\n", "no\\n"), ran
        index = backend._files.index(ran.layer.diff)
        assert index.get(b"f").uid == 3
        assert backend._space.outputs.shared
        # a folder made anew hides what was in the old one
        assert bench.run(ran.layer, "ls /var").out == ""
        bench.create(ran.layer, "by-user", cmd=("/bin/cat", "/f"))
"""


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside its namespaces"])
def test_its_own_user_builds(rootless: PrivateContainerd, *, inside: bool) -> None:
    user, target, reads = (0, str(rootless.pid), "yes") if inside else (USER, "", "no")
    arguments = [rootless.address, "own", str(user), target, reads]
    # its temporary files can't be in the folder of this session, which is root's
    environment = {**os.environ, "TMPDIR": "/tmp"}
    ended = subprocess.run(
        [sys.executable, "-c", _BUILD, *arguments],
        check=False,
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    check_nothing_left(rootless.address, "own", rootless.folder)
