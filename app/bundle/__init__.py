"""The bundle: a folder of plain files that says everything about one model.

`training` writes bundles, `app` reads them.
"""

from .reader import Architecture, Bundle, BundleError

__all__ = ["Architecture", "Bundle", "BundleError"]
