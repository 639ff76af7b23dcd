from __future__ import annotations

import time
from typing import Any

import pytest

from pybuild.dockerfile import instructions as i
from pybuild.dockerfile.instructions import Command, Dockerfile, Instruction, Pair
from pybuild.dockerfile.parse import MAX_STAGES, parse, parse_trigger
from pybuild.errors import DockerfileError, SourceRange, UnknownInstruction
from quickness import seconds


def dockerfile(text: str) -> Dockerfile:
    return parse(text.encode("utf-8", "surrogateescape"))


def only(line: str, escape: str = "\\") -> Any:
    """The instruction in a stage that has no other."""
    _, instruction = dockerfile(f"# escape={escape}\nFROM scratch\n{line}\n").instructions
    return instruction


def fault(line: str) -> DockerfileError:
    """The error in line 2, behind FROM."""
    with pytest.raises(DockerfileError) as caught:
        dockerfile(f"FROM scratch\n{line}\n")
    error = caught.value
    assert error.where is not None
    assert error.where.start_line == 2
    assert "\n" not in error.message
    assert not error.message.endswith(".")
    return error


def marked(line: str) -> str:
    """What an error in `line` points at."""
    where = fault(line).where
    assert where is not None
    assert where.start_line == where.end_line
    assert where.start_column is not None
    assert where.end_column is not None
    return line[where.start_column - 1 : where.end_column - 1]


@pytest.mark.parametrize(
    ("line", "image", "platform", "stage"),
    [
        ("FROM a", "a", None, None),
        ("from a:1@sha256:b AS Web-1", "a:1@sha256:b", None, "web-1"),
        ("FROM --platform=$BUILDPLATFORM ${x:-a} aS b", "${x:-a}", "$BUILDPLATFORM", "b"),
        ("FROM --platform= a", "a", None, None),
        ("FROM -- a", "a", None, None),
    ],
)
def test_from_names_an_image(
    line: str, image: str, platform: str | None, stage: str | None
) -> None:
    (found,) = dockerfile(line).instructions
    assert isinstance(found, i.From)
    assert (found.image, found.platform, found.stage) == (image, platform, stage)


def test_args_before_from_are_global() -> None:
    parsed = dockerfile("ARG a b=1\nARG c='2 3'\nFROM x\nARG d")
    assert [arg.args for arg in parsed.global_args] == [
        (Pair("a", None), Pair("b", "1")),
        (Pair("c", "'2 3'"),),
    ]
    assert [type(found) for found in parsed.instructions] == [i.From, i.Arg]


@pytest.mark.parametrize(
    ("line", "pairs", "legacy"),
    [
        ("a=b", [("a", "b")], False),
        (
            "a=b c='d e' f=\"g h\" i=",
            [("a", "b"), ("c", "'d e'"), ("f", '"g h"'), ("i", "")],
            False,
        ),
        ("a=b\\ c d==e", [("a", "b\\ c"), ("d", "=e")], False),
        ("a b=c  d", [("a", "b=c  d")], True),
        ("a\t $b", [("a", "$b")], True),
        ("a='b' \\\n c=d", [("a", "'b'"), ("c", "d")], False),
    ],
)
@pytest.mark.parametrize(("keyword", "kind"), [("ENV", i.Env), ("LABEL", i.Label)])
def test_env_and_label_have_pairs(
    keyword: str, kind: type[Any], line: str, pairs: list[tuple[str, str]], legacy: bool
) -> None:
    found = only(f"{keyword} {line}")
    assert type(found) is kind
    assert [(pair.name, pair.value) for pair in found.pairs] == pairs
    assert found.legacy is legacy


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("echo  'a' && b", Command(("echo  'a' && b",), True)),
        ('["a", "b\\n"]', Command(("a", "b\n"), False)),
        (' [ "a" ] ', Command(("a",), False)),
        ("['a']", Command(("['a']",), True)),
        ('["a"', Command(('["a"',), True)),
        ('["a"] x', Command(('["a"] x',), True)),
        ('["\\ud800"]', Command(("\ufffd",), False)),
        ("[" * 1000, Command(("[" * 1000,), True)),
        ("[NaN]", Command(("[NaN]",), True)),
    ],
)
def test_commands_are_json_or_shell(text: str, command: Command) -> None:
    for keyword in ("RUN", "CMD", "ENTRYPOINT"):
        assert only(f"{keyword} {text}").command == command
    assert only(f"HEALTHCHECK CMD {text}").command == command


