"""The pretraining on a GPU that is yours for half an hour and cannot see the data: pack, carry, train, bring back.

    python benchmarks/gpu_pretraining.py pack DATA STORE.npz          where the data are: whole volumes on coarse grids
    python benchmarks/gpu_pretraining.py train STORE.npz FOLDER --minutes 9    on the GPU; the same command resumes
    python benchmarks/gpu_pretraining.py export FOLDER OUT            half-precision weights in pieces of 16 MiB
    python benchmarks/gpu_pretraining.py join OUT MODEL.pt            back home: a state dict of the bundle's network

``pack`` reads the data as the bundle does (normalization, merged labels, training cases only) and keeps one byte for
each voxel. ``train`` follows the bundle's overlays dice_ce, adamw, intensity and contrast; it holds everything in the
GPU's memory and draws crops there: one interpolation with rotation, scale and translation. It needs torch, monai and
this package, but neither nibabel nor ignite.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 16 << 20  # bytes
CT_MM, MR_MM = (2.8, 2.8, 4.4), 1.25
VOXEL_MM: dict[str, Any] = {
    "Task01_BrainTumour": 2.0,
    "Task04_Hippocampus": 0.7,
    "Task05_Prostate": (1.2, 1.2, 2.5),
}
SIZE = {"Task04_Hippocampus": (48, 64, 48), "Task05_Prostate": (96, 96, 24)}
USUAL_SIZE = (80, 80, 56)


def pack(data: Path, store: Path) -> None:
    """Write the training cases of all domains as bytes on grids of a fixed voxel size, in RAS order."""
    from monai.transforms import Compose

    from med3d_ext.tools.bundle_folder import Bundle
    from med3d_ext.transforms import ResampleToGridd
    from med3d_ext.transforms.sampling import axis_spacing, to_ras

    with tempfile.TemporaryDirectory() as scratch:
        bundle = Bundle.find("pretrain_3dseg8", {"dataset_dir": str(data), "output_dir": scratch})
        prepared = bundle.value("train", "data")
        read = Compose(bundle.value("train", "train::preprocessing_transforms"))
        arrays: dict[str, np.ndarray] = {}
        cases = []
        for number, item in enumerate(prepared.training):
            found = read(dict(item))
            affine, shape = found["image"].affine.numpy(), found["image"].shape[1:]
            ras, size = to_ras(affine, shape)
            usual = CT_MM if prepared.domains[item["domain"]]["modality"] == "CT" else MR_MM
            voxel = np.broadcast_to(VOXEL_MM.get(item["domain"], usual), 3)
            size = np.maximum(np.ceil(size * axis_spacing(affine @ ras) / voxel), 8).astype(int)
            found = {key: found[key].float() for key in ("image", "label")}
            found = ResampleToGridd(["image", "label"], size.tolist(), ["bilinear", "nearest"])(found)
            image, label = (found[key][0].numpy() for key in ("image", "label"))
            low, high = float(image.min()), float(image.max())
            stored = np.round((image - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
            name = hashlib.sha256(stored.tobytes()).hexdigest()[:16]  # a CT may be in several domains
            arrays[f"image {name}"], arrays[f"label {number}"] = stored, label.astype(np.uint8)
            cases.append({"domain": item["domain"], "range": [low, high], "image": name})
        classes = {name: len(found) for name, found in prepared.per_domain("classes").items()}
        about = {"classes": classes, "cases": cases}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        np.savez_compressed(store, **arrays)
    print(f"'{store}': {len(cases)} cases of {len(classes)} domains, {store.stat().st_size / 2**20:.1f} MiB")


class Volumes:
    """All cases in the device's memory."""

    def __init__(self, store: Path, device: torch.device) -> None:
        with np.load(store) as stored:
            about = json.loads(stored["about"].tobytes())
            self.classes: dict[str, int] = about["classes"]
            self.by_domain: list[list[tuple[Tensor, Tensor, tuple[float, float]]]] = [[] for _ in self.classes]
            images = {case["image"]: stored[f"image {case['image']}"] for case in about["cases"]}
            on_device = {name: torch.from_numpy(image).to(device) for name, image in images.items()}
            for number, case in enumerate(about["cases"]):
                image, label = on_device[case["image"]], torch.from_numpy(stored[f"label {number}"]).to(device)
                self.by_domain[list(self.classes).index(case["domain"])].append((image, label, tuple(case["range"])))
        self.names, self.device = list(self.classes), device

    def batch(self, domain: int, count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Crops of one domain: images and labels, N x 1 x the domain's size."""
        size = SIZE.get(self.names[domain], USUAL_SIZE)
        images, labels = [], []
        for _ in range(count):
            image, label, (low, high) = self.by_domain[domain][draw.integers(len(self.by_domain[domain]))]
            shape = np.array(image.shape)
            # The crop in voxels: of the store's voxel size, or, of three in ten, as much as there is.
            extent = np.array(size) / draw.uniform(0.8, 1.2) if draw.uniform() < 0.7 else shape / draw.uniform(0.8, 1.2)
            target = torch.nonzero(label[::2, ::2, ::2]) * 2
            center = shape / 2
            if len(target):
                center = target[draw.integers(len(target))].cpu().numpy() + draw.uniform(-0.25, 0.25, 3) * extent
            center = np.clip(center, np.minimum(extent, shape) / 2, shape - np.minimum(extent, shape) / 2)
            theta = torch.from_numpy(_matrix(shape, extent, center, np.radians(draw.uniform(-5, 5, 3)))).float()
            grid = F.affine_grid(theta[None].to(self.device), [1, 1, *size], align_corners=False)
            voxels = image[None, None].float() / 255 * (high - low) + low
            sampled = F.grid_sample(voxels, grid, padding_mode="border", align_corners=False)
            images.append(_other_intensities(sampled, draw))
            nearest = {"mode": "nearest", "padding_mode": "border", "align_corners": False}
            labels.append(F.grid_sample(label[None, None].float(), grid, **nearest))
        return torch.cat(images), torch.cat(labels).long()


def _matrix(shape: np.ndarray, extent: np.ndarray, center: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """From a crop's unit cube to the volume's, whose axes ``grid_sample`` takes in reverse order."""
    from med3d_ext.transforms.sampling import rotation_matrix

    matrix = rotation_matrix(angles) * (extent / 2)[None] / (shape / 2)[:, None]
    moved = 2 * center / shape - 1
    return np.concatenate([matrix[::-1, ::-1], moved[::-1, None]], axis=1)


def _other_intensities(image: Tensor, draw: np.random.Generator) -> Tensor:
    """What the bundle's overlays intensity and contrast do, at their probabilities."""
    if draw.uniform() < 0.5:
        image = image * draw.uniform(0.75, 1.25)
    if draw.uniform() < 0.5:
        image = image + draw.uniform(-0.25, 0.25)
    if draw.uniform() < 0.5:
        low, high, mean, deviation = image.min(), image.max(), image.mean(), image.std()
        bent = ((image - low) / (high - low + 1e-6)) ** draw.uniform(0.7, 1.5)
        image = (bent - bent.mean()) / (bent.std() + 1e-6) * deviation + mean
    if draw.uniform() < 0.2:
        image = image + 0.1 * torch.randn_like(image)
    return -image if draw.uniform() < 0.2 else image


def train(store: Path, folder: Path, network_name: str, samples: int, batch: int, minutes: float, device: str) -> None:
    """Train until ``samples`` are drawn or the minutes are over; the state in the folder resumes."""
    from monai.losses import DiceCELoss

    from med3d_ext.losses import MultiHeadLoss
    from med3d_ext.networks import Med3DNet

    begin, place = time.monotonic(), torch.device(device)
    data = Volumes(store, place)
    torch.manual_seed(0)
    network = Med3DNet(network_name, 1, data.classes).to(place, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.001, weight_decay=0.01)
    dice_ce = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    loss = MultiHeadLoss(dice_ce, data.classes)
    done, losses = 0, dict[str, float]()
    path = folder / "state.pt"
    if path.is_file():
        state = torch.load(path, map_location=place, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    first = done
    while done < samples and time.monotonic() - begin < 60 * minutes - 20:
        draw = np.random.default_rng([0, done])  # the same samples, wherever it was stopped
        torch.manual_seed(done)
        part = done / samples
        rate = 0.001 * min(1.0, 0.1 + part * 50) * (0.5 + 0.5 * math.cos(math.pi * part))
        for group in optimizer.param_groups:
            group["lr"] = rate
        domain = (done // batch) % len(data.names)
        image, label = data.batch(domain, batch, draw)
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            logits = network(image, torch.full((batch,), domain, device=place))
        value = loss(logits.float(), label, [domain] * batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        name, found = data.names[domain], float(value.detach())
        losses[name] = 0.95 * losses.get(name, found) + 0.05 * found
        done += batch
    seconds = time.monotonic() - begin
    folder.mkdir(parents=True, exist_ok=True)
    part_path = path.with_suffix(".part")
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "done": done}, part_path)
    part_path.replace(path)
    row = {"network": network_name, "samples": done, "of": samples, "seconds": round(seconds, 1)}
    row |= {"samples_a_second": round((done - first) / seconds, 2)}
    row |= {"loss": {name: round(found, 4) for name, found in losses.items()}}
    print(json.dumps(row))


def export(folder: Path, out: Path) -> None:
    """Write the network's state dict in half precision, in pieces."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["network"]
    stream = io.BytesIO()
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save({name: value.contiguous() for name, value in half.items()}, stream)
    content = stream.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(content), PIECE)):
        (out / f"model.pt.{number:03d}").write_bytes(content[start : start + PIECE])
    print(f"'{out}': {len(content) / 2**20:.1f} MiB in {-(-len(content) // PIECE)} pieces")


def join(out: Path, model: Path) -> None:
    """Put the pieces together, in single precision."""
    content = b"".join(path.read_bytes() for path in sorted(out.glob("model.pt.*")))
    state = torch.load(io.BytesIO(content), weights_only=True)
    torch.save({name: value.float() if value.is_floating_point() else value for name, value in state.items()}, model)
    print(f"'{model}': {len(state)} tensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, paths in (("pack", ("data", "store")), ("export", ("folder", "out")), ("join", ("out", "model"))):
        verb = verbs.add_parser(name)
        for path in paths:
            verb.add_argument(path, type=Path)
    verb = verbs.add_parser("train")
    verb.add_argument("store", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--network_name", default="resnet50")
    verb.add_argument("--samples", type=int, default=96000)
    verb.add_argument("--batch", type=int, default=8)
    verb.add_argument("--minutes", type=float, default=9.0)
    verb.add_argument("--device", default="cuda")
    options = vars(parser.parse_args())
    globals()[options.pop("verb")](**options)


if __name__ == "__main__":
    main()
