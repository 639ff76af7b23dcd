from dataclasses import replace
from typing import Any

import pytest

from pybuild.backend import BaseImage, Capability, HostEntry, Network, Sharing, Ulimit
from pybuild.dockerfile.parse import parse
from pybuild.errors import (
    DockerfileError,
    ExpansionError,
    PybuildError,
    SourceRange,
    UnsupportedByBackend,
    UsageError,
)
from pybuild.oci.image_config import Healthcheck, HistoryEntry, ImageConfig
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.plan import Plan, PlanRequest, make_plan, needs
from pybuild.plan.describe import describe_plan
from pybuild.plan.history import duration, quoted
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    InlineFile,
    PlannedBind,
    PlannedCache,
    PlannedScript,
    PlannedSecret,
    PlannedSsh,
    PlannedStage,
    PlannedTmpfs,
    RunDefaults,
    RunStep,
    StageSource,
    WorkdirStep,
)

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE = ImageConfig(
    AMD64,
    env=(("PATH", "/bin"), ("LANG", "C")),
    cmd=("sh",),
    history=(HistoryEntry("base"),),
    diff_ids=("sha256:" + "1" * 64,),
    created="2020-01-01T00:00:00Z",
    extra={"container": "abc", "os.features": ["f"]},
    config_extra={"Hostname": "abc"},
)
REQUEST = PlanRequest(AMD64, AMD64)


def plan(text: str, request: PlanRequest = REQUEST, base: ImageConfig = BASE, **args: str) -> Plan:
    def resolve(reference: Reference, platform: Platform, where: SourceRange) -> BaseImage:
        return BaseImage(reference, "sha256:" + "2" * 64, base, ())

    return make_plan(
        parse(text.encode()), replace(request, build_args={**request.build_args, **args}), resolve
    )


def target(
    body: str, request: PlanRequest = REQUEST, base: ImageConfig = BASE, **args: str
) -> PlannedStage:
    return plan(f"FROM base\n{body}\n", request, base, **args).target


def history(stage: PlannedStage) -> list[str]:
    return [line.created_by for line in stage.history]


def run_env(stage: PlannedStage) -> dict[str, str]:
    step = stage.steps[-1]
    assert isinstance(step, RunStep)
    assert len(dict(step.process_env)) == len(step.process_env)
    return dict(step.process_env)


def copy(body: str, **args: str) -> CopyStep:
    step = target(body, **args).steps[-1]
    assert isinstance(step, CopyStep)
    return step


def run(body: str, request: PlanRequest = REQUEST, **args: str) -> RunStep:
    step = target(body, request, **args).steps[-1]
    assert isinstance(step, RunStep)
    return step


def refused(body: str, **args: str) -> PybuildError:
    with pytest.raises(PybuildError) as caught:
        target(body, **args)
    assert caught.value.where is not None
    return caught.value


# Variables


@pytest.mark.parametrize(
    ("body", "args", "value"),
    [
        ("ENV a=1", {}, "1"),
        ("ENV a=1\nENV a=2", {}, "2"),
        ("ENV b=1 a=$b", {}, ""),
        ("ENV b=1\nENV b=2 a=$b", {}, "1"),
        ("ARG b=1 a=$b", {}, "1"),
        ("ARG a=1", {}, "1"),
        ("ARG a=1", {"a": "2"}, "2"),
        ("ARG a", {"a": "2"}, "2"),
        ("ARG a=1", {"a": ""}, ""),
        ("ARG a=1\nENV a=2", {"a": "3"}, "2"),
        ("ENV a=2\nARG a", {}, "2"),
        ("ARG a=${b?unset}", {"a": "1"}, "1"),
        ("ARG a='$b'", {}, "$b"),
        ("ENV a=${LANG:-x}", {}, "C"),
        ("ENV a=${LANG:+x}", {}, "x"),
        ("ENV a=x\\ y", {}, "x y"),
        ("ENV a x  y", {}, "x  y"),
    ],
)
def test_a_run_sees_what_env_and_arg_set(body: str, args: dict[str, str], value: str) -> None:
    assert run_env(target(f"{body}\nRUN x", **args))["a"] == value


def test_an_arg_without_a_value_sets_nothing() -> None:
    stage = target("ARG a\nRUN x")
    assert "a" not in run_env(stage)
    assert history(stage) == ["ARG a", "RUN |1 a= /bin/sh -c x # buildkit"]


def test_an_arg_stays_out_of_the_image() -> None:
    assert "a" not in dict(target("ARG a=1").config.env)


