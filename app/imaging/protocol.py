"""What the service and a decoding process say to each other, in addition to app.sandbox.channel.

A request is REQUEST and the file. The process answers IDENTIFIED with an IDENTITY, waits for DECODE, and answers
THUMBNAILS. If DECODE wants no views, the image is skipped. For an image that takes no more than the request's free
pixels it does not wait: both answers come together. Instead of any the process may answer PROBLEM.
"""

import struct

from ..sandbox.channel import FIRST_OWN

# Bytes of the file, max_pixels; free pixels, and for images within them the views, height and width of a thumbnail's
# and of a photograph's thumbnails.
REQUEST = struct.Struct(">QQQIIIII")
IDENTITY = struct.Struct(">QII")  # pixels that decoding will take, width, height
DECODE = struct.Struct(">III")  # views, height and width of thumbnails
IDENTIFIED, THUMBNAILS = FIRST_OWN, FIRST_OWN + 1
