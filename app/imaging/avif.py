"""How large a picture an AVIF file really makes its decoder allocate.

The container declares a size, and Pillow reports it. The decoder allocates the size that the AV1 streams inside
announce, up to 268 megapixels. Nothing makes the two agree: a kilobyte that says 32x32 can take a gigabyte. So this
module reads the sizes in the streams (ISO 14496-12, iloc; AV1 specification, 5.3 and 5.5).

It counts frames, too. A still picture has one, or one a layer. The decoder decodes every frame of an item while it
looks for the layer that the container asks for, so that a small file can hold minutes of work.
"""

import struct
from collections.abc import Callable, Iterator

from ..errors import UndecodableImage

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # kinds of open bitstream units
MAX_FRAMES = 8  # of one item: up to four layers, and an encoder may write a frame's header and tiles apart


def largest_av1_frame(content: bytes) -> int:
    """Pixels of the largest frame in an AVIF file's items (ISO 14496-12, iloc). Raises on a malformed file."""
    meta = _iso_box(content, b"meta")[4:]
    take = _bit_reader(_iso_box(meta, b"iloc")[: 1 << 16])
    version, _ = take(8), take(24)
    offset_bits, length_bits, base_bits, index_bits = (8 * take(4) for _ in range(4))
    largest = total = 0
    for _ in range(take(16 if version < 2 else 32)):
        take(16 if version < 2 else 32)  # the item's number
        source = _iso_box(meta, b"idat") if version and take(16) & 15 else content
        take(16)  # which file
        base = take(base_bits)
        stream = b""
        for _ in range(take(16)):
            take(index_bits if version else 0)
            offset, length = base + take(offset_bits), take(length_bits)
            total += length
            if not 0 < length <= total <= len(content):
                raise ValueError("items overlap, or one is empty")
            stream += source[offset : offset + length]
        largest = max([largest, *_av1_frames(stream)])
    return largest


def _iso_box(data: bytes, kind: bytes) -> bytes:
    position, size = 0, 8
    while size >= 8:
        size, found = struct.unpack_from(">I4s", data, position)
        if found == kind:
            return data[position + 8 : position + size]
        position += size
    raise ValueError("a box without a size")


def _av1_frames(stream: bytes) -> Iterator[int]:
    """Pixels that an AV1 stream's sequence headers announce (AV1 specification, 5.3 and 5.5); other data has none.

    Raises UndecodableImage for more than MAX_FRAMES frames.
    """
    position = frames = 0
    announced = False
    while position < len(stream):
        header = stream[position]
        position += 2 if header & 4 else 1
        size = shift = 0
        while header & 2 and position < len(stream):
            size |= (stream[position] & 127) << shift
            shift += 7
            position += 1
            if stream[position - 1] < 128:
                break
        end = position + size if header & 2 else len(stream)
        kind = header >> 3 & 15
        if kind == SEQUENCE_HEADER:
            announced = True
            yield _announced_pixels(_bit_reader(stream[position : min(end, position + 256)]))
        elif announced and kind in (FRAME_HEADER, FRAME):
            frames += 1
            if frames > MAX_FRAMES:
                raise UndecodableImage(f"the AVIF has more than {MAX_FRAMES} frames in one picture")
        position = end


def _announced_pixels(take: Callable[[int], int]) -> int:
    take(4)  # profile, still picture
    if take(1):  # a header reduced to what a still picture needs
        take(5)
    else:
        if take(1):
            raise ValueError("timing, in a picture")
        delays = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delays and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return (take(width_bits) + 1) * (take(height_bits) + 1)


def _bit_reader(data: bytes) -> Callable[[int], int]:
    """A function that returns the next so many bits as a number. It raises ValueError past the end."""
    value, left = int.from_bytes(data), 8 * len(data)

    def take(bits: int) -> int:
        nonlocal left
        left -= bits
        return value >> left & ((1 << bits) - 1)

    return take