def test_a_global_arg_counts_in_stages_that_ask_for_it() -> None:
    text = "ARG v=1\nARG w=$v-2\nFROM base AS x\nRUN x\nFROM base\nARG v\nARG w\nRUN x\nCOPY --from=x / /\n"
    first, second = plan(text).stages
    assert "v" not in run_env(first)
    step = second.steps[0]
    assert isinstance(step, RunStep)
    assert {"v": "1", "w": "1-2"}.items() <= dict(step.env).items()
    assert history(second)[:2] == ["ARG v=1", "ARG w=1-2"]


def test_a_default_in_the_stage_beats_the_global_value() -> None:
    text = "ARG v=1\nFROM base\nARG v=2\nRUN x\n"
    assert run_env(plan(text).target)["v"] == "2"
    assert run_env(plan(text, v="3").target)["v"] == "3"


def test_from_sees_global_args_and_build_args() -> None:
    text = "ARG tag=1\nFROM base:$tag\n"
    names = []
    for args in ({}, {"tag": "2"}):
        parent = plan(text, **args).target.parent
        names.append(str(parent))
    assert "tag='1'" in names[0]
    assert "tag='2'" in names[1]


def test_the_platforms_and_the_target_are_global_args() -> None:
    names = "TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDPLATFORM BUILDARCH TARGETSTAGE"
    text = f"FROM base AS last\nARG {names}\nRUN x\n"
    request = PlanRequest(Platform("linux", "arm", "v7"), AMD64)
    found = run_env(plan(text, request).target)
    assert {name: found[name] for name in names.split()} == {
        "TARGETPLATFORM": "linux/arm/v7",
        "TARGETOS": "linux",
        "TARGETARCH": "arm",
        "TARGETVARIANT": "v7",
        "BUILDPLATFORM": "linux/amd64",
        "BUILDARCH": "amd64",
        "TARGETSTAGE": "last",
    }
    assert "TARGETOS" not in run_env(plan("FROM base\nRUN x\n", request).target)
    assert run_env(plan(text, replace(request, target="LAST")).target)["TARGETSTAGE"] == "LAST"
    assert run_env(plan("FROM base\nARG TARGETSTAGE\nRUN x").target)["TARGETSTAGE"] == "default"
    assert run_env(plan(text, request, TARGETARCH="x").target)["TARGETARCH"] == "x"


def test_a_stage_on_a_stage_inherits_args_and_env_and_env_wins() -> None:
    text = "FROM base AS a\nARG x=arg\nENV y=env\nARG y=arg\nRUN 1\nFROM a\nRUN 2\n"
    first, second = plan(text).stages
    assert run_env(first)["y"] == "arg"
    assert run_env(second) == {"PATH": "/bin", "LANG": "C", "x": "arg", "y": "env"}
    assert history(second) == ["RUN |2 x=arg y=env /bin/sh -c 2 # buildkit"]


def test_proxies_reach_a_run_in_both_cases_and_leave_no_trace() -> None:
    args = {"HTTP_PROXY": "http://p", "no_proxy": "h"}
    stage = target("RUN x", **args)
    assert run_env(stage) == {
        "PATH": "/bin",
        "LANG": "C",
        "HTTP_PROXY": "http://p",
        "http_proxy": "http://p",
        "NO_PROXY": "h",
        "no_proxy": "h",
    }
    assert history(stage) == ["RUN /bin/sh -c x # buildkit"]
    assert dict(stage.config.env) == {"PATH": "/bin", "LANG": "C"}
    assert stage.steps[0].key == target("RUN x").steps[0].key


def test_a_declared_proxy_is_an_arg_like_any_other() -> None:
    stage = target("ARG HTTP_PROXY\nRUN x", HTTP_PROXY="p")
    assert history(stage)[-1] == "RUN |1 HTTP_PROXY=p /bin/sh -c x # buildkit"


def test_build_args_that_nothing_declares_are_warned_of() -> None:
    text = "ARG a\nFROM base AS x\nARG b\nFROM base\n"
    args = dict.fromkeys(
        ("a", "b", "z", "c", "HTTP_PROXY", "BUILDKIT_INLINE_CACHE", "SOURCE_DATE_EPOCH"), "1"
    )
    assert plan(text, **args).warnings == (
        ("one or more build-args [c z] were not consumed", None),
    )


def test_build_args_that_a_trigger_declares_are_consumed() -> None:
    base = replace(BASE, onbuild=("ARG a",))
    assert plan("FROM base\n", base=base, a="1").warnings == ()


def test_path_is_always_set() -> None:
    assert target("", base=ImageConfig(AMD64, env=(("A", "b"),))).config.env == (
        ("A", "b"),
        ("PATH", PATH),
    )
    assert plan("FROM scratch\n").target.config.env == (("PATH", PATH),)
    windows = Platform("windows", "amd64")
    assert plan("FROM scratch\n", PlanRequest(windows, AMD64)).target.config.env == ()


