"""The layers of an image: their sizes, the steps that made them, their largest files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pybuild.htmlreport.markup import count, text
from pybuild.htmlreport.recording import LayerContents, RecordedImage, Recording
from pybuild.htmlreport.treemap import Rectangle, squarified
from pybuild.run.progress.plain import size_text

_WIDTH, _HEIGHT, _HEAD = 1000.0, 440.0, 18.0
_COLOURS = 8
_LEAST = 3.0  # below that a file can't be seen
_MOST_LAYERS = 60


def layers(recording: Recording) -> str:
    """A section for each image."""
    if not recording.images:
        return '<p class="none">The build made no image.</p>'
    made: dict[str, str] = {}
    if recording.result is not None:
        made = {step.diff_id: step.title for step in recording.result.steps if step.diff_id}
    parts = []
    for image in recording.images:
        if len(recording.images) > 1:
            parts.append(f"<h3>{text(str(image.platform))}</h3>")
        parts += [_map(image), _table(image, made)]
    return "".join(parts)


def _table(image: RecordedImage, made: Mapping[str, str]) -> str:
    rows = []
    for number, (layer, contents) in enumerate(zip(image.layers, image.contents, strict=True)):
        title = made.get(layer.diff_id)
        told = "" if contents is None else _largest(contents)
        name = '<span class="faint">of the base image</span>' if title is None else text(title, 160)
        rows.append(
            f'<tr><td><i class="key c{number % _COLOURS}"></i>{number + 1}</td>'
            f"<td>{name}{told}</td><td>{size_text(layer.blob.size)}</td>"
            f"<td>{'not known' if contents is None else size_text(contents.size)}</td>"
            f"<td>{'' if contents is None else f'{contents.files:,}'}</td></tr>"
        )
    total = sum(layer.blob.size for layer in image.layers)
    unknown = sum(contents is None for contents in image.contents)
    note = ""
    if unknown:
        note = (
            f'<p class="faint">What is in {count(unknown, "layer")} isn\'t known here: '
            "it would have had to be fetched first.</p>"
        )
    return (
        '<div class="wide"><table><thead><tr><th>Layer</th><th>Made by</th><th>Compressed</th>'
        f"<th>Files</th><th>Number</th></tr></thead><tbody>{''.join(rows)}</tbody><tfoot><tr>"
        f"<td></td><td>Together</td><td>{size_text(total)}</td><td></td><td></td></tr></tfoot>"
        f"</table></div>{note}"
    )


def _largest(contents: LayerContents) -> str:
    rows = "".join(
        f"<li>{text(path)} <b>{size_text(size)}</b></li>" for path, size in contents.largest
    )
    if not rows:
        return ""
    return f"<details><summary>the largest files</summary><ol>{rows}</ol></details>"


def _map(image: RecordedImage) -> str:
    known = [
        (number, contents)
        for number, contents in enumerate(image.contents)
        if contents is not None and contents.size
    ]
    known.sort(key=lambda each: -each[1].size)
    known = known[:_MOST_LAYERS]
    if not known:
        return '<p class="none">No file of a layer is known here.</p>'
    rooms = squarified([contents.size for _, contents in known], Rectangle(0, 0, _WIDTH, _HEIGHT))
    boxes = [
        _layer(number, contents, room)
        for (number, contents), room in zip(known, rooms, strict=True)
    ]
    return f'<div class="map">{"".join(boxes)}</div>'


def _layer(number: int, contents: LayerContents, room: Rectangle) -> str:
    size = size_text(contents.size)
    head = f"<b>layer {number + 1}, {size}</b>" if room.width > 110 and room.height > 40 else ""
    top = room.top + (_HEAD if head else 0)
    inner = Rectangle(room.left, top, room.width, room.height - (top - room.top))
    name = f"layer {number + 1}, {size}, {count(contents.files, 'file')}"
    return (
        f'<div class="layer c{number % _COLOURS}" style="{_style(room)}" title="{name}">{head}</div>'
        f"{_files(number, contents, inner)}"
    )


def _files(number: int, contents: LayerContents, room: Rectangle) -> str:
    named: list[tuple[str, int]] = [each for each in contents.largest if each[1]]
    rest = contents.size - sum(size for _, size in named)
    if rest > 0:
        others = contents.files - len(named)
        named = sorted(
            [*named, (f"{count(others, 'smaller file')}", rest)], key=_size, reverse=True
        )
    placed = squarified([size for _, size in named], room)
    return "".join(
        _file(number, path, size, at)
        for (path, size), at in zip(named, placed, strict=True)
        if at.width >= _LEAST and at.height >= _LEAST
    )


def _size(each: tuple[str, int]) -> int:
    return each[1]


def _file(number: int, path: str, size: int, at: Rectangle) -> str:
    label = ""
    if at.width > 70 and at.height > 30:
        label = f"<span>{text(path.rpartition('/')[2], 60)}<br>{size_text(size)}</span>"
    return (
        f'<div class="file c{number % _COLOURS}" style="{_style(at)}" '
        f'title="{text(path)}, {size_text(size)}">{label}</div>'
    )


def _style(at: Rectangle) -> str:
    shares: Sequence[tuple[str, float]] = (
        ("left", at.left / _WIDTH),
        ("top", at.top / _HEIGHT),
        ("width", at.width / _WIDTH),
        ("height", at.height / _HEIGHT),
    )
    return ";".join(f"{name}:{share * 100:.3f}%" for name, share in shares)
