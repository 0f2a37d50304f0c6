"""What differs where MONAI Label trains a bundle: it sends labeled images and leaves every option at its default."""

from __future__ import annotations

import os
from pathlib import Path

from med3d_ext.io.facts import facts_path

SERVER = "MONAI_LABEL_APP_DIR"
"""The server sets this variable for itself and for the processes that it starts."""


def weights_to_continue(bundle_root: str | os.PathLike | None) -> Path | None:
    """The weights that a labelling server serves; its training starts from them, with their normalization.

    Args:
        bundle_root: the bundle's folder.

    Returns:
        ``models/model.pt`` if its facts are next to it; None without either, and outside a server.
    """
    if SERVER not in os.environ or bundle_root is None:
        return None
    path = Path(bundle_root) / "models" / "model.pt"
    return path if path.is_file() and facts_path(path.parent) else None
