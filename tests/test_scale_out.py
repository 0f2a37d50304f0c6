"""Several processes learn what one learns from the same batches, if BatchNorm computes with stored statistics."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.engines import IterationEvents, SupervisedTrainer
from monai.transforms import Compose, RandGaussianNoised, ToTensord

from med3d_ext.data import BalancedSampler, SeededDataset, TrainingLoader
from med3d_ext.engines import TrainingIteration
from med3d_ext.errors import InputError
from med3d_ext.handlers.freeze import stop_statistics
from med3d_ext.handlers.seeding import EpochSeed
from med3d_ext.networks import Segmenter
from med3d_ext.weights.initial import InitialWeights

BATCH, CASES, EPOCHS = 4, 8, 2


def items() -> list[dict]:
    generator = np.random.default_rng(3)
    made = []
    for number in range(CASES):
        label = np.zeros((1, 16, 16, 16), np.int64)
        label[:, number : number + 6, 4:12, 4:12] = 1
        made.append({"image": (label + generator.normal(0, 0.2, label.shape)).astype(np.float32), "label": label[0]})
    return made


def train(folder: Path, rank: int, processes: int, is_frozen: bool) -> None:
    """One process of a training, as the bundles and multi_gpu_train.json build it; writes each step's loss."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    torch.manual_seed(0)
    start = InitialWeights(Segmenter(num_classes=2, output_stride=8), "scratch")
    if is_frozen:
        start.network.register_forward_pre_hook(stop_statistics)
    network = torch.nn.parallel.DistributedDataParallel(start.on("cpu"), find_unused_parameters=True)
    dataset = SeededDataset(items(), Compose([ToTensord(["image", "label"]), RandGaussianNoised("image", 1.0)]), seed=5)
    sampler = BalancedSampler([None] * CASES, seed=5)
    loader = TrainingLoader(dataset, num_workers=0, batch_size=BATCH // processes, sampler=sampler)
    losses = []

    def note(engine) -> None:
        loss = engine.state.output["loss"].detach().clone()
        dist.all_reduce(loss)
        losses.append(loss.item() / processes)

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=loader,
        network=network,
        loss_function=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(start.network.parameters(), 0.05, momentum=0.9),
        iteration_update=TrainingIteration(),
        optim_set_to_none=True,
    )
    EpochSeed(5, loader).attach(trainer)
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, note)
    trainer.run()
    if rank == 0:
        np.savetxt(folder / "losses.txt", losses)
    dist.destroy_process_group()


def losses_of(folder: Path, processes: int, is_frozen: bool = True) -> np.ndarray:
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=train, args=(folder, rank, processes, is_frozen)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * processes
    return np.loadtxt(folder / "losses.txt")


def test_two_and_four_processes_have_the_losses_of_one(tmp_path):
    one, two, four = (losses_of(tmp_path / str(count), count) for count in (1, 2, 4))
    assert len(one) == EPOCHS * CASES // BATCH and one[-1] != one[0]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    np.testing.assert_allclose(four, one, rtol=1e-5)


def test_with_statistics_of_the_batch_they_are_those_of_each_process(tmp_path):
    """What docs/scale_out.md warns of: it is the reason for sync_batchnorm."""
    one, two = (losses_of(tmp_path / str(count), count, is_frozen=False) for count in (1, 2))
    assert np.abs(two / one - 1).max() > 1e-3


def test_statistics_are_shared_on_gpus_alone():
    start = InitialWeights(Segmenter(), "scratch")
    with pytest.raises(InputError, match="sync_batchnorm needs GPUs"):
        start.on("cpu", sync_batchnorm=True)


def test_the_weights_in_another_memory_format_are_the_same_function():
    torch.manual_seed(0)
    start = InitialWeights(Segmenter().eval(), "scratch")
    image = torch.randn(1, 1, 16, 17, 18)
    with torch.no_grad():
        expected = start.on("cpu")(image)
        found = start.on("cpu", channels_last=True)(image)
    kernel = start.network.encoder.layer1[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d) and not kernel.is_contiguous()
    torch.testing.assert_close(found, expected)
