from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pybuild.backend import BaseImage
from pybuild.dockerfile import rules
from pybuild.dockerfile.lint import (
    MAX_WARNINGS,
    Lint,
    LintOptions,
    LintWarning,
    parse_lint_options,
)
from pybuild.dockerfile.parse import parse
from pybuild.errors import DockerfileError, PybuildError, SourceRange, UsageError
from pybuild.files.ignore import IgnoreMatcher
from pybuild.oci.image_config import ImageConfig
from pybuild.oci.platform import Platform
from pybuild.oci.reference import Reference
from pybuild.plan import PlanRequest, make_plan

AMD64 = Platform("linux", "amd64")
BASE = ImageConfig(AMD64, env=(("PATH", "/bin"), ("JAVA_HOME", "/java")))
EXPERIMENTAL = "# check=experimental=all\n"


def warnings(
    text: str,
    *,
    base: ImageConfig = BASE,
    digest: str = "sha256:" + "0" * 64,
    excluded: Callable[[str], bool] | None = None,
    override: str | None = None,
    all_stages: bool = False,
    **args: str,
) -> tuple[LintWarning, ...]:
    def resolve(reference: Reference, platform: Platform, where: SourceRange) -> BaseImage:
        return BaseImage(reference, digest, base, ())

    lint = Lint(override, excluded)
    request = PlanRequest(AMD64, AMD64, build_args=args)
    make_plan(parse(text.encode(), lint=lint), request, resolve, lint=lint, all_stages=all_stages)
    return lint.warnings


def found(text: str, **options: Any) -> list[str]:
    return [f"{w.rule}:{w.where.start_line}" for w in warnings(text, **options)]


def message(text: str, **options: Any) -> str:
    (warning,) = warnings(text, **options)
    return warning.message


RULES = [rule for rule in vars(rules).values() if isinstance(rule, rules.Rule)]

# For each rule: what breaks it, at which line, and what doesn't.
EXAMPLES = {
    "ConsistentInstructionCasing": ("FROM a\nrun x\nUSER u\n", 2, "from a\nrun x\nuser u\n"),
    "CopyIgnoredFile": ("FROM a\nCOPY ./gone/x /\n", 2, "FROM a\nCOPY kept http /\n"),
    "DuplicateStageName": (
        "FROM a AS x\nFROM a AS y\nFROM a AS x\n",
        3,
        "FROM a AS x\nFROM a AS y\n",
    ),
    "ExposeInvalidFormat": ("FROM a\nEXPOSE 1:80\n", 2, "FROM a\nEXPOSE 80-82/udp\n"),
    "ExposeProtoCasing": ("FROM a\nENV p=UDP\nEXPOSE 80/$p\n", 3, "FROM a\nEXPOSE 80/udp\n"),
    "FromAsCasing": ("FROM a as b\n", 1, "from a as b\n"),
    "FromPlatformFlagConstDisallowed": (
        "FROM --platform=linux/amd64 a AS b\n",
        1,
        "FROM --platform=linux/amd64 a AS b-amd64\nFROM --platform=$BUILDPLATFORM a\n",
    ),
    "InvalidBaseImagePlatform": (
        "ARG p=linux/arm64\nFROM --platform=$p a\n",
        2,
        "ARG p=linux/amd64/v2\nFROM --platform=$p a\n",
    ),
    "InvalidDefaultArgInFrom": ("ARG given\nFROM a:$given\n", 2, "ARG v=1\nFROM a:$v\n"),
    "InvalidDefinitionDescription": (
        f"{EXPERIMENTAL}# what it is\nFROM a AS b\n",
        3,
        f"{EXPERIMENTAL}# b is this\nFROM a AS b\n# a comment\n#\nARG x\n# y is that\nARG z y\n",
    ),
    "JSONArgsRecommended": ("FROM a\nCMD x\n", 2, 'FROM a\nCMD ["x"]\n'),
    "LegacyKeyValueFormat": ("FROM a\nLABEL a b\n", 2, "FROM a\nLABEL a=b\nENV a=b\n"),
    "MaintainerDeprecated": ("FROM a\nMAINTAINER me\n", 2, "FROM a\nLABEL me=1\n"),
    "MultipleInstructionsDisallowed": (
        "FROM a\nHEALTHCHECK NONE\nUSER u\nHEALTHCHECK NONE\n",
        2,
        'FROM a\nHEALTHCHECK NONE\nCMD ["x"]\nENTRYPOINT ["x"]\n',
    ),
    "NoEmptyContinuation": ("FROM a\nRUN x \\\n\n  y\n", 4, "FROM a\nRUN x \\\n  # c\n  y\n"),
    "RedundantTargetPlatform": (
        "FROM --platform=${TARGETPLATFORM} a\n",
        1,
        "FROM --platform=$TARGETOS/$TARGETARCH a\n",
    ),
    "ReservedStageName": ("FROM a AS context\n", 1, "FROM a AS contexts\n"),
    "SecretsUsedInArgOrEnv": (
        "FROM a\nENV a=b GITHUB_TOKEN=c\n",
        2,
        "FROM a\nENV TOKENS=1 PUBLIC_KEY=2 PASSWORD_FILE=3 AUTH_VERSION=4\n",
    ),
    "StageNameCasing": ("FROM --platform=$BUILDPLATFORM a AS Bee\n", 1, "FROM a AS bee\n"),
    "UndefinedArgInFrom": ("FROM a${b}\n", 1, "ARG b\nFROM a${b}\n"),
    "UndefinedVar": ("FROM a\nENV a=$b\n", 2, "FROM a\nARG b\nENV a=$b$PATH\nENV c=$a\n"),
    "WorkdirRelativePath": ("FROM a\nWORKDIR x\n", 2, "FROM a\nWORKDIR /x\nWORKDIR y\n"),
}