def test_cmd_and_entrypoint_may_be_empty() -> None:
    assert only("CMD []").command == Command((), False)
    assert only("ENTRYPOINT").command == Command((), True)


def test_run_has_flags() -> None:
    run = only(
        "RUN --mount=type=cache,target=/a --network=none --mount='type=tmpfs,\"target=/a,b\"' \\\n"
        " --security=insecure --device=a,required x --y"
    )
    assert run.mounts == ("type=cache,target=/a", 'type=tmpfs,"target=/a,b"')
    assert (run.network, run.security, run.devices) == ("none", "insecure", ("a,required",))
    assert run.command.args == ("x --y",)


def test_a_run_has_heredocs() -> None:
    run = only("RUN <<-A cat <<'B'\n\tx\nA\ny\nB")
    assert run.command == Command(("<<-A cat <<'B'",), True)
    assert [(h.content, h.expand, h.chomp) for h in run.heredocs] == [
        ("\tx\n", True, True),
        ("y\n", False, False),
    ]


def test_copy_has_sources_and_flags() -> None:
    copy = only(
        "COPY --from=x --chown=1:2 --chmod=u+x --link --parents=False --exclude=a --exclude=b"
        " c 'd e' f"
    )
    assert (copy.sources, copy.destination) == (("c", "'d", "e'"), "f")
    assert (copy.from_, copy.chown, copy.chmod) == ("x", "1:2", "u+x")
    assert (copy.link, copy.parents, copy.exclude) == (True, False, ("a", "b"))
    assert only('COPY ["a b", "c"]').sources == ("a b",)


@pytest.mark.parametrize(
    ("line", "sources", "names"),
    [
        ("COPY a <<B c <<'D' /x\nB\nD", ("a", "c"), ["B", "D"]),
        ("ADD << B /x\nB", (), ["B"]),
        ("COPY 3<<B <<B /x\n1\nB\n2\nB", (), ["B", "B"]),
        ('COPY ["<<B", "/x"]', ("<<B",), []),
    ],
)
def test_heredocs_are_sources(line: str, sources: tuple[str, ...], names: list[str]) -> None:
    copy = only(line)
    assert copy.sources == sources
    assert [heredoc.name for heredoc in copy.heredocs] == names


def test_add_tells_flags_that_are_off_from_those_not_given() -> None:
    add = only("ADD --keep-git-dir=false --checksum=sha256:a http://x/y /")
    assert (add.keep_git_dir, add.unpack, add.checksum) == (False, None, "sha256:a")
    assert only("ADD --unpack x /").unpack is True


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("HEALTHCHECK none", (None, 0, 0, 0, 0, 0)),
        (
            'HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=1h --retries=3 cmd ["a"]',
            (("a",), 90_000_000_000, 1_500_000_000, 3_600_000_000_000, 0, 3),
        ),
        ("HEALTHCHECK --interval=0 --timeout=0s --retries=0 CMD a b", (("a b",), 0, 0, 0, 0, 0)),
        ("HEALTHCHECK --start-interval=5ms CMD a", (("a",), 0, 0, 0, 5_000_000, 0)),
        (
            "HEALTHCHECK --interval=.5s --timeout=1000us CMD a",
            (("a",), 500_000_000, 10**6, 0, 0, 0),
        ),
    ],
)
def test_a_healthcheck_has_durations(line: str, expected: tuple[Any, ...]) -> None:
    h = only(line)
    args = h.command.args if h.command else None
    found = (args, h.interval, h.timeout, h.start_period, h.start_interval, h.retries)
    assert found == expected