def test_expansion_errors_have_the_place_of_their_instruction() -> None:
    error = refused("ENV a=1\nENV b=${a")
    assert isinstance(error, ExpansionError)
    assert error.where is not None
    assert error.where.start_line == 3
    assert refused("RUN --mount=target=${a:?no} x").where is not None


# The config


def test_a_stage_takes_over_its_images_config_but_nothing_of_its_own_making() -> None:
    stage = target("")
    assert stage.inherited == BASE.history
    assert stage.config == replace(
        BASE,
        history=(),
        diff_ids=(),
        created=None,
        extra={"os.features": ["f"]},
        config_extra={},
    )


def test_scratch_has_a_working_directory_and_nothing_else() -> None:
    assert plan("FROM scratch\n").target.config == ImageConfig(
        AMD64, env=(("PATH", PATH),), working_dir="/"
    )


def test_env_keeps_its_place_in_the_image_when_it_is_set_again() -> None:
    stage = target("ENV PATH=/x B=1\nRUN x")
    assert stage.config.env == (("PATH", "/x"), ("LANG", "C"), ("B", "1"))
    step = stage.steps[0]
    assert isinstance(step, RunStep)
    assert step.env == (("LANG", "C"), ("PATH", "/x"), ("B", "1"))


@pytest.mark.parametrize(
    ("body", "cmd", "entrypoint"),
    [
        ("", ("sh",), None),
        ('ENTRYPOINT ["e"]', None, ("e",)),
        ('CMD ["c"]\nENTRYPOINT ["e"]', ("c",), ("e",)),
        ('ENTRYPOINT ["e"]\nCMD ["c"]', ("c",), ("e",)),
        ("CMD c d", ("/bin/sh", "-c", "c d"), None),
        ("ENTRYPOINT e", None, ("/bin/sh", "-c", "e")),
        ('SHELL ["ba", "sh"]\nCMD c', ("ba", "sh", "c"), None),
        ("CMD []", (), None),
    ],
)
def test_entrypoint_resets_the_cmd_of_the_image(
    body: str, cmd: tuple[str, ...] | None, entrypoint: tuple[str, ...] | None
) -> None:
    config = target(body).config
    assert (config.cmd, config.entrypoint) == (cmd, entrypoint)
    assert config.args_escaped == ("CMD" in body)


def test_entrypoint_in_a_stage_on_a_stage_resets_its_cmd() -> None:
    text = 'FROM base AS a\nCMD ["c"]\nFROM a\nENTRYPOINT ["e"]\n'
    assert plan(text).target.config.cmd is None


@pytest.mark.parametrize(
    ("body", "ports", "line"),
    [
        ("EXPOSE 80", {"80/tcp"}, "EXPOSE [80/tcp]"),
        ("EXPOSE 90 80/UDP", {"80/udp", "90/tcp"}, "EXPOSE [80/udp 90/tcp]"),
        ("EXPOSE 1-3/sctp", {"1/sctp", "2/sctp", "3/sctp"}, "EXPOSE [1/sctp 2/sctp 3/sctp]"),
        ('ENV p="1 2"\nEXPOSE $p', {"1/tcp", "2/tcp"}, "EXPOSE [1/tcp 2/tcp]"),
        ("EXPOSE 127.0.0.1:8080:80", {"80/tcp"}, "EXPOSE [80/tcp]"),
        ("EXPOSE [::1]:8080:80", {"80/tcp"}, "EXPOSE [80/tcp]"),
        ("EXPOSE 8080-8090:80", {"80/tcp"}, "EXPOSE [80/tcp]"),
    ],
)
def test_exposed_ports(body: str, ports: set[str], line: str) -> None:
    stage = target(body)
    assert stage.config.exposed_ports == ports
    assert history(stage)[-1] == line


@pytest.mark.parametrize(
    "port", ["x", "65536", "-1", "2-1", "80/icmp", "/tcp", "1-3:1-2", "x:80", "q:1:80", "1-2-3"]
)
def test_a_wrong_port_is_refused(port: str) -> None:
    assert isinstance(refused(f"EXPOSE {port}"), DockerfileError)


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ("WORKDIR /a/", ["/a/"]),
        ("WORKDIR /a//b/../c", ["/a//b/../c"]),
        ("WORKDIR a", ["/a"]),
        ("WORKDIR /a\nWORKDIR b/../c/", ["/a", "/a/c"]),
        ("ENV d=/x\nWORKDIR $d/y", ["/x/y"]),
        ("WORKDIR /a\nWORKDIR ../../..", ["/a"]),
        ("WORKDIR /", []),
    ],
)
def test_workdir_joins_relative_paths_and_keeps_absolute_ones(body: str, paths: list[str]) -> None:
    stage = target(body)
    assert [step.path for step in stage.steps if isinstance(step, WorkdirStep)] == paths
    assert stage.config.working_dir == (
        "/" if body in {"WORKDIR /", "WORKDIR /a\nWORKDIR ../../.."} else paths[-1]
    )
    assert history(stage)[-1] == f"WORKDIR {stage.config.working_dir}"


