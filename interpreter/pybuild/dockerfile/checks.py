"""The build checks that need the text of the Dockerfile alone."""

from __future__ import annotations

from collections import Counter

from pybuild.dockerfile.arguments import split_blanks, split_flags, split_keyword
from pybuild.dockerfile.instructions import Arg, Dockerfile, From, Instruction, Maintainer
from pybuild.dockerfile.lint import Lint
from pybuild.dockerfile.rules import (
    CONSISTENT_INSTRUCTION_CASING,
    DUPLICATE_STAGE_NAME,
    FROM_AS_CASING,
    INVALID_DEFINITION_DESCRIPTION,
    MAINTAINER_DEPRECATED,
    RESERVED_STAGE_NAME,
    STAGE_NAME_CASING,
)

_RESERVED = ("context", "scratch")


def keyword_of(instruction: Instruction) -> str:
    """The instruction's name as written."""
    return split_keyword(instruction.text)[0]


def check_instruction(instruction: Instruction, escape: str, lint: Lint) -> None:
    """Report what is wrong with one instruction."""
    match instruction:
        case Maintainer():
            lint.report(
                MAINTAINER_DEPRECATED,
                instruction.where,
                "Maintainer instruction is deprecated in favor of using label",
                instruction.comments,
            )
        case From():
            _check_from(instruction, escape, lint)
        case Arg():
            _check_description("ARG", [pair.name for pair in instruction.args], instruction, lint)
        case _:
            pass


def check_file(dockerfile: Dockerfile, lint: Lint) -> None:
    """Report what is wrong with the instructions taken together."""
    _check_stage_names(dockerfile, lint)
    _check_casing(dockerfile, lint)


def _check_from(head: From, escape: str, lint: Lint) -> None:
    if head.stage is None:
        return
    keyword, start = split_keyword(head.text)
    _, flags_end = split_flags(head.text[start:], escape)
    _, as_, name = (word.text for word in split_blanks(head.text, start + flags_end))
    if name != name.lower():
        message = f"Stage name '{name}' should be lowercase"
        lint.report(STAGE_NAME_CASING, head.where, message, head.comments)
    cased = as_.lower() if keyword.islower() else as_.upper()
    # FROM in mixed case is for another rule
    if as_ != cased and _is_consistent(keyword):
        message = f"'{as_}' and '{keyword}' keywords' casing do not match"
        lint.report(FROM_AS_CASING, head.where, message, head.comments)
    _check_description("FROM", [head.stage], head, lint)


def _check_description(word: str, names: list[str], instruction: From | Arg, lint: Lint) -> None:
    """The last comment above what it describes begins with its name."""
    if not instruction.comments or instruction.comments[-1].split(" ", 1)[0] in names:
        return
    name = names[0] if len(names) == 1 else "<arg_key>"
    lint.report(
        INVALID_DEFINITION_DESCRIPTION,
        instruction.where,
        f"Comment for {word} should follow the format: `# {name} <description>`",
        instruction.comments,
    )


def _check_stage_names(dockerfile: Dockerfile, lint: Lint) -> None:
    seen: set[str] = set()
    for head in dockerfile.instructions:
        if not isinstance(head, From) or head.stage is None:
            continue
        if head.stage in _RESERVED:
            lint.report(
                RESERVED_STAGE_NAME,
                head.where,
                f'Stage name should not use the same name as reserved stage "{head.stage}"',
            )
        if head.stage in seen:
            lint.report(
                DUPLICATE_STAGE_NAME,
                head.where,
                f'Duplicate stage name "{head.stage}", stage names should be unique',
            )
        seen.add(head.stage)


def _check_casing(dockerfile: Dockerfile, lint: Lint) -> None:
    keywords = [(keyword_of(i), i.where) for i in dockerfile.instructions]
    cases = Counter(word.islower() for word, _ in keywords if _is_consistent(word))
    lower = cases[True] > cases[False]
    for word, where in keywords:
        if word != (word.lower() if lower else word.upper()):
            lint.report(
                CONSISTENT_INSTRUCTION_CASING,
                where,
                f"Command '{word}' should match the case of the command majority "
                f"({'lowercase' if lower else 'uppercase'})",
            )


def _is_consistent(word: str) -> bool:
    return word.islower() or word.isupper()
