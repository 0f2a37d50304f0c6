"""What a GPU makes of the project: one JSON row for each measurement, documented in docs/benchmarks.md.

    python benchmarks/gpu.py ROWS.jsonl [--only step,monai,batch,...] [--iterations 20] [--device cuda]

A row that is in ROWS.jsonl already, of the same settings, device and versions, is not measured again.
``--device cpu --tiny`` runs all of it on small inputs, to see that it works; such rows say so: they are no figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import monai
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.networks import nets
from monai.transforms import CastToTyped, Compose
from torch import nn

import med3d_ext
from med3d_ext.data import BalancedSampler, SeededDataset, TrainingLoader
from med3d_ext.data.loader import chosen_workers
from med3d_ext.engines import computes_bfloat16
from med3d_ext.inferers import CascadeInferer
from med3d_ext.io.store import Store
from med3d_ext.networks import DenseASPP, ResNetEncoder, SegmentationNetwork, Segmenter, TwoStageSegmenter
from med3d_ext.transforms import RandTargetCropd

DEPTHS = ("resnet10", "resnet18", "resnet50", "resnet152")
# Dense operations a second of tensor cores, bfloat16 and float32 (TF32 off), of the makers' data sheets.
PEAK = {"H100": (989e12, 67e12), "H200": (989e12, 67e12), "A100": (312e12, 19.5e12), "L4": (121e12, 30.3e12)}


class Bench:
    """The settings of all measurements, and the file of rows."""

    def __init__(self, path: Path, device: str, iterations: int, tiny: bool) -> None:
        self.path, self.device, self.iterations, self.tiny = path, torch.device(device), iterations, tiny
        self.size = [16, 32, 16] if tiny else [64, 96, 64]
        self.depths = DEPTHS[:1] if tiny else DEPTHS
        self.half = computes_bfloat16(self.device)
        is_gpu = self.device.type == "cuda"
        self.where = {
            "device": torch.cuda.get_device_name(self.device) if is_gpu else platform.processor() or "CPU",
            "versions": {"torch": torch.__version__, "monai": monai.__version__, "med3d_ext": med3d_ext.__version__},
            "tiny": tiny,
        }
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        self.known = [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def row(self, what: str, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure, unless a row of the same settings is there, and append the row."""
        key = {"what": what, "settings": settings, **self.where}
        if any({name: row.get(name) for name in key} == key for row in self.known):
            return
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            found = measure()
        except torch.OutOfMemoryError:
            found = {"fault": "out of memory"}
        if self.device.type == "cuda":
            found["memory_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 3)
        row = {**key, "host": socket.gethostname(), "time": time.strftime("%F %T"), "found": found}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(what, settings, found, flush=True)

    def seconds(self, work: Callable[[], Any], iterations: int | None = None) -> dict[str, Any]:
        """Median and quartiles of one call's seconds; the first three calls, which choose kernels, do not count."""
        times = []
        for _ in range(3 + (iterations or self.iterations)):
            begin = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - begin)
        low, _, high = quantiles(times[3:], n=4)
        return {"seconds": median(times[3:]), "quartiles": [low, high], "calls": len(times) - 3}

    def on(self, network: nn.Module, channels_last: bool = True) -> nn.Module:
        network = network.to(self.device)
        return network.to(memory_format=torch.channels_last_3d) if channels_last else network  # type: ignore[call-overload]

    def step(self, network: nn.Module, batch: int, half: bool, iterations: int | None = None) -> dict[str, Any]:
        """A training step: forward, cross-entropy, backward, SGD; torch counts a multiply-add as two operations."""
        optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9)
        image = torch.randn(batch, 1, *self.size, device=self.device)
        target = torch.zeros(batch, *self.size, dtype=torch.long, device=self.device)

        def work() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                logits = network(image)
            logits = (
                logits if logits.shape[2:] == image.shape[2:] else nn.functional.interpolate(logits, image.shape[2:])
            )
            nn.functional.cross_entropy(logits.float(), target).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            work()
        found = self.seconds(work, iterations)
        found |= {"steps_a_second": 1 / found["seconds"], "volumes_a_second": batch / found["seconds"]}
        found["operations"] = counter.get_total_flops()
        peak = next((both for name, both in PEAK.items() if name in self.where["device"]), None)
        if peak is not None:
            found["share_of_peak"] = found["operations"] / found["seconds"] / peak[0 if half else 1]
        return found


