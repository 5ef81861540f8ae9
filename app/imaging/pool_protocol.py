"""What workers and the pool of decoding processes say to each other: a datagram each, on a socket for each worker.

A worker sends ORDER. The pool answers a WANT with LENT. With the first loan of a process a worker gets its socket, as a
descriptor, and keeps it until its lane has another process. The worker ends each loan with RETURN or, if the process
has ended or says nothing, with LOST. ENDED answers that with the reason, one of app.sandbox.conversation.REASONS; it
also comes unasked, without a loan, when an idle process has ended. In a loan the worker may CLAIM pixels, once, and is
GRANTED them when there is room; they are free again when the loan ends.

A worker that hangs shall not keep the others waiting: the pool ends a loan, and its process, when the image's deadline
has long passed.
"""

import struct
from enum import IntEnum

# An Ask, the number of an image (WANT, WITHDRAW) or of a loan, flags, and a value: the image's deadline in seconds of
# time.monotonic() (WANT), or pixels (CLAIM); then the client, as text.
ORDER = struct.Struct("<BQBd")
LONGEST_CLIENT = 256  # bytes
# A Tell, the numbers of the image, of the loan and of the lane, a Lent; then a reason.
NOTICE = struct.Struct("<BQQBB")
LONGEST_NOTICE = 4096  # bytes


class Ask(IntEnum):
    WANT = 0
    WITHDRAW = 1
    RETURN = 2
    LOST = 3
    CLAIM = 4  # pixels, for a loan's image


class Tell(IntEnum):
    LENT = 0
    ENDED = 1
    IMPOSSIBLE = 2  # no process can be started at all
    GRANTED = 3  # the pixels


class Lent(IntEnum):
    NOTHING = 0  # no process can be started; the rest is the reason
    NEW = 1  # the socket comes
    KNOWN = 2  # the worker has the socket


# WANT: for the small lane, too; before the client's others. LOST: it says nothing. RETURN: the socket did not arrive.
SMALL, FIRST, SILENT, UNKNOWN = 1, 2, 4, 8
