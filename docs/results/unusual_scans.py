"""Makes the scans without a liver, or with a part of one, that the released `lits_fine` was trained and tested with.

    python docs/results/unusual_scans.py DECATHLON_FOLDER LUNG_FOLDER OUTPUT

writes `OUTPUT/training` for `--negatives`; `OUTPUT/test` with scans without a liver and `OUTPUT/cut_test` with parts of
livers and their labels, both of cases that no training has seen; and the same, smaller, of the validation's two CTs.
"""

import sys
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes, binary_opening, gaussian_filter, label

AIR, SKIN, SKULL = -125.0, 40.0, 700.0  # HU; the sets' CTs end at -125
BRAINS = {"training": ["pat0003", "pat0005", "pat0006"], "test": ["pat0004"]}  # test: no pretraining has seen it
LIVERS = {"training": [n for n in range(20) if n not in (12, 16)], "validation": [12, 16], "test": range(20, 24)}


def read(path, channel=None):
    image = nibabel.as_closest_canonical(nibabel.load(path))
    voxels = image.get_fdata(dtype=np.float32)
    return (voxels if channel is None else voxels[..., channel]), image.affine


def write(path, voxels, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.rint(voxels).astype(np.int16), affine), path)


def slab(voxels, affine, first, last):
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ [0, 0, first] + affine[:3, 3]
    return voxels[:, :, first:last], moved


def below_the_liver(liver_folder, number):
    """What lies 15 mm or more below the liver."""
    voxels, affine = read(liver_folder / f"imagesTr/liver_{number:02d}.nii.gz")
    liver, _ = read(liver_folder / f"labelsTr/liver_{number:02d}.nii.gz")
    first = np.flatnonzero(liver.any(axis=(0, 1)))[0]
    return slab(voxels, affine, 0, max(int(first - np.ceil(15 / affine[2, 2])), 0))


def write_parts_of_the_liver(liver_folder, number, folder):
    """The scan up to the liver's middle slice, from there on, and 60 mm around it, each with its label."""
    voxels, affine = read(liver_folder / f"imagesTr/liver_{number:02d}.nii.gz")
    liver, _ = read(liver_folder / f"labelsTr/liver_{number:02d}.nii.gz")
    reached = np.flatnonzero(liver.any(axis=(0, 1)))
    middle, slices = int(reached.mean()), int(round(30 / affine[2, 2]))
    parts = {"lower": (0, middle), "upper": (middle, liver.shape[2]), "middle": (middle - slices, middle + slices)}
    for name, (first, last) in parts.items():
        write(folder / f"images_{name}/liver_{number:02d}.nii.gz", *slab(voxels, affine, first, last))
        write(folder / f"labels_{name}/liver_{number:02d}.nii.gz", *slab(liver, affine, first, last))


def above_the_liver(lung_folder, name):
    """The upper third of the lungs and what lies above."""
    voxels, affine = read(lung_folder / f"imagesTr/{name}.nii.gz")
    lungs, _ = read(lung_folder / f"labelsTr/{name}.nii.gz")
    reached = np.flatnonzero(lungs.any(axis=(0, 1)))
    first = int(reached[0] + 2 / 3 * (reached[-1] - reached[0]))
    return slab(np.clip(voxels, AIR, 275), affine, first, voxels.shape[2])


def head_in_ct(brain, affine, random):
    """A head as a CT would show it, made of a brain MR: tissue at 20 to 50 HU, skull, skin, noise."""
    pad = 24
    brain = np.pad(brain, pad, constant_values=brain.min())
    inside = binary_opening(brain > brain.min() + 5, iterations=2)
    parts, count = label(inside)
    inside = binary_fill_holes(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])) if count else inside
    low, high = np.percentile(brain[inside], [2, 98])
    tissue = 20 + 30 * np.clip((brain - low) / max(high - low, 1), 0, 1)
    skull = binary_dilation(inside, iterations=int(random.integers(3, 8)))
    skin = binary_dilation(skull, iterations=int(random.integers(4, 9)))
    head = np.full(brain.shape, AIR, np.float32)
    head[skin], head[skull], head[inside] = SKIN + random.uniform(-30, 20), SKULL, tissue[inside]
    sinus = skull & ~inside & (gaussian_filter(random.normal(size=brain.shape), 4) > 0.04)
    head[binary_erosion(sinus)] = AIR
    head = gaussian_filter(head, random.uniform(0.4, 1.0)) + random.normal(0, random.uniform(4, 12), brain.shape)
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ [pad, pad, pad]
    return np.clip(head, AIR, 275), moved


def in_other_units(voxels, random):
    """An MR in the arbitrary units of another scanner: the background anywhere from -100 to 200, contrast at will."""
    scale = random.uniform(60, 500) / max(np.percentile(voxels, 99) - voxels.min(), 1)
    return (voxels - voxels.min()) * scale + random.uniform(-100, 200)


def main(decathlon, lung, output):
    randoms = {"training": np.random.default_rng(0), "test": np.random.default_rng(1)}
    decathlon, lung, output = Path(decathlon), Path(lung), Path(output)

    for split, numbers in LIVERS.items():
        for number in numbers:
            write(
                output / split / f"below_liver_{number:02d}.nii.gz",
                *below_the_liver(decathlon / "Task03_Liver", number),
            )
            if split != "training":
                write_parts_of_the_liver(decathlon / "Task03_Liver", number, output / f"cut_{split}")
    for split, names in {"training": ["ct_1", "ct_2"], "test": ["ct_3", "ct_5"]}.items():
        for name in names:
            write(output / split / f"chest_{name}.nii.gz", *above_the_liver(lung, name))
    for split, patients in BRAINS.items():
        for patient in patients:
            for channel in (0, 1):
                brain, affine = read(decathlon / f"Task01_BrainTumour/imagesTr/brats_2013_{patient}_1.nii.gz", channel)
                write(output / split / f"brain_{patient}_{channel}.nii.gz", brain, affine)
                other = in_other_units(brain, randoms[split])
                write(output / split / f"brain_{patient}_{channel}_other_units.nii.gz", other, affine)
                write(output / split / f"head_{patient}_{channel}.nii.gz", *head_in_ct(brain, affine, randoms[split]))
    others = {
        "Task02_Heart": {"training": ["la_000", "la_001", "la_002"], "test": ["la_017", "la_019"]},
        "Task05_Prostate": {"training": ["promise_0", "ProstateX-0000"], "test": ["promise_1"]},
    }
    for task, splits in others.items():
        for split, names in splits.items():
            for name in names:
                voxels, affine = read(decathlon / task / f"imagesTr/{name}.nii.gz")
                shown = in_other_units(voxels, randoms[split]) if split == "training" else voxels
                write(output / split / f"{name}.nii.gz", shown, affine)


if __name__ == "__main__":
    main(*sys.argv[1:])