def test_the_other_instructions_keep_their_words() -> None:
    assert only("EXPOSE 80 443/tcp $x").ports == ("80", "443/tcp", "$x")
    assert only('VOLUME ["/a b", " /c "]').paths == ("/a b", "/c")
    assert only("VOLUME /a /b").paths == ("/a", "/b")
    assert only('SHELL ["/bin/sh", "-c"]').args == ("/bin/sh", "-c")
    assert only("STOPSIGNAL SIGTERM").signal == "SIGTERM"
    assert only("USER a b").user == "a b"
    assert only("WORKDIR /a b/").path == "/a b/"
    assert only("MAINTAINER A <b>").name == "A <b>"


@pytest.mark.parametrize(
    ("line", "trigger"),
    [
        ("ONBUILD RUN a \\\n b", "RUN a  b"),
        ("onbuild   copy --from=x a /", "copy --from=x a /"),
        ("ONBUILD RUN <<-E\n\tx\nE", "RUN <<-E\n\tx\nE"),
        ("ONBUILD NOTYET x", "NOTYET x"),
    ],
)
def test_onbuild_keeps_its_trigger_as_text(line: str, trigger: str) -> None:
    assert only(line).trigger == trigger


@pytest.mark.parametrize("flag", ["--chown=1:2", '--"chown"=1:2', "--ch\\own='1':2"])
def test_flags_lose_quotes_and_escapes(flag: str) -> None:
    assert only(f"COPY {flag} a b").chown == "1:2"


def test_the_escape_of_flags_may_be_a_backtick() -> None:
    assert only("COPY --chown=a` b c:\\ d", "`").chown == "a b"


def test_two_dashes_end_the_flags() -> None:
    copy = only("COPY --chown=x -- --from=a b")
    assert (copy.from_, copy.sources) == (None, ("--from=a",))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("FORM x", "FORM"),
        ("FROM a BS b", "BS"),
        ("FROM a AS 1b", "1b"),
        ("FROM a AS b/c", "b/c"),
        ("FROM --plattform=x a", "--plattform"),
        ("COPY --form=build /a /b", "--form"),
        ("COPY --from=$x /a /b", "$x"),
        ("COPY --link=maybe a b", "--link=maybe"),
        ("COPY --link= a b", "--link="),
        ("COPY --from a b", "--from"),
        ("COPY --chown=a --chown=b c d", "--chown=b"),
        ("COPY a <<b", "<<b"),
        ("RUN --network=bridge x", "bridge"),
        ("RUN --network= x", "--network="),
        ("RUN --security=none x", "none"),
        ("RUN --mount=type=cash,target=/a x", "type=cash"),
        ("RUN --mount=target=/a,form=x y", "form=x"),
        ("RUN --device=a,b=c x", "b=c"),
        ("RUN ['a', --x", None),
        ('RUN ["a", 1]', '["a", 1]'),
        ('COPY --link ["a", {}]', '["a", {}]'),
        ("ENV a", "a"),
        ("ENV a=b c", "c"),
        ("ENV a=b =c", "=c"),
        ("ENV --a b=c", "--a"),
        ("LABEL a=b 'c'", "'c'"),
        ("ARG =a", "=a"),
        ("ARG --x y", "--x"),
        ("HEALTHCHECK CDM x", "CDM"),
        ("HEALTHCHECK CMD", "CMD"),
        ("HEALTHCHECK --interval=5 CMD x", "5"),
        ("HEALTHCHECK --interval=1ns CMD x", "1ns"),
        ("HEALTHCHECK --timeout=-1s CMD x", "-1s"),
        ("HEALTHCHECK --timeout=99999999999h CMD x", "99999999999h"),
        ("HEALTHCHECK --timeout=1sm CMD x", "1sm"),
        ("HEALTHCHECK --retries=-1 CMD x", "-1"),
        ("HEALTHCHECK --retries=2147483648 CMD x", "2147483648"),
        ("HEALTHCHECK --interval=1s --interval=1s CMD x", "--interval=1s"),
        ("ONBUILD FROM x", "FROM"),
        ("ONBUILD onbuild RUN x", "onbuild"),
        ("ONBUILD MAINTAINER x", "MAINTAINER"),
    ],
)
def test_an_error_points_at_the_word(line: str, part: str | None) -> None:
    if part is None:
        assert only(line).command.shell
    else:
        assert marked(line) == part


