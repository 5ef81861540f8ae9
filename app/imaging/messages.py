"""The protocol between the service and a decoding process, over a socket.

A request is REQUEST and the file. The process answers IDENTIFIED with an IDENTITY, waits for DECODE, and answers
THUMBNAILS. If DECODE wants no views, the image is skipped. Instead of either the process may answer PROBLEM. When it
starts it sends READY. An answer is ANSWER, followed by as many bytes as its number says.
"""

import socket
import struct

REQUEST = struct.Struct(">QQ")  # bytes of the file, max_pixels
IDENTITY = struct.Struct(">QII")  # pixels that decoding will take, width, height
DECODE = struct.Struct(">III")  # views, height and width of thumbnails
ANSWER = struct.Struct(">BQ")  # kind, number
READY, IDENTIFIED, THUMBNAILS, PROBLEM = range(4)


def receive(channel: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; empty if the other side closed the socket before the first one.

    Raises EOFError if the socket closes after some of the bytes, and TimeoutError after its timeout.
    """
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        count = channel.recv_into(view[filled:])
        if not count:
            if filled:
                raise EOFError
            return b""
        filled += count
    return bytes(buffer)
