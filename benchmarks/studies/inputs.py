"""Queries, keys and values that a study runs on: generated ones, or those of a file that anyone can bring.

I instances, H heads, N tokens, D head dim.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from lra.files import write_atomically
from lra.folders import reason
from lra.words import WordError, nearest

GENERATED = "generated"
ARRAYS = ("q", "k", "v")
NAMES = (*ARRAYS, "mask", "about")
DTYPES = ("float16", "float32")
# What a file may ask of the memory before it is read: an array as float32, and the text beside the arrays.
LARGEST_ARRAY, LARGEST_TEXT = 2 << 30, 4 << 20
# NumPy's own bound, which it looks at when the header is in memory.
LARGEST_HEADER = 10_000


class QKV(NamedTuple):
    """Inputs of an attention. What stands in padded places is 0; `mask` is None where every token is real."""

    name: str
    q: np.ndarray  # (I, H, N, D) float32
    k: np.ndarray  # (I, H, N, D) float32
    v: np.ndarray  # (I, H, N, D) float32
    mask: np.ndarray | None  # (I, N) bool, True = real token
    instances: tuple[str, ...]  # what each instance is called: "layer 0, example 17"
    sha256: str  # of the shape, the float32 numbers and the mask, whatever container they come in
    about: dict[str, Any]  # where they come from


class Size(NamedTuple):
    """What is generated where a study asks for it."""

    n: int
    heads: int
    head_dim: int
    instances: int


def is_file(word: str) -> bool:
    """Whether a word names a file, which has its own sizes, and not generated inputs of any size."""
    return word.partition(":")[0] != GENERATED


def take(word: str, size: Size) -> QKV:
    """The inputs that a word names: `generated`, `generated:locality=0.2:entropy=3`, or a .npz or .safetensors file.

    A file has its own sizes. WordError where the word or the file is wrong; OSError where it cannot be read.
    """
    if not is_file(word):
        from benchmarks.studies.generated import generate, options

        return generate(size, options(word))
    path = Path(word)
    if path.suffix not in READERS:
        rule = f"{GENERATED}, {GENERATED}:key=value:..., or the path of a .npz or .safetensors file"
        raise WordError(f"inputs {word!r} are not {rule}{nearest(word.partition(':')[0], [GENERATED])}")
    if not path.is_file():
        raise WordError(f"inputs {word}: there is no such file; `make qkv` writes one")
    return read(path)


def heated(qkv: QKV, temperature: float) -> QKV:
    """The inputs with all logits multiplied by `temperature` > 0: q and k by its square root."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be above 0 and finite")
    if temperature == 1:
        return qkv
    factor = np.float32(math.sqrt(temperature))
    about = {**qkv.about, "heated": temperature}
    return made(qkv.name, (qkv.q * factor, qkv.k * factor, qkv.v), qkv.mask, qkv.instances, about)


def made(
    name: str,
    qkv: Sequence[np.ndarray],
    mask: np.ndarray | None,
    instances: Sequence[str],
    about: Mapping[str, Any],
    dtype: str = "float32",
) -> QKV:
    """The inputs of arrays (I, H, N, D) of any float dtype and a mask (I, N), with their numbers rounded to `dtype`.

    WordError where a number is not finite in it.
    """
    if mask is not None and mask.all():
        mask = None
    kept = []
    for array, values in zip(ARRAYS, qkv, strict=True):
        if mask is not None:
            values = np.where(mask[:, None, :, None], values, values.dtype.type(0))
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(values.astype(dtype), dtype=np.float32)
        if not np.isfinite(values).all():
            raise WordError(f"{name}: {array} holds a number that is not finite in {dtype}")
        kept.append(values)
    q, k, v = kept
    return QKV(name, q, k, v, mask, tuple(instances), _sha256(kept, mask), dict(about))


def _sha256(arrays: Sequence[np.ndarray], mask: np.ndarray | None) -> str:
    digest = hashlib.sha256(str(arrays[0].shape).encode())
    for values in arrays:
        # One by one, so that a byte order that is not this machine's costs one copy.
        digest.update(values.astype("<f4", copy=False).data)
    if mask is not None:
        digest.update(np.ascontiguousarray(mask).data)
    return digest.hexdigest()


def save(path: Path, qkv: QKV, dtype: str = "float16") -> None:
    """Write a .npz in one step; the same inputs give the same bytes. WordError where `dtype` does not hold them."""
    if path.suffix != ".npz":
        raise WordError(f"out={path} must end in .npz")
    arrays: dict[str, Any] = {}
    for array in ARRAYS:
        values = getattr(qkv, array)
        with np.errstate(over="ignore"):
            arrays[array] = values.astype(dtype)
        if not np.array_equal(arrays[array], values):
            raise WordError(f"{path}: {dtype} does not hold the numbers of {array} exactly")
    if qkv.mask is not None:
        arrays["mask"] = qkv.mask
    arrays["about"] = np.array(json.dumps({**qkv.about, "instances": qkv.instances}))
    # Neither dates nor compression go into the file: it is the same on every machine.
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read(path: Path) -> QKV:
    """The inputs in a .npz or .safetensors file: q, k, v (..., H, N, D), and perhaps mask (..., N) bool and `about`,
    a JSON text. The leading axes become instances; those of the mask broadcast to them."""
    arrays, text = READERS[path.suffix](path)
    for array in ARRAYS:
        if array not in arrays:
            raise WordError(f"{path}: there is no {array}; it must hold q, k and v")
    shape = arrays["q"].shape
    if len(shape) < 3 or 0 in shape:
        raise WordError(f"{path}: q has the shape {shape}, it must be (..., H, N, D) and not empty")
    for array in ARRAYS:
        if arrays[array].shape != shape:
            raise WordError(f"{path}: {array} has the shape {arrays[array].shape}, it must be that of q, {shape}")
    leading, n = shape[:-3], shape[-2]
    mask = arrays.get("mask")
    if mask is not None:
        mask = _broadcast(path, mask, (*leading, n))
    about = _about(path, text)
    instances = about.pop("instances", None) or [", ".join(map(str, index)) for index in np.ndindex(leading)]
    count = math.prod(leading)
    named = isinstance(instances, list) and all(isinstance(name, str) and name.isprintable() for name in instances)
    if not named or len(instances) != count:
        raise WordError(f"{path}: about names instances that are not {count} texts of a line, one for each instance")
    flat = [arrays[array].reshape(count, *shape[-3:]) for array in ARRAYS]
    try:
        return made(path.stem, flat, mask, [name or "0" for name in instances], about)
    except WordError as error:
        raise WordError(f"{path}: {str(error).partition(': ')[2]}") from None


