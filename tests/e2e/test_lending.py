"""Caches, secrets, agents and entitlements through the command line, on a real containerd."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commandline import CommandLine, check_decent

from pybuild.run.sshkeys import open_agents

pytestmark = [pytest.mark.root, pytest.mark.containerd]


def said(err: str) -> list[str]:
    """What the steps have printed, from the output of ``--progress=plain``."""
    lines = [line.split(" ", 2) for line in err.splitlines()]
    return [p[2] for p in lines if len(p) == 3 and p[1].replace(".", "").isdigit()]


def run(pybuild: CommandLine, step: str, *options: str) -> list[str]:
    context = pybuild.context(f"FROM busybox\n{step}\n")
    return said(pybuild.build("--progress=plain", *options, context).err)


def test_a_cache_lives_on_after_the_build_and_containerds_collections(
    pybuild: CommandLine, tmp_path: Path
) -> None:
    ident = tmp_path.name
    mount = f"RUN --mount=type=cache,id={ident},target=/c"
    run(pybuild, f"{mount} echo kept > /c/f")
    ctr = ["ctr", "-a", pybuild.daemon.address, "-n", pybuild.namespace]
    subprocess.run([*ctr, "leases", "create", "--id", ident], check=True, capture_output=True)
    subprocess.run([*ctr, "leases", "rm", "--sync", ident], check=True, capture_output=True)
    assert run(pybuild, f"{mount} cat /c/f") == ["kept"]


def test_processes_take_turns_on_a_locked_cache(pybuild: CommandLine, tmp_path: Path) -> None:
    step = (
        f"RUN --mount=type=cache,id={tmp_path.name},target=/c,sharing=locked "
        "n=$(cat /c/n 2>/dev/null || echo 0); sleep 0.5; echo $((n + 1)) > /c/n; cat /c/n"
    )
    context = pybuild.context(f"FROM busybox\n{step}\n")
    options = ["--no-cache", "--progress=plain"]
    started = [pybuild.start(*options, context) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], "\n".join(outputs)
    assert sorted(said(text)[-1] for text in outputs) == ["1", "2", "3"]


def test_secrets_reach_the_step_with_their_owners(pybuild: CommandLine) -> None:
    step = (
        "USER 77:78\n"
        "RUN --mount=type=secret,id=f,uid=77,mode=0400 --mount=type=secret,id=v,env=TOKEN,uid=77 "
        "cat /run/secrets/f; stat -c '%u %g %a' /run/secrets/f; echo $TOKEN; "
        "tr '\\\\0' ' ' < /proc/1/cmdline | grep -c 'from a'; test ! -e /run/secrets/v"
    )
    (pybuild.folder / "file").write_text("from a file\n")
    context = pybuild.context(f"FROM busybox\n{step} || true\n")
    ended = pybuild.build(
        "--progress=plain",
        "--secret=id=f,src=file",
        "--secret=id=v,env=SECRET",
        context,
        env={"SECRET": "from a variable"},
    )
    assert said(ended.err)[:3] == ["from a file", "77 0 400", "from a variable"]


def test_a_missing_secret_is_told_before_anything_runs(pybuild: CommandLine) -> None:
    text = "FROM busybox\nRUN echo began\nRUN --mount=type=secret,id=s,required true\n"
    err = pybuild.fail(2, "--progress=plain", pybuild.context(text))
    assert "--secret id=s" in err
    assert "Dockerfile:3" in err
    assert "began\n" not in "\n".join(said(err))


def ssh_client(folder: Path) -> None:
    """ssh-add and the libraries that it needs, at the places where it finds them."""
    program = shutil.which("ssh-add")
    if program is None:
        pytest.skip("needs ssh-add")
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in (program, *re.findall(r"(/\S+) \(0x", listed)):
        copy = folder / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lent-key", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def test_a_step_of_an_ordinary_user_reaches_the_agent_with_a_key(
    pybuild: CommandLine, key: Path
) -> None:
    text = "FROM busybox\nCOPY root/ /\nUSER 77\nRUN --mount=type=ssh,uid=77 ssh-add -l\n"
    context = pybuild.context(text)
    ssh_client(context / "root")
    ended = pybuild.build("--progress=plain", f"--ssh=default={key}", context)
    assert "lent-key (ED25519)" in said(ended.err)[0]
    with open_agents({"default": [key]}) as agents:
        ended = pybuild.build(
            "--no-cache",
            "--progress=plain",
            "--ssh=default",
            context,
            env={"SSH_AUTH_SOCK": str(agents["default"])},
        )
    assert "lent-key (ED25519)" in said(ended.err)[0]


def test_entitlements_open_what_they_name(pybuild: CommandLine) -> None:
    step = "RUN --security=insecure mkdir /m && mount -t tmpfs none /m && echo mounted; umount /m"
    err = pybuild.fail(2, pybuild.context(f"FROM busybox\n{step}\n"))
    check_decent(err)
    assert "--allow security.insecure" in err
    assert run(pybuild, step, "--allow=security.insecure") == ["mounted"]
    net = "RUN --network=host tail -n +3 /proc/net/dev | cut -d: -f1"
    names = sorted(path.name for path in Path("/sys/class/net").iterdir())
    assert sorted(map(str.strip, run(pybuild, net, "--allow", "network.host"))) == names
