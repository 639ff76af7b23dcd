import re
from dataclasses import replace
from typing import Any

import pytest

from pybuild.backend import BaseImage, HostEntry, Network, Sharing, Ulimit
from pybuild.dockerfile.parse import parse
from pybuild.errors import SourceRange
from pybuild.oci.image_config import Healthcheck, ImageConfig
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.plan import PlanRequest, make_plan
from pybuild.plan.cachekey import (
    base_key,
    chained_key,
    copy_key,
    files_digest,
    mount_key,
    step_key,
)
from pybuild.plan.steps import (
    ContextSource,
    CopyStep,
    ImageSource,
    InlineFile,
    PlannedBind,
    PlannedCache,
    PlannedRemote,
    PlannedScript,
    PlannedSecret,
    PlannedSsh,
    PlannedTmpfs,
    RunStep,
    StageSource,
    Step,
    WorkdirStep,
)
from pybuild.remotes.locations import GitLocation, Location, WebLocation

AMD64 = Platform("linux", "amd64")
HERE = SourceRange("Dockerfile", 1, 1)
IMAGE = BaseImage(
    Reference("docker.io", "library/a", "1"), "sha256:" + "1" * 64, ImageConfig(AMD64), ()
)
DIGEST = "sha256:" + "a" * 64

RUN = RunStep(where=HERE, title="RUN x", key="", args=("x",), env=(("a", "1"),), cwd="/", user="")
COPY = CopyStep(
    where=HERE,
    title="COPY a /",
    key="",
    source=ContextSource(),
    patterns=("a",),
    files=(),
    destination="/",
)
CACHE = PlannedCache("/t", "i", Sharing.SHARED, None, "", False, None, None, None)
SECRET = PlannedSecret("i", "/t", None, False, 0o400, 0, 0)
SSH = PlannedSsh("i", "/t", False, 0o600, 0, 0)
WORKDIR = WorkdirStep(where=HERE, title="WORKDIR /w", key="", path="/w", user="")


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (
            RUN,
            {
                "args": ("x", ""),
                "env": (("a", "2"),),
                "cwd": "/a",
                "user": "me",
                "mounts": (PlannedTmpfs("/t", None),),
                "network": Network.NONE,
                "hostname": "h",
                "extra_hosts": (HostEntry("h", "1.1.1.1"),),
                "shm_size": 1,
                "ulimits": (Ulimit("core", 0, 0),),
                "insecure": True,
                "cgroup_parent": "/g",
            },
        ),
        (
            COPY,
            {
                "source": ContextSource("c"),
                "patterns": ("a", "b"),
                "files": (InlineFile("a", b""),),
                "destination": "/b",
                "chown": "1",
                "chmod": "1",
                "exclude": ("x",),
                "parents": True,
                "link": True,
                "unpack": True,
                "remotes": (PlannedRemote(WebLocation("http://h.example/x"), 0, unpack=False),),
                "instruction": "ADD",
            },
        ),
        (WORKDIR, {"path": "/v", "user": "me"}),
    ],
)
def test_every_member_of_a_step_but_place_title_and_key_counts(
    step: Step, changes: dict[str, Any]
) -> None:
    members = {name for kind in type(step).__mro__ for name in getattr(kind, "__slots__", ())}
    # what is fetched counts by the files that come, and through which proxy doesn't count
    assert members - set(changes) - {"remotes", "proxies"} == {"where", "title", "key"}
    keys = {step_key("p", step), step_key("q", step)}
    keys |= {step_key("p", replace(step, **{name: value})) for name, value in changes.items()}
    assert len(keys) == 2 + len(changes)
    ignored = replace(step, where=SourceRange("F", 9, 9), title="t", key="k")
    if isinstance(ignored, RunStep):
        ignored = replace(ignored, proxies=(("http_proxy", "http://p"),))
    assert step_key("p", ignored) == step_key("p", step)


