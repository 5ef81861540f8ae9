"""Refuses an ONNX graph that is not complete in itself, before anything loads it.

    check_graph(content)

ONNX lets a tensor keep its values in another file, which ONNX Runtime would map from the working directory although
no digest covers it, and lets a graph use operators of vendors, one of which (EPContext) reads files too. ONNX Runtime
has no option against either, and the service does not depend on `onnx`, so this module walks the encoded message
(https://protobuf.dev/programming-guides/encoding/; field numbers are those of onnx.proto, IR version 13). Where a
parser could see an encoding in more than one way, it is refused.
"""

from collections.abc import Callable, Iterator

MAX_FIELDS = 1_000_000  # the shipped graph has about two thousand; each costs a microsecond
STANDARD = (b"", b"ai.onnx")  # names of the domain of ONNX's own operators

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, int, memoryview]  # number, wire type, value of a varint, content of bytes


class GraphError(Exception):
    """The graph is damaged, or needs what is not in it; the message is one line without the file's name."""


def check_graph(content: bytes) -> None:
    """Raises GraphError unless all that a graph computes with is in `content`, an encoded ModelProto.

    Refused are tensors in other files, operators that are not ONNX's own, functions, training information, and
    subgraphs (If, Loop, Scan): the network needs none of them.
    """
    _Walk().model(memoryview(content))


class _Walk:
    def __init__(self) -> None:
        self._fields = 0

    def model(self, message: memoryview) -> None:
        graphs = 0
        for number, kind, _, content in self._read(message):
            if number == 7:
                graphs += 1
                self._into(self._graph, kind, content)
            elif number == 8:
                self._into(self._opset, kind, content)
            elif number == 20:
                raise GraphError("it holds training information")
            elif number == 25:
                raise GraphError("it defines functions, which this program does not run")
        if graphs != 1:
            raise GraphError("it is not an ONNX model")

    def _opset(self, message: memoryview) -> None:
        for number, _, _, content in self._read(message):
            if number == 1:
                self._domain(content)

    def _domain(self, name: memoryview) -> None:
        if bytes(name[:100]) not in STANDARD:
            shown = bytes(name[:40]).decode(errors="replace")
            raise GraphError(f"it uses operators of {shown!r}, this program runs ONNX's own")

    def _graph(self, message: memoryview) -> None:
        for number, kind, _, content in self._read(message):
            if number == 1:
                self._into(self._node, kind, content)
            elif number == 5:
                self._into(self._tensor, kind, content)
            elif number == 15:
                self._into(self._sparse, kind, content)

    def _node(self, message: memoryview) -> None:
        for number, kind, _, content in self._read(message):
            if number == 5:
                self._into(self._attribute, kind, content)
            elif number == 7:
                self._domain(content)

    def _attribute(self, message: memoryview) -> None:
        for number, kind, _, content in self._read(message):
            if number in (6, 11):
                raise GraphError("it holds subgraphs (If, Loop or Scan), which this program does not run")
            if number in (5, 10):
                self._into(self._tensor, kind, content)
            elif number in (22, 23):
                self._into(self._sparse, kind, content)

    def _sparse(self, message: memoryview) -> None:
        for number, kind, _, content in self._read(message):
            if number in (1, 2):
                self._into(self._tensor, kind, content)

    def _tensor(self, message: memoryview) -> None:
        for number, kind, value, _ in self._read(message):
            # external_data, and any data_location but DEFAULT
            if number == 13 or (number == 14 and (kind != VARINT or value != 0)):
                raise GraphError("a tensor's values are in another file, which no digest covers")

    def _into(self, visit: Callable[[memoryview], None], kind: int, content: memoryview) -> None:
        if kind != BYTES:
            raise GraphError("it is damaged: a message has the wrong wire type")
        visit(content)

    def _read(self, message: memoryview) -> Iterator[Field]:
        """The fields of one message, in their order."""
        place, end = 0, len(message)
        while place < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise GraphError(f"it has more than {MAX_FIELDS:,} fields")
            tag, place = _varint(message, place)
            number, kind = tag >> 3, tag & 7
            value, size = 0, 0
            if kind == VARINT:
                value, place = _varint(message, place)
            elif kind == BYTES:
                size, place = _varint(message, place)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise GraphError("it is damaged: an unknown wire type")
            if not 0 < number < 1 << 29 or size > end - place:
                raise GraphError("it is damaged or cut off")
            yield number, kind, value, message[place : place + size]
            place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The number that begins at `place`, less than 2**64, and the place after it."""
    value = 0
    for index, byte in enumerate(message[place : place + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >> 64:
                break
            return value, place + index + 1
    raise GraphError("it is damaged or cut off")
