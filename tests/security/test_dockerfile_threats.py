"""Hostile Dockerfiles: bombs end in a diagnostic, and nothing leads out of the image."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from threatening import Builds, assert_clear, run_command

from pybuild.backend import Network
from pybuild.errors import (
    DockerfileError,
    PybuildError,
    StepFailed,
    UnsupportedByBackend,
    UsageError,
)
from pybuild.oci.layerindex import Kind
from pybuild.testkit.workbench import file, folder, symlink

# Bombs


def nested(depth: int) -> str:
    return "${a:-" * depth + "x" + "}" * depth


BOMBS = {
    "nested expansion": "FROM scratch\nENV b=" + nested(10_000) + "\n",
    "nested expansion in FROM": "ARG b=" + nested(10_000) + "\nFROM ${b}\n",
    "nested pattern": "FROM scratch\nENV a="
    + "a" * 50_000
    + "\nENV b=${a%%"
    + "*a" * 5_000
    + "b}\n",
    "one long line": "FROM scratch\nENV a=" + "x" * 10_000_000 + "\n",
    "one long command": "FROM scratch\nRUN " + "x" * 10_000_000 + "\n",
    "one long unknown word": "x" * 10_000_000 + "\n",
    "many continued lines": "FROM scratch\nRUN a \\\n" + " b \\\n" * 500_000 + " c\n",
    "many stages": "".join(f"FROM scratch AS s{n}\n" for n in range(100_000)),
    "a chain of stages": "FROM scratch AS s0\n"
    + "".join(f"FROM s{n} AS s{n + 1}\n" for n in range(20_000)),
    "doubling variables": "FROM scratch\nENV a=xxxxxxxx\n" + "ENV a=${a}${a}\n" * 64,
    "doubling arguments": "ARG a=xxxxxxxx\n" + "ARG a=${a}${a}\n" * 64 + "FROM scratch\n",
    "doubling labels": "FROM scratch\n" + "ENV a=x${a}${a}${a}\nLABEL a=$a\n" * 64,
    "many heredocs": "FROM scratch\nRUN " + "<<E " * 20_000 + "\n" + "E\n" * 20_000,
    "open heredocs": "FROM scratch\nRUN " + " ".join(f"<<E{n}" for n in range(20_000)) + "\n",
    "one large heredoc": "FROM scratch\nCOPY <<E /x\n" + "y" * 8_000_000 + "\nE\n",
    "heredoc that doubles": "FROM scratch\nENV a="
    + "x" * 100_000
    + "\nCOPY <<E /x\n"
    + "$a" * 100_000
    + "\nE\n",
    "many ports": "FROM scratch\nEXPOSE 1-65535\n" * 2_000,
    "many quotes": "FROM scratch\nENV a=" + "'\"" * 500_000 + "\n",
    "many escapes": "FROM scratch\nENV a=" + "\\" * 5_000_001 + "\n",
    "deep JSON": "FROM scratch\nRUN " + "[" * 500_000 + "\n",
    "long JSON": "FROM scratch\nCMD [" + '"a",' * 500_000 + '"b"]\n',
    "huge JSON number": "FROM scratch\nHEALTHCHECK --retries=" + "9" * 100_000 + " CMD x\n",
    "deep ONBUILD": "FROM scratch\n" + "ONBUILD " * 100_000 + "RUN x\n",
    "many flags": "FROM scratch\nRUN " + "--mount=type=tmpfs,target=/x " * 50_000 + "true\n",
    "a flag of many fields": "FROM scratch\nRUN --mount=" + "a=b," * 500_000 + " true\n",
    "flag without end": "FROM scratch\nCOPY --chown=" + "-" * 5_000_000 + " a b\n",
    "directive without end": "# syntax=" + "d" * 5_000_000 + "\nFROM scratch\n",
    "zero bytes": "FROM scratch\n" + "\0" * 1_000_000 + "\n",
    "many undefined variables": "FROM scratch\n"
    + "".join(f"ENV {'a' * 35}{n}={n}\n" for n in range(20_000))
    + "".join(f"ENV b=${'a' * 35}_{n}\n" for n in range(20_000)),
    "many comments": "FROM scratch\n"
    + "# check=skip=x\n" * 500_000
    + "ENV"
    + " a=$b" * 12_000
    + "\n",
    "many exclusions": "FROM scratch\nCOPY " + "--exclude=**/a/**/b " * 20_000 + "x /\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_bounded_time_and_memory(name: str) -> None:
    """BuildKit CVE-2024-23650 and what its fuzzers found."""
    ended = run_command("--dry-run", "--backend=none", stdin=BOMBS[name].encode())
    assert_clear(ended, seconds=30, peak=500, codes=(0, 2))


@pytest.mark.parametrize(
    "text",
    [
        "FROM b AS a\nCOPY --from=b x /\nFROM a AS b\nCOPY --from=a x /\n",
        "FROM scratch AS a\nCOPY --from=a x /\n",
        "FROM scratch AS a\nRUN --mount=from=a,target=/x true\n",
        "FROM scratch AS a\nCOPY --from=1 x /\nFROM a\nCOPY --from=0 x /\n",
        "FROM scratch AS a\nRUN --mount=from=b,target=/x true\nFROM a AS b\nFROM b\n",
    ],
)
def test_stages_in_a_circle_are_refused(text: str) -> None:
    ended = run_command("--dry-run", "--backend=none", stdin=text.encode())
    # a name that no stage above has is an image's
    assert_clear(ended, seconds=20, codes=(0, 2))
    if ended.code == 0:
        assert "not resolved: docker.io/library/b" in ended.out


TRIGGERS = {
    "a URL": ["ADD http://127.0.0.1:1/x /"],
    "nested": ["ONBUILD RUN x"],
    "FROM": ["FROM scratch"],
    "MAINTAINER": ["MAINTAINER x"],
    "garbage": ["\0\1\2 \x7f"],
    "empty": [""],
    "no command": ["RUN"],
    "several lines": ["RUN a\nFROM scratch\nRUN b"],
    "open heredoc": ["RUN <<E"],
    "privileges": ["RUN --security=insecure x"],
    "the host's network": ["RUN --network=host x"],
    "a mount out": ["RUN --mount=source=../../..,target=/../.. x"],
    "ten thousand": ["ENV a=$a$a"] * 10_000,
    "very long": ["RUN " + "x" * 4_000_000],
    "no text": [1],
    "no list": "RUN x",
}


@pytest.mark.root
@pytest.mark.parametrize("name", TRIGGERS)
def test_hostile_triggers_of_a_base_image_are_refused(
    builds: Builds, registry: object, name: str
) -> None:
    from pybuild.testkit.registry import Registry  # noqa: PLC0415

    assert isinstance(registry, Registry)
    config = {"os": "linux", "architecture": "amd64", "config": {"OnBuild": TRIGGERS[name]}}
    # a registry on the port of an earlier one has nothing under that one's names
    image = f"triggers-{list(TRIGGERS).index(name)}:1"
    registry.add_image(image, json.dumps(config).encode(), [])
    with pytest.raises(PybuildError):
        builds.build(f"FROM {registry.address}/{image}\n")
    assert registry.requests


# Entitlements


@pytest.mark.parametrize(
    "flag", ["--security=insecure", "--device=vendor.com/x=y", "--network=host"]
)
def test_what_needs_the_users_consent_is_refused_without_it(flag: str) -> None:
    """BuildKit CVE-2024-23653. Nothing is looked up or run before."""
    import pybuild  # noqa: PLC0415

    for prefix in ("", "ONBUILD "):
        below = f"FROM scratch AS a\n{prefix}RUN {flag} true\nFROM a\n"
        with pytest.raises(UsageError, match="entitlement") as caught:
            pybuild.plan_build(None, dockerfile=below.encode())
        assert caught.value.where is not None
        assert caught.value.where.start_line == 2 or prefix


def test_the_hosts_network_needs_the_builds_own_word() -> None:
    import pybuild  # noqa: PLC0415

    text = b"FROM scratch\nRUN --network=host true\n"
    with pytest.raises(UsageError, match=r"network\.host"):
        pybuild.plan_build(None, dockerfile=text, network="none")
    pybuild.plan_build(None, dockerfile=text, network=Network.HOST)
    ended = run_command("--dry-run", "--backend=none", stdin=text)
    assert_clear(ended, codes=(2,))
    assert "Dockerfile:2" in ended.err
    assert "--allow network.host" in ended.err


@pytest.mark.parametrize(
    "option",
    [
        "bind-propagation=shared",
        "bind-propagation=rshared",
        "propagation=shared",
        "bind-nonrecursive=true",
        "src-dir=/etc",
        "volume-driver=local",
        "o=bind",
        "type=volume",
        "type=npipe",
        "type=bind,type=devpts",
        "relabel=shared",
        "z",
        "U",
        "idmap",
        "consistency=cached",
    ],
)
def test_an_unknown_mount_option_is_refused(option: str) -> None:
    """buildah CVE-2024-9407."""
    import pybuild  # noqa: PLC0415

    text = f"FROM scratch\nRUN --mount=target=/x,{option} true\n".encode()
    with pytest.raises((DockerfileError, UnsupportedByBackend)) as caught:
        pybuild.plan_build(None, dockerfile=text)
    assert caught.value.where is not None


# Mounts


@pytest.fixture(scope="module")
def links(builds: Builds) -> Builds:
    builds.image(
        "links",
        file(b"in-the-image", b"yes\n"),
        file(b"plain", b"plain\n"),
        symlink(b"link", b"/"),
        symlink(b"abs", b"/etc"),
        symlink(b"up", b"../../../../../.."),
        symlink(b"ghost", b"/no/where"),
        symlink(b"loop", b"loop"),
        symlink(b"magic", b"/proc/self/fd"),
        symlink(b"root", b"/proc/1/root"),
        symlink(b"device", b"/dev/null"),
        symlink(b"secret", b"/root/secret"),
        folder(b"d"),
        file(b"d/f", b"f\n"),
        folder(b"traps"),
        symlink(b"traps/dev", b"/dev"),
        symlink(b"traps/null", b"/proc/sys/kernel/core_pattern"),
        symlink(b"traps/fd", b"/proc/self/fd"),
    )
    return builds


SOURCES = ("/link", "link/link", "../..", "/../../..", "/up", "up/../up", "/", "./..")


@pytest.mark.root
def test_a_source_that_leads_out_is_the_images_own_root(links: Builds, host: Path) -> None:
    """buildah CVE-2024-1753, CVE-2024-11218; podman CVE-2022-4123."""
    mounts = " ".join(
        f"--mount=from=links,source={source},target=/m{n},rw" for n, source in enumerate(SOURCES)
    )
    script = f"for n in $(seq 0 {len(SOURCES) - 1}); do cat /m$n/in-the-image; "
    script += f"test -e /m$n{host} && echo host; echo x > /m$n/etc/passwd; done"
    links.build(f"FROM busybox\nRUN {mounts} {script}\n")
    assert links.log.split() == ["yes"] * len(SOURCES)
    assert len(links.layers()) == 1


@pytest.mark.root
@pytest.mark.parametrize(
    "source", ["/ghost", "/loop", "/magic", "/magic/3", "/root/etc", "/device", "/plain/x"]
)
def test_a_source_that_leads_nowhere_is_refused(links: Builds, host: Path, source: str) -> None:
    with pytest.raises(PybuildError) as caught:
        links.build(f"FROM busybox\nRUN --mount=from=links,source={source},target=/m cat /m/*\n")
    assert caught.value.exit_code in (1, 3)


@pytest.mark.root
def test_targets_through_links_stay_inside_and_leave_no_stub(links: Builds, host: Path) -> None:
    """BuildKit CVE-2024-23652."""
    targets = [
        "/abs/new",
        f"/up{host}/made",
        "/ghost/new",
        "/new/deep/er",
        "/link/abs/other",
        "/d/sub",
    ]
    mounts = " ".join(f"--mount=from=links,source=/d,target={target}" for target in targets)
    mounts += " --mount=type=tmpfs,target=/abs/tmpfs --mount=from=links,source=d/f,target=/up/file"
    resolved = ["/etc/new", f"{host}/made", "/no/where/new", "/new/deep/er", "/etc/other", "/d/sub"]
    links.build(
        "FROM links\nRUN " + mounts + " cat " + " ".join(f"{p}/f" for p in resolved) + " /file\n"
    )
    assert links.log.split() == ["f"] * 7
    assert links.layers() == links.layers("links")
    # what the process itself makes beside the stubs is all that there is
    links.build(f"FROM links\nRUN {mounts} echo x > /made\n")
    (new,) = links.layers()[2:]
    assert [(entry.path, entry.kind) for entry in new] == [(b"made", Kind.FILE)]


@pytest.mark.root
def test_a_stub_that_the_process_removes_or_replaces_harms_nothing(
    links: Builds, host: Path
) -> None:
    mount = f"--mount=from=links,source=/d,target={host}/x"
    links.build(f"FROM links\nRUN {mount} rmdir {host}/x; rm -rf {host}; ls {host}/x\n")
    assert links.layers() == links.layers("links")
    assert (host / "secret").read_bytes() == b"host secret\n"


@pytest.mark.root
@pytest.mark.parametrize(
    "target",
    [
        "/proc",
        "/proc/self",
        "/proc/self/fd/1",
        "/proc/sys",
        "/sys",
        "/sys/fs/cgroup",
        "/magic/3",
        "/dev",
        "/dev/null",
        "/dev/pts",
        "/dev/fd/1",
        "/root/x",
        "/plain",
        "/plain/x",
        "/loop",
        "/loop/x",
        "/link",
        "/up",
        "/device",
    ],
)
def test_a_target_where_nothing_can_be_mounted_is_refused(
    links: Builds, host: Path, target: str
) -> None:
    with pytest.raises(StepFailed) as caught:
        links.build(f"FROM links\nRUN --mount=from=links,source=/d,target={target} true\n")
    assert caught.value.where is not None
    assert caught.value.where.start_line == 2


@pytest.mark.root
@pytest.mark.parametrize(
    ("first", "second", "cwd"),
    [
        ("/m", "/m/dev", "/"),
        ("/m", "/m/dev/null", "/"),
        ("/m", "/m/null", "/"),
        ("/abs", "/etc/dev", "/"),
        ("/etc", "/abs/fd/1", "/"),
        ("/m", "/t", "/m/fd/7"),
        ("/m", "/t", "/m/dev/fd/8"),
        ("/abs", "/t", "/etc/fd/9"),
    ],
)
def test_links_inside_a_mount_lead_no_other_one_out(
    links: Builds, host: Path, first: str, second: str, cwd: str
) -> None:
    """runc CVE-2025-31133: a false /dev/null in place of a masked path opens /proc/sys."""
    trap = f"--mount=from=links,source=/traps,target={first},rw"
    with pytest.raises(StepFailed):
        links.build(
            f"FROM links\nWORKDIR {cwd}\n"
            f"RUN {trap} --mount=type=tmpfs,target={second} echo x > /proc/interrupts\n"
        )


# Working directories and users


@pytest.mark.root
def test_a_working_directory_through_links_stays_inside(links: Builds, host: Path) -> None:
    """podman CVE-2026-55686."""
    text = f"FROM links\nWORKDIR /up{host}/made\nRUN pwd -P; echo x > here\nCOPY <<E there\ny\nE\n"
    links.build(text)
    assert links.log.split() == [f"{host}/made"]
    paths = [entry.path for layer in links.layers()[2:] for entry in layer]
    inside = str(host).encode()[1:] + b"/made/"
    assert inside + b"here" in paths
    assert inside + b"there" in paths


@pytest.mark.root
def test_no_working_directory_is_an_open_file_of_the_runtime(links: Builds, host: Path) -> None:
    """runc CVE-2024-21626."""
    folders = [f"/proc/self/fd/{n}" for n in range(3, 31)]
    folders += ["/magic/8", "/magic/8/../..", "/proc/1/cwd", "/proc/thread-self/fd/7", "/dev/fd/7"]
    for cwd in folders:
        with pytest.raises(StepFailed) as caught:
            links.build(f"FROM links\nWORKDIR {cwd}\nRUN cat ../../../{host}/secret\n")
        assert "host secret" not in links.log
        assert caught.value.exit_code == 1


@pytest.mark.root
def test_the_base_images_own_working_directory_is_checked_too(links: Builds, host: Path) -> None:
    for number, cwd in enumerate(("/proc/self/fd/8", "/magic/9", "../../proc/self/fd/7")):
        links.image(f"cwd{number}", symlink(b"magic", b"/proc/self/fd"), working_dir=cwd)
        with pytest.raises(StepFailed):
            links.build(f"FROM cwd{number}\nRUN ls\n")


@pytest.mark.root
@pytest.mark.parametrize(
    "user",
    [
        "0x0",
        "4294967296",
        "2147483648",
        "-1",
        "4294967295",
        "99999999999999999999",
        "nobody:-1",
        "root:4294967296",
        "0x0:0",
        "+",
        "name with space",
        "../../etc/passwd",
        "nobody:0x0",
    ],
)
def test_a_user_that_is_no_user_is_refused(builds: Builds, user: str) -> None:
    """containerd CVE-2024-40635: such numbers wrapped around to root."""
    with pytest.raises(PybuildError) as caught:
        builds.build(f'FROM busybox\nUSER "{user}"\nRUN id -u\n')
    assert caught.value.exit_code in (1, 2)
    assert builds.log == ""


@pytest.mark.root
def test_digits_are_a_number_whatever_the_image_calls_its_users(builds: Builds) -> None:
    """runc CVE-2016-3697."""
    builds.image(
        "digits",
        file(b"etc/passwd", b"root:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n"),
        file(b"etc/group", b"root:x:0:\n1000:x:0:\n"),
    )
    builds.build("FROM digits\nUSER 1000:1000\nRUN echo $(id -u) $(id -g)\n")
    assert builds.log.split() == ["1000", "1000"]


def test_a_hostile_files_messages_show_no_control_characters() -> None:
    text = b"FROM scratch\nRUN\x1b]0;title\x07 x\n\x1b[2JBAD \x1b[31m\n"
    ended = run_command("--dry-run", "--backend=none", stdin=text)
    assert_clear(ended, codes=(2,))
    assert "\x1b" not in ended.err
    assert "\x07" not in ended.err


def test_a_syntax_line_never_fetches_a_frontend() -> None:
    """BuildKit CVE-2026-33747."""
    text = textwrap.dedent("""\
        # syntax=127.0.0.1:1/evil/frontend:latest@sha256:00
        FROM scratch
        """)
    ended = run_command("--dry-run", "--backend=none", stdin=text.encode())
    assert_clear(ended, codes=(2,))
    assert "unknown syntax" in ended.err
