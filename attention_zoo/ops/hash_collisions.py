"""Attention whose weights are counted collisions of hash codes, in time linear in the number of tokens.

`zoo::hash_collisions` has a schema, a reference in plain PyTorch for every device, a fake and a backward. It takes,
for G heads of F hash functions:

q, k         (G, N, D) float32 or float64. They serve the backward alone: the codes are functions of them
v            (G, N, D) of the same dtype
q_codes      (G, N, F) int64: what each hash function makes of each query, from 0 to buckets - 1; a code of `buckets`
             collides with nothing
k_codes      the same for the keys
buckets      the number of codes
slope        see below

and returns out (G, N, D) with out_i = sum_j w_ij v_j, w_ij the share of the F functions under which query i and key j
have one code. The weights are a step function of q and k. Their stated derivative is slope * w_ij by q_i . k_j, so that

    d_q_i = slope sum_j w_ij (d_out_i . v_j) k_j,   d_k_j = slope sum_i w_ij (d_out_i . v_j) q_i

summed over every pair that collides. Every result repeats bit for bit. Only first derivatives exist.

Sums over colliding pairs, `_sums`, go by tables: a row for each bucket. The sums in d_q and d_k would need a D x D
matrix for each bucket. That pays only for large buckets; in small ones the pairs are computed one by one, CHUNK x CHUNK
at a time, as `_Layout` explains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import without_autocast

# Slots of a chunk, a power of two. A bucket's pairs cost about as much as its D x D matrices where it fills one chunk.
CHUNK = 16

torch.library.define(
    "zoo::hash_collisions",
    "(Tensor q, Tensor k, Tensor v, Tensor q_codes, Tensor k_codes, int buckets, float slope) -> Tensor",
)
torch.library.define(
    "zoo::hash_collisions_backward",
    "(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor q_codes, Tensor k_codes, int buckets, float slope)"
    " -> (Tensor d_q, Tensor d_k, Tensor d_v)",
)


def hash_collisions(
    q: Tensor, k: Tensor, v: Tensor, q_codes: Tensor, k_codes: Tensor, buckets: int, slope: float
) -> Tensor:
    """The operator with its arguments checked: ValueError where shapes do not fit. The module explains the terms."""
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k, v must have one shape, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.dtype not in (torch.float32, torch.float64) or q.dtype != k.dtype or q.dtype != v.dtype:
        raise ValueError(f"q, k, v must all be float32 or float64, got {q.dtype}, {k.dtype}, {v.dtype}")
    for name, codes in (("q_codes", q_codes), ("k_codes", k_codes)):
        if codes.dtype != torch.int64 or codes.dim() != 3 or codes.shape[:2] != q.shape[:2]:
            rule = f"must be int64 of shape ({q.shape[0]}, {q.shape[1]}, F)"
            raise ValueError(f"{name} {rule}, got {codes.dtype} {tuple(codes.shape)}")
    if q_codes.shape != k_codes.shape:
        raise ValueError(
            f"q_codes and k_codes must have one shape, got {tuple(q_codes.shape)} and {tuple(k_codes.shape)}"
        )
    if buckets < 1:
        raise ValueError(f"buckets={buckets} must be at least 1")
    return torch.ops.zoo.hash_collisions(q, k, v, q_codes, k_codes, buckets, slope)


class _Items(NamedTuple):
    """The items of a few heads in the order of their buckets. An item is a token under one hash function.

    A bucket is a code of one function of one head; there are `buckets + 1` to a function, the last for what collides
    with nothing. R = heads * F rows of N items, S = R * (buckets + 1) buckets.
    """

    bucket: Tensor  # (R * N,)
    token: Tensor  # (R * N,) among heads * N
    column: Tensor  # (R, N) the token within its row
    number: Tensor  # (S,) how many items each bucket has
    start: Tensor  # (S,) the first item of each bucket


def _buckets(codes: Tensor, buckets: int) -> Tensor:
    """(heads, N, F) codes as numbers of buckets."""
    heads, _, functions = codes.shape
    row = torch.arange(heads * functions, device=codes.device).view(heads, 1, functions)
    return codes + (buckets + 1) * row


def _items(of_token: Tensor, buckets: int) -> _Items:
    heads, length, functions = of_token.shape
    # One stable sort of all rows, a radix sort on a CPU: the numbers of the buckets rise from row to row.
    bucket, item = of_token.mT.flatten().sort(stable=True)
    column = (item % length).view(-1, length)  # (R, N)
    first = length * torch.arange(heads, device=bucket.device)[:, None, None]
    token = (column.view(heads, functions, length) + first).flatten()
    number = bucket.new_zeros(heads * functions * (buckets + 1)).scatter_add_(0, bucket, torch.ones_like(bucket))
    return _Items(bucket, token, column, number, number.cumsum(0) - number)


def _sums(x: Tensor, items: _Items, of_token: Tensor, buckets: int) -> Tensor:
    """(heads, N, D): for each token the sum of x (heads, N, D) over all items that share its buckets (heads, N, F)."""
    table = F.embedding_bag(items.token, x.flatten(0, 1), items.start, mode="sum")  # (S, D)
    table.view(-1, buckets + 1, x.shape[2])[:, buckets] = 0
    return F.embedding_bag(of_token.flatten(0, 1), table, mode="sum").view_as(x)


class _Layout(NamedTuple):
    """Places for the items of every bucket that holds both queries and keys, in chunks of CHUNK places.

    Queries and keys have their places in two arrays of equal length, so that a bucket needs the larger of its two
    counts. That is rounded up: to a power of two where it fits a chunk, to whole chunks where it does not. Large
    buckets come first, then the others from the largest to the smallest, so each starts at a multiple of its size: a
    large bucket has chunks of its own, and a small one never crosses a chunk's edge.
    """

    q_token: Tensor  # (P,) the query at each place; heads * N where there is none
    k_token: Tensor  # (P,)
    q_place: Tensor  # (heads * N, F) the place of each query's items; P where it collides with nothing
    k_place: Tensor  # (heads * N, F)
    level: Tensor  # (P,) log2 of the size of the bucket at each place where a query stands
    chunks: int  # the chunks of large buckets
    start: Tensor  # the first chunk of each large bucket


def _layout(queries: _Items, keys: _Items, buckets: int, functions: int) -> _Layout:
    device = queries.number.device
    levels = torch.arange(CHUNK.bit_length(), -1, -1, device=device)  # the first of them is that of large buckets
    need = torch.maximum(queries.number, keys.number).masked_fill_((queries.number == 0) | (keys.number == 0), 0)
    need.view(-1, buckets + 1)[:, buckets] = 0
    level = torch.bucketize(need, 2 ** levels[1:].flip(0))  # (S,)
    large = need > CHUNK
    size = torch.where(large, (need + CHUNK - 1) // CHUNK * CHUNK, 1 << level).masked_fill_(need == 0, 0)

    by_level = torch.where(level == levels[:, None], size, 0)  # (levels, S)
    end = by_level.flatten().cumsum(0).view_as(by_level)
    first = end.gather(0, levels[:1] - level[None]).squeeze(0) - size  # (S,)
    large_places, used = torch.stack([end[0, -1], end[-1, -1]]).tolist()
    places = -(-used // CHUNK) * CHUNK
    first.masked_fill_(need == 0, places + len(queries.token))

    def placed(items: _Items) -> tuple[Tensor, Tensor, Tensor]:
        shift = (first - items.start).index_select(0, items.bucket)
        place = (shift + torch.arange(len(shift), device=device)).clamp_(max=places)  # (R * N,)
        rows, length = items.column.shape
        token = first.new_full((places + 1,), rows // functions * length).scatter_(0, place, items.token)
        of_row = torch.empty_like(items.column).scatter_(1, items.column, place.view(rows, length))
        return place, token[:-1], of_row.view(-1, functions, length).mT.reshape(-1, functions)

    q_at, q_token, q_place = placed(queries)
    _, k_token, k_place = placed(keys)
    at_place = first.new_zeros(places + 1).scatter_(0, q_at, level.index_select(0, queries.bucket))[:-1]
    start = first[large] // CHUNK
    return _Layout(q_token, k_token, q_place, k_place, at_place, large_places // CHUNK, start)


def _parts(codes: Tensor, buckets: int) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and functions, so that the items and buckets of one part stay in a CPU's cache, or in bounds."""
    heads, length, functions = codes.shape
    rows = max(1, (2**16 if codes.device.type == "cpu" else 2**22) // max(length, buckets))
    for head in range(0, heads, max(1, rows // functions)):
        for function in range(0, functions, rows):
            yield slice(head, head + max(1, rows // functions)), slice(function, function + rows)


@torch.library.impl("zoo::hash_collisions", "CompositeExplicitAutograd")
@without_autocast
def _reference(q: Tensor, k: Tensor, v: Tensor, q_codes: Tensor, k_codes: Tensor, buckets: int, slope: float) -> Tensor:
    out = torch.zeros_like(v, memory_format=torch.contiguous_format)
    for part, functions in _parts(q_codes, buckets):
        of_query, of_key = (_buckets(codes[part, :, functions], buckets) for codes in (q_codes, k_codes))
        out[part] += _sums(v[part], _items(of_key, buckets), of_query, buckets)
    return out.div_(q_codes.shape[2])


@torch.library.impl("zoo::hash_collisions_backward", "CompositeExplicitAutograd")
@without_autocast
def _reference_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, q_codes: Tensor, k_codes: Tensor, buckets: int, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    dim = v.shape[2]
    d_q, d_k, d_v = (torch.zeros_like(v, memory_format=torch.contiguous_format) for _ in range(3))
    place = torch.arange(CHUNK, device=v.device)
    block = place >> torch.arange(CHUNK.bit_length(), device=v.device)[:, None]  # (levels, CHUNK)
    together = (block[:, :, None] == block[:, None, :]).to(v.dtype).flatten(0, 1)  # (levels * CHUNK, CHUNK)

    # Side by side, what is gathered together.
    d_out_q, v_k = torch.cat([d_out, q], -1), torch.cat([v, k], -1)
    space = _Space(v)

    for part, functions in _parts(q_codes, buckets):
        of_query, of_key = (_buckets(codes[part, :, functions], buckets) for codes in (q_codes, k_codes))
        queries, keys = _items(of_query, buckets), _items(of_key, buckets)
        d_v[part] += _sums(d_out[part], queries, of_key, buckets)

        at = _layout(queries, keys, buckets, of_query.shape[2])
        places = len(at.level)
        upstream, query = _chunks(d_out_q[part], at.q_token, space.take(0, places, 2 * dim)).split(dim, -1)
        value, key = _chunks(v_k[part], at.k_token, space.take(1, places, 2 * dim)).split(dim, -1)  # (C, CHUNK, D)
        rows_q, rows_k = (space.take(number, places + 1, dim) for number in (2, 3))
        rows_q[-1] = rows_k[-1] = 0
        to_query, to_key = (rows[:-1].unflatten(0, (-1, CHUNK)) for rows in (rows_q, rows_k))

        large, small = slice(None, at.chunks), slice(at.chunks, None)
        matrices = _over_buckets(torch.bmm(value[large].mT, key[large]), at.start)  # (chunks, D, D)
        torch.bmm(upstream[large], matrices, out=to_query[large])
        matrices = _over_buckets(torch.bmm(upstream[large].mT, query[large]), at.start)
        torch.bmm(value[large], matrices, out=to_key[large])

        row = at.level.view(-1, CHUNK)[small] * CHUNK + place
        pairs = space.take(4, places - at.chunks * CHUNK, CHUNK).unflatten(0, (-1, CHUNK))  # (chunks, CHUNK, CHUNK)
        torch.bmm(upstream[small], value[small].mT, out=pairs)
        pairs.mul_(together.index_select(0, row.flatten()).view_as(pairs))
        torch.bmm(pairs, key[small], out=to_query[small])
        torch.bmm(pairs.mT, query[small], out=to_key[small])

        d_q[part] += F.embedding_bag(at.q_place, rows_q, mode="sum").view_as(d_q[part])
        d_k[part] += F.embedding_bag(at.k_place, rows_k, mode="sum").view_as(d_k[part])
    count = q_codes.shape[2]
    return d_q.mul_(slope / count), d_k.mul_(slope / count), d_v.div_(count)


class _Space:
    """Memory that the parts of a backward take in turn: fresh pages cost more than what is done with them."""

    def __init__(self, like: Tensor) -> None:
        self.flat = [like.new_empty(0) for _ in range(5)]

    def take(self, number: int, rows: int, columns: int) -> Tensor:
        """(rows, columns), with whatever was there before."""
        if self.flat[number].numel() < rows * columns:
            self.flat[number] = self.flat[number].new_empty(rows * columns + rows * columns // 8)
        return self.flat[number][: rows * columns].view(rows, columns)


def _chunks(x: Tensor, token: Tensor, into: Tensor) -> Tensor:
    """The rows of x (heads, N, C) at every place: (P / CHUNK, CHUNK, C), 0 where there is no token."""
    torch.index_select(F.pad(x.flatten(0, 1), (0, 0, 0, 1)), 0, token, out=into)
    return into.unflatten(0, (-1, CHUNK))


def _over_buckets(matrices: Tensor, start: Tensor) -> Tensor:
    """Replace each chunk's matrix by the sum over the chunks of its bucket; start: the first chunk of each."""
    if len(matrices) == 0:
        return matrices
    chunk = torch.arange(len(matrices), device=start.device)
    sums = F.embedding_bag(chunk, matrices.flatten(1), start, mode="sum")
    return sums.index_select(0, torch.searchsorted(start, chunk, right=True) - 1).view_as(matrices)


@torch.library.register_fake("zoo::hash_collisions")
def _fake(q: Tensor, k: Tensor, v: Tensor, q_codes: Tensor, k_codes: Tensor, buckets: int, slope: float) -> Tensor:
    return v.new_empty(v.shape)


@torch.library.register_fake("zoo::hash_collisions_backward")
def _fake_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, q_codes: Tensor, k_codes: Tensor, buckets: int, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.buckets, ctx.slope = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.zoo.hash_collisions_backward(d_out, *ctx.saved_tensors, ctx.buckets, ctx.slope)
    return *grads, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("zoo::hash_collisions has first derivatives only")


torch.library.register_autograd("zoo::hash_collisions", _backward, setup_context=_setup_context)
torch.library.register_autograd("zoo::hash_collisions_backward", _no_second_derivative)
