"""Lets torchvision's pure-Python transforms load without its compiled library, which no CPU build of torch fits.

Python runs a module of this name at its start. torchvision registers shapes of its compiled operators while it is
imported, and fails where the operators are missing: declaring their names is enough, as no transform calls them.
"""

import sys
from importlib.abc import MetaPathFinder

_OPERATORS = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
_NAMES = ["nms", "qnms", *_OPERATORS, *(f"_{name}_backward" for name in _OPERATORS)]
_KEPT = []


class _DeclareOperators(MetaPathFinder):
    """Declares the operators just before torchvision is imported, and finds nothing itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision" and not _KEPT:
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            _KEPT.append(library)  # the end of the object would take the names back
            for name in _NAMES:
                library.define(f"{name}(Tensor x) -> Tensor")
        return None


sys.meta_path.insert(0, _DeclareOperators())
