from __future__ import annotations

from typing import Any, cast

import pytest

from pybuild_containerd import rpcs
from pybuild_containerd._proto import message_class
from pybuild_containerd.activation import activated
from pybuild_containerd.client import Client
from pybuild_containerd.errors_table import DaemonGone, Unimplemented
from pybuild_containerd.snapshots import Mount

EROFS = (
    Mount("erofs", "/s/2/layer.erofs", ("ro", "loop")),
    Mount("format/mkdir/overlay", "overlay", ("upperdir=/s/3/fs", "lowerdir={{ mount 0 }}")),
)
OVERLAY = Mount("overlay", "overlay", ("upperdir=/s/3/fs", "lowerdir=/m/1/0"))


class Daemon:
    """Answers an activation with `info`, or fails as `errors` says for a method."""

    def __init__(
        self, info: dict[str, Any] | None = None, errors: dict[rpcs.Method, Exception] | None = None
    ) -> None:
        self._info = info or {}
        self._errors = errors or {}
        self.asked: list[tuple[rpcs.Method, str]] = []

    def call(self, method: rpcs.Method, /, **fields: Any) -> Any:
        self.asked.append((method, fields["name"]))
        if method in self._errors:
            raise self._errors[method]
        return message_class(method.response)(
            **({"info": self._info} if method is rpcs.MOUNT_ACTIVATE else {})
        )


def client(daemon: Daemon) -> Client:
    return cast("Client", daemon)


@pytest.mark.parametrize("mounts", [(), (OVERLAY,), (Mount("bind", "/s/1/fs", ("rbind",)),)])
def test_plain_mounts_need_no_call(mounts: tuple[Mount, ...]) -> None:
    daemon = Daemon()
    with activated(client(daemon), mounts) as made:
        assert made == mounts
    assert daemon.asked == []


def test_what_is_left_to_mount_lasts_as_long_as_the_context() -> None:
    daemon = Daemon({"active": [{"mount_point": "/m/1/0"}], "system": [OVERLAY.fields()]})
    with activated(client(daemon), EROFS) as made:
        assert made == (OVERLAY,)
        assert [method for method, _ in daemon.asked] == [rpcs.MOUNT_ACTIVATE]
    (_, begun), (method, ended) = daemon.asked
    assert method is rpcs.MOUNT_DEACTIVATE
    assert begun == ended


def test_with_nothing_left_to_mount_the_last_mount_is_shown() -> None:
    daemon = Daemon({"active": [{"mount_point": "/m/1/0"}, {"mount_point": "/m/1/1"}]})
    with activated(client(daemon), EROFS[:1]) as made:
        assert made == (Mount("bind", "/m/1/1", ("rbind", "ro")),)


def test_a_containerd_that_prepares_nothing_gets_them_as_they_are() -> None:
    error = Unimplemented("", call="Mounts.Activate", details="unknown service")
    daemon = Daemon(errors={rpcs.MOUNT_ACTIVATE: error})
    with activated(client(daemon), EROFS) as made:
        assert made == EROFS
    assert len(daemon.asked) == 1


def test_an_error_inside_is_not_hidden_by_one_of_the_end() -> None:
    gone = DaemonGone("", call="Mounts.Deactivate", details="")
    daemon = Daemon(
        {"active": [{"mount_point": "/m/1/0"}], "system": [OVERLAY.fields()]},
        {rpcs.MOUNT_DEACTIVATE: gone},
    )
    with pytest.raises(KeyError), activated(client(daemon), EROFS):
        raise KeyError
    assert [method for method, _ in daemon.asked] == [rpcs.MOUNT_ACTIVATE, rpcs.MOUNT_DEACTIVATE]