@pytest.mark.parametrize(
    "line",
    [
        "FROM",
        "FROM a b c d",
        "RUN",
        "RUN []",
        "RUN --network=none",
        "COPY",
        "COPY a",
        'COPY ["a"]',
        "COPY <<'a b' /x\na b",
        "ADD --link a",
        "ENV",
        "LABEL",
        "ARG",
        "EXPOSE",
        "VOLUME",
        "VOLUME []",
        'VOLUME [""]',
        "SHELL /bin/sh",
        "SHELL []",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "WORKDIR",
        "MAINTAINER",
        "ONBUILD",
        "HEALTHCHECK",
        "HEALTHCHECK NONE x",
        'ONBUILD CMD ["a", 1]',
        "\\",
    ],
)
def test_an_incomplete_instruction_is_refused(line: str) -> None:
    fault(line)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("FORM x", "did you mean FROM?"),
        ("copyy a b", "did you mean COPY?"),
        ("RUN\xa0x", "it has a no-break space in it; use plain spaces"),
        ("HEALTHCHECK CDM x", "did you mean CMD?"),
        ("USER --x y", "USER has no flags; put -- before an argument that begins with --"),
    ],
)
def test_a_hint_says_what_was_meant(line: str, hint: str) -> None:
    assert fault(line).hint == hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("COPY --form=x a b", "unknown flag --form; did you mean --from?"),
        ("RUN --mont=x y", "unknown flag --mont; did you mean --mount?"),
    ],
)
def test_an_unknown_flag_is_named_with_the_one_that_was_meant(line: str, message: str) -> None:
    assert fault(line).message == message


def test_nothing_is_suggested_for_a_word_like_no_other() -> None:
    error = fault("KUBERNETES x")
    assert isinstance(error, UnknownInstruction)
    assert error.hint is None


