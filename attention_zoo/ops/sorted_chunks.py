"""Softmax attention over the union of several rounds, each of which sorts the tokens and pairs neighbouring chunks.

`zoo::sorted_chunks_attention` takes G heads as one line of G N tokens, N a multiple of `chunk`:

q, k, v   (G N, D), one floating dtype of at least float32
order     (rounds, G N) int64: the token at each place of a round's line. The tokens of a head keep the head's places
rank      (rounds, G N) int64: the place of each token
codes     (rounds, G N) in q's dtype, by place, at least 0: a token sees the tokens of its own code in its chunk of the
          line and in the chunk before. Neighbouring heads share no code
spans     (rounds, G N) in q's dtype, by token: the same for two tokens of one head. i sees j where span_i - span_j is
          0 or 1, all spans are integers
chunk     C, the places of a chunk

and returns out (G N, D), the softmax of the logits q . k over what a token sees in any round, and log2_total (G N, 1),
the base-2 logarithm of its denominator. A pair counts once, in the first round that has it. A token sees itself only
where it sees no other: out is then v, and log2_total inf. Every result repeats bit for bit. Only first derivatives of
out exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import LN2

torch.library.define(
    "zoo::sorted_chunks_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor order, Tensor rank, Tensor codes, Tensor spans, int chunk)"
    " -> (Tensor out, Tensor log2_total)",
)
torch.library.define(
    "zoo::sorted_chunks_attention_backward",
    "(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor log2_total, Tensor order, Tensor rank,"
    " Tensor codes, Tensor spans, int chunk) -> (Tensor d_q, Tensor d_k, Tensor d_v)",
)


class Lines(NamedTuple):
    """Who stands where in each round; the module explains the terms."""

    order: Tensor
    rank: Tensor
    codes: Tensor
    spans: Tensor


def sorted_chunks_attention(q: Tensor, k: Tensor, v: Tensor, lines: Lines, chunk: int) -> Tensor:
    """The operator's out."""
    return torch.ops.zoo.sorted_chunks_attention(q, k, v, *lines, chunk)[0]


class _Part(NamedTuple):
    """T consecutive chunks of a round's line."""

    chunks: slice  # their places
    window: slice  # their places and those of the chunk before, on a line that begins with an empty chunk
    tokens: Tensor  # ((T + 1) C,) the tokens of the window
    logits: Tensor  # (T, C, 2 C) in base 2; what is not seen is near the lowest number


def _windows(x: Tensor, chunk: int) -> Tensor:
    """((T + 1) C, ...) -> (T, ..., 2 C), a view: each chunk after the one before it."""
    return x.unfold(0, 2 * chunk, chunk)


