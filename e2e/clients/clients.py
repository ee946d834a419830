"""Programs and libraries that people read their data with: makes a dataset with them, and reads it back through a mount.

    clients.py make FOLDER               each library writes files of its kind, git a repository
    clients.py read FOLDER SUMS          all clients below, each in a process of its own; a line of JSON for each
    clients.py client NAME FOLDER SUMS   one of them

What a library reads is compared with the values it wrote, which any process can make again; what a program copies, with SUMS,
which is what `sha256sum` prints about the files. A client that writes to standard error has failed, and Python's warnings are
errors.
"""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import numpy as np

# Files larger than a chunk of the cache (4 MiB), of several parts.
ROWS = 200_000
SHARDS, SAMPLES = 3, 40
ODD_NAMES = ("a b", "100%25", "it's \"q\"", "żółć-日本語-🦀", ".hidden", "semi;colon,=@:", "-rf", "empty")


def ensure(holds, what):
    # Not `assert`, which python -O leaves out.
    if not holds:
        sys.exit(f"wrong: {what}")


def same(seen, expected, what):
    ensure(seen.dtype == expected.dtype and np.array_equal(seen, expected), f"{what} is not what was written")


def run(*command, **more):
    """Runs a program; gives what it printed, which may not be a complaint."""
    done = subprocess.run(command, capture_output=True, text=True, **more)
    ensure(done.returncode == 0 and not done.stderr, f"{command} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def git(folder, *arguments):
    return run("git", "-c", "user.name=larder", "-c", "user.email=larder@localhost", "-C", folder, *arguments)


def array(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def sample(shard, number):
    """Of a shard of samples: an array of its own size, and a label of its own."""
    return array(1_000 * shard + number, 64 + number, 256), SAMPLES * shard + number


def samples():
    return {(shard, number): sample(shard, number) for shard in range(SHARDS) for number in range(SAMPLES)}


def tensors():
    return {f"layer.{n}.weight": array(n, 512, 256 + n) for n in range(12)}


def table():
    import pyarrow as pa

    words = np.random.default_rng(8).integers(0, 1_000, ROWS)
    return pa.table({"id": np.arange(ROWS), "value": array(9, ROWS), "word": [f"word-{n:03}" for n in words]})


def make(folder):
    import h5py
    import pyarrow as pa
    import pyarrow.parquet
    import safetensors.numpy
    import webdataset
    from tfrecord.tools import tfrecord2idx
    from tfrecord.writer import TFRecordWriter

    for name in ("numpy", "parquet", "tfrecord", "wds", "tree/deep/er"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "numpy/features.npy", array(1, 4_096, 1_024))
    np.savez(folder / "numpy/some.npz", x=array(2, 300, 7), y=array(3, 5))
    safetensors.numpy.save_file(tensors(), folder / "model.safetensors")
    pa.parquet.write_table(table(), folder / "parquet/part-0.parquet", row_group_size=ROWS // 8)
    with pa.OSFile(str(folder / "parquet/table.arrow"), "wb") as sink, pa.ipc.new_file(sink, table().schema) as writer:
        writer.write_table(table())
    with h5py.File(folder / "data.h5", "w") as file:
        file["whole"] = array(4, 1_024, 1_024)
        file.create_dataset("chunked", data=array(5, 2_000, 300), chunks=(100, 100), compression="gzip")
        file["whole"].attrs["unit"] = "m/s"
    for shard in range(SHARDS):
        records = TFRecordWriter(str(folder / f"tfrecord/{shard}.tfrecord"))
        with webdataset.TarWriter(str(folder / f"wds/shard-{shard:06}.tar")) as shards:
            for number in range(SAMPLES):
                values, label = sample(shard, number)
                records.write({"values": (values.tobytes(), "byte"), "label": (label, "int")})
                shards.write({"__key__": f"{shard}/{number:04}", "npy": values, "cls": label})
        records.close()
        tfrecord2idx.create_index(folder / f"tfrecord/{shard}.tfrecord", folder / f"tfrecord/{shard}.index")
    with closing(sqlite3.connect(folder / "samples.sqlite")) as file, file:
        file.execute("CREATE TABLE samples (label INTEGER PRIMARY KEY, data BLOB)")
        file.executemany("INSERT INTO samples VALUES (?, ?)", [(label, values.tobytes()) for values, label in samples().values()])
    for number, name in enumerate(ODD_NAMES):
        for parent in ("tree", "tree/deep/er"):
            (folder / parent / name).write_bytes(b"" if name == "empty" else array(number, 1 + 5_000 * number).tobytes())
    make_repository(folder / "repository")


def make_repository(folder):
    folder.mkdir()
    # Hooks are executable samples of git's own, which is not what people keep in a bucket.
    git(folder, "init", "--quiet", "--initial-branch=main", "--template=")
    for number in range(30):
        (folder / f"module{number % 7}.py").write_text(f"value = {number}\n" * 200)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", f"change {number}")
        if number == 25:
            # The rest stays loose.
            git(folder, "gc", "--quiet")
    git(folder, "tag", "--annotate", "v1", "--message", "the first")


def read_numpy(data, _):
    for mode in ("r", "c"):
        features = np.load(data / "numpy/features.npy", mmap_mode=mode)
        expected = array(1, *features.shape)
        # Here and there first, as a shuffled epoch does.
        for row in np.random.default_rng(6).permutation(len(features))[:500]:
            same(features[row], expected[row], f"row {row}")
        same(np.asarray(features), expected, "the whole array")
    raw = np.memmap(data / "numpy/features.npy", np.float32, "r", offset=128)
    same(raw, expected.ravel(), "the raw map")
    with np.load(data / "numpy/some.npz") as file:
        same(file["x"], array(2, 300, 7), "x")
        same(file["y"], array(3, 5), "y")
    return np.__version__


def read_torch(data, _):
    import torch
    from torch.utils.data import DataLoader

    rows = Rows(data / "numpy/features.npy")
    # Workers that share the map with their parent, and workers that open the file themselves.
    for context in ("fork", "spawn"):
        loader = DataLoader(rows, 64, shuffle=True, num_workers=2, multiprocessing_context=context, persistent_workers=True)
        for _ in range(2):
            batches = list(loader)
            order = np.argsort(np.concatenate([number for number, _ in batches]))
            same(np.concatenate([row for _, row in batches])[order], array(1, *rows.values().shape), f"an epoch of {context}")
    tensor = torch.from_numpy(np.load(data / "numpy/features.npy", mmap_mode="c"))
    same(tensor.numpy(), array(1, *tensor.shape), "the tensor over a map")
    return torch.__version__


class Rows:
    """A data set for PyTorch: rows of an array with their numbers."""

    def __init__(self, file):
        self.file, self.open = file, None
        self.values()

    def values(self):
        if self.open is None:
            self.open = np.load(self.file, mmap_mode="r")
        return self.open

    def __len__(self):
        return len(self.values())

    def __getitem__(self, number):
        # A copy: PyTorch takes no array that nobody may write to.
        return number, self.values()[number].copy()

    def __getstate__(self):
        return {"file": self.file, "open": None}


def read_pyarrow(data, _):
    import pyarrow as pa
    import pyarrow.dataset
    import pyarrow.parquet

    file, expected = data / "parquet/part-0.parquet", table()
    for use_map in (True, False):
        ensure(pa.parquet.read_table(file, memory_map=use_map).equals(expected), f"parquet, memory_map={use_map}")
    with pa.parquet.ParquetFile(file, memory_map=True, pre_buffer=True) as groups:
        ensure(groups.read_row_group(3, ["word"]).equals(expected.select(["word"])[3 * ROWS // 8 : 4 * ROWS // 8]), "a row group")
    few = pa.dataset.dataset(data / "parquet", format="parquet", exclude_invalid_files=True).to_table(
        filter=pa.dataset.field("id") >= ROWS - 10
    )
    ensure(few.equals(expected[ROWS - 10 :]), "a filtered scan")
    with pa.memory_map(str(data / "parquet/table.arrow")) as mapped:
        ensure(pa.ipc.open_file(mapped).read_all().equals(expected), "the arrow file")
    return pa.__version__


def read_safetensors(data, _):
    import safetensors
    import safetensors.numpy

    expected = tensors()
    with safetensors.safe_open(data / "model.safetensors", framework="numpy") as file:
        ensure(set(file.keys()) == set(expected), "the names")
        for name in reversed(sorted(expected)):
            same(file.get_tensor(name), expected[name], name)
            same(file.get_slice(name)[100:200], expected[name][100:200], f"a slice of {name}")
    whole = safetensors.numpy.load_file(data / "model.safetensors")
    for name, values in expected.items():
        same(whole[name], values, name)
    return safetensors.__version__


def read_h5py(data, _):
    import h5py

    # With a lock, as HDF5 takes one unless it is told not to, and by each way to read.
    for more in ({"locking": True}, {"driver": "stdio"}, {"driver": "core"}, {"rdcc_nbytes": 0}):
        with h5py.File(data / "data.h5", "r", **more) as file:
            whole, chunked = array(4, 1_024, 1_024), array(5, 2_000, 300)
            same(file["whole"][500:600, ::7], whole[500:600, ::7], f"a slice, {more}")
            same(file["whole"][()], whole, f"whole, {more}")
            same(file["chunked"][()], chunked, f"chunked, {more}")
            ensure(file["whole"].attrs["unit"] == "m/s", "an attribute")
    return f"{h5py.__version__} (HDF5 {h5py.version.hdf5_version})"


def read_sqlite(data, _):
    for mode in ("ro", "rw"):  # the second, which most people leave at that, finds that it cannot write
        with closing(sqlite3.connect(f"file:{data / 'samples.sqlite'}?mode={mode}", uri=True)) as file:
            ensure(file.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "the integrity check")
            rows = file.execute("SELECT label, data FROM samples ORDER BY label DESC")
            check_samples({divmod(n, SAMPLES): (np.frombuffer(v, np.float32).reshape(-1, 256), n) for n, v in rows})
    return sqlite3.sqlite_version


def read_tfrecord(data, _):
    from tfrecord.reader import tfrecord_loader

    for index in (None, "index"):
        seen = {}
        for shard in range(SHARDS):
            file = data / f"tfrecord/{shard}.tfrecord"
            # With an index, as two workers of a loader read it.
            parts = [(worker, 2) for worker in range(2)] if index else [None]
            for part in parts:
                for record in tfrecord_loader(str(file), index and str(file.with_suffix(".index")), shard=part):
                    [label] = record["label"]
                    seen[divmod(label, SAMPLES)] = np.frombuffer(record["values"], np.float32).reshape(-1, 256), label
        check_samples(seen)
    return version("tfrecord")


def read_webdataset(data, _):
    import webdataset

    shards = str(data / f"wds/shard-{{000000..{SHARDS - 1:06}}}.tar")
    dataset = webdataset.WebDataset(shards, shardshuffle=False).shuffle(50).decode().to_tuple("__key__", "npy", "cls")
    # In this process, and in workers that share the shards.
    for reader in (dataset, webdataset.WebLoader(dataset, batch_size=None, num_workers=2)):
        check_samples({tuple(map(int, key.split("/"))): (np.asarray(values), label) for key, values, label in reader})
    return version("webdataset")


def check_samples(seen):
    expected = samples()
    ensure(seen.keys() == expected.keys(), f"{len(seen)} samples instead of {len(expected)}")
    for key, (values, label) in expected.items():
        same(seen[key][0], values, f"sample {key}")
        ensure(seen[key][1] == label, f"the label of {key}")


def read_cp(data, sums):
    with tempfile.TemporaryDirectory() as target:
        run("cp", "-a", data, f"{target}/copy")
        check_copy(data, Path(target, "copy"), sums)
    return first_line("cp")


def read_rsync(data, sums):
    with tempfile.TemporaryDirectory() as target:
        run("rsync", "-a", f"{data}/", target)
        check_copy(data, Path(target), sums)
        differ = run("rsync", "-ac", "--dry-run", "--itemize-changes", f"{data}/", target)
        ensure(differ == "", f"rsync -c finds differences: {differ}")
    return first_line("rsync")


def read_tar(data, sums):
    with tempfile.TemporaryDirectory() as folder:
        archive, target = f"{folder}/all.tar", Path(folder, "extracted")
        run("tar", "--create", "--xattrs", "--file", archive, "--directory", data, ".")
        with tarfile.open(archive) as file:
            members = {member.name.removeprefix("./"): member for member in file if member.isfile()}
            digest = {name: hashlib.sha256(file.extractfile(member).read()).hexdigest() for name, member in members.items()}
            ensure(digest == sums, "the archive holds something else")
        run("tar", "--diff", "--file", archive, "--directory", data)
        target.mkdir()
        run("tar", "--extract", "--file", archive, "--directory", target)
        check_copy(data, target, sums)
    return first_line("tar")


def read_git(data, _):
    repository = data / "repository"
    ensure(git(repository, "fsck", "--full", "--strict", "--no-progress") == "", "git fsck found something")
    ensure(git(repository, "status", "--porcelain") == "", "git finds changes")
    ensure(len(git(repository, "log", "--oneline").splitlines()) == 30, "the log has other commits")
    with tempfile.TemporaryDirectory() as target:
        run("git", "clone", "--quiet", "--no-hardlinks", repository, f"{target}/clone")
        ensure(git(f"{target}/clone", "describe") == "v1\n", "the clone has another head")
    return first_line("git")


def check_copy(data, copy, sums):
    """Content, and the times that all three programs keep."""
    files = [path for path in copy.rglob("*") if path.is_file()]
    digest = {str(path.relative_to(copy)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    ensure(digest == sums, f"the copy differs: {sorted(set(digest.items()) ^ set(sums.items()))[:3]}")
    for path in files:
        ensure(int(path.stat().st_mtime) == int((data / path.relative_to(copy)).stat().st_mtime), f"time of {path}")


def first_line(program):
    return run(program, "--version").splitlines()[0]


CLIENTS = {
    "torch": read_torch,
    "numpy": read_numpy,
    "pyarrow": read_pyarrow,
    "safetensors": read_safetensors,
    "h5py": read_h5py,
    "sqlite": read_sqlite,
    "tfrecord": read_tfrecord,
    "webdataset": read_webdataset,
    "cp": read_cp,
    "rsync": read_rsync,
    "tar": read_tar,
    "git": read_git,
}

# It leaves closing its files to the garbage collector, wherever they lie.
LENIENT = {"webdataset": ("-W", "ignore::ResourceWarning")}


def read_all(folder, sums):
    """Each client by itself, whose standard error is its own then."""
    failed = 0
    # Compiled once, also where the user may not write beside the sources.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": "/tmp/compiled"}
    for name in CLIENTS:
        start = time.monotonic()
        options = ["-W", "error", *LENIENT.get(name, ())]
        command = [sys.executable, *options, __file__, "client", name, folder, sums]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        failed += bool(done.returncode or done.stderr)
        line = {"client": name, "version": done.stdout.strip(), "seconds": round(time.monotonic() - start, 1)}
        if done.returncode or done.stderr:
            line["error"] = done.stderr or f"it ended with {done.returncode}"
        print(json.dumps(line), flush=True)
    sys.exit(failed)


def main(what, *arguments):
    if what == "make":
        make(Path(arguments[0]))
    elif what == "read":
        read_all(*arguments)
    else:
        name, folder, sums = arguments
        lines = (line.split("  ", 1) for line in Path(sums).read_text().splitlines())
        print(CLIENTS[name](Path(folder), {path: digest for digest, path in lines}))


if __name__ == "__main__":
    main(*sys.argv[1:])
