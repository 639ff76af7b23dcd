"""The runtime specification of a RUN."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pybuild.backend import Network, Process, Ulimit, User
from pybuild.errors import UsageError
from pybuild.sandbox.oci_seccomp import default_profile
from pybuild_containerd.runtime_spec import Machine, SpecMount, any_machine, runtime_spec

_AMD64 = Machine("amd64")


def _spec(machine: Machine = _AMD64, mounts: tuple[SpecMount, ...] = (), **fields: Any) -> Any:
    process = Process(**{"args": ("/bin/true",), "env": (), "cwd": "/", **fields})
    return json.loads(runtime_spec(process, "box", mounts, machine))


def _mask(capabilities: list[str]) -> int:
    # capability(7), in the order of their numbers
    names = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
    ]
    return sum(1 << names.index(name.removeprefix("CAP_")) for name in capabilities)


def test_the_capabilities_are_dockers_default_set_and_none_is_inherited() -> None:
    capabilities = _spec()["process"]["capabilities"]
    assert {kind: f"{_mask(names):x}" for kind, names in capabilities.items()} == {
        "bounding": "a80425fb",
        "effective": "a80425fb",
        "permitted": "a80425fb",
    }


def test_an_insecure_process_has_all_that_the_machine_has_and_nothing_hidden() -> None:
    machine = Machine("amd64", masked=("/sys/mine",), capabilities=("CAP_CHOWN", "CAP_SYS_ADMIN"))
    spec = _spec(machine, insecure=True)
    capabilities = spec["process"]["capabilities"]
    assert capabilities["effective"] == ["CAP_CHOWN", "CAP_SYS_ADMIN"]
    assert "inheritable" not in capabilities
    linux = spec["linux"]
    assert {"maskedPaths", "readonlyPaths", "seccomp"}.isdisjoint(linux)
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    options = {mount["destination"]: mount["options"] for mount in spec["mounts"]}
    assert "rw" in options["/sys"]
    assert "ro" not in options["/sys"] + options["/sys/fs/cgroup"]
    assert (
        len(_spec(any_machine(machine), insecure=True)["process"]["capabilities"]["bounding"]) > 40
    )


def test_secret_variables_are_not_in_the_specification() -> None:
    assert "canary" not in json.dumps(_spec(secret_env=(("TOKEN", "canary"),)))


def test_the_control_group_lies_below_the_given_one() -> None:
    assert _spec()["linux"]["cgroupsPath"] == "/pybuild/box"
    assert _spec(cgroup_parent="/a/b")["linux"]["cgroupsPath"] == "/a/b/box"


def test_sudo_may_work() -> None:
    assert _spec()["process"]["noNewPrivileges"] is False


def test_arguments_environment_and_folder_are_passed_in_order() -> None:
    process = _spec(args=("/bin/sh", "-c", "echo 'é'"), env=(("B", "2"), ("A", "a=b")), cwd="/srv")[
        "process"
    ]
    assert process["args"] == ["/bin/sh", "-c", "echo 'é'"]
    assert process["env"] == ["B=2", "A=a=b"]
    assert process["cwd"] == "/srv"


def test_the_user_has_exactly_the_given_groups() -> None:
    user = _spec(user=User(7, 8, (8, 9)))["process"]["user"]
    assert user == {"uid": 7, "gid": 8, "additionalGids": [8, 9], "umask": 0o22}


@pytest.mark.parametrize(
    ("network", "own"), [(Network.DEFAULT, False), (Network.HOST, False), (Network.NONE, True)]
)
def test_only_network_none_has_a_network_of_its_own(network: Network, own: bool) -> None:
    namespaces = [n["type"] for n in _spec(network=network)["linux"]["namespaces"]]
    assert ("network" in namespaces) is own
    assert {"pid", "ipc", "uts", "mount"} <= set(namespaces)


def test_a_cgroup_namespace_is_made_where_the_machine_has_one_hierarchy() -> None:
    namespaces = _spec(Machine("amd64", cgroup_namespace=True))["linux"]["namespaces"]
    assert {"type": "cgroup"} in namespaces


def test_of_an_unknown_machine_all_that_may_be_there_is_masked() -> None:
    spec = _spec(any_machine(Machine("arm64", masked=("/sys/mine",))))
    masked = spec["linux"]["maskedPaths"]
    assert "/sys/mine" not in masked
    assert "/sys/devices/system/cpu/cpu63/thermal_throttle" in masked
    assert {"type": "cgroup"} in spec["linux"]["namespaces"]


def test_a_rootless_containerd_is_asked_for_no_control_group() -> None:
    assert {"cgroupsPath", "resources"} <= _spec()["linux"].keys()
    rootless = _spec(Machine("amd64", rootless=True))
    assert not {"cgroupsPath", "resources"} & rootless["linux"].keys()


@pytest.mark.parametrize(
    ("rootless", "network", "kind"),
    [
        (False, Network.DEFAULT, "sysfs"),
        (True, Network.DEFAULT, "bind"),
        (True, Network.HOST, "bind"),
        (True, Network.NONE, "sysfs"),
    ],
)
def test_sys_is_bound_where_it_cant_be_mounted_and_never_writable(
    rootless: bool, network: Network, kind: str
) -> None:
    spec = _spec(Machine("amd64", rootless=rootless), network=network)
    (sys,) = [mount for mount in spec["mounts"] if mount["destination"] == "/sys"]
    assert sys["type"] == kind
    assert "ro" in sys["options"]


def test_every_device_is_closed_but_the_runtimes_own() -> None:
    assert _spec()["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]


def test_what_tells_of_other_processes_is_masked() -> None:
    masked = _spec(Machine("amd64", masked=("/sys/x",)))["linux"]["maskedPaths"]
    assert {"/proc/kcore", "/proc/interrupts", "/sys/devices/virtual/powercap", "/sys/x"} <= set(
        masked
    )


def test_the_given_mounts_follow_the_systems_own() -> None:
    mounts = _spec(mounts=(SpecMount("/m", "bind", "/source", ("rbind", "ro")),))["mounts"]
    assert mounts[0]["destination"] == "/proc"
    assert mounts[-1] == {
        "destination": "/m",
        "type": "bind",
        "source": "/source",
        "options": ["rbind", "ro"],
    }
    assert all("ro" in m["options"] for m in mounts if m["destination"].startswith("/sys"))


@pytest.mark.parametrize(("given", "size"), [(None, 67108864), (4096, 4096)])
def test_shared_memory_has_the_given_size(given: int | None, size: int) -> None:
    (shm,) = [m for m in _spec(shm_size=given)["mounts"] if m["destination"] == "/dev/shm"]
    assert f"size={size}" in shm["options"]


def test_limits_are_named_as_the_kernel_does_and_minus_one_is_none() -> None:
    assert "rlimits" not in _spec()["process"]
    limits = _spec(ulimits=(Ulimit("nofile", 10, 20), Ulimit("core", 0, -1)))["process"]["rlimits"]
    assert limits == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1},
    ]


def test_an_unknown_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown resource limit files"):
        _spec(ulimits=(Ulimit("files", 1, 1),))


def _rules(profile: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [rule for rule in profile["syscalls"] if name in rule["names"]]


@pytest.mark.parametrize(
    "name", ["mount", "unshare", "setns", "bpf", "kexec_load", "keyctl", "add_key", "init_module"]
)
def test_a_system_call_that_is_not_listed_is_refused(name: str) -> None:
    profile = default_profile("amd64")
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert _rules(profile, name) == []


def test_clone_makes_no_namespace_and_clone3_is_unknown() -> None:
    profile = default_profile("amd64")
    (clone,) = _rules(profile, "clone")
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ"}]
    (clone3,) = _rules(profile, "clone3")
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


@pytest.mark.parametrize(
    ("architecture", "own"),
    [("amd64", "arch_prctl"), ("arm64", "set_tls"), ("riscv64", "riscv_flush_icache")],
)
def test_an_architecture_has_its_own_calls(architecture: str, own: str) -> None:
    assert _rules(default_profile(architecture), own)
    assert _rules(default_profile("ppc64le"), own) == []


def test_no_profile_names_an_architecture_that_the_machine_may_lack() -> None:
    assert "architectures" not in default_profile("ppc64le")
    assert default_profile("arm64")["architectures"][0] == "SCMP_ARCH_AARCH64"
