"""The size of the frames in an AVIF file, as its decoder will allocate them.

The container declares a size, and Pillow reports that one. The decoder allocates the size that the AV1 streams inside
declare, up to 268 megapixels. The two may differ: a file of 1 kB that claims 32x32 pixels can take 1 GB. So this module
reads the sizes in the streams (ISO 14496-12, iloc; AV1 specification, 5.3 and 5.5).

It also counts frames. A still picture has one frame, or one a layer. The decoder decodes all frames of an item to find
the layer that the container names, so a small file can cause minutes of work.
"""

import struct
from collections.abc import Callable, Iterator

from ..errors import UndecodableImage

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # types of open bitstream units (OBU)
MAX_FRAMES = 8  # in one item: up to four layers, and an encoder may write a frame as two units, header and tiles


def largest_av1_frame(content: bytes) -> int:
    """Pixels of the largest frame in an AVIF file's items (ISO 14496-12, iloc).

    Raises UndecodableImage for too many frames. On a malformed file it raises ValueError, struct.error or IndexError.
    """
    meta = _iso_box(content, b"meta")[4:]
    take = _bit_reader(_iso_box(meta, b"iloc")[: 1 << 16])
    version, _ = take(8), take(24)
    offset_bits, length_bits, base_bits, index_bits = (8 * take(4) for _ in range(4))
    largest = total = 0
    for _ in range(take(16 if version < 2 else 32)):
        take(16 if version < 2 else 32)  # the item's id
        source = _iso_box(meta, b"idat") if version and take(16) & 15 else content
        take(16)  # data reference index
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
    """The content of the first box of this kind. Raises ValueError or struct.error if there is none."""
    position, size = 0, 8
    while size >= 8:
        size, found = struct.unpack_from(">I4s", data, position)
        if found == kind:
            return data[position + 8 : position + size]
        position += size
    raise ValueError("a box without a size")


def _av1_frames(stream: bytes) -> Iterator[int]:
    """Pixels of the largest frame that each sequence header of an AV1 stream allows (AV1 specification, 5.3 and 5.5).

    Data that is not AV1 yields nothing. Raises UndecodableImage for more than MAX_FRAMES frames.
    """
    position = frames = 0
    has_sequence_header = False
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
            has_sequence_header = True
            yield _max_frame_pixels(_bit_reader(stream[position : min(end, position + 256)]))
        elif has_sequence_header and kind in (FRAME_HEADER, FRAME):
            frames += 1
            if frames > MAX_FRAMES:
                raise UndecodableImage(f"the AVIF has more than {MAX_FRAMES} frames in one picture")
        position = end


def _max_frame_pixels(take: Callable[[int], int]) -> int:
    """max_frame_width_minus_1 and max_frame_height_minus_1 of a sequence header (AV1 specification, 5.5.1)."""
    take(4)  # seq_profile, still_picture
    if take(1):  # reduced_still_picture_header
        take(5)
    else:
        if take(1):
            raise ValueError("a still picture has timing info")
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
    """A function that reads the given number of bits as an unsigned integer. It raises ValueError past the end."""
    value, left = int.from_bytes(data), 8 * len(data)

    def take(bits: int) -> int:
        nonlocal left
        left -= bits
        return value >> left & ((1 << bits) - 1)

    return take
