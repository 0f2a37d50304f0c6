"""Stands in for torchvision, whose wheels do not load with a CPU build of torch of the same version.

MONAI Label imports two functions of it, for pictures that no bundle draws.
"""

from torchvision.utils import make_grid, save_image

__all__ = ["make_grid", "save_image"]
