"""Reads two facts from an ONNX file without loading it: which other files contain its weights, and its outputs' names.

An ONNX file is one protobuf message (onnx.proto3). Only fields that lead to a tensor are followed. The weights between
them are skipped without being read, so even a file of two gigabytes takes milliseconds.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""The wire types of protobuf. The other two, groups, are not used by ONNX."""
MAX_SHIFT = 63
"""An integer has at most 64 bits, in groups of 7."""
EXTERNAL = 1
"""The value of a tensor's `data_location` if its data is in another file."""
ORT_FORMAT = (4, b"ORTM")
"""Where a file in ONNX Runtime's own format, which is no protobuf message, says so."""

FOLLOWED: Mapping[str, Mapping[int, str]] = {
    "model": {7: "main graph", 25: "function"},  # not the training information (20): nothing here runs it
    "main graph": {1: "node", 5: "tensor", 12: "output", 15: "sparse tensor"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
"""Per message, the numbers of its fields that lead to a tensor or an output, and the message that each contains."""
TENSOR_ENTRY, TENSOR_PLACE, OUTPUT_NAME, ENTRY_KEY, ENTRY_VALUE = 13, 14, 1, 1, 2

Span = tuple[int, int]


class UnreadableGraphError(ValueError):
    """The file is not a complete ONNX file."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What an ONNX file says about itself.

    Attributes:
        locations: the other files with its weights, as the file names them: relative to its own folder; sorted.
        outputs: names of its outputs, in their order.
    """

    locations: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def read_graph(path: Path) -> GraphFacts:
    """Read the facts of the ONNX file *path*: of its graph, all graphs within, its functions and its constants.

    Raises:
        UnreadableGraphError: it is not a complete ONNX file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:  # not mapped into memory: a file that is cut short would end the process
        start, mark = ORT_FORMAT
        if file.read(start + len(mark))[start:] == mark:
            return GraphFacts()
        return _read(file, os.fstat(file.fileno()).st_size)


def _read(file: BinaryIO, size: int) -> GraphFacts:
    locations, outputs = set(), []
    waiting: list[tuple[str, Span]] = [("model", (0, size))]
    has_graph = False
    while waiting:  # not recursive: a graph may be nested deeper than Python's stack
        kind, span = waiting.pop()
        if kind == "tensor":
            location = _location(file, span)
            if location is not None:
                locations.add(location)
        elif kind == "output":
            outputs.append(_last_text(file, span, OUTPUT_NAME))
        else:
            followed = FOLLOWED[kind]
            has_graph = has_graph or kind == "main graph"
            found = [(followed[number], value) for number, value in _fields(file, span) if number in followed]
            waiting += [(child, value) for child, value in reversed(found) if isinstance(value, tuple)]
    if not has_graph:
        raise UnreadableGraphError("it contains no graph")
    return GraphFacts(tuple(sorted(locations)), tuple(outputs))


def _location(file: BinaryIO, span: Span) -> str | None:
    """Return the file with the data of a tensor; None if the tensor contains its data itself."""
    is_external, location = False, ""
    for number, value in _fields(file, span):
        if number == TENSOR_PLACE:
            is_external = value == EXTERNAL
        elif number == TENSOR_ENTRY and isinstance(value, tuple) and _last_text(file, value, ENTRY_KEY) == "location":
            location = _last_text(file, value, ENTRY_VALUE)
    return location if is_external else None


def _last_text(file: BinaryIO, span: Span, wanted: int) -> str:
    """Return the text in the field *wanted*; of several, the last one counts."""
    text = ""
    for number, value in _fields(file, span):
        if number == wanted and isinstance(value, tuple):
            try:
                file.seek(value[0])
                text = str(file.read(value[1] - value[0]), "utf-8")
            except UnicodeDecodeError:
                raise UnreadableGraphError("a name in it is not UTF-8") from None
    return text


def _fields(file: BinaryIO, span: Span) -> Iterator[tuple[int, Span | int]]:
    """Yield number and value of each field of a message: start and end of its bytes, or an integer."""
    position, end = span
    while position < end:
        tag, position = _varint(file, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            integer, position = _varint(file, position, end)
            yield number, integer
            continue
        if wire_type == LENGTH_DELIMITED:
            length, position = _varint(file, position, end)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise UnreadableGraphError("it is not in the ONNX format")
        start, position = position, position + length
        if position > end:
            raise UnreadableGraphError("it ends too early")
        yield number, (start, position)


def _varint(file: BinaryIO, position: int, end: int) -> tuple[int, int]:
    """Return an integer of variable length, and the position after it."""
    file.seek(position)
    value = shift = 0
    while position < end and (read := file.read(1)):
        position += 1
        value |= (read[0] & 0x7F) << shift
        if read[0] < 0x80:  # noqa: PLR2004 - the highest bit: whether another byte follows
            return value, position
        shift += 7
        if shift > MAX_SHIFT:
            raise UnreadableGraphError("it is not in the ONNX format")
    raise UnreadableGraphError("it ends too early")
