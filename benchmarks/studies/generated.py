"""Queries, keys and values made to order: how sharp their attention is, and how much it keeps to its neighbourhood.

Every channel is a share `locality` of one process that changes smoothly with the position, common to q and k, and the
rest noise of its own; v has the same shares of processes of its own. All variances are 1 before q and k are heated, so
that with locality 0 nothing depends on the distance of two tokens and with locality 1 nothing else does, up to what the
random directions of D channels leave. Two positions `span` apart have a correlation of 1/4 in the smooth process, and
none from 2 span on; head h has span * 2^(h mod 4), at most N, because the heads of real layers differ.

Everything is drawn as whole numbers and put together by operations that IEEE 754 rounds one way alone: the same words
give the same bytes on every machine. Only the temperature that meets an entropy is searched for with exponentials; it
has four digits, which their last bits change in one case of thousands.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.studies.inputs import DTYPES, GENERATED, LARGEST_ARRAY, QKV, Size, made
from benchmarks.studies.mass import entropies, entropy_of, logits
from lra.words import WordError, choose, parse

# Of what is drawn: a change of it changes this number.
VERSION = 1
# The mean row entropy (nats) that the MRA paper's published results have at temperature 1, by length.
MEASURED = {512: 3.0, 4096: 4.1}
# How near the entropy comes to the one that is asked for, and how many rows the search looks at before all are.
NEAR, SEARCHED = 0.02, 1024
# Temperatures are searched for from 10^LOWEST on, over ten powers of ten.
LOWEST, STEPS = -4, 10 * 9000
HIGHEST = 1e6
MOST = Size(1 << 17, 1 << 8, 1 << 12, 1 << 12)
# The sum of the 8 bytes of a word: its mean, and its variance 8 * (256**2 - 1) / 12.
MEAN, VARIANCE = 1020, 43690


class Options(NamedTuple):
    """What shapes the inputs. `entropy` (nats) and `temperature` exclude each other; neither means `usual`."""

    entropy: float | None = None
    temperature: float | None = None
    locality: float = 0.5
    span: int = 8
    seed: int = 0
    dtype: str = "float16"

    def word(self) -> str:
        """`generated:key=value:...`, the defaults left out."""
        changed = [
            f"{key}={value:.12g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in self._asdict().items()
            if value != Options._field_defaults[key]
        ]
        return ":".join([GENERATED, *changed])


def options(word: str) -> Options:
    """The options in `generated:key=value:...`."""
    _, *words = word.split(":")
    return of_words(parse(words, dict.fromkeys(Options._fields, "auto")))


def of_words(words: dict[str, str]) -> Options:
    """The options among words; `auto` is the default. WordError where one is wrong."""
    given = {key: words[key] for key in Options._fields if words[key] != "auto"}
    if "entropy" in given and "temperature" in given:
        raise WordError(f"entropy={given['entropy']} and temperature={given['temperature']}: one of the two")
    return Options(
        number("entropy", given["entropy"], 0, math.inf) if "entropy" in given else None,
        number("temperature", given["temperature"], 0, HIGHEST) if "temperature" in given else None,
        number("locality", given.get("locality", "0.5"), 0, 1),
        whole("span", given.get("span", "8"), 1, MOST.n),
        whole("seed", given.get("seed", "0"), 0, 2**32 - 1),
        choose("dtype", given.get("dtype", "float16"), DTYPES),
    )


def number(key: str, text: str, low: float, high: float) -> float:
    """A number from `low` to `high`, finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (low <= value <= high and value < math.inf):
        upper = f" and at most {high:g}" if high < math.inf else ""
        raise WordError(f"{key}={text} must be a number of at least {low:g}{upper}")
    return value


def whole(key: str, text: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and low <= int(text) <= high):
        raise WordError(f"{key}={text} must be a whole number from {low} to {high}")
    return int(text)


