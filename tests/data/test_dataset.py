"""Items that depend on (seed, epoch, index) alone, and a cache that is whole or not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, MapTransform, RandGaussianNoised, RandScaleIntensityd

from med3d_ext.data.loader import SeededDataset
from med3d_ext.io import store as module

DATA = [{"image": f"case_{number}.nii", "domain": "liver"} for number in range(6)]


class Make(MapTransform):
    """Stands for loading: a float16 volume that its number fills; counts its calls."""

    calls = 0

    def __call__(self, data):
        Make.calls += 1
        item = dict(data)
        number = int(item["image"].split("_")[1].split(".")[0])
        volume = torch.full((1, 4, 5, 6), float(number), dtype=torch.float16)
        item["image"] = MetaTensor(
            volume, affine=torch.eye(4) * (number + 1), meta={"filename_or_obj": item["image"], "header": np.float64(1)}
        )
        return item


def make(cache_dir=None, seed: int = 0) -> SeededDataset:
    random = [RandGaussianNoised("image", prob=0.7, dtype=None), RandScaleIntensityd("image", 0.5, prob=0.7)]
    return SeededDataset(DATA, Compose([Make("image"), *random]), cache_dir and str(cache_dir), seed)


def plain(dataset: SeededDataset, index: int) -> np.ndarray:
    return dataset[index]["image"].numpy().copy()


@pytest.fixture(params=[True, False], ids=["cached", "uncached"])
def cache_dir(request, tmp_path):
    return tmp_path / "cache" if request.param else None


def test_an_item_does_not_depend_on_what_was_drawn_before(cache_dir):
    first = [plain(make(cache_dir), index) for index in range(6)]
    used = make(cache_dir)
    for index in (5, 5, 3, 0):
        plain(used, index)
    np.random.default_rng().random()
    torch.rand(3)
    for index in reversed(range(6)):
        np.testing.assert_array_equal(plain(used, index), first[index])


def test_epochs_seeds_and_items_differ():
    dataset = make()
    noise = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            dataset = make(seed=seed)
            dataset.set_epoch(epoch)
            for index in range(6):
                noise[seed, epoch, index] = plain(dataset, index).tobytes()
    assert len(set(noise.values())) >= 22  # at probability 0.3 x 0.3 an item of one epoch stays as it is


def test_workers_change_nothing():
    def epoch(workers: int) -> list[np.ndarray]:
        dataset = make()
        dataset.set_epoch(3)
        loader = DataLoader(dataset, batch_size=1, num_workers=workers)
        return [batch["image"].numpy() for batch in loader]

    for ours, theirs in zip(epoch(0), epoch(2)):
        np.testing.assert_array_equal(ours, theirs)


def test_the_cache_is_read_by_a_new_data_set_without_the_transform(tmp_path):
    expected = [plain(make(tmp_path), index) for index in range(6)]
    Make.calls = 0
    again = make(tmp_path)
    for index in range(6):
        np.testing.assert_array_equal(plain(again, index), expected[index])
    assert Make.calls == 0 and len(list(tmp_path.glob("*.pt"))) == 6
    other = SeededDataset(DATA, Compose([Make(["image", "label"], allow_missing_keys=True)]), str(tmp_path))
    _ = other[0]
    assert Make.calls == 1  # another transform, another file


def test_the_cache_keeps_type_geometry_name_and_other_keys(tmp_path):
    bare = SeededDataset(DATA, Compose([Make("image")]), str(tmp_path))
    for item in (bare[2], bare[2]):
        image = item["image"]
        assert isinstance(image, MetaTensor) and image.dtype == torch.float16 and (image == 2).all()
        np.testing.assert_array_equal(image.affine.numpy(), np.eye(4) * 3)
        assert image.meta["filename_or_obj"] == "case_2.nii"
        assert item["domain"] == "liver"


def test_cache_files_load_safely_and_are_memory_mapped(tmp_path, monkeypatch):
    dataset = SeededDataset(DATA, Compose([Make("image")]), str(tmp_path))
    _ = dataset[0]
    (path,) = tmp_path.glob("*.pt")
    assert torch.load(path, weights_only=True)["entry"]["image"]["x"].dtype == torch.float16
    real, kinds = torch.UntypedStorage.from_file, []
    monkeypatch.setattr(
        torch.UntypedStorage, "from_file", lambda *args, **kwargs: kinds.append(args[0]) or real(*args, **kwargs)
    )
    _ = dataset[0]
    assert kinds == [str(path)]


def test_what_a_random_transform_changes_is_not_written_into_the_cache(tmp_path):
    class Spoil(RandScaleIntensityd):
        def __call__(self, data):
            data["image"].as_tensor().fill_(99)
            return data

    for _ in range(2):
        spoiled = SeededDataset(DATA, Compose([Make("image"), Spoil("image", 0.5)]), str(tmp_path))
        assert (spoiled[1]["image"] == 99).all()
    assert (SeededDataset(DATA, Compose([Make("image")]), str(tmp_path))[1]["image"] == 1).all()


def test_an_entry_that_cannot_be_written_whole_leaves_nothing_and_the_item_is_there(tmp_path, monkeypatch, caplog):
    dataset = make(tmp_path)

    def torn(content, file):
        file.write(b"half")
        raise RuntimeError("inline_container.cc: unexpected pos")  # a full disk, in torch's words

    with monkeypatch.context() as patch:
        patch.setattr(module.torch, "save", torn)
        for index in range(3):
            np.testing.assert_array_equal(plain(dataset, index), plain(make(), index))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert caplog.text.count("nothing can be kept in") == 1
    np.testing.assert_array_equal(plain(dataset, 0), plain(make(), 0))


def test_a_look_before_the_random_transforms_uses_the_same_file_of_the_cache(tmp_path):
    dataset = make(tmp_path / "cache")
    looked = [dataset.before_random(index)["image"] for index in range(6)]
    calls, files = Make.calls, sorted((tmp_path / "cache").glob("*.pt"))
    drawn = make(tmp_path / "cache")
    assert len(files) == 6
    for index in range(6):
        assert plain(drawn, index).shape == tuple(looked[index].shape)
    assert (Make.calls, sorted((tmp_path / "cache").glob("*.pt"))) == (calls, files)