def step(bench: Bench) -> Iterator[tuple]:
    """Steps a second and share of peak by depth, precision, memory format, compile and checkpointing."""
    ways = [{}, {"channels_last": False}, {"half": False}, {"compile": True}, {"checkpointing": True}]
    for name in bench.depths:
        for way in ways:
            full = {"half": bench.half, "channels_last": True, "compile": False, "checkpointing": False, **way}
            if bench.tiny and full["compile"]:
                continue

            def measure(name: str = name, full: dict = full) -> dict[str, Any]:
                network = Segmenter(name, checkpointing=full["checkpointing"])
                network = bench.on(network, full["channels_last"]).train()
                return bench.step(torch.compile(network) if full["compile"] else network, 2, full["half"])

            yield {"network": name, "batch": 2, "size": bench.size, **full}, measure


def monais(bench: Bench) -> Iterator[tuple]:
    """MONAI's own ResNet of the same depth in float32, its features up-sampled by the same head; its stride is 32."""
    for name in bench.depths:
        for own in (False, True):

            def measure(name: str = name, own: bool = own) -> dict[str, Any]:
                if own:
                    network: nn.Module = Segmenter(name, output_stride=32)
                else:
                    network = _MonaiSegmenter(name)
                return bench.step(bench.on(network, channels_last=False).train(), 2, half=False)

            yield {"network": name, "whose": "ours" if own else "monai", "batch": 2, "size": bench.size}, measure


