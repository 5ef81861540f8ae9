"""The chunks of a WebP (RFC 9649), before Pillow reads them.

essential(content)      # the same picture without the chunks that it does not need

Metadata is never damage: libwebp would refuse a file whose metadata is cut short.
"""

import struct

# Still pictures, animations and their first frames, colour profiles. EXIF is kept where it is whole.
NEEDED = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ICCP")
FRAME, EXIF = b"ANMF", b"EXIF"
MAX_CHUNKS = 20_000


def essential(content: bytes) -> bytes:
    """The same picture, of the chunks alone that its pixels, its orientation and its colours need.

    Of an animation only the first frame stays. Raises ValueError for more than MAX_CHUNKS chunks.
    """
    parts, position, frames = [], 12, 0
    whole = int.from_bytes(content[4:8], "little") + 8 <= len(content)
    for _ in range(MAX_CHUNKS):
        kind = content[position : position + 4]
        if len(kind) < 4:
            break
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        part = content[position : position + 8 + length]
        complete = len(part) == 8 + length
        frames += kind == FRAME
        if kind in NEEDED or (kind == FRAME and frames == 1) or (kind == EXIF and complete):
            parts.append(part + bytes(length % 2 if complete else 0))
        else:
            whole = False
        position += 8 + length + length % 2
    else:
        raise ValueError("the WebP has too many chunks")
    if whole:
        return content
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body
