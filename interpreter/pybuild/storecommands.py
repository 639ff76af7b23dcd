"""The commands on a store of images: ``pybuild images``, ``inspect``, ``df``, ``prune``, …

Each takes parsed arguments and a store, and gives the text for standard output.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pybuild.arguments import (
    BackendArguments,
    add_backend_options,
    add_other_options,
    backend_values,
    new_parser,
    parse_words,
)
from pybuild.backend import Backend
from pybuild.errors import BackendFailed, UnsupportedByBackend, UsageError
from pybuild.flagvalues import parse_size
from pybuild.imagestore import (
    USUAL_SHARE,
    ImageStore,
    ListedImage,
    PruneRequest,
    parse_share,
    usual_ceiling,
)
from pybuild.oci.image_config import serialize_config
from pybuild.oci.reference import familiar, parse_reference, with_default_tag
from pybuild.values import dataclass

_DURATION = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreArguments(BackendArguments):
    """One of the commands and what it is told; `given` holds its own options by name."""

    command: str
    given: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Command:
    operands: str
    summary: str
    options: Callable[[argparse._ArgumentGroup], None]
    run: Callable[[ImageStore, Mapping[str, Any]], tuple[str, int]]


def parse_store_arguments(words: Sequence[str], version: str) -> StoreArguments:
    """What `words` ask for; the first is one of :data:`COMMANDS`. Raises UsageError."""
    name = words[0]
    found = parse_words(store_parser(name, version), list(words[1:]), {})
    backend = backend_values(found)
    given = {key: value for key, value in vars(found).items() if key.startswith("own_")}
    return StoreArguments(
        **backend,
        command=name,
        given={key.removeprefix("own_"): value for key, value in given.items()},
    )


def store_parser(name: str, version: str) -> argparse.ArgumentParser:
    """The words behind the command `name`."""
    command = COMMANDS[name]
    usage = f"pybuild {name} [options] {command.operands}".rstrip()
    parser = new_parser(f"pybuild {name}", usage, command.summary)
    own = parser.add_argument_group("options")
    command.options(own)
    add_backend_options(parser)
    add_other_options(parser, version)
    return parser


def run_store_command(backend: Backend, arguments: StoreArguments) -> tuple[str, int]:
    """The text of a command on the store of `backend`, and its exit code. Raises PybuildError."""
    return COMMANDS[arguments.command].run(store_of(backend, arguments.command), arguments.given)


def store_of(backend: Backend, command: str) -> ImageStore:
    """The images that `backend` keeps itself, for `command`. Raises UnsupportedByBackend."""
    store = backend.image_store()
    if store is None:
        raise UnsupportedByBackend(
            f'pybuild {command} is not for the backend "{backend.name}"',
            hint="its images are seen to by its own tools: ctr, nerdctl, docker",
        )
    return store


def human_size(size: int) -> str:
    """A size with three digits at most, in powers of 1000, as ``docker images`` shows it."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.3g}{_UNITS[unit]}" if value < 1000 else f"{value:.0f}{_UNITS[unit]}"