def _parts(q: Tensor, k: Tensor, lines: Lines, turn: int, chunk: int) -> Iterator[_Part]:
    """Round `turn`, so many chunks at a time that their logits stay in a CPU's caches; q in base 2."""
    lowest = torch.finfo(q.dtype).min
    order, codes = F.pad(lines.order[turn], (chunk, 0)), F.pad(lines.codes[turn], (chunk, 0), value=-1.0)
    chunks = len(q) // chunk
    elements = 2**18 * torch.get_num_threads() if q.device.type == "cpu" else 2**28
    step = max(1, elements // (2 * chunk**2))
    for start in range(0, chunks, step):
        stop = min(start + step, chunks)
        window = slice(start * chunk, (stop + 1) * chunk)
        tokens, code = order[window], codes[window]
        query = q.index_select(0, tokens[chunk:]).unflatten(0, (-1, chunk))  # (T, C, D)
        logits = torch.bmm(query, _windows(k.index_select(0, tokens), chunk))  # (T, C, 2 C)

        # `lowest` is added where a gap is not 0: arithmetic, for torch's comparisons and masks are slow on a CPU.
        gap = code[chunk:].view(-1, chunk, 1) - _windows(code, chunk)[:, None]
        logits.addcmul_(gap, gap, value=lowest)
        for span in lines.spans[:turn]:
            span = span.index_select(0, tokens)
            torch.sub((span[chunk:] - 0.5).view(-1, chunk, 1), _windows(span, chunk)[:, None], out=gap)
            gap.abs_().clamp_(max=1.5).sub_(1.5)
            logits.addcmul_(gap, gap, value=lowest)
        logits.diagonal(chunk, 1, 2).fill_(lowest)
        yield _Part(slice(start * chunk, stop * chunk), window, tokens, logits)


@torch.library.impl("zoo::sorted_chunks_attention", "CompositeExplicitAutograd")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, rank: Tensor, codes: Tensor, spans: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    lines = Lines(order, rank, codes, spans)
    q = q / LN2
    floor = torch.finfo(q.dtype).min / 2  # below all that is seen, above all that is not
    mixed = v.new_empty(len(order), *v.shape)  # (rounds, G N, D)
    top, total = (v.new_empty(len(order), len(v), 1) for _ in range(2))
    for turn in range(len(order)):
        sorted_mixed, sorted_top, sorted_total = (torch.empty_like(x[turn]) for x in (mixed, top, total))
        for part in _parts(q, k, lines, turn, chunk):
            values = _windows(v.index_select(0, part.tokens), chunk).mT  # (T, 2 C, D)
            largest = part.logits.amax(-1, keepdim=True).clamp_(min=floor)  # (T, C, 1)
            weights = part.logits.sub_(largest).exp2_()
            sorted_mixed[part.chunks] = torch.bmm(weights, values).flatten(0, 1)
            sorted_top[part.chunks] = largest.flatten(0, 1)
            sorted_total[part.chunks] = weights.sum(-1).view(-1, 1)
        for x, y in ((mixed, sorted_mixed), (top, sorted_top), (total, sorted_total)):
            torch.index_select(y, 0, rank[turn], out=x[turn])

    largest = top.amax(0)  # (G N, 1)
    scale = top.sub_(largest).exp2_()
    norm = total.mul_(scale).sum(0)
    alone = norm == 0
    out = mixed.mul_(scale).sum(0).div_(norm.masked_fill(alone, 1.0))
    return torch.where(alone, v, out), norm.log2_().add_(largest).masked_fill_(alone, math.inf)


@torch.library.impl("zoo::sorted_chunks_attention_backward", "CompositeExplicitAutograd")
def _backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log2_total: Tensor,
    order: Tensor,
    rank: Tensor,
    codes: Tensor,
    spans: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    lines = Lines(order, rank, codes, spans)
    q = q / LN2
    shift = (d_out * out).sum(-1, keepdim=True)
    d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), d_out * log2_total.isposinf()
    for turn in range(len(order)):
        line_q = torch.empty_like(q)
        line_k, line_v = (F.pad(torch.zeros_like(x), (0, 0, chunk, 0)) for x in (k, v))
        for part in _parts(q, k, lines, turn, chunk):
            own = part.tokens[chunk:]
            query, upstream, total, less = (
                x.index_select(0, own).unflatten(0, (-1, chunk)) for x in (q, d_out, log2_total, shift)
            )
            keys, values = (_windows(x.index_select(0, part.tokens), chunk) for x in (k, v))  # (T, D, 2 C)
            weights = part.logits.sub_(total).exp2_()
            d_logits = torch.bmm(upstream, values).sub_(less).mul_(weights)
            line_q[part.chunks] = torch.bmm(d_logits, keys.mT).flatten(0, 1)
            _add_windows(line_k[part.window], torch.bmm(d_logits.mT, query))
            _add_windows(line_v[part.window], torch.bmm(weights.mT, upstream))
        for x, y in ((d_q, line_q), (d_k, line_k[chunk:]), (d_v, line_v[chunk:])):
            x += y.index_select(0, rank[turn])
    return d_q, d_k.mul_(LN2), d_v


def _add_windows(line: Tensor, x: Tensor) -> None:
    """Add the windows x (T, 2 C, D) to the line ((T + 1) C, D) that they are windows of."""
    chunk = x.shape[1] // 2
    chunks = line.unflatten(0, (-1, chunk))
    chunks[:-1] += x[:, :chunk]
    chunks[1:] += x[:, chunk:]


@torch.library.register_fake("zoo::sorted_chunks_attention")
def _fake(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, rank: Tensor, codes: Tensor, spans: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v), v.new_empty(len(v), 1)


@torch.library.register_fake("zoo::sorted_chunks_attention_backward")
def _fake_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log2_total: Tensor,
    order: Tensor,
    rank: Tensor,
    codes: Tensor,
    spans: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *lines, ctx.chunk = inputs
    ctx.save_for_backward(q, k, v, *output, *lines)


def _differentiate(ctx: Any, d_out: Tensor, d_log2_total: Tensor) -> tuple[Tensor | None, ...]:
    with torch.autocast(d_out.device.type, enabled=False):
        grads = torch.ops.zoo.sorted_chunks_attention_backward(d_out, *ctx.saved_tensors, ctx.chunk)
    return *grads, None, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("zoo::sorted_chunks_attention has first derivatives only")


torch.library.register_autograd("zoo::sorted_chunks_attention", _differentiate, setup_context=_setup_context)
torch.library.register_autograd("zoo::sorted_chunks_attention_backward", _no_second_derivative)