def test_all_that_says_what_a_remote_source_holds_counts_and_no_login() -> None:
    web, git = WebLocation("http://h.example/x"), GitLocation("http://h.example/x")
    different: list[Location] = [
        web,
        replace(web, url="http://h.example/y"),
        replace(web, checksum="sha256:1"),
        git,
        replace(git, remote="http://h.example/y"),
        replace(git, ref="a"),
        replace(git, subdir="a"),
        replace(git, checksum="a"),
        replace(git, keep_git_dir=True),
        replace(git, submodules=False),
        replace(git, commit_times=True),
    ]
    planned = [(PlannedRemote(one, 0, unpack=False),) for one in different]
    planned += [(PlannedRemote(web, 1, unpack=False),), (PlannedRemote(web, 0, unpack=True),)]
    assert len({step_key("p", replace(COPY, remotes=one)) for one in planned}) == len(planned)
    for one in (web, git):
        with_login = (PlannedRemote(replace(one, login="me:x"), 0, unpack=False),)
        without = (PlannedRemote(one, 0, unpack=False),)
        keys = {step_key("p", replace(COPY, remotes=one)) for one in (with_login, without)}
        assert len(keys) == 1


def test_strings_are_never_joined() -> None:
    keys = [
        step_key("p", replace(RUN, args=args, env=env))
        for args, env in (
            (("ab", "c"), ()),
            (("a", "bc"), ()),
            (("a b c",), ()),
            (("a",), (("b", "c"),)),
            (("a",), (("b=c", ""),)),
            (("a",), (("b", "=c"),)),
        )
    ]
    assert len(set(keys)) == len(keys)


def test_what_a_mount_shows_counts() -> None:
    bind = PlannedBind("/t", ContextSource(), "a", readonly=True)
    mounts = [
        bind,
        replace(bind, target="/u"),
        replace(bind, path="b"),
        replace(bind, readonly=False),
        replace(bind, source=ContextSource("c")),
        replace(bind, source=StageSource(0)),
        replace(bind, source=ImageSource(None)),
        replace(bind, source=ImageSource(IMAGE)),
        PlannedTmpfs("/t", None),
        PlannedTmpfs("/t", 1),
        PlannedScript("/t", b"a"),
        PlannedScript("/t", b"\xff"),
        CACHE,
        replace(CACHE, target="/u"),
        replace(CACHE, ident="j"),
        replace(CACHE, source=StageSource(0)),
        replace(CACHE, path="p"),
        replace(CACHE, readonly=True),
        replace(CACHE, mode=0o700),
        replace(CACHE, uid=0),
        replace(CACHE, gid=0),
        SECRET,
        replace(SECRET, id="j"),
        replace(SECRET, target=None),
        replace(SECRET, env="E"),
        replace(SECRET, mode=0o600),
        replace(SECRET, uid=1),
        replace(SECRET, gid=1),
        SSH,
        replace(SSH, id="j"),
        replace(SSH, target="/u"),
        replace(SSH, mode=0o666),
        replace(SSH, uid=1),
        replace(SSH, gid=1),
    ]
    assert len({step_key("p", replace(RUN, mounts=(m,))) for m in mounts}) == len(mounts)


def test_how_a_cache_is_shared_and_whether_a_secret_must_be_there_does_not_count() -> None:
    for mount, other in (
        (CACHE, replace(CACHE, sharing=Sharing.LOCKED)),
        (SECRET, replace(SECRET, required=True)),
        (SSH, replace(SSH, required=True)),
    ):
        keys = {step_key("p", replace(RUN, mounts=(each,))) for each in (mount, other)}
        assert len(keys) == 1


def test_which_stage_files_come_from_does_not_count_but_the_image_does() -> None:
    key = step_key("p", replace(COPY, source=StageSource(0)))
    assert key == step_key("p", replace(COPY, source=StageSource(1)))
    other = replace(IMAGE, digest="sha256:" + "2" * 64)
    keys = {step_key("p", replace(COPY, source=ImageSource(i))) for i in (None, IMAGE, other)}
    assert len(keys | {key}) == 4


def test_a_base_counts_by_digest_platform_and_config() -> None:
    config = IMAGE.config
    images = [
        IMAGE,
        replace(IMAGE, digest="sha256:" + "2" * 64),
        replace(IMAGE, config=replace(config, healthcheck=Healthcheck(("NONE",)))),
        replace(IMAGE, config=replace(config, onbuild=("RUN x",))),
        replace(IMAGE, config=replace(config, diff_ids=(DIGEST,))),
    ]
    keys = {base_key(image, AMD64) for image in images}
    keys |= {base_key(None, AMD64), base_key(IMAGE, Platform("linux", "arm64"))}
    keys.add(base_key(IMAGE, replace(AMD64, os_version="1")))
    assert len(keys) == len(images) + 3
    renamed = replace(IMAGE, reference=Reference("other", "name"))
    assert base_key(renamed, AMD64) == base_key(IMAGE, AMD64)


