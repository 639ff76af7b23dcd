"""The process of a RUN, as the contract has it, as what is to run in a sandbox."""

from __future__ import annotations

from collections.abc import Iterable

from pybuild.backend import Network, Process
from pybuild.files.namefiles import host_resolv_conf, hosts_file
from pybuild.sandbox.profile import DEFAULT_SHM
from pybuild.sandbox.spec import Mount, Overlay, Plain, RunSpec, SmallFile


def run_spec(process: Process, root: Overlay | Plain, mounts: Iterable[Mount]) -> RunSpec:
    """`process` in `root`; `mounts` in the order to make them."""
    return RunSpec(
        root,
        process.args,
        env=process.env,
        cwd=process.cwd,
        uid=process.user.uid,
        gid=process.user.gid,
        groups=process.user.groups,
        hostname=process.hostname,
        own_network=process.network is Network.NONE,
        ulimits=tuple((limit.name, limit.soft, limit.hard) for limit in process.ulimits),
        shm_size=DEFAULT_SHM if process.shm_size is None else process.shm_size,
        mounts=tuple(mounts),
    )


def name_files(
    process: Process, hosts: str = "/etc/hosts", resolv_conf: str = "/etc/resolv.conf"
) -> tuple[SmallFile, SmallFile]:
    """The files by which the process finds names, at these places in its root.

    Raises UsageError for a host that isn't a name with an address.
    """
    names = ((host.name, host.address) for host in process.extra_hosts)
    return (
        SmallFile(hosts, hosts_file(process.hostname, names)),
        SmallFile(resolv_conf, host_resolv_conf()),
    )
