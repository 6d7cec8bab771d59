"""The cache of decoded image folders: decoded once a machine, never stale, never a reason to fail.

`python -m tests.lightning_modules.test_folder_cache` measures a first and a second load of 2,000 JPEGs.
"""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_modules.data import folder as module
from lightning_modules.data.folder import cache_folder, load_folder, scan_folder
from lightning_modules.errors import InputError

IMAGES = 12


def make_folder(root: Path, count: int = 3, side: int = 16, suffix: str = "png") -> Path:
    """Write 4 x count images of smooth noise."""
    generator = np.random.default_rng(0)
    for environment in ("art", "photo"):
        for label in ("cat", "dog"):
            place = root / environment / label
            place.mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                picture = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
                picture.save(place / f"{i:04d}.{suffix}", **({"quality": 90} if suffix == "jpg" else {}))
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIFTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def pictures(tmp_path, cache):
    return make_folder(tmp_path / "pictures")


@pytest.fixture
def decoded(monkeypatch):
    """Count the images that are decoded."""
    files = []
    original = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda file, size: files.append(file) or original(file, size))
    return files


def pixels(dataset):
    return np.concatenate([environment.inputs for environment in dataset.environments])


def names(cache):
    return sorted(path.suffix for path in cache.iterdir())


def test_the_second_load_maps_what_the_first_decoded(pictures, cache, decoded, monkeypatch):
    first = load_folder(pictures, 8)
    assert len(decoded) == IMAGES
    again = load_folder(pictures, 8)
    assert len(decoded) == IMAGES
    assert again.identity == first.identity
    assert again.notes == first.notes == {}
    np.testing.assert_array_equal(pixels(again), pixels(first))
    assert names(cache) == [".json", ".npy"]
    stored = np.load(next(cache.glob("*.npy")), allow_pickle=False)  # an ordinary npy file
    np.testing.assert_array_equal(stored, pixels(first))
    monkeypatch.setattr(module, "_open", lambda *_: None)
    monkeypatch.setenv("SHIFTLAB_CACHE", "/dev/null/nowhere")
    in_memory = load_folder(pictures, 8)
    assert in_memory.identity == first.identity
    np.testing.assert_array_equal(pixels(in_memory), pixels(first))


def test_another_process_maps_without_decoding(pictures, cache):
    identity = load_folder(pictures, 8).identity
    script = (
        "import sys; from PIL import Image; Image.open = None\n"
        "from lightning_modules.data.folder import load_folder\n"
        "dataset = load_folder(sys.argv[1], 8)\n"
        "print(dataset.identity, sum(int(e.inputs.sum()) for e in dataset.environments))"
    )
    done = subprocess.run([sys.executable, "-c", script, pictures], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [identity, str(pixels(load_folder(pictures, 8)).sum(dtype=int))], done.stderr


def test_processes_that_load_at_once_decode_once(pictures, cache, tmp_path):
    script = (
        "import sys, time, os, pathlib\n"
        "from lightning_modules.data import folder\n"
        "decode, count = folder.decode_image, []\n"
        "folder.decode_image = lambda *a: (count.append(1), time.sleep(0.05)) and decode(*a)\n"
        "here = pathlib.Path(sys.argv[2]); (here / str(os.getpid())).touch()\n"
        "while len(list(here.iterdir())) < 3: time.sleep(0.001)\n"
        "folder.load_folder(sys.argv[1], 8)\n"
        "print(len(count))"
    )
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    start = [sys.executable, "-c", script, str(pictures), str(meeting)]
    running = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(process.communicate(timeout=60)[0]) for process in running]
    assert sorted(counts) == [0, 0, IMAGES]
    assert names(cache) == [".json", ".npy"]


