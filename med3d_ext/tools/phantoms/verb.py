"""The verb ``phantoms``."""

from __future__ import annotations

from med3d_ext.errors import InputError
from med3d_ext.tools.phantoms.dataset import phantom_dataset
from med3d_ext.tools.phantoms.kinds import KINDS


def phantoms(kind: str, *, folder: str | None = None, cases: int | None = None, seed: int = 0) -> str:
    """Write generated patients in the Decathlon's layout and print the folder.

    Args:
        kind: lits, 3dseg8, lung or nodules.
        folder: where to write: a new or an empty folder. Defaults to the cache that bare runs take theirs from.
        cases: number of cases, for 3dseg8 in each domain. Defaults to the kind's own.
        seed: seed of the patients.
    """
    if kind not in KINDS:
        raise InputError(f"phantoms: KIND must be one of {', '.join(KINDS)}, got '{kind}'.")
    if cases is not None and cases < 1:
        raise InputError(f"phantoms: --cases must be at least 1, got {cases}.")
    if seed < 0:
        raise InputError(f"phantoms: --seed must be at least 0, got {seed}.")
    return str(phantom_dataset(kind, folder, cases, seed))