def test_a_workdir_is_made_by_the_user() -> None:
    step = target("USER me:us\nWORKDIR /a").steps[-1]
    assert isinstance(step, WorkdirStep)
    assert step.user == "me:us"


def test_the_rest_of_the_config() -> None:
    stage = target(
        "LABEL a=1 b='2 3'\nLABEL a=$LANG\nVOLUME /v $LANG\nUSER ${LANG}x\nSTOPSIGNAL sigterm\n"
        'MAINTAINER me <m@x>\nSHELL ["a", "b"]\nONBUILD RUN $x\n'
        "HEALTHCHECK --interval=90s --timeout=1.5s --retries=3 CMD a b"
    )
    config = stage.config
    assert config.labels == {"a": "C", "b": "2 3"}
    assert config.volumes == {"/v", "C"}
    assert (config.user, config.stop_signal, config.author) == ("Cx", "sigterm", "me <m@x>")
    assert config.shell == ("a", "b")
    assert config.onbuild == ("RUN $x",)
    assert config.healthcheck == Healthcheck(
        ("CMD-SHELL", "a b"), interval=90 * 10**9, timeout=15 * 10**8, retries=3
    )
    assert history(stage) == [
        "LABEL a=1 b=2 3",
        "LABEL a=C",
        "VOLUME [/v C]",
        "USER Cx",
        "STOPSIGNAL sigterm",
        "MAINTAINER me <m@x>",
        "SHELL [a b]",
        (
            "HEALTHCHECK {Test:[CMD-SHELL a b] Interval:1m30s Timeout:1.5s StartPeriod:0s "
            "StartInterval:0s Retries:3}"
        ),
    ]
    assert all(line.step is None for line in stage.history)


def test_healthcheck_none_and_exec_form() -> None:
    assert target("HEALTHCHECK NONE").config.healthcheck == Healthcheck(("NONE",))
    assert target('HEALTHCHECK CMD ["a"]').config.healthcheck == Healthcheck(("CMD", "a"))


@pytest.mark.parametrize("signal", ["9", "KILL", "SIGKILL", "sigrtmin+3", "RTMAX-14", "RTMIN"])
def test_signals_are_numbers_or_names(signal: str) -> None:
    assert target(f"STOPSIGNAL {signal}").config.stop_signal == signal


@pytest.mark.parametrize("signal", ["0", "x", "SIG", "RTMIN+16", "RTMIN-1", "9x"])
def test_a_wrong_signal_is_refused(signal: str) -> None:
    assert "invalid signal" in refused(f"STOPSIGNAL {signal}").message


def test_an_empty_volume_is_refused() -> None:
    assert "empty" in refused("VOLUME $nothing").message


def test_labels_of_the_command_line_go_on_the_target_alone() -> None:
    text = "FROM base AS a\nLABEL x=1\nFROM a\nLABEL y=1 z=1\n"
    found = plan(text, replace(REQUEST, labels={"z": "2", "w": "3"}))
    assert found.stages[0].config.labels == {"x": "1"}
    assert found.target.config.labels == {"x": "1", "y": "1", "z": "2", "w": "3"}


def test_a_foreign_platform_is_written_into_the_config_of_the_target() -> None:
    found = plan("FROM base\n", PlanRequest(ARM64, AMD64))
    assert found.target.config.platform == ARM64
    assert found.target.platform == ARM64


def test_an_image_for_another_platform_is_used_as_the_one_asked_for() -> None:
    found = plan("FROM --platform=linux/arm64 base AS arm64\n")
    assert found.target.platform == ARM64


def test_a_stage_on_a_stage_inherits_config_and_history() -> None:
    text = 'FROM base AS a\nUSER me\nRUN x\nVOLUME /v\nSHELL ["s"]\nFROM a AS b\nRUN y\nFROM b\n'
    found = plan(text)
    assert found.stages[1].parent == StageSource(0)
    assert found.target.config == found.stages[0].config
    assert [(h.created_by, h.empty_layer) for h in found.target.inherited] == [
        ("base", False),
        ("USER me", True),
        ("RUN /bin/sh -c x # buildkit", False),
        ("VOLUME [/v]", True),
        ("SHELL [s]", True),
        ("RUN s y # buildkit", False),
    ]


# RUN


def test_run_in_exec_and_shell_form() -> None:
    assert run('RUN ["a", "$b"]').args == ("a", "$b")
    assert run("RUN a  $b \\\n c").args == ("/bin/sh", "-c", "a  $b  c")
    assert run('SHELL ["x"]\nRUN a').args == ("x", "a")