def _broadcast(path: Path, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(I, N) bool: the mask of every instance; each has a real token."""
    try:
        whole = np.broadcast_to(mask, shape).reshape(-1, shape[-1]).copy()
    except ValueError:
        raise WordError(f"{path}: mask has the shape {mask.shape}, which does not broadcast to {shape}") from None
    if mask.shape[-1:] != shape[-1:]:
        raise WordError(f"{path}: mask has the shape {mask.shape}, its last axis must be the {shape[-1]} tokens")
    empty = np.flatnonzero(~whole.any(axis=1))
    if len(empty):
        raise WordError(f"{path}: mask leaves instance {empty[0]} without a real token")
    return whole


def _about(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise WordError(f"{path}: about is not the JSON text of an object")
    return about


def _check(path: Path, name: str, shape: Sequence[int], bits: int, kind: str) -> None:
    """Refuse an array by what its header says; `kind` is float, bool, text or what else it is."""
    if name not in NAMES:
        raise WordError(
            f"{path}: unknown array {reprlib.repr(name)}, known are {', '.join(NAMES)}{nearest(name[:40], NAMES)}"
        )
    wanted = {"mask": "bool", "about": "text"}.get(name, "float")
    if kind != wanted:
        rule = {"bool": "of bool", "text": "a text", "float": "of floating-point numbers"}[wanted]
        raise WordError(f"{path}: {name} is of {kind}, it must be {rule}")
    limit = LARGEST_TEXT if name == "about" else LARGEST_ARRAY
    size = math.prod(shape) * max(bits, 32 if wanted == "float" else 8) // 8
    if size > limit:
        said = reprlib.repr(tuple(shape))
        raise WordError(f"{path}: {name} of shape {said} needs {min(size, 10**30)} bytes, at most {limit} are read")


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The arrays of a zip of .npy members, none unpacked before its header has been checked."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as opened, _strictly(), zipfile.ZipFile(opened) as members:
            for member in members.infolist():
                name = member.filename.removesuffix(".npy")
                if name in arrays or not member.filename.endswith(".npy"):
                    said = reprlib.repr(member.filename)
                    raise WordError(f"{path}: {said} is there twice or is not an array")
                # Of these two ways of packing no more is unpacked than is asked for.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise WordError(f"{path}: {reprlib.repr(member.filename)} is packed in another way than NumPy's")
                with members.open(member) as file:
                    shape, dtype = _header(file)
                kinds = {"f": "float", "b": "bool", "U": "text", "O": "Python objects"}
                _check(path, name, shape, dtype.itemsize * 8, kinds.get(dtype.kind, str(dtype)))
                with members.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
                    if file.read(1):
                        raise WordError(f"{path}: {name} is longer than its header says")
    except (WordError, MemoryError):
        raise
    except OSError as error:
        # A place in the file that cannot be gone to is the file's own fault.
        if error.filename is not None:
            raise
        raise WordError(f"{path} is not a whole .npz file ({_line(error)})") from error
    except Exception as error:
        # A damaged file raises nearly anything: in the zip, in its compression, in a header.
        raise WordError(f"{path} is not a whole .npz file ({_line(error)})") from error
    about = arrays.pop("about", None)
    if about is not None and about.ndim:
        raise WordError(f"{path}: about has the shape {about.shape}, it must be one text")
    return arrays, None if about is None else str(about)


@contextmanager
def _strictly() -> Iterator[None]:
    """What numpy and Python would warn of in a header is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array of format {version}")
    length = int.from_bytes(cast(zipfile.ZipExtFile, file).peek(4)[: 2 * version[0]], "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The tensors of a .safetensors file; by torch, because numpy has no bfloat16."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            for name in names:
                part = file.get_slice(name)
                dtype = part.get_dtype()
                kind = "float" if dtype[0] == "F" or dtype == "BF16" else {"BOOL": "bool"}.get(dtype, dtype)
                _check(path, name, part.get_shape(), 32, kind)
            tensors = {name: file.get_tensor(name) for name in names}
            text = (file.metadata() or {}).get("about")
    except SafetensorError as error:
        raise WordError(f"{path} is not a whole .safetensors file ({_line(error)})") from error
    return {name: (x if name == "mask" else x.float()).numpy() for name, x in tensors.items()}, text


def _line(error: Exception) -> str:
    return reason(error)


READERS: dict[str, Callable[[Path], tuple[dict[str, np.ndarray], str | None]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
