"""The bundle: a folder of plain files that describes one model completely.

    bundle = Bundle.load(Path("models/mobilenet_v2_cifar10"))

`training` writes bundles and `app` reads them; this package is what they share.
"""

from .manifest import Architecture
from .reader import Bundle, BundleError

__all__ = ["Architecture", "Bundle", "BundleError"]