def test_run_without_a_command_is_refused() -> None:
    assert isinstance(refused("RUN []"), DockerfileError)


def test_history_has_exec_form_as_words_and_args_once_each() -> None:
    stage = target('ARG a=1\nARG b=2\nARG a=3\nRUN ["x", "y z"]')
    assert history(stage)[-1] == "RUN |2 a=3 b=2 x y z # buildkit"


def test_a_lone_heredoc_is_the_script() -> None:
    step = run("RUN <<-EOF\n\techo 1\n\t\techo 2\nEOF")
    assert step.args == ("/bin/sh", "-c", "echo 1\necho 2\n")
    assert step.title == "RUN <<-EOF (echo 1...)"
    assert step.mounts == ()


def test_a_lone_heredoc_with_a_shebang_is_a_file() -> None:
    step = run('RUN <<"S"\n#!/bin/x\n$y\nS')
    assert step.args == ("/bin/sh", "-c", "/dev/pipes/S")
    assert step.mounts == (PlannedScript("/dev/pipes/S", b"#!/bin/x\n$y\n"),)


def test_a_heredoc_among_other_words_is_left_to_the_shell() -> None:
    step = run("RUN cat <<A <<B >x\n#!1\nA\n2\nB")
    assert step.args[-1] == "cat <<A <<B >x\n#!1\nA\n2\nB"
    assert step.mounts == ()


def test_run_takes_user_folder_and_the_settings_of_the_command_line() -> None:
    settings = RunDefaults(
        network=Network.HOST,
        extra_hosts=(HostEntry("h", "1.2.3.4"),),
        shm_size=5,
        ulimits=(Ulimit("nofile", 1, 2),),
        hostname="box",
    )
    step = run("USER me\nWORKDIR /a/../b/\nRUN x", replace(REQUEST, run=settings))
    assert (step.user, step.cwd) == ("me", "/b")
    assert step.network is Network.HOST
    assert (step.extra_hosts, step.shm_size) == (settings.extra_hosts, 5)
    assert (step.ulimits, step.hostname) == (settings.ulimits, "box")
    none = run("RUN --network=none x", replace(REQUEST, run=settings))
    assert none.network is Network.NONE
    default = run("RUN --network=default x", replace(REQUEST, run=settings))
    assert default.network is Network.HOST


def test_mounts_of_a_run() -> None:
    text = (
        "FROM base AS src\nFROM base\nWORKDIR /w\nENV t=there\n"
        "RUN --mount=type=bind,target=here,source=../a//b "
        "--mount=from=src,target=/x/$t,rw "
        "--mount=type=tmpfs,target=/t,size=1k x\n"
    )
    step = plan(text).target.steps[-1]
    assert isinstance(step, RunStep)
    assert step.mounts == (
        PlannedBind("/w/here", ContextSource(), "a/b", readonly=True),
        PlannedBind("/x/there", StageSource(0), "", readonly=False),
        PlannedTmpfs("/t", 1024),
    )


def mounts(body: str, **args: str) -> tuple[Any, ...]:
    step = plan(f"FROM base AS src\nFROM base\nWORKDIR /w\n{body}\n", **args).target.steps[-1]
    assert isinstance(step, RunStep)
    return step.mounts


def cache(target: str, ident: str, **members: Any) -> PlannedCache:
    known: dict[str, Any] = {"sharing": Sharing.SHARED, "source": None, "path": ""}
    known |= {"readonly": False, "mode": None, "uid": None, "gid": None}
    return PlannedCache(target, ident, **known | members)


def test_a_cache_is_known_by_its_target_as_written_or_its_id() -> None:
    run = "RUN --mount=type=cache,target="
    assert mounts(f"{run}/root/.cache/ x") == (cache("/root/.cache", "//root/.cache"),)
    assert mounts(f"{run}here x") == (cache("/w/here", "/here"),)
    assert mounts(f"ARG i=../../a\n{run}/c,id=$i x") == (cache("/c", "/../../a"),)
    ns = mounts(f"{run}/c,id=a x", BUILDKIT_CACHE_MOUNT_NS="mine")
    assert ns == (cache("/c", "mine/a"),)


