from __future__ import annotations

import pytest

from pybuild_containerd.snapshots import LayerFolders, Mount, in_user_namespace, layer_folders


@pytest.mark.parametrize(
    ("mount", "folders"),
    [
        (Mount("bind", "/s/1/fs", ("rw", "rbind")), LayerFolders("/s/1/fs", ())),
        (Mount("bind", "/s/1/fs", ("ro", "rbind")), LayerFolders(None, ("/s/1/fs",))),
        (
            Mount("bind", "/s/1/fs", ("rw", "rbind", "X-containerd.mkdir=/a")),
            LayerFolders("/s/1/fs", (), ("X-containerd.mkdir=/a",)),
        ),
        (
            Mount(
                "overlay",
                "overlay",
                ("index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"),
            ),
            LayerFolders("/s/3/fs", ("/s/2/fs", "/s/1/fs"), work="/s/3/work"),
        ),
        (
            Mount("overlay", "overlay", ("lowerdir=/s/2/fs:/s/1/fs", "userxattr")),
            LayerFolders(None, ("/s/2/fs", "/s/1/fs")),
        ),
        (
            Mount("overlay", "overlay", ("upperdir=/u", "lowerdir=/l", "metacopy=on")),
            LayerFolders("/u", ("/l",), ("metacopy=on",)),
        ),
        (
            Mount("overlay", "overlay", ("upperdir=/u", "lowerdir=/l::/data")),
            LayerFolders("/u", (), ("lowerdir=/l::/data",)),
        ),
        (
            Mount("overlay", "overlay", ("upperdir=/u", "lowerdir=/l\\:1")),
            LayerFolders("/u", (), ("lowerdir=/l\\:1",)),
        ),
    ],
)
def test_folders_are_read_from_binds_and_overlays(mount: Mount, folders: LayerFolders) -> None:
    assert layer_folders([mount]) == folders


@pytest.mark.parametrize(
    "mounts",
    [
        [],
        [Mount("erofs", "/x")],
        [Mount("format/overlay", "overlay", ("lowerdir={{ mount 0 }}",))],
        [Mount("bind", "/a"), Mount("bind", "/b")],
    ],
)
def test_other_mounts_have_no_folders_that_we_know(mounts: list[Mount]) -> None:
    assert layer_folders(mounts) is None


def test_a_mount_becomes_the_fields_of_a_request() -> None:
    assert Mount("bind", "/a", ("ro", "rbind")).fields() == {
        "type": "bind",
        "source": "/a",
        "target": "",
        "options": ["ro", "rbind"],
    }


@pytest.mark.parametrize(
    ("mount", "rootless"),
    [
        (Mount("overlay", "overlay", ("index=off", "lowerdir=/s/1/fs")), False),
        (Mount("overlay", "overlay", ("lowerdir=/s/1/fs", "userxattr")), True),
        (Mount("fuse3.fuse-overlayfs", "overlay", ("lowerdir=/s/1/fs",)), True),
        (Mount("bind", "/s/1/fs", ("rw", "rbind")), False),
    ],
)
def test_mounts_show_whether_containerd_is_rootless(mount: Mount, rootless: bool) -> None:
    assert in_user_namespace([mount]) is rootless
