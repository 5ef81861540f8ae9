"""What the service and the process that parses JSON say to each other, in addition to app.sandbox.channel.

A request is REQUEST, the JSON, and the model's Signature as JSON. The answer MESSAGE is HEAD, a JSON object, and the
images that were in the request's JSON, one after another. The object has the members of requests.Message but for
`images`, and `sizes`: the bytes of each file, PIXELS, or null if the request's JSON holds no images.
"""

import struct

from ...sandbox.channel import FIRST_OWN

REQUEST = struct.Struct(">QQQ")  # bytes of the JSON, of the signature, and of what follows the JSON in its request
HEAD = struct.Struct(">Q")  # bytes of the object
MESSAGE = FIRST_OWN
PIXELS = "pixels"