def test_there_is_an_example_of_each_rule() -> None:
    assert sorted(EXAMPLES) == sorted(rule.name for rule in RULES)
    assert len(RULES) == 22


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_broken_rule_is_reported_once_with_its_line(name: str) -> None:
    broken, line, _ = EXAMPLES[name]
    excluded = IgnoreMatcher(["gone"]).excludes_source
    (warning,) = warnings(broken, excluded=excluded, given="1")
    assert (warning.rule, warning.where.start_line) == (name, line)
    assert warning.description == next(rule.description for rule in RULES if rule.name == name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_kept_rule_is_not_reported(name: str) -> None:
    assert found(EXAMPLES[name][2], excluded=IgnoreMatcher(["gone"]).excludes_source) == []


# Single rules


def test_the_lost_of_two_commands_is_the_one_reported_in_each_stage() -> None:
    text = 'FROM a AS x\nCMD ["1"]\nFROM x\nCMD ["2"]\nCMD ["3"]\nCMD ["4"]\n'
    rule = "MultipleInstructionsDisallowed"
    assert found(text) == [f"{rule}:4", f"{rule}:5"]


def test_a_shell_of_ones_own_makes_the_shell_form_a_choice() -> None:
    assert found('FROM a AS x\nSHELL ["s"]\nFROM x\nENTRYPOINT x\n') == []
    base = replace(BASE, shell=("s",))  # noqa: S604 - a value, nothing is called
    assert found("FROM a\nCMD x\n", base=base) == []


def test_a_working_directory_of_the_base_image_may_change() -> None:
    base = ImageConfig(AMD64, working_dir="/srv")
    assert found("FROM a\nWORKDIR x\n", base=base) == ["WorkdirRelativePath:2"]
    assert found("FROM a AS b\nWORKDIR /x\nFROM b\nWORKDIR x\n") == []
    assert found("FROM a\nENV d=/x\nWORKDIR $d\n") == []


def test_a_misspelt_variable_is_told_with_the_likely_one() -> None:
    assert message("FROM a\nARG version\nENV x=/$JAVA_HOM\n").endswith("(did you mean $JAVA_HOME?)")
    assert message("FROM a\nENV x=$unlike_any\n") == "Usage of undefined variable '$unlike_any'"
    assert "did you mean base?" in message("ARG base=\nFROM a$bas\n")


@pytest.mark.parametrize(
    "line",
    [
        "LABEL a=$b",
        "USER $b",
        "WORKDIR /$b",
        "VOLUME /$b",
        "COPY x$b /",
        "COPY --chown=$b x /",
        "ADD x /$b",
        "COPY <<E /x\n$b\nE",
        "ARG c=$b",
        "RUN --mount=type=tmpfs,target=/t$b x",
    ],
)
def test_variables_are_looked_for_wherever_they_are_expanded(line: str) -> None:
    assert found(f"FROM a\n{line}\nARG b\n") == ["UndefinedVar:2"]
    assert found(f"FROM a\nARG b\n{line}\n") == []


@pytest.mark.parametrize(
    "line", ["RUN echo $b", 'CMD ["$b"]', "EXPOSE 80$b", "COPY <<'E' /\n$b\nE"]
)
def test_variables_are_not_looked_for_where_they_are_not(line: str) -> None:
    assert found(f"FROM a\n{line}\n") == []


def test_args_of_the_stage_below_and_of_the_same_line_are_defined() -> None:
    assert found("FROM a AS b\nARG x\nFROM b\nENV y=$x\n") == []
    assert found("FROM a\nARG x y=$x z=$y\n") == []
    assert found("FROM a\nARG x=$x\n") == ["UndefinedVar:2"]
    assert found("FROM a\nARG x=$y\n", x="given") == []


def test_nothing_is_undefined_on_an_image_that_nobody_looked_up() -> None:
    text = "FROM a AS b\nENV x=$JAVA_HOME\nFROM b\nENV y=$GO_HOME\n"
    assert found(text, base=ImageConfig(AMD64), digest="") == []
    assert found("FROM scratch\nENV x=$y\n", digest="") == ["UndefinedVar:2"]


def test_a_platform_in_a_variable_is_no_constant() -> None:
    assert found("ARG p=linux/amd64\nFROM --platform=$p a\n") == []
    assert found("ARG p=amd64\nFROM --platform=linux/$p a\n") == []


def test_a_base_without_name_by_default_is_reported_though_a_build_arg_names_it() -> None:
    assert found("ARG image\nFROM $image\n", image="a") == ["InvalidDefaultArgInFrom:2"]


@pytest.mark.parametrize(
    ("patterns", "source", "excluded"),
    [
        (["x"], "x", True),
        (["x"], "./x/", True),
        (["x"], "x/y", True),
        (["x"], "y", False),
        (["x", "!x/y"], "x", False),
        ([".*"], ".", False),
        (["*"], ".", True),
        (["**"], "/", True),
        (["**/*"], "./", True),
    ],
)
def test_a_source_is_lost_as_buildkit_counts_it(
    patterns: list[str], source: str, excluded: bool
) -> None:
    assert IgnoreMatcher(patterns).excludes_source(source) is excluded


def test_sources_that_are_no_files_of_the_context_cannot_be_ignored() -> None:
    text = "FROM a AS b\nFROM a\nCOPY --from=b /x /\nCOPY <<x /\nx\n"
    assert found(text, excluded=lambda _: True) == []


def test_a_message_quotes_what_is_copied_and_how() -> None:
    text = "FROM a\nADD ./x/../y /\n"
    assert message(text, excluded=lambda _: True) == (
        'Attempting to Add file "y" that is excluded by .dockerignore'
    )


def test_triggers_of_the_base_image_are_checked_at_their_from() -> None:
    base = ImageConfig(AMD64, onbuild=("ENV a b",))
    assert found("ARG x\nFROM a\n", base=base) == ["LegacyKeyValueFormat:2"]


# What counts


def test_warnings_are_in_order_of_lines() -> None:
    text = "FROM a AS X\nENV a b\nENV c $d\nMAINTAINER me\n"
    assert [int(w.rpartition(":")[2]) for w in found(text)] == [1, 2, 3, 3, 4]


def test_only_stages_that_are_built_are_evaluated_unless_all_are_asked_for() -> None:
    text = "FROM a AS X\nENV a $b\nFROM a\n"
    assert found(text) == ["StageNameCasing:1"]
    assert sorted(found(text, all_stages=True)) == [
        "LegacyKeyValueFormat:2",
        "StageNameCasing:1",
        "UndefinedVar:2",
    ]


@pytest.mark.parametrize(
    "check",
    [
        "skip=all",
        "skip=LegacyKeyValueFormat",
        " skip = JSONArgsRecommended , LegacyKeyValueFormat ",
        "error=true;skip=LegacyKeyValueFormat",
    ],
)
def test_a_rule_is_skipped_by_directive_build_arg_or_comment(check: str) -> None:
    assert found("FROM a\nENV a b\n", override=check) == []
    check = check.replace(" ", "")
    assert found(f"# check={check}\nFROM a\nENV a b\n") == []
    assert found(f"FROM a\n# check={check} because\nENV a b\n") == []


def test_a_comment_counts_for_its_instruction_alone() -> None:
    text = "FROM a\n# check=skip=all\nENV a b\nENV c d\n"
    assert found(text) == ["LegacyKeyValueFormat:4"]


def test_the_build_arg_replaces_the_directive() -> None:
    text = "# check=skip=all\nFROM a\nENV a b\n"
    assert found(text, override="skip=JSONArgsRecommended") == ["LegacyKeyValueFormat:3"]
    assert found(text.replace("all", "all;x"), override="skip=all") == []


def test_an_experimental_rule_counts_only_where_it_is_asked_for() -> None:
    text = "# what it is\nARG x\nFROM a\n"
    assert found(f"# check=skip=all\n{text}") == []
    assert found(text) == []
    asked = f"# check=skip=all;experimental=InvalidDefinitionDescription\n{text}"
    assert found(asked) == ["InvalidDefinitionDescription:3"]


@pytest.mark.parametrize("wrong", ["skip", "error=yes", "error", "only=x", "skip=a;error=true;x"])
def test_wrong_options_are_refused_where_they_stand(wrong: str) -> None:
    with pytest.raises(DockerfileError, match="invalid check option") as caught:
        parse(f"# escape=\\\n# check={wrong}\nFROM a\n".encode())
    assert caught.value.where == SourceRange("Dockerfile", 2, 2)
    with pytest.raises(UsageError, match="BUILDKIT_DOCKERFILE_CHECK"):
        Lint(wrong)


def test_options_are_read() -> None:
    assert parse_lint_options("skip=a,b;error=1;experimental=c") == LintOptions(
        frozenset("ab"), frozenset("c"), error=True
    )
    assert parse_lint_options(" ") == LintOptions()


def test_warnings_are_errors_where_that_is_asked_for() -> None:
    lint = Lint("error=true")
    parse(b"FROM a AS X\nMAINTAINER me\n", lint=lint)
    with pytest.raises(DockerfileError) as caught:
        lint.refuse()
    assert caught.value.message == (
        "lint violation found for rules: StageNameCasing, MaintainerDeprecated"
    )
    assert caught.value.where == SourceRange("Dockerfile", 1, 1)


@pytest.mark.parametrize(("text", "check"), [("FROM a AS X\n", None), ("FROM a\n", "error=true")])
def test_nothing_is_refused_otherwise(text: str, check: str | None) -> None:
    lint = Lint(check)
    parse(text.encode(), lint=lint)
    lint.refuse()


def test_what_was_found_before_an_error_is_kept() -> None:
    lint = Lint()
    with pytest.raises(DockerfileError):
        parse(b"FROM a AS X\nMAINTAINER me\nFRM b\n", lint=lint)
    assert [w.where.start_line for w in lint.warnings] == [1, 2]


def test_millions_of_findings_are_cut_to_a_thousand() -> None:
    lines = "\n".join(f"ENV a{n}=$b{n}x" for n in range(MAX_WARNINGS + 100))
    assert len(warnings(f"FROM a\n{lines}\n")) == MAX_WARNINGS


def test_a_message_has_an_end() -> None:
    assert len(message(f"FROM a\nENV a=${'x' * 60_000}\n")) < 1100


def test_a_misspelt_platform_variable_is_guessed() -> None:
    for platform in ("$BULIDPLATFORM", "linux/$TARGETARC"):
        with pytest.raises(PybuildError) as caught:
            warnings(f"FROM --platform={platform} a\n")
        assert caught.value.hint in {"did you mean BUILDPLATFORM?", "did you mean TARGETARCH?"}
