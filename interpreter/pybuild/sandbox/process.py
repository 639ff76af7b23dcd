"""The process of a RUN, as the contract has it, as what is to run in a sandbox."""

from __future__ import annotations

from collections.abc import Iterable

from pybuild.backend import Activity, Network, Process
from pybuild.errors import StepFailed
from pybuild.files.namefiles import host_resolv_conf, hosts_file
from pybuild.sandbox.client import Sandbox, SandboxFailed
from pybuild.sandbox.profile import DEFAULT_SHM
from pybuild.sandbox.spec import Mount, Root, RunSpec, SmallFile

# what fails in these is asked for by the Dockerfile or allowed by the image
_STEPS_OWN = frozenset({"mount point", "mount source", "working directory", "user", "ulimit"})


def run_process(sandbox: Sandbox, spec: RunSpec, activity: Activity) -> int:
    """Run it and return its exit code, 128+n for signal n; output goes to `activity`.

    A program that can't be executed ends with 126, one that isn't there with 127. Raises
    BuildCancelled once the killed process is gone, StepFailed for what the step itself asks
    for in vain, BackendFailed.
    """
    activity.raise_if_cancelled()
    try:
        code = sandbox.run(spec, activity.log, activity.on_cancel)
    except SandboxFailed as failure:
        activity.raise_if_cancelled()
        if failure.step in _STEPS_OWN:
            raise StepFailed(failure.message) from failure
        raise
    activity.raise_if_cancelled()
    return code


def run_spec(process: Process, root: Root, mounts: Iterable[Mount]) -> RunSpec:
    """`process` in `root`; `mounts` in the order to make them."""
    return RunSpec(
        root,
        process.args,
        env=process.env + process.secret_env,
        cwd=process.cwd,
        uid=process.user.uid,
        gid=process.user.gid,
        groups=process.user.groups,
        hostname=process.hostname,
        own_network=process.network is Network.NONE,
        ulimits=tuple((limit.name, limit.soft, limit.hard) for limit in process.ulimits),
        shm_size=DEFAULT_SHM if process.shm_size is None else process.shm_size,
        mounts=tuple(mounts),
        insecure=process.insecure,
        terminal=process.terminal,
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