def test_a_cache_takes_all_that_is_said_of_it() -> None:
    options = "from=src,source=/a/../b,sharing=locked,mode=0700,uid=5,gid=6,ro"
    (made,) = mounts(f"RUN --mount=type=cache,target=/c,{options} x")
    assert made == cache(
        "/c",
        "//c",
        sharing=Sharing.LOCKED,
        source=StageSource(0),
        path="b",
        readonly=True,
        mode=0o700,
        uid=5,
        gid=6,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("id=a", PlannedSecret("a", "/run/secrets/a", None, False, 0o400, 0, 0)),
        ("id=a/b", PlannedSecret("a/b", "/run/secrets/b", None, False, 0o400, 0, 0)),
        ("target=/x/y", PlannedSecret("y", "/x/y", None, False, 0o400, 0, 0)),
        ("id=a,target=t", PlannedSecret("a", "/w/t", None, False, 0o400, 0, 0)),
        ("id=a,env=B", PlannedSecret("a", None, "B", False, 0o400, 0, 0)),
        ("id=a,env=", PlannedSecret("a", None, "a", False, 0o400, 0, 0)),
        ("id=a,env=B,target=/t", PlannedSecret("a", "/t", "B", False, 0o400, 0, 0)),
        (
            "src=a,required,mode=4640,uid=1,gid=2",
            PlannedSecret("a", "/run/secrets/a", None, True, 0o640, 1, 2),
        ),
    ],
)
def test_a_secret_is_found_by_its_id(options: str, expected: PlannedSecret) -> None:
    assert mounts(f"RUN --mount=type=secret,{options} x") == (expected,)


def test_agents_are_numbered_and_the_first_is_the_usual_one() -> None:
    text = "RUN --mount=type=ssh --mount=type=ssh,id=b,required,mode=0666,uid=1,gid=2 x"
    step = run(text)
    assert step.mounts == (
        PlannedSsh("default", "/run/buildkit/ssh_agent.0", False, 0o600, 0, 0),
        PlannedSsh("b", "/run/buildkit/ssh_agent.1", True, 0o666, 1, 2),
    )
    assert dict(step.env)["SSH_AUTH_SOCK"] == "/run/buildkit/ssh_agent.0"
    assert dict(run(f"ENV SSH_AUTH_SOCK=/mine\n{text}").env)["SSH_AUTH_SOCK"] == "/mine"
    assert "SSH_AUTH_SOCK" not in dict(run("RUN x").env)


@pytest.mark.parametrize(
    ("flag", "allowed", "entitlement"),
    [
        ("--network=host", "network.host", "network.host"),
        ("--security=insecure", "security.insecure", "security.insecure"),
        ("--device=vendor.com/gpu=0", "device", "device=vendor.com/gpu=0"),
        ("--device=vendor.com/gpu=0", "device=vendor.com/gpu=0", "device=vendor.com/gpu=0"),
    ],
)
def test_what_needs_an_entitlement_is_planned_with_it_alone(
    flag: str, allowed: str, entitlement: str
) -> None:
    other = {"network.host", "security.insecure", "device=other"} - {allowed}
    for body in (f"RUN {flag} x", f"USER me\nRUN {flag} x"):
        request = replace(REQUEST, run=RunDefaults(allowed=frozenset(other)))
        with pytest.raises(UsageError) as caught:
            plan(f"FROM base\n{body}\n", request)
        assert f"needs the entitlement {entitlement}," in caught.value.message
        assert caught.value.hint is not None
        assert f"--allow {entitlement}" in caught.value.hint
        assert caught.value.where is not None
        assert caught.value.where.start_line == 1 + len(body.splitlines())
    step = run(f"RUN {flag} x", replace(REQUEST, run=RunDefaults(allowed=frozenset({allowed}))))
    assert step.insecure is ("insecure" in flag)
    assert (step.network is Network.HOST) is ("network" in flag)


def test_a_device_that_is_required_is_refused_even_if_allowed() -> None:
    request = replace(REQUEST, run=RunDefaults(allowed=frozenset({"device"})))
    with pytest.raises(UnsupportedByBackend, match=r"vendor\.com/gpu") as caught:
        plan("FROM base\nRUN --device=vendor.com/gpu,required x\n", request)
    assert caught.value.where is not None
    # a stage that isn't needed may have it
    plan("FROM base AS unused\nRUN --device=vendor.com/gpu,required x\nFROM base\n", request)


@pytest.mark.parametrize(
    "mount",
    [
        "target=/",
        "target=..",
        "type=tmpfs,target=/a/..",
        "type=cache,target=/",
        "type=secret,id=a,target=/",
        "type=ssh,target=/",
    ],
)
def test_nothing_is_mounted_on_the_root(mount: str) -> None:
    assert "invalid mount target" in refused(f"RUN --mount={mount} x").message


# COPY and ADD


