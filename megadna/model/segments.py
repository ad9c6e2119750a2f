"""Sequences in rows: padded rows and packed rows as megatron's cumulative lengths, which attention reads.

The B x S tokens of a batch lie end to end; a segment is a run of them that sees itself alone. Padding behind a row is a
segment of its own.
"""

from dataclasses import replace

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


def packed_segments(cumulative_lengths: Tensor, device: torch.device) -> PackedSeqParams:
    """Segments that begin at the given positions; `cumulative_lengths` int32 on the host, B x S its last entry."""
    bounds = cumulative_lengths.to(device, non_blocking=True)
    longest = int(cumulative_lengths.diff().max())
    # "thd" would make megatron squeeze the batch away; here rows stay rows, and only the core attention looks.
    return PackedSeqParams(
        qkv_format="sbhd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def padded_segments(lengths_B: Tensor, sequence_length: int, device: torch.device) -> PackedSeqParams:
    """Segments of rows whose first `lengths_B` tokens (on the host) are real."""
    starts_B = torch.arange(len(lengths_B)) * sequence_length
    ends_B = starts_B + lengths_B
    bounds = torch.cat([starts_B, ends_B, starts_B + sequence_length]).unique()
    return packed_segments(bounds.to(torch.int32), device)


def own_segments(segments: PackedSeqParams, sequence_length: int, rank: int, ranks: int) -> PackedSeqParams:
    """The same keys for the queries of context-parallel rank `rank`, whose part is 1 / `ranks` of each row."""
    length = sequence_length // ranks
    place = segments.cu_seqlens_kv
    within = (place % sequence_length - rank * length).clamp(0, length)
    bounds = (place // sequence_length * length + within).to(torch.int32)
    return replace(segments, cu_seqlens_q=bounds, max_seqlen_q=min(segments.max_seqlen_q, length))