def human_age(time: datetime, now: datetime) -> str:
    """How long ago: ``5 minutes ago``."""
    seconds = max(0, int((now - time).total_seconds()))
    for name, length in (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (name == "minute" and seconds >= length):
            count = seconds // length
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now" if seconds < 1 else f"{seconds} second{'s' if seconds > 1 else ''} ago"


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("   ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _images(store: ImageStore, given: Mapping[str, Any]) -> tuple[str, int]:
    found = store.images()
    if given["format"] == "json":
        return json.dumps([_as_json(image) for image in found], indent=2), 0
    now = datetime.now(UTC)
    rows = [("NAME", "IMAGE ID", "PLATFORM", "MADE", "SIZE")]
    for image in found:
        size = "not fetched" if image.size is None else human_size(image.size)
        names = [familiar(name) for name in image.names] or ["<none>"]
        rows += [
            (
                name,
                _short(image.digest),
                str(image.config.platform),
                human_age(image.made, now),
                size,
            )
            for name in names
        ]
    return _table(rows), 0


def _as_json(image: ListedImage) -> dict[str, Any]:
    return {
        "digest": image.digest,
        "config_digest": image.config_digest,
        "names": [str(name) for name in image.names],
        "platform": str(image.config.platform),
        "size": image.size,
        "made": image.made.isoformat(),
        "layers": [
            {
                "diff_id": layer.diff_id,
                "digest": layer.blob.digest,
                "size": layer.blob.size,
                "media_type": layer.blob.media_type,
            }
            for layer in image.layers
        ],
    }


def _inspect(store: ImageStore, given: Mapping[str, Any]) -> tuple[str, int]:
    found = [store.find(text) for text in given["images"]]
    documents = [
        _as_json(image) | {"config": json.loads(serialize_config(image.config))} for image in found
    ]
    return json.dumps(documents, indent=2, ensure_ascii=False), 0


def _history(store: ImageStore, given: Mapping[str, Any]) -> tuple[str, int]:
    image = store.find(given["image"])
    layers = iter(image.layers)
    rows = []
    for entry in image.config.history:
        layer = None if entry.empty_layer else next(layers, None)
        text = " ".join(entry.created_by.split()) or entry.comment
        if not given["whole"] and len(text) > 60:
            text = f"{text[:59]}…"
        size = human_size(layer.blob.size) if layer else "0B"
        rows.append((_short(layer.blob.digest) if layer else "-", entry.created or "", text, size))
    head = ("LAYER", "CREATED", "CREATED BY", "SIZE")
    return _table([head, *reversed(rows)]), 0


def _tag(store: ImageStore, given: Mapping[str, Any]) -> tuple[str, int]:
    name = parse_reference(given["name"])
    if name.digest:
        raise UsageError(f'"{given["name"]}" can\'t be a name: it has a digest')
    store.tag(given["image"], with_default_tag(name))
    return "", 0


def _remove(store: ImageStore, given: Mapping[str, Any]) -> tuple[str, int]:
    lines = []
    for text in given["images"]:
        removed = store.remove(text)
        lines.append(f"removed {text} ({_short(removed.digest)})")
    return "\n".join(lines), 0


def _disk_usage(store: ImageStore, given: Mapping[str, Any]) -> tuple[str, int]:
    found = store.usage()
    if given["format"] == "json":
        lines = [
            {
                "kind": str(usage.kind),
                "count": usage.count,
                "size": usage.size,
                "reclaimable": usage.reclaimable,
            }
            for usage in found
        ]
        return json.dumps(lines, indent=2), 0
    rows = [("KIND", "COUNT", "SIZE", "RECLAIMABLE")]
    rows += [
        (str(u.kind), str(u.count), human_size(u.size), human_size(u.reclaimable)) for u in found
    ]
    total, free = sum(u.size for u in found), sum(u.reclaimable for u in found)
    rows.append(("total", "", human_size(total), human_size(free)))
    return _table(rows), 0


def _prune(store: ImageStore, given: Mapping[str, Any]) -> tuple[str, int]:
    ceiling = None if given["all"] else _ceiling(given["max_size"], store)
    request = PruneRequest(
        max_size=ceiling,
        images=given["dangling"] or given["images"],
        all_images=given["images"],
        unused_for=None if given["unused_for"] is None else _duration(given["unused_for"]),
        dry_run=given["dry_run"],
    )
    done = store.prune(request)
    verb = "would free" if request.dry_run else "freed"
    lines = [*done.removed, f"{verb} {human_size(done.freed)}, {human_size(done.left)} left"]
    return "\n".join(lines), 0


def _ceiling(text: str | None, store: ImageStore) -> int:
    if text is None or parse_share(text) is not None:
        return usual_ceiling(store.location(), text)
    if text.endswith("%"):
        raise UsageError(f'--max-size "{text}" is no share of the disk', hint="as in 15%")
    return parse_size(text)


def _duration(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UsageError(f'"{text}" is no duration', hint="write it like 30m, 24h or 7d")
    return int(found[1]) * _SECONDS[found[2]]


def _check(store: ImageStore, given: Mapping[str, Any]) -> tuple[str, int]:
    faults = store.check(repair=given["repair"])
    lines = [
        f"{fault.what}: {fault.problem}{' (removed)' if fault.mended else ''}" for fault in faults
    ]
    left = [fault for fault in faults if not fault.mended]
    if not faults:
        return "nothing is wrong", 0
    if left and not given["repair"]:
        lines.append("what is damaged is removed by: pybuild fsck --repair")
    return "\n".join(lines), BackendFailed.exit_code if left else 0


def _add_format(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--format",
        dest="own_format",
        choices=("table", "json"),
        default="table",
        metavar="FORMAT",
        help="table or json",
    )


def _add_inspect(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("own_images", nargs="+", metavar="IMAGE", help="name or digest")


def _add_history(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("own_image", metavar="IMAGE", help="name or digest")
    parser.add_argument("--no-trunc", dest="own_whole", action="store_true", help="shorten nothing")


def _add_tag(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("own_image", metavar="IMAGE", help="name or digest")
    parser.add_argument("own_name", metavar="NAME", help="its further name")


def _add_prune(parser: argparse._ArgumentGroup) -> None:
    add = parser.add_argument
    add(
        "--max-size",
        dest="own_max_size",
        metavar="SIZE",
        help=f"how much may stay, as 20g or 15%% of the disk (default: {USUAL_SHARE}%%)",
    )
    add("--all", dest="own_all", action="store_true", help="remove all that no image needs")
    add("--dangling", dest="own_dangling", action="store_true", help="unnamed images too")
    add("--images", dest="own_images", action="store_true", help="named images too")
    add(
        "--unused-for", dest="own_unused_for", metavar="TIME", help="spare what was used since: 24h"
    )
    add(
        "--dry-run",
        dest="own_dry_run",
        action="store_true",
        help="remove nothing, say what would go",
    )


def _add_check(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--repair", dest="own_repair", action="store_true", help="remove what is damaged"
    )


COMMANDS: Mapping[str, _Command] = {
    "images": _Command("", "List the images in the store.", _add_format, _images),
    "inspect": _Command(
        "IMAGE...", "Show images with their configs, as JSON.", _add_inspect, _inspect
    ),
    "history": _Command("IMAGE", "Show how an image was made.", _add_history, _history),
    "tag": _Command("IMAGE NAME", "Give an image one more name.", _add_tag, _tag),
    "rm": _Command(
        "IMAGE...", "Remove names, and images with their last name.", _add_inspect, _remove
    ),
    "df": _Command("", "Show what takes up room in the store.", _add_format, _disk_usage),
    "prune": _Command(
        "",
        "Make room: the least recently used goes first, what builds use stays.",
        _add_prune,
        _prune,
    ),
    "fsck": _Command("", "Check the whole store, every byte of it.", _add_check, _check),
}
"""By name; a context folder of such a name is given as ``./images`` or to ``pybuild build``."""