@pytest.mark.parametrize(
    ("body", "destination"),
    [
        ("COPY a /b", "/b"),
        ("COPY a /b/", "/b/"),
        ("COPY a /b/../c", "/b/../c"),
        ("COPY a b", "/b"),
        ("WORKDIR /w\nCOPY a b", "/w/b"),
        ("WORKDIR /w\nCOPY a b/", "/w/b/"),
        ("WORKDIR /w\nCOPY a .", "/w/"),
        ("WORKDIR /w\nCOPY a ./", "/w/"),
        ("WORKDIR /w\nCOPY a b/.", "/w/b/."),
        ("WORKDIR /w\nCOPY a ../b", "/b"),
        ("WORKDIR /w/\nCOPY a ${LANG}", "/w/C"),
        ("COPY a .", "/"),
    ],
)
def test_the_destination_is_joined_to_the_working_directory(body: str, destination: str) -> None:
    assert copy(body).destination == destination


def test_the_words_and_owner_of_a_copy_are_expanded() -> None:
    step = copy(
        "ENV u=me m=755 s='a b'\nCOPY --chown=$u:us --chmod=$m --link --parents "
        "--exclude=*.x $s c$LANG /d/"
    )
    assert step.patterns == ("a b", "cC")
    assert (step.chown, step.chmod, step.exclude) == ("me:us", "755", ("*.x",))
    assert (step.link, step.parents, step.unpack, step.instruction) == (True, True, False, "COPY")


def test_history_of_a_copy() -> None:
    body = "COPY --from=base --parents --chown=1 --chmod=u+x --link a $LANG b/\nADD x .\n"
    stage = target(body)
    assert history(stage) == [
        "COPY --parents --chown=1 --chmod=u+x a C b/ # buildkit",
        "ADD x . # buildkit",
    ]


def test_heredocs_of_a_copy_are_expanded_unless_quoted() -> None:
    step = copy("COPY <<a <<-'b' c /d/\n\"$LANG\" \\$x 'y'\na\n\t$LANG\nb")
    assert step.files == (
        InlineFile("a", b"\"C\" $x 'y'\n"),
        InlineFile("b", b"$LANG\n"),
    )
    assert step.patterns == ("c",)
    assert history(target("COPY <<a c /d/\n1\na"))[-1] == "COPY c <<a /d/ # buildkit"


def test_add_unpacks_unless_told_otherwise() -> None:
    assert copy("ADD a /").unpack
    assert copy("ADD --unpack a /").unpack
    assert not copy("ADD --unpack=false a /").unpack
    assert copy("ADD a /").instruction == "ADD"


@pytest.mark.parametrize("mode", ["0", "755", "00007777", "u=rwX,go=rX", "+t", "a-w+x"])
def test_modes_are_octal_or_symbolic(mode: str) -> None:
    assert copy(f"COPY --chmod={mode} a /").chmod == mode


@pytest.mark.parametrize("mode", ["10000", "8", "rwx", "u+q", "-1", "64a", "u=x,"])
def test_a_wrong_mode_is_refused(mode: str) -> None:
    assert "invalid chmod parameter" in refused(f"COPY --chmod={mode} a /").message


@pytest.mark.parametrize(
    "source",
    [
        "http://example.org/x",
        "https://example.org/x.git",
        "https://example.org/x.git#main:sub",
        "git://example.org/x",
        "ssh://example.org/x",
        "git@example.org:x/y",
    ],
)
def test_add_takes_sources_on_the_network_and_copy_does_not(source: str) -> None:
    step = copy(f"ADD {source} /d/")
    assert step.patterns == ()
    assert [str(remote.location) for remote in step.remotes] == [source]
    assert "for COPY" in refused(f"COPY {source} /").message


def test_the_order_of_local_and_remote_sources_is_kept() -> None:
    step = copy("ADD --unpack a http://h.example/x b git@h.example:y c /d/")
    assert step.patterns == ("a", "b", "c")
    assert [(r.position, r.unpack) for r in step.remotes] == [(1, True), (2, True)]
    assert (
        history(target("ADD a http://h.example/x /d/"))[-1]
        == "ADD a http://h.example/x /d/ # buildkit"
    )


def test_a_login_in_an_url_is_seen_by_the_fetching_alone() -> None:
    body = "ARG T=canary\nADD https://me:$T@h.example/x https://canary@h.example/r.git /d/\n"
    stage = target(body)
    step = stage.steps[0]
    assert isinstance(step, CopyStep)
    first, second = (remote.location for remote in step.remotes)
    assert (first.login, second.login) == ("me:canary", "canary:")
    shown = [step.title, repr(step), *history(stage)[1:], describe_plan(plan(f"FROM base\n{body}"))]
    assert not any("canary" in text for text in shown)
    other = target(body.replace("canary", "another"))
    assert [s.key for s in other.steps] == [s.key for s in stage.steps]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("ADD --checksum=sha256:1 http://h.example/x /", "invalid checksum"),
        ("ADD --checksum=xyz https://h.example/x.git /", "invalid checksum"),
        (f"ADD --checksum={'a' * 40} https://h.example/x.git?checksum={'b' * 40} /", "mismatch"),
        ("ADD --keep-git-dir=false https://h.example/x.git?keep-git-dir=true /", "inconsistent"),
        ("ADD https://h.example/x.git#--upload-pack=x /", "no name of a branch"),
        ("ADD http:///x /", "invalid URL"),
    ],
)
def test_a_remote_source_that_cannot_be_is_refused(body: str, words: str) -> None:
    error = refused(body)
    assert isinstance(error, DockerfileError)
    assert words in error.message