class _MonaiSegmenter(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        net = getattr(nets, name)(spatial_dims=3, n_input_channels=1, num_classes=2, feed_forward=False)
        width = net.layer4[-1].conv2.out_channels if name in ("resnet10", "resnet18") else 2048
        self.encoder, self.head = net, nn.Conv3d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        net = self.encoder
        x = net.maxpool(net.act(net.bn1(net.conv1(x)))) if not net.no_max_pool else net.act(net.bn1(net.conv1(x)))
        return self.head(net.layer4(net.layer3(net.layer2(net.layer1(x)))))


def batch(bench: Bench) -> Iterator[tuple]:
    """How a step grows with the batch."""
    for name in bench.depths[:3]:
        for count in (1, 2) if bench.tiny else (1, 2, 4, 8, 16, 32):

            def measure(name: str = name, count: int = count) -> dict[str, Any]:
                return bench.step(bench.on(Segmenter(name)).train(), count, bench.half)

            yield {"network": name, "batch": count, "size": bench.size, "half": bench.half}, measure


class _Volumes:
    """A data set in a store: volumes as float16, labels as uint8, as the bundles keep them."""

    def __init__(self, bench: Bench, cases: int, folder: str) -> None:
        edge = 48 if bench.tiny else 256
        self.data = [{"image": f"case {number}", "label": f"label {number}"} for number in range(cases)]
        steps = [_Make(edge), CastToTyped(["image", "label"], dtype=[torch.float16, torch.uint8])]
        crop = RandTargetCropd(["image", "label"], spatial_size=bench.size, target_factor=None)
        self.dataset = SeededDataset(self.data, Compose([*steps, crop]), Store(folder, 50))


class _Make(monai.transforms.Transform):
    def __init__(self, edge: int) -> None:
        self.edge = edge

    def __call__(self, item: dict) -> dict:
        grid = np.random.default_rng(0).normal(0, 1, (1, self.edge, self.edge, self.edge // 2)).astype(np.float32)
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        image = monai.data.MetaTensor(torch.from_numpy(grid), affine=affine, meta={"filename_or_obj": item["image"]})
        label = monai.data.MetaTensor((image > 1).float().as_tensor(), affine=affine, meta=dict(image.meta))
        return {**item, "image": image, "label": label}


def waiting(bench: Bench) -> Iterator[tuple]:
    """Samples a second from a warm store against the network alone, by workers."""
    for name in bench.depths[:2]:
        for workers in dict.fromkeys((0, 1) if bench.tiny else (0, 1, 2, 4, chosen_workers(bench.device))):

            def measure(name: str = name, workers: int = workers) -> dict[str, Any]:
                alone = bench.step(bench.on(Segmenter(name)).train(), 2, bench.half)
                network = bench.on(Segmenter(name)).train()
                optimizer = torch.optim.SGD(network.parameters(), 0.001)
                with tempfile.TemporaryDirectory() as folder:
                    data = _Volumes(bench, 4 if bench.tiny else 16, folder).dataset
                    for number in range(len(data)):
                        data.before_random(number)
                    sampler = BalancedSampler([None] * len(data), 8 if bench.tiny else 200)
                    loader = TrainingLoader(data, bench.device, workers, batch_size=2, sampler=sampler)
                    begin, count = time.perf_counter(), 0
                    for items in loader:
                        image, label = (items[key].as_tensor() for key in ("image", "label"))
                        image = image.to(bench.device, non_blocking=True).float()
                        label = label.to(bench.device, non_blocking=True).long()[:, 0]
                        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.half):
                            logits = network(image)
                        nn.functional.cross_entropy(logits.float(), label).backward()
                        optimizer.step()
                        optimizer.zero_grad()
                        count += len(image)
                    if bench.device.type == "cuda":
                        torch.cuda.synchronize(bench.device)
                    rate = count / (time.perf_counter() - begin)
                return {"volumes_a_second": rate, "share_of_network_alone": rate / alone["volumes_a_second"]}

            yield (
                {"network": name, "workers": workers, "cores": os.cpu_count(), "batch": 2, "size": bench.size},
                measure,
            )


def cascade(bench: Bench) -> Iterator[tuple]:
    """Coarse and fine on one CT, from the volume in memory to its logits."""
    for shape in [(48, 48, 32)] if bench.tiny else [(257, 257, 140), (512, 512, 119), (512, 512, 500)]:
        for name in bench.depths[:3]:

            def measure(name: str = name, shape: tuple = shape) -> dict[str, Any]:
                encoder = ResNetEncoder(name)
                fine = SegmentationNetwork(encoder, DenseASPP(encoder.channels[-1]), 3)
                network = bench.on(TwoStageSegmenter(Segmenter(name), fine)).eval()
                volume = torch.randn(1, 1, *shape, device=bench.device)
                inferer = CascadeInferer(logits_dtype=torch.float16)

                @torch.no_grad()
                def work() -> None:
                    with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.half):
                        inferer(volume, network)

                return bench.seconds(work, 3 if bench.tiny else 5)

            yield {"network": name, "shape": list(shape), "half": bench.half}, measure


def processes(bench: Bench) -> Iterator[tuple]:
    """DistributedDataParallel over gloo, two processes on this one device, against one with the same batch each."""
    for count in (1, 2):

        def measure(count: int = count) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                arguments = (count, folder, str(bench.device), bench.iterations, bench.tiny)
                mp.start_processes(_process, arguments, nprocs=count, start_method="spawn")
                return json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))

        yield {"network": "resnet10", "processes": count, "batch": 2, "backend": "gloo", "size": bench.size}, measure


def _process(rank: int, count: int, folder: str, device: str, iterations: int, tiny: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    bench = Bench(Path(folder, "none.jsonl"), device, iterations, tiny)
    torch.manual_seed(0)
    network = nn.parallel.DistributedDataParallel(bench.on(Segmenter("resnet10")).train())
    found = bench.step(network, 2, bench.half)
    if rank == 0:
        found["volumes_a_second"] *= count
        Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


MEASUREMENTS = {
    "step": step,
    "monai": monais,
    "batch": batch,
    "waiting": waiting,
    "cascade": cascade,
    "processes": processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--only", default=",".join(MEASUREMENTS))
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU; `--device cpu --tiny` tries the script out")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    bench = Bench(options.rows, options.device, options.iterations, options.tiny)
    for name in options.only.split(","):
        if name not in MEASUREMENTS:
            parser.error(f"--only takes {', '.join(MEASUREMENTS)}, got '{name}'")
        for settings, measure in MEASUREMENTS[name](bench):
            bench.row(name, settings, measure)


if __name__ == "__main__":
    main()