def test_mapped_inputs_travel_by_reference(pictures):
    """What Ray does: it hands out-of-band buffers to its store and gives workers arrays that lie in it."""
    load_folder(pictures, 8)
    dataset = load_folder(pictures, 8)
    buffers = []
    stream = pickle.dumps(dataset, protocol=5, buffer_callback=buffers.append)
    bytes_of_pixels = [buffer.raw().nbytes for buffer in buffers if buffer.raw().readonly]
    assert bytes_of_pixels == [environment.inputs.nbytes for environment in dataset.environments]
    assert len(stream) < 2000
    received = pickle.loads(stream, buffers=buffers)
    for sent, got in zip(dataset.environments, received.environments, strict=True):
        assert type(sent.inputs) is type(got.inputs) is np.ndarray
        assert np.shares_memory(sent.inputs, got.inputs)
        assert not got.inputs.flags.writeable
    np.testing.assert_array_equal(pixels(pickle.loads(pickle.dumps(dataset))), pixels(dataset))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", lambda content: content[:-1]),
        (".npy", lambda content: b""),
        (".npy", lambda content: b"\x93NUMPY" + b"?" * (len(content) - 6)),
        (".npy", lambda content: content + b"1"),
        (".npy", None),
        (".json", lambda content: content[: len(content) // 2]),
        (".json", lambda content: b"\xff\xfe"),
        (".json", lambda content: b"[]"),
        (".json", lambda content: b'{"fingerprint": null}'),
        (".json", None),
    ],
)
def test_a_damaged_entry_is_rebuilt(pictures, cache, decoded, suffix, damage):
    whole = load_folder(pictures, 8)
    expected = pixels(whole)
    (file,) = cache.glob(f"*{suffix}")
    content = file.read_bytes()
    file.unlink()
    if damage:
        file.write_bytes(damage(content))
    rebuilt = load_folder(pictures, 8)
    assert len(decoded) == 2 * IMAGES
    assert rebuilt.identity == whole.identity
    np.testing.assert_array_equal(pixels(rebuilt), expected)
    load_folder(pictures, 8)
    assert len(decoded) == 2 * IMAGES


def test_a_changed_folder_is_decoded_anew_and_its_old_entry_goes(pictures, cache, decoded):
    first = load_folder(pictures, 8)
    before = pixels(first).copy()
    load_folder(pictures, 4)
    image = pictures / "art" / "cat" / "0001.png"
    times = image.stat().st_mtime_ns
    image.write_bytes((pictures / "photo" / "dog" / "0002.png").read_bytes())
    os.utime(image, ns=(times, times + 1))
    second = load_folder(pictures, 8)
    assert len(decoded) == 3 * IMAGES
    assert second.identity != first.identity
    assert (pixels(second) != before).any(axis=(1, 2, 3)).tolist() == [i == 1 for i in range(IMAGES)]
    np.testing.assert_array_equal(pixels(first), before)  # still mapped, though its file is gone
    assert names(cache) == [".json", ".json", ".npy", ".npy"]  # size 4 stays


def test_a_moved_folder_is_found_again(pictures, tmp_path, decoded):
    identity = load_folder(pictures, 8).identity
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(pictures, tmp_path / "elsewhere" / "pictures")
    assert load_folder(moved, 8).identity == identity
    assert len(decoded) == IMAGES


def test_copies_made_at_another_time_have_the_same_identity(pictures, tmp_path, decoded):
    identity = load_folder(pictures, 8).identity
    (tmp_path / "elsewhere").mkdir()
    copied = shutil.copytree(pictures, tmp_path / "elsewhere" / "pictures")
    for file in copied.glob("*/*/*"):
        os.utime(file, (1, 1))
    assert load_folder(copied, 8).identity == identity
    assert len(decoded) == 2 * IMAGES


def test_folders_of_equal_names_sizes_and_times_are_told_apart(tmp_path, cache):
    """As two archives unpack whose files all have the same time."""
    roots = [tmp_path / name / "pictures" for name in ("one", "two")]
    for i, root in enumerate(roots):
        for environment in ("a", "b"):
            (root / environment / "c").mkdir(parents=True)
            file = root / environment / "c" / "0.png"
            Image.new("RGB", (8, 8), (i + 1, 0, 0)).save(file, compress_level=0)
            os.utime(file, (0, 0))
    one, two = (scan_folder(root) for root in roots)
    assert one.sizes.tolist() == two.sizes.tolist()
    assert one.mtimes.tolist() == two.mtimes.tolist()
    assert [int(pixels(load_folder(root, 8)).max()) for root in roots] == [1, 2]


