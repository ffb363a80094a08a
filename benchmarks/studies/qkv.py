"""`python -m benchmarks.studies.qkv`: write queries, keys and values for the studies, or print what a file holds."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies.generated import MOST, Options, generate, of_words, whole
from benchmarks.studies.inputs import DTYPES, GENERATED, QKV, Size, read, save, take
from benchmarks.studies.mass import Mass, mass
from lra.command import command
from lra.words import WordError, choose

KEYS = {
    "run": ("none", "directory of a trained run, whose layers and heads are taken on examples of its test split"),
    "checkpoint": ("auto", "auto (what the run tests), best or last"),
    "examples": ("4", "how many test examples, drawn by seed"),
    "at_least": ("0", "real tokens that an example must have (of a pair: each document)"),
    "data_dir": ("auto", "where the run's data are; auto: where its config.yaml says"),
    "n": ("none", "generate inputs of this many tokens"),
    "heads": ("2", "heads to generate"),
    "head_dim": ("32", "channels of a head to generate"),
    "instances": ("1", "instances to generate"),
    "entropy": ("auto", "mean row entropy in nats; auto: the paper's at temperature 1, 3.0 at n=512 and 4.1 at n=4096"),
    "temperature": ("auto", "what multiplies the logits; auto: what the entropy needs"),
    "locality": ("0.5", "0 (nothing depends on distance) to 1 (all does)"),
    "span": ("8", "tokens after which the smooth part of the first head has fallen to a correlation of 1/4"),
    "seed": ("0", "of the generator, or of the draw of the examples"),
    "dtype": ("float16", "of the numbers in the file, float16 or float32"),
    "out": ("auto", "the .npz to write; auto: runs/qkv/<name>.npz"),
    "check": ("none", "print what this .npz or .safetensors file holds, and write nothing"),
    "window": ("64", "of the share of attention mass that is printed: keys at most half of it away"),
}
# Which keys go with which way.
WAYS = {
    "run": ("checkpoint", "examples", "at_least", "data_dir", "seed", "dtype", "out", "window"),
    "n": ("heads", "head_dim", "instances", *Options._fields, "out", "window"),
    "check": ("window",),
}
FOLDER = Path("runs/qkv")


def run(words: dict[str, str]) -> int:
    """Write or check, with a value for each of KEYS; returns the exit code."""
    ways = [way for way in WAYS if words[way] != "none"]
    if len(ways) != 1:
        given = " and ".join(f"{way}={words[way]}" for way in ways) or "none of them"
        raise WordError(f"one of run=<directory>, n=<tokens> and check=<file> says what to do; here is {given}")
    (way,) = ways
    for key, value in words.items():
        if key != way and key not in WAYS[way] and value != KEYS[key][0]:
            raise WordError(f"{key}={value} does not go with {way}=; {', '.join(WAYS[way])} do")
    window = whole("window", words["window"], 1, 1 << 30)
    if way == "check":
        if words["check"].partition(":")[0] == GENERATED:
            raise WordError(f"check={words['check']} must be a file; n= generates one")
        show(take(words["check"], Size(1, 1, 1, 1)), window)
        return 0
    qkv = captured(words) if way == "run" else ordered(words)
    file = Path(words["out"]) if words["out"] != "auto" else FOLDER / f"{file_name(qkv)}.npz"
    keep(file, qkv, words["dtype"])
    show(qkv._replace(name=file.stem), window)
    print(f"file   {file}, {file.stat().st_size:,} bytes; make bench study=approximation inputs={file} runs on it")
    return 0


def captured(words: dict[str, str]) -> QKV:
    """The inputs of a run."""
    # Here, so that neither a wrong word nor a generator waits for torch.
    from benchmarks.studies.capture import CHECKPOINTS, Wanted, capture

    wanted = Wanted(
        choose("checkpoint", words["checkpoint"], CHECKPOINTS),
        whole("examples", words["examples"], 1, 1 << 16),
        whole("at_least", words["at_least"], 0, 1 << 30),
        whole("seed", words["seed"], 0, 2**32 - 1),
        None if words["data_dir"] == "auto" else words["data_dir"],
        choose("dtype", words["dtype"], DTYPES),
    )
    return capture(Path(words["run"]), wanted)


def ordered(words: dict[str, str]) -> QKV:
    """Generated inputs."""
    sizes = (whole(key, words[key], 1, most) for key, most in zip(Size._fields, MOST, strict=True))
    return generate(Size(*sizes), of_words(words))


def file_name(qkv: QKV) -> str:
    """A name that says what the inputs are, without commas, which part the words of a list."""
    if qkv.about.get("source") != GENERATED:
        return qkv.name
    instances, heads, n, head_dim = qkv.q.shape
    _, *changed = qkv.name.split(":")
    return "-".join([GENERATED, str(n), f"{instances}x{heads}x{head_dim}", *changed])


def keep(file: Path, qkv: QKV, dtype: str) -> None:
    """Write the file, over one of the same inputs at most."""
    if file.exists():
        there = read(file) if file.suffix == ".npz" and file.is_file() else None
        if there is None or there.sha256 != qkv.sha256:
            raise WordError(f"{file} is there and holds something else; out= names another file")
    save(file, qkv, dtype)


def show(qkv: QKV, window: int) -> None:
    """Print what inputs are: sizes, origin, and what softmax attention does with them layer by layer, head by head."""
    instances, heads, n, head_dim = qkv.q.shape
    real = np.full(instances, n) if qkv.mask is None else qkv.mask.sum(axis=1)
    span = f"{real.min():,}" if real.min() == real.max() else f"{real.min():,} to {real.max():,}"
    print(f"inputs {qkv.name}: {instances} x {heads} heads x {n:,} tokens ({span} of them real) x {head_dim} channels")
    print(f"hash   {qkv.sha256}")
    for key, value in qkv.about.items():
        print(f"       {key if key.isprintable() else ascii(key)} {json.dumps(value)}")
    if not str(qkv.about.get("attn", "softmax")).startswith("softmax"):
        print("note   trained with another attention than softmax, whose entropy and mass stand below")
    found = mass(qkv, window)
    norms = np.sqrt((qkv.v.astype(np.float64) ** 2).sum(axis=(2, 3)) / real[:, None])
    # Instances whose names differ after the first comma alone, such as examples, are taken together.
    layers = [name.partition(", ")[0] if ", " in name else "" for name in qkv.instances]
    for layer in dict.fromkeys(layers):
        rows = [i for i, other in enumerate(layers) if other == layer]
        for head in range(heads):
            name = f"{layer}, head {head}".removeprefix(", ")
            line(name, Mass(*(each[rows, head] for each in found)), norms[rows, head], window)
    line("all", found, norms, window)


def line(name: str, found: Mass, norms: np.ndarray, window: int) -> None:
    """Print the figures of one head."""
    entropy = f"entropy {found.mean.mean():.3f} nats (rows {found.lowest.min():.2f} to {found.highest.max():.2f})"
    near = f"{found.near.mean():.1%} of the mass within {window // 2} tokens"
    print(f"{name:18} {entropy}, {near}, v of norm {math.sqrt((norms**2).mean()):.3g}")


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    summary = "Queries, keys and values of a trained model, or generated ones, as a file for the studies."
    try:
        return command("benchmarks.studies.qkv", summary, KEYS, run, words, "a file is written whole or not at all")
    except MemoryError:
        print("error: no memory for inputs of this size", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
