"""Small files that stand for enormous ones: refused with one line, in bounded memory and time."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.studies import inputs
from lra import checkpoint
from lra.curves import read_curves
from lra.folders import read_config
from lra.outcomes import faulty_predictions, read_run
from lra.published import COLUMNS, read_published
from lra.tasks import image, listops, pathfinder, retrieval, text
from tests import forks
from tests.faults import FULL
from tests.faults.foreign import one_line
from tests.faults.mutation import Member, tarred
from tests.runs import environment

# What a reader may take beside what its process has already, and in seconds of a processor.
ROOM, SECONDS = 768 << 20, 120
GIGABYTE = 1 << 30


def gallery(place: Path, scratch: Path) -> None:
    reading = pathfinder.read_release(place, 32, "hard", scratch)
    for blocks in reading.blocks.values():
        list(blocks)


def predictions(place: Path, scratch: Path) -> None:
    if fault := faulty_predictions(place, 20):
        raise ValueError(f"{place} {fault}")


READERS: dict[str, Callable[[Path, Path], object]] = {
    "ListOps": lambda place, scratch: listops.read_release(place, 8),
    "AAN": lambda place, scratch: retrieval.read_aan(place, 8, scratch),
    "IMDb": lambda place, scratch: text.read_reviews(place),
    "CIFAR-10": lambda place, scratch: image.read_batches(place),
    "Pathfinder": gallery,
    "QKV": lambda place, scratch: inputs.read(place),
    "checkpoint": lambda place, scratch: checkpoint.parse(place.read_bytes(), place, torch.device("cpu")),
    "config.yaml": lambda place, scratch: read_config(place),
    "result.json": lambda place, scratch: read_run(place),
    "metrics.jsonl": lambda place, scratch: read_curves(place),
    "predictions.npz": predictions,
    "published": lambda place, scratch: read_published(place.parent),
}
PROGRAM = f"""
import resource, sys, warnings
from pathlib import Path
from tests.faults.test_readers_bombs import READERS
warnings.simplefilter("error")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + {ROOM}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
try:
    READERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
except Exception as error:
    print(type(error).__mro__[-4:-2], error, sep="|")
else:
    print("read|")
"""


def heap(fill: bytes = b"\x00", size: int = GIGABYTE) -> Iterator[bytes]:
    """gzip members that unpack to `size` bytes, made in no time."""
    piece = gzip.compress(fill * (1 << 24), 6, mtime=0)
    yield from [piece] * (size >> 24)


def swollen(name: str, kind: bytes = tarfile.REGTYPE, fill: bytes = b"\x00", size: int = GIGABYTE) -> bytes:
    """A packed archive with one member of a gigabyte."""
    about = tarfile.TarInfo(name)
    about.size, about.type = size, kind
    head = gzip.compress(about.tobuf(tarfile.GNU_FORMAT), 1, mtime=0)
    return b"".join([head, *heap(fill, size), gzip.compress(bytes(1_024), 1, mtime=0)])


def claiming(name: str, size: bytes) -> bytes:
    return gzip.compress(tarred([Member(name, b"x", fields=((124, size),)), Member(name, b"x")]))


def npz(head: str, body: int, way: int) -> bytes:
    """Three arrays of zeros with a header of their own, packed in one of zip's ways."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", way) as archive:
        for name in ("q", "k", "v", "predictions"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                said = head.encode()
                file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said)
                for _ in range(body >> 20):
                    file.write(bytes(1 << 20))
    return out.getvalue()


def header(shape: str) -> str:
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n"