def generate(size: Size, chosen: Options) -> QKV:
    """The inputs, rounded to their dtype. WordError where the entropy cannot be had."""
    for key, value, most in zip(Size._fields, size, MOST, strict=True):
        whole(key, str(value), 1, most)
    if 4 * math.prod(size) > LARGEST_ARRAY:
        sizes = " x ".join(f"{key}={value}" for key, value in size._asdict().items())
        raise WordError(f"{sizes} numbers of float32 are more than {LARGEST_ARRAY} bytes, the most of an array")
    entropy, temperature = chosen.entropy, chosen.temperature
    if entropy is None and temperature is None:
        entropy = usual(size.n)
    if entropy is not None and entropy > math.log(size.n):
        raise WordError(f"entropy={entropy:g} is above ln {size.n} = {math.log(size.n):.4g} nats, the most there is")
    shape = (size.instances, size.heads, size.n, size.head_dim)
    q, k, v = (np.empty(shape) for _ in range(3))
    for i, h in np.ndindex(*shape[:2]):
        q[i, h], k[i, h], v[i, h] = _draw(size, chosen, i, h)
    names = [f"instance {i}" for i in range(size.instances)]

    def at(temperature: float) -> QKV:
        used = chosen._replace(entropy=entropy, temperature=temperature)
        about = {"source": GENERATED, "version": VERSION, **used._asdict()}
        root = math.sqrt(temperature)
        return made(chosen.word(), (root * q, root * k, v), None, names, about, chosen.dtype)

    return at(temperature) if temperature is not None else _meet(float(entropy or 0), q, k, at)


def _meet(entropy: float, q: np.ndarray, k: np.ndarray, at: Callable[[float], QKV]) -> QKV:
    """The inputs at the temperature where their mean row entropy, over all rows, is `entropy`.

    It is searched for among SEARCHED rows, then corrected by what all rows say, until they agree.
    """
    instances, heads, n, _ = q.shape
    each = min(n, max(1, SEARCHED // (instances * heads)))
    places = np.arange(each) * n // each
    sample = [logits(q[i, h, places].astype("f4"), k[i, h].astype("f4")) for i, h in np.ndindex(instances, heads)]

    def sampled(temperature: float) -> float:
        return float(np.mean([entropy_of(scores * np.float32(temperature)).mean() for scores in sample]))

    aim = entropy
    for _ in range(4):
        place = bisect_left(range(STEPS), -aim, key=lambda step: -sampled(_temperature(step)))
        qkv = at(_temperature(min(place, STEPS - 1)))
        found = float(entropies(qkv).mean())
        if abs(found - entropy) <= NEAR:
            return qkv
        aim += entropy - found
    raise WordError(f"entropy={entropy:g} cannot be had from these inputs, only {found:.4g} nats")


def _temperature(step: int) -> float:
    """The numbers of four digits from LOWEST on, in their order."""
    power, digits = divmod(step, 9000)
    return float(f"{1000 + digits}e{LOWEST - 3 + power}")


def _draw(size: Size, chosen: Options, instance: int, head: int) -> tuple[np.ndarray, ...]:
    """(N, D) float64 each: q, k, v of one head, of variance 1."""
    span = min(chosen.span << head % 4, size.n)
    shared, own = math.sqrt(chosen.locality), math.sqrt(1 - chosen.locality)
    # Streams of their own, so that more instances or heads leave those before them as they are.
    stream = (instance * (MOST.heads + 1) + head) * 5
    near, near_v = (_smooth(size, chosen.seed, stream + part, span) for part in (0, 1))
    q, k, v = (_noise(size.n, size.head_dim, chosen.seed, stream + part) for part in (2, 3, 4))
    scale = own / math.sqrt(VARIANCE)
    return shared * near + scale * q, shared * near + scale * k, shared * near_v + scale * v


def _noise(n: int, dim: int, seed: int, stream: int) -> np.ndarray:
    """(n, dim) int64: nearly normal, of mean 0 and VARIANCE: the sum of the 8 bytes of a word of Philox's stream."""
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(n * dim)
    even = np.uint64(0x00FF00FF00FF00FF)
    pairs = (words & even) + (words >> np.uint64(8) & even)
    # The highest 16 bits of this product are the sum of the four parts of 16 bits.
    total = pairs * np.uint64(0x0001000100010001) >> np.uint64(48)
    return total.astype(np.int64).reshape(n, dim) - MEAN


def _smooth(size: Size, seed: int, stream: int, span: int) -> np.ndarray:
    """(N, D) float64 of variance 1: noise summed over `span` positions, and the sums again."""
    sums = _noise(size.n + 2 * span - 2, size.head_dim, seed, stream)
    for _ in range(2):
        until = np.concatenate([np.zeros((1, size.head_dim), dtype=np.int64), sums.cumsum(axis=0)])
        sums = until[span:] - until[:-span]
    # The squares of 1, 2, ..., span, ..., 2, 1.
    squares = span * (2 * span * span + 1) // 3
    return sums / math.sqrt(VARIANCE * squares)


def usual(n: int) -> float:
    """The entropy (nats) that the paper measured, on a line in ln n through its two lengths; in proportion to ln n
    below them, so that short inputs have less than ln n."""
    (short, low), (long, high) = MEASURED.items()
    if n < short:
        return low * math.log(n) / math.log(short)
    return low + (high - low) * math.log(n / short) / math.log(long / short)