def test_without_a_writable_cache_images_stay_in_memory(pictures, tmp_path, monkeypatch):
    expected = load_folder(pictures, 8)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHIFTLAB_CACHE", str(tmp_path / "file"))
    dataset = load_folder(pictures, 8)
    assert "Not a directory" in dataset.notes["cache"]
    assert "SHIFTLAB_CACHE" in dataset.notes["cache"]
    assert "\n" not in dataset.notes["cache"]
    assert dataset.identity == expected.identity
    np.testing.assert_array_equal(pixels(dataset), pixels(expected))


def test_a_full_disk_is_noticed_before_it_kills_the_process(pictures, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    dataset = load_folder(pictures, 8)
    assert "No space left" in dataset.notes["cache"]
    assert len(pixels(dataset)) == IMAGES
    assert names(cache) == []


def test_what_fails_or_was_killed_leaves_nothing(pictures, cache):
    image = pictures / "photo" / "dog" / "0002.png"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"{image}: cannot be read"):
        load_folder(pictures, 8)
    assert names(cache) == []
    image.write_bytes(content)
    (cache / f"{scan_folder(pictures).key(8)}.12345678.tmp").write_text("of a process that was killed")
    load_folder(pictures, 8)
    assert names(cache) == [".json", ".npy"]


def test_files_that_change_while_they_are_read_are_refused(pictures, cache, monkeypatch):
    original = module.decode_image

    def decode(file, size):
        if file.name == "0001.png":
            os.utime(file, (0, 0))
        return original(file, size)

    monkeypatch.setattr(module, "decode_image", decode)
    with pytest.raises(InputError, match="pictures: files changed while they were read"):
        load_folder(pictures, 8)
    assert names(cache) == []


def test_long_decodes_are_reported_and_short_ones_are_not(pictures, capsys, monkeypatch):
    load_folder(pictures, 8)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(module, "_REPORT_SECONDS", 0.0)
    seen = []
    load_folder(pictures, 9, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == (IMAGES, IMAGES)
    load_folder(pictures, 10)
    assert capsys.readouterr().err.splitlines()[-1] == f"decoded {IMAGES} of {IMAGES} images"
    load_folder(pictures, 11, progress=None)
    load_folder(pictures, 10)
    assert capsys.readouterr() == ("", "")


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("SHIFTLAB_CACHE", "/scratch")
    assert cache_folder() == Path("/scratch")
    monkeypatch.delenv("SHIFTLAB_CACHE")
    assert cache_folder() == Path("/caches/shiftlab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/shiftlab")


def measure(root: Path, image_size: int = 64) -> tuple[float, float]:
    """Time the first and the second load of a folder in fresh processes; returns seconds (cold, warm)."""
    script = (
        "import sys, time; from lightning_modules.data.folder import load_folder\n"
        "began = time.perf_counter(); dataset = load_folder(sys.argv[1], int(sys.argv[2]))\n"
        "sum(int(e.inputs.sum()) for e in dataset.environments)  # touch every byte\n"
        "print(time.perf_counter() - began)"
    )
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", script, str(root), str(image_size)]
        environment = {**os.environ, "SHIFTLAB_CACHE": cache}
        cold, warm = (
            float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            for _ in range(2)
        )
    return cold, warm


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        make_folder(Path(scratch) / "pictures", 500, 256, "jpg")
        print(f"2,000 JPEGs of 256 x 256 written in {time.perf_counter() - began:.1f} s")
        for size in (64, 224):
            cold, warm = measure(Path(scratch) / "pictures", size)
            print(f"image_size {size}: first load {cold:.2f} s, second {warm:.3f} s, {cold / warm:.0f} times faster")