def long_header() -> bytes:
    """An array whose header says that it has a gigabyte itself."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("q.npy", "w") as file:
        file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", GIGABYTE))
        for _ in range(GIGABYTE >> 20):
            file.write(b" " * (1 << 20))
    return out.getvalue()


def safetensors(size: int, said: bytes) -> bytes:
    return struct.pack("<Q", size) + said


def deflated_checkpoint() -> bytes:
    """A checkpoint whose tensor is packed, and a gigabyte."""
    saved = io.BytesIO()
    torch.save({"x": torch.zeros(GIGABYTE // 4096)}, saved)
    out = io.BytesIO()
    with zipfile.ZipFile(saved) as plain, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            content = plain.read(name)
            with archive.open(name, "w") as file:
                if name.endswith("data/0"):
                    for _ in range(GIGABYTE >> 20):
                        file.write(bytes(1 << 20))
                else:
                    file.write(content)
    return out.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    all_chunks = [head, *chunks, (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")]
    made = [struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in all_chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def pictures(picture: bytes) -> bytes:
    folder = "pathfinder32/curv_contour_length_14"
    lines = "".join(f"imgs/1 s{i}.png {i} {i % 2}\n" for i in range(10)).encode()
    files = [Member(f"{folder}/imgs/1/s{i}.png", picture) for i in range(10)]
    return gzip.compress(tarred([Member(f"{folder}/metadata/1.npy", lines), *files]), 1)


def tower(depth: int) -> bytes:
    return b"[" * depth


TSV = "listops-1000/basic_train.tsv"
PAPERS = f"tsv_data/{retrieval.FILES['train']}"
BATCH = f"{image.FOLDER}/data_batch_1.bin"
PICTURE = "pathfinder32/curv_contour_length_14/imgs/1/s0.png"
LINES = "pathfinder32/curv_contour_length_14/metadata/1.npy"
REVIEW = "aclImdb/train/neg/0_1.txt"
COMPLETE = f"{','.join(COLUMNS)}\n".encode()
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30))
TERABYTES = b'{"q":{"dtype":"F16","shape":[9999999999],"data_offsets":[0,9]}}'
EIGHT_EXBIBYTES = b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7
BOMBS: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "a line of a gigabyte": ("ListOps", "r.gz", lambda: swollen(TSV)),
    "a row of a gigabyte": ("AAN", "r.gz", lambda: swollen(PAPERS, fill=b"x")),
    "a review of a gigabyte": ("IMDb", "r.gz", lambda: swollen(REVIEW, fill=b"x")),
    "addresses of a gigabyte": ("IMDb", "r.gz", lambda: swollen("aclImdb/train/urls_neg.txt", fill=b"\n")),
    "a batch of a gigabyte": ("CIFAR-10", "r.gz", lambda: swollen(BATCH)),
    "a picture of a gigabyte": ("Pathfinder", "r.gz", lambda: swollen(PICTURE)),
    "metadata of a gigabyte": ("Pathfinder", "r.gz", lambda: swollen(LINES, fill=b"x")),
    "something else of a gigabyte": ("Pathfinder", "r.gz", lambda: swollen("other")),
    "a name of a gigabyte": ("ListOps", "r.gz", lambda: swollen("x", tarfile.GNUTYPE_LONGNAME, b"x")),
    "a header of a gigabyte": ("ListOps", "r.gz", lambda: swollen("x", tarfile.XHDTYPE, b"9")),
    "a header that takes its square to search": (
        "ListOps", "r.gz", lambda: swollen("x", tarfile.XHDTYPE, b"9", 1 << 24)
    ),
    "a member of eight exbibytes": ("ListOps", "r.gz", lambda: claiming("other", EIGHT_EXBIBYTES)),
    "a member that goes backwards": ("IMDb", "r.gz", lambda: claiming("other", b"\xff" * 12)),
    "headers without end": (
        "ListOps", "r.gz", lambda: gzip.compress(tarred([Member("x", b"x", tarfile.GNUTYPE_LONGNAME)] * 5_000), 1)
    ),
    "a picture of four billion pixels": ("Pathfinder", "r.gz", lambda: pictures(png(65_535, 65_535))),
    "a picture with a text of a gigabyte": (
        "Pathfinder", "r.gz", lambda: pictures(png(32, 32, (b"zTXt", b"a\x00\x00" + zlib.compress(bytes(1 << 29), 9))))
    ),
    "a picture with a profile of a gigabyte": (
        "Pathfinder", "r.gz", lambda: pictures(png(32, 32, (b"iCCP", b"a\x00\x00" + zlib.compress(bytes(1 << 29), 9))))
    ),
    "arrays of terabytes": ("QKV", "q.npz", lambda: npz(header("(1, 1, 1048576, 1048576)"), 0, zipfile.ZIP_STORED)),
    "arrays of other packing": ("QKV", "q.npz", lambda: npz(header("(1, 1, 3, 4)"), 1 << 22, zipfile.ZIP_BZIP2)),
    "arrays longer than they say": (
        "QKV", "q.npz", lambda: npz(header("(1, 1, 1, 262144)"), 1 << 26, zipfile.ZIP_DEFLATED)
    ),
    "an array of a long header": ("QKV", "q.npz", long_header),
    "tensors of terabytes": (
        "QKV", "q.safetensors", lambda: safetensors(68, TERABYTES.ljust(68))
    ),
    "a table of exbibytes": ("QKV", "q.safetensors", lambda: safetensors(2**62, b"{}")),
    "predictions of other packing": (
        "predictions.npz", "predictions.npz", lambda: npz(header("(20,)"), 1 << 22, zipfile.ZIP_BZIP2)
    ),
    "predictions that are packed": (
        "predictions.npz", "predictions.npz", lambda: npz(header("(20, 9)"), 1 << 26, zipfile.ZIP_DEFLATED)
    ),
    "a packed checkpoint": ("checkpoint", "last.pt", deflated_checkpoint),
    "a billion laughs": ("config.yaml", "config.yaml", lambda: LAUGHS.encode()),
    "merged laughs": ("config.yaml", "config.yaml", lambda: MERGED.encode()),
    "a deep configuration": ("config.yaml", "config.yaml", lambda: tower(100_000)),
    "a deep result": ("result.json", "result.json", lambda: tower(1_000_000)),
    "a result of many digits": ("result.json", "result.json", lambda: b'{"schema": 1' + b"0" * 1_000_000 + b"}"),
    "a deep record": ("metrics.jsonl", "metrics.jsonl", lambda: tower(1_000_000) + b"\n"),
    "a record of many digits": ("metrics.jsonl", "metrics.jsonl", lambda: b'{"step": ' + b"9" * 1_000_000 + b"}\n"),
    "a cell of a hundred megabytes": ("published", "a.csv", lambda: COMPLETE + b'"' + b"x" * 100_000_000),
}  # fmt: skip


# Those that are made and refused in no time.
SHORT = (
    *("a name of a gigabyte", "a member of eight exbibytes", "a picture of four billion pixels", "arrays of terabytes"),
    *("predictions of other packing", "a billion laughs", "a deep result"),
)


@pytest.mark.parametrize("name", BOMBS if FULL else SHORT)
def test_a_bomb_is_one_line_in_bounded_memory_and_time(room: Path, tally: Counter[str], name: str) -> None:
    reader, file, make = BOMBS[name]
    place, scratch = room / file, room / "scratch"
    scratch.mkdir()
    place.write_bytes(make())
    done = forks.run(["-c", PROGRAM, reader, str(place), str(scratch)], room, environment())
    if name == "predictions that are packed":
        # Of whatever is packed only the beginning is looked at.
        assert (done.returncode, done.stdout, done.stderr) == (0, "read|\n", "")
        return
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    kind, _, said = done.stdout.rstrip("\n").partition("|")
    assert "ValueError" in kind, done.stdout
    one_line(ValueError(said), "" if reader == "result.json" else str(place))
    tally["foreign files: bombs refused"] += 1
