"""What the service and a decoding process say to each other over their socket.

A request is REQUEST and the file. The process answers IDENTIFIED with the pixels that decoding will take, waits for one
byte (1: decode, 0: do not), and answers THUMBNAILS; or it answers PROBLEM at either point. Its first word is READY.
An answer is ANSWER, and then as many bytes as its number says, except for IDENTIFIED.
"""

import socket
import struct

REQUEST = struct.Struct(">QQIII")  # bytes of the file, max_pixels, views, height and width of thumbnails
ANSWER = struct.Struct(">BQ")  # kind, number
READY, IDENTIFIED, THUMBNAILS, PROBLEM = range(4)


def receive(channel: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; empty if the other side closed the socket before the first one.

    Raises EOFError if it closes in between, and TimeoutError as the socket does.
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
