"""``python -m med3d_ext <verb>``."""

from __future__ import annotations

import sys

from med3d_ext.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
