"""``pybuild diff``: the words of the command line as values, and two images' difference as text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from pybuild.arguments import (
    BackendArguments,
    add_backend_options,
    add_other_options,
    backend_values,
    new_parser,
    parse_words,
)
from pybuild.backend import Backend, BaseImage
from pybuild.backends import open_backend
from pybuild.files.trees import Tree
from pybuild.imagediff import (
    Aspect,
    FileDifference,
    SettingDifference,
    compared_files,
    compared_settings,
)
from pybuild.imagestore import ListedImage
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.reference import parse_reference
from pybuild.run.activity import CancelToken, Events
from pybuild.run.output import cut, without_escapes
from pybuild.run.progress.plain import size_text
from pybuild.storecommands import store_of
from pybuild.values import dataclass

_LONGEST_VALUE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffArguments(BackendArguments):
    """``pybuild diff IMAGE IMAGE``: names or digests; ``format`` is text or json."""

    before: str
    after: str
    format: str


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """Two images of a store, and all that differs."""

    before: ListedImage
    after: ListedImage
    settings: tuple[SettingDifference, ...]
    files: tuple[FileDifference, ...]

    @property
    def differs(self) -> bool:
        return bool(self.settings or self.files)


def parse_diff_arguments(words: Sequence[str], version: str) -> DiffArguments:
    """What the words behind ``diff`` ask for. Raises UsageError."""
    found = parse_words(diff_parser(version), list(words), {})
    return DiffArguments(
        **backend_values(found), before=found.before, after=found.after, format=found.format
    )


def diff_parser(version: str) -> argparse.ArgumentParser:
    """The grammar of ``pybuild diff``."""
    parser = new_parser(
        "pybuild diff",
        "pybuild diff [options] IMAGE IMAGE",
        "Show how the second image differs from the first, in files and settings. "
        "Ends with 0 where nothing differs, and with 1 where anything does.",
    )
    own = parser.add_argument_group("options")
    own.add_argument("before", metavar="IMAGE", help="name or digest")
    own.add_argument("after", metavar="IMAGE", help="name or digest")
    own.add_argument(
        "--format", choices=("text", "json"), default="text", metavar="FORMAT", help="text or json"
    )
    add_backend_options(parser)
    add_other_options(parser, version)
    return parser


def compare(
    arguments: DiffArguments, backend: str, backend_options: Mapping[str, object]
) -> tuple[str, int]:
    """What the command prints, and its exit code. Raises ImageNotFound, UnsupportedByBackend.

    Layers that aren't here are fetched.
    """
    with open_backend(backend, backend_options) as opened:
        difference = image_difference(opened, arguments.before, arguments.after)
    if arguments.format == "json":
        text = json.dumps(_as_json(difference), indent=2)
    else:
        text = "\n".join(without_escapes(line) for line in _lines(difference, arguments))
    return text, int(difference.differs)


def image_difference(backend: Backend, before: str, after: str) -> ImageDifference:
    """Compare two images that are known by names or digests. Raises as :func:`compare` does."""
    store = store_of(backend, "diff")
    old, new = store.find(before), store.find(after)
    files: tuple[FileDifference, ...] = ()
    if old.config.diff_ids != new.config.diff_ids:
        with ExitStack() as stack:
            trees = [_tree(backend, image, stack) for image in (old, new)]
            files = tuple(compared_files(*trees))
    return ImageDifference(old, new, compared_settings(old.config, new.config), files)


def _tree(backend: Backend, image: ListedImage, stack: ExitStack) -> Tree:
    name = image.names[0] if image.names else parse_reference(f"image@{image.digest}")
    base = BaseImage(name, image.digest, image.config, image.layers)
    nobody = Events(None).silent(CancelToken())
    return stack.enter_context(backend.checkout(base, nobody)).tree()


def _lines(difference: ImageDifference, arguments: DiffArguments) -> Iterator[str]:
    sides = ((difference.before, arguments.before), (difference.after, arguments.after))
    for mark, (image, name) in zip(("---", "+++"), sides, strict=True):
        size = "" if image.size is None else f", {size_text(image.size)}"
        yield f"{mark} {name} ({image.digest}{size})"
    if not difference.differs:
        yield "nothing differs"
    if difference.settings:
        yield "settings:"
    for setting in difference.settings:
        yield f"  {_mark(setting.before, setting.after)} {setting.name}: {_values(setting)}"
    if difference.files:
        yield f"files: {_summary(difference.files)}"
    for file in difference.files:
        yield f"  {_mark(file.before, file.after)} {file.path}{_told(file)}"


def _mark(before: object, after: object) -> str:
    return "+" if before is None else "-" if after is None else "~"


def _values(setting: SettingDifference) -> str:
    values = (setting.before, setting.after)
    return " -> ".join(cut(value, _LONGEST_VALUE) for value in values if value is not None)


def _summary(files: Sequence[FileDifference]) -> str:
    marks = [_mark(file.before, file.after) for file in files]
    growth = sum(_size(file.after) - _size(file.before) for file in files)
    sign = "+" if growth >= 0 else "-"
    return (
        f"{marks.count('+')} added, {marks.count('-')} removed, {marks.count('~')} changed, "
        f"{sign}{size_text(abs(growth))}"
    )


def _size(entry: Entry | None) -> int:
    return entry.size if entry is not None and entry.kind is Kind.FILE and not entry.link else 0


def _told(file: FileDifference) -> str:
    if file.aspects:
        return f" ({', '.join(map(_aspect, file.aspects))})"
    entry = file.after or file.before
    if entry is None or entry.kind is Kind.DIRECTORY:
        return "/"
    return f" ({size_text(entry.size) if entry.kind is Kind.FILE else entry.kind.value})"


def _aspect(aspect: Aspect) -> str:
    match aspect.name:
        case "content":
            return "content"
        case "size":
            return f"size {size_text(int(aspect.before))} -> {size_text(int(aspect.after))}"
        case name:
            return f"{name} {aspect.before or 'none'} -> {aspect.after or 'none'}"


def _as_json(difference: ImageDifference) -> dict[str, Any]:
    return {
        "before": _image_as_json(difference.before),
        "after": _image_as_json(difference.after),
        "settings": [
            {"name": each.name, "before": each.before, "after": each.after}
            for each in difference.settings
        ],
        "files": [
            {
                "path": file.path,
                "before": _entry_as_json(file.before),
                "after": _entry_as_json(file.after),
                "differs": [aspect.name for aspect in file.aspects],
            }
            for file in difference.files
        ],
    }


def _image_as_json(image: ListedImage) -> dict[str, Any]:
    return {
        "digest": image.digest,
        "names": [str(name) for name in image.names],
        "size": image.size,
    }


def _entry_as_json(entry: Entry | None) -> dict[str, Any] | None:
    """What is compared of an entry; ``digest`` is null where nobody had to know it."""
    if entry is None:
        return None
    return {
        "type": entry.kind.value,
        "size": entry.size,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "digest": entry.digest,
        "link": entry.link.decode("utf-8", "backslashreplace") or None,
    }