@pytest.mark.parametrize(
    "source", ["github.com/a/b.git", "./git@a:b", "../a", "ftp://a/b", "HTTP://a/b", "a@b", "x.git"]
)
def test_what_looks_like_a_remote_source_may_be_a_file(source: str) -> None:
    assert copy(f"ADD {source} /").patterns == (source,)
    assert copy(f"COPY {source} /").patterns == (source,)


def test_a_checksum_is_for_one_remote_source() -> None:
    assert "HTTP(S) or Git" in refused("ADD --checksum=sha256:1 a /").message
    digest = f"sha256:{'1' * 64}"
    assert "multiple sources" in refused(f"ADD --checksum={digest} http://a/b c /").message
    assert str(copy(f"ADD --checksum={digest} http://a/b /").remotes[0].location) == "http://a/b"


def test_needs_names_each_capability_with_its_places() -> None:
    text = (
        "FROM base AS a\nRUN --network=none --mount=target=/x x\n"
        "FROM base\nRUN --network=host --mount=type=tmpfs,target=/t x\n"
        "RUN <<E\n#!/x\nE\nCOPY --from=a / /\nWORKDIR /w\n"
        "RUN --network=none --security=insecure --mount=type=cache,target=/c "
        "--mount=type=secret,id=s --mount=type=ssh x\n"
    )
    allowed = frozenset({"security.insecure"})
    request = replace(REQUEST, run=RunDefaults(network=Network.HOST, allowed=allowed))
    found = [(need.capability, need.where.start_line) for need in needs(plan(text, request))]
    assert found == [
        (Capability.RUN, 2),
        (Capability.NETWORK_NONE, 2),
        (Capability.BIND_MOUNT, 2),
        (Capability.RUN, 4),
        (Capability.NETWORK_HOST, 4),
        (Capability.TMPFS_MOUNT, 4),
        (Capability.RUN, 5),
        (Capability.NETWORK_HOST, 5),
        (Capability.BIND_MOUNT, 5),
        (Capability.RUN, 10),
        (Capability.NETWORK_NONE, 10),
        (Capability.INSECURE, 10),
        (Capability.CACHE_MOUNT, 10),
        (Capability.SECRET_MOUNT, 10),
        (Capability.SSH_MOUNT, 10),
    ]
    grouped = replace(REQUEST, run=RunDefaults(cgroup_parent="/g"))
    assert needs(plan("FROM base\nRUN x\n", grouped))[1].capability is Capability.CGROUP_PARENT
    assert needs(plan("FROM base\nCOPY a /\n")) == ()


# Limits


@pytest.mark.parametrize(
    "body",
    [
        "EXPOSE 0-65535\n" * 50,
        "ENV v0=1\n" + "".join(f"ENV v{i}=1\nRUN x\n" for i in range(5_000)),
        "".join(f"ARG v{i}={'x' * 900}\nRUN x\n" for i in range(700)),
        "".join(f"FROM base AS s{i}\n" if i == 0 else "" for i in range(2))
        + "".join(f"LABEL l{i}=1\nFROM s{i} AS s{i + 1}\n" for i in range(4000)),
    ],
    ids=["ports", "variables", "args", "labels"],
)
def test_a_plan_does_not_grow_beyond_all_bounds(body: str) -> None:
    assert "beyond all bounds" in refused(body).message


def test_growth_by_repetition_is_refused() -> None:
    body = "ENV a=xxxxxxxxxxxxxxxx\n" + "ENV a=$a$a$a$a$a$a$a$a\n" * 30
    assert isinstance(refused(body), ExpansionError)


# Formats


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1500, "1.5µs"),
        (100_000_000, "100ms"),
        (1_000_000_000, "1s"),
        (90_500_000_000, "1m30.5s"),
        (3_600_000_000_000, "1h0m0s"),
        (-61_000_000_000, "-1m1s"),
    ],
)
def test_durations_are_written_as_go_does(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


def test_words_are_quoted_as_go_does() -> None:
    assert quoted(['a"b\\', "\t\x00\x7fé", "\u2028\U000e0001\udcff"]) == (
        r'["a\"b\\" "\t\x00\x7fé" "\u2028\U000e0001\xff"]'
    )