FILE = Entry(b"a", Kind.FILE, size=1, digest=DIGEST)


@pytest.mark.parametrize(
    "change",
    [
        {"path": b"b"},
        {"path": b"\xff"},
        {"kind": Kind.SYMLINK},
        {"mode": 0o755},
        {"uid": 1},
        {"gid": 1},
        {"link": b"b"},
        {"device": (1, 2)},
        {"xattrs": (("user.a", b"\xff"),)},
        {"digest": "sha256:" + "b" * 64},
    ],
)
def test_what_a_file_is_counts(change: dict[str, Any]) -> None:
    assert files_digest([replace(FILE, **change)]) != files_digest([FILE])


def test_times_and_order_of_files_do_not_count() -> None:
    other = replace(FILE, path=b"b")
    assert files_digest([FILE, other]) == files_digest([other, replace(FILE, mtime=9)])


def test_a_file_without_a_digest_cannot_be_in_a_key() -> None:
    with pytest.raises(ValueError, match="not known"):
        files_digest([replace(FILE, digest=None)])
    files_digest([replace(FILE, digest=None, link=b"x")])
    files_digest([Entry(b"d", Kind.DIRECTORY)])


def test_the_run_extends_a_plan_key_by_files_and_by_what_is_below() -> None:
    other = replace(FILE, path=b"b")
    keys = [
        copy_key("k", []),
        copy_key("k", [FILE]),
        copy_key("k", [FILE, other]),
        copy_key("l", [FILE]),
        copy_key("k", [FILE], parent="p"),
        mount_key("k", {}),
        mount_key("k", {"/t": [FILE]}),
        mount_key("k", {"/u": [FILE]}),
        mount_key("k", {"/t": [FILE], "/u": []}),
        mount_key("k", {"/t": [FILE]}, parent="p"),
        chained_key("k", "p"),
        chained_key("p", "k"),
    ]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)


def keys_of(text: str, **build_args: str) -> list[str]:
    def resolve(reference: Reference, platform: Platform, where: SourceRange) -> BaseImage:
        return replace(IMAGE, reference=reference)

    request = PlanRequest(AMD64, AMD64, build_args=build_args)
    plan = make_plan(parse(f"FROM a\n{text}".encode()), request, resolve)
    return [step.key for stage in plan.stages for step in stage.steps]


def test_metadata_changes_the_keys_of_the_steps_that_see_it_alone() -> None:
    body = "COPY a /\nWORKDIR /w\nLABEL x=1\nCMD x\nRUN y\n"
    plain = keys_of(body)
    assert keys_of(body.replace("x=1", "x=2").replace("CMD x", "CMD z")) == plain
    with_env = keys_of("ENV v=1\n" + body)
    assert with_env[:2] == plain[:2]
    assert with_env[2] != plain[2]


def test_a_variable_counts_by_the_value_that_is_used() -> None:
    body = "ARG v=1\nCOPY $v /\n"
    assert keys_of(body) == keys_of("COPY 1 /\n") == keys_of("ARG w\nARG v\nCOPY $v /", v="1", w="")
    assert keys_of(body, v="2") != keys_of(body)


def test_a_step_counts_for_all_steps_after_it() -> None:
    first = keys_of("RUN a\nRUN b\nCOPY c /\n")
    second = keys_of("RUN z\nRUN b\nCOPY c /\n")
    assert not set(first) & set(second)
    assert len(set(first)) == 3


def test_a_stage_on_a_stage_goes_on_from_its_key() -> None:
    assert keys_of("RUN a\nRUN b\n") == keys_of("RUN a\nFROM x AS never\nFROM a\nRUN a\nRUN b\n")
    chained = "RUN a\nRUN b\n"
    text = f"FROM a AS one\n{chained.splitlines()[0]}\nFROM one\n{chained.splitlines()[1]}\n"
    assert keys_of("RUN q\n" + text)[-2:] == keys_of(chained)


def test_comments_and_spelling_do_not_count() -> None:
    assert keys_of("# x\ncopy a \\\n  b /\n") == keys_of("COPY a b /\n")