@pytest.mark.parametrize("text", ["RUN x\nFROM a", "ARG a", "ARG a\nENV b=c\nFROM d"])
def test_a_stage_begins_with_from(text: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        dockerfile(text)
    assert caught.value.where is not None
    assert "FROM" in caught.value.message


def test_each_instruction_keeps_its_place_text_and_comments() -> None:
    found = only("# why\nRUN \\\n x")
    assert found.where == SourceRange("Dockerfile", 4, 5)
    assert found.text == "RUN  x"
    assert found.comments == ("why",)


def test_bytes_that_are_not_utf_8_pass_through() -> None:
    parsed = parse(b'FROM a\nENV x=\xff\nRUN \xfe\nCMD ["\xfd"]')
    _, env, run, cmd = parsed.instructions
    assert isinstance(env, i.Env)
    assert env.pairs[0].value == "\udcff"
    assert isinstance(run, i.Run)
    assert run.command.args == ("\udcfe",)
    assert isinstance(cmd, i.Cmd)
    assert cmd.command.args == ("\ufffd",)


@pytest.mark.parametrize(
    "syntax",
    [
        "docker/dockerfile",
        "docker/dockerfile:1",
        "docker/dockerfile:1.7-labs",
        "docker.io/docker/dockerfile:1@sha256:aa",
        "docker/dockerfile-upstream:master",
        "mirror.example:5000/docker/dockerfile:1",
        "docker/dockerfile:1 anything else",
        "dockerfile.v0",
    ],
)
def test_the_official_frontend_is_built_in(syntax: str) -> None:
    dockerfile(f"# syntax={syntax}\nFROM base\n")


@pytest.mark.parametrize("syntax", ["me/frontend", "docker/dockerfilex", "docker/dockerfile/x"])
def test_another_frontend_is_refused_at_its_line(syntax: str) -> None:
    # what stands below it needn't be a Dockerfile
    for text, override, line in (
        (f"# escape=`\n# syntax={syntax}\nfs default() {{}}\n", None, 2),
        ("FROM base\n", syntax, 1),
        ("# syntax=docker/dockerfile:1\nFROM base\n", syntax, 1),
    ):
        with pytest.raises(DockerfileError, match="unknown syntax") as caught:
            parse(text.encode(), syntax=override)
        assert caught.value.where == SourceRange("Dockerfile", line, line)


def test_the_caller_may_replace_the_frontend() -> None:
    parse(b"# syntax=me/mine\nFROM base\n", syntax="docker/dockerfile:1")


def test_directives_are_handed_on_with_their_lines() -> None:
    parsed = dockerfile("# syntax=docker/dockerfile:1\n# check=skip=all\nFROM \\\n\n a")
    assert parsed.directives.syntax == "docker/dockerfile:1"
    assert parsed.directives.check == "skip=all"
    assert (parsed.directives.syntax_line, parsed.directives.check_line) == (1, 2)


def test_a_trigger_is_one_instruction() -> None:
    where = SourceRange("Dockerfile", 3, 3)
    run = parse_trigger("RUN --network=none a", where)
    assert isinstance(run, i.Run)
    assert (run.where, run.network) == (where, "none")
    assert isinstance(parse_trigger("COPY <<E /x\ny\nE", where), i.Copy)
    assert isinstance(parse_trigger("RUN `\n a", where, "`"), i.Run)


@pytest.mark.parametrize(
    "trigger",
    [
        "",
        "# x",
        "FROM a",
        "onbuild RUN x",
        "MAINTAINER x",
        "RUN a\nRUN b",
        "FOO",
        "COPY a",
        "RUN <<E",
    ],
)
def test_a_wrong_trigger_is_refused_where_the_image_is_named(trigger: str) -> None:
    where = SourceRange("Dockerfile", 3, 3)
    with pytest.raises(DockerfileError) as caught:
        parse_trigger(trigger, where)
    assert caught.value.where == where


def test_every_instruction_of_the_language_is_known() -> None:
    kinds = {kind.__name__.upper() for kind in Instruction.__args__}
    assert len(kinds) == 18
    for name in kinds:
        with pytest.raises(DockerfileError) as caught:
            dockerfile(f"FROM a\n{name} --no-such-flag\n")
        assert not isinstance(caught.value, UnknownInstruction)


def test_too_many_stages_are_refused() -> None:
    started = time.process_time()
    with pytest.raises(DockerfileError) as caught:
        parse(b"FROM scratch\n" * 100_000)
    assert str(MAX_STAGES) in caught.value.message
    assert time.process_time() - started < 10


def test_two_thousand_lines_take_less_than_50_milliseconds() -> None:
    block = (
        "# a comment\n"
        "RUN --mount=type=cache,target=/var/cache/apt apt-get update \\\n"
        "  && apt-get install -y --no-install-recommends ca-certificates \\\n"
        "  && rm -rf /var/lib/apt/lists/*\n"
        "COPY --from=build --chown=1000:1000 /out/bin /usr/local/bin\n"
        'ENV A=1 B="two words" C=${D:-x}\n'
        "\n"
        "WORKDIR /srv/app\n"
    )
    data = ("FROM scratch\n" + block * 250).encode()
    assert data.count(b"\n") > 2000
    assert seconds(lambda: parse(data), 10) < 0.050
