"""The public implementations that the zoo is timed and checked against, each as a layer (B, N, C) -> (B, N, C).

They are extras of development (`make peers` installs them); the product never imports them. Every layer here has the
sizes that the benchmark asks for and the parameters that our variant has by default, no dropout and no mask. soft,
scatterbrain, adamra and the multi-level mra have no public implementation that installs and runs on a CPU; that of
mra2 (transformers) needs its CUDA kernel.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


class Peer(NamedTuple):
    """A public implementation of the variant `attn`: layer(length, heads, head_dim) builds it for N = length."""

    attn: str
    package: str
    layer: Callable[[int, int, int], nn.Module]

    @property
    def installed(self) -> str | None:
        """Its version; None where it is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def performer(length: int, heads: int, head_dim: int) -> nn.Module:
    from performer_pytorch import SelfAttention

    return SelfAttention(heads * head_dim, heads=heads, dim_head=head_dim, nb_features=256)


def linformer(length: int, heads: int, head_dim: int) -> nn.Module:
    from linformer import LinformerSelfAttention

    return LinformerSelfAttention(heads * head_dim, length, k=256, heads=heads, dim_head=head_dim, share_kv=False)


def nystrom_attention(length: int, heads: int, head_dim: int) -> nn.Module:
    from nystrom_attention import NystromAttention

    return NystromAttention(heads * head_dim, dim_head=head_dim, heads=heads, num_landmarks=64, residual=False)


def reformer_pytorch(length: int, heads: int, head_dim: int) -> nn.Module:
    from reformer_pytorch import LSHSelfAttention

    return LSHSelfAttention(heads * head_dim, heads=heads, dim_head=head_dim, bucket_size=64, n_hashes=2)


def h_transformer_1d(length: int, heads: int, head_dim: int) -> nn.Module:
    from h_transformer_1d.h_transformer_1d import HAttention1D

    return HAttention1D(heads * head_dim, heads=heads, dim_head=head_dim, block_size=16)


class Projected(nn.Module):
    """A self-attention of the transformers library, which ends before the output projection, with one behind it."""

    def __init__(self, attention: nn.Module, dim: int, arguments: Callable[[Tensor], dict[str, Any]]) -> None:
        super().__init__()
        self.attention = attention
        self.out = nn.Linear(dim, dim)
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.out(self.attention(x, **self.arguments(x))[0])


def nothing(x: Tensor) -> dict[str, Any]:
    return {}


def longformer(length: int, heads: int, head_dim: int) -> nn.Module:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    dim = heads * head_dim
    config = LongformerConfig(
        hidden_size=dim, num_attention_heads=heads, attention_window=[64], attention_probs_dropout_prob=0.0
    )

    def first_token_global(x: Tensor) -> dict[str, Any]:
        marks = x.new_zeros(x.shape[:2])
        marks[:, 0] = 10000.0
        return {
            "attention_mask": marks,
            "is_index_masked": marks < 0,
            "is_index_global_attn": marks > 0,
            "is_global_attn": True,
        }

    return Projected(LongformerSelfAttention(config, layer_id=0), dim, first_token_global)


def bigbird(length: int, heads: int, head_dim: int) -> nn.Module:
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    dim = heads * head_dim
    config = BigBirdConfig(
        hidden_size=dim,
        num_attention_heads=heads,
        block_size=32,
        num_random_blocks=2,
        max_position_embeddings=length,
        attention_probs_dropout_prob=0.0,
    )

    def all_real(x: Tensor) -> dict[str, Any]:
        masks = BigBirdModel.create_masks_for_block_sparse_attn(x.new_ones(x.shape[:2]), config.block_size)
        names = ("from_blocked_mask", "band_mask", "from_mask", "to_mask")
        given = dict(zip(names, masks, strict=True))
        return {**given, "to_blocked_mask": given["from_blocked_mask"]}

    return Projected(BigBirdBlockSparseAttention(config, seed=0), dim, all_real)


def yoso(length: int, heads: int, head_dim: int) -> nn.Module:
    """Its closed form, which is all that it has on a CPU."""
    from transformers import YosoConfig
    from transformers.models.yoso.modeling_yoso import YosoSelfAttention

    dim = heads * head_dim
    config = YosoConfig(
        hidden_size=dim,
        num_attention_heads=heads,
        use_expectation=True,
        hash_code_len=length.bit_length() - 1,
        conv_window=None,
        attention_probs_dropout_prob=0.0,
    )

    def all_real(x: Tensor) -> dict[str, Any]:
        return {"attention_mask": x.new_zeros(x.shape[:2])}

    return Projected(YosoSelfAttention(config), dim, all_real)


def nystromformer(length: int, heads: int, head_dim: int) -> nn.Module:
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    dim = heads * head_dim
    config = NystromformerConfig(
        hidden_size=dim,
        num_attention_heads=heads,
        num_landmarks=64,
        segment_means_seq_len=length,
        attention_probs_dropout_prob=0.0,
    )
    attention = NystromformerSelfAttention(config)
    attention.conv_kernel_size = None
    del attention.conv
    return Projected(attention, dim, nothing)


def reformer(length: int, heads: int, head_dim: int) -> nn.Module:
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    dim = heads * head_dim
    config = ReformerConfig(
        hidden_size=dim,
        num_attention_heads=heads,
        attention_head_size=head_dim,
        num_hashes=2,
        lsh_attn_chunk_length=64,
        num_buckets=1 << (2 * length // 64).bit_length() - 1,
        max_position_embeddings=length,
        is_decoder=False,
        lsh_attention_probs_dropout_prob=0.0,
    )
    return Projected(LSHSelfAttention(config), dim, nothing)


PEERS = (
    Peer("performer", "performer-pytorch", performer),
    Peer("linformer", "linformer", linformer),
    Peer("nystromformer", "nystrom-attention", nystrom_attention),
    Peer("nystromformer", "transformers", nystromformer),
    Peer("yoso", "transformers", yoso),
    Peer("reformer", "reformer-pytorch", reformer_pytorch),
    Peer("reformer", "transformers", reformer),
    Peer("longformer", "transformers", longformer),
    Peer("bigbird", "transformers", bigbird),
    Peer("h_transformer_1d", "h-transformer-1d", h_transformer_1d),
)


def peer(attn: str, package: str) -> Peer:
    """The implementation of a variant in a package."""
    return next(peer for peer in PEERS if (peer.attn, peer.package) == (attn, package))
