# SPDX-License-Identifier: BSD-3-Clause
"""Nucleus sampling whose random draws do not depend on the batch.

A sample from a softmax is the arg-max of its logits plus Gumbel noise. Here the noise is a hash of (seed, image, caption,
position, token), so it is the same for each batch size, process and device.
"""

import hashlib

from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper


# The mixer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): the odd number
# nearest to 2^64 over the golden ratio and the two factors of Stafford's variant 13, as signed 64-bit numbers.
_GOLDEN = -0x61C8864680B583EB
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_SHIFTS = (30, 27, 31)

# (k + 1/2) / 2^23 is exact in float32 and neither 0 nor 1.
_NUM_BITS = 23


def caption_seed(seed: int, sample_id: str, caption_index: int) -> int:
    """Hashes seed, sample and index of a caption to an int64.

    Example:
        >>> caption_seed(0, "000001", 0) == caption_seed(0, "000001", 0) != caption_seed(0, "000001", 1)
        True
    """
    name = f"{seed} {caption_index} {sample_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def gumbel_noise(seeds: Tensor, position: int, tokens: Tensor) -> Tensor:
    """Returns standard Gumbel noise that depends only on seeds `(r,)`, position and token ids `(r,)`: fp32 `(r,)`."""
    bits = _mix(_mix(seeds + position) + _GOLDEN * tokens)
    uniform = ((bits & (2**_NUM_BITS - 1)).float() + 0.5) / 2**_NUM_BITS
    return -(-uniform.log()).log()


class SeededNucleus(LogitsProcessor):
    """Turns greedy search into nucleus sampling, with one [`caption_seed`] per row: `seeds` is int64 `(rows,)`."""

    def __init__(self, seeds: Tensor, top_p: float) -> None:
        self.seeds = seeds
        self.warper = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Adds noise to the scores of the next token; `-inf` outside the nucleus: `(rows, v)` -> `(rows, v)`."""
        nucleus = self.warper(input_ids, scores.float())
        rows, tokens = nucleus.isfinite().nonzero(as_tuple=True)
        noise = gumbel_noise(self.seeds[rows], input_ids.shape[1], tokens)
        return nucleus.index_put((rows, tokens), noise, accumulate=True)


def _mix(numbers: Tensor) -> Tensor:
    """Mixes the bits of int64 numbers."""
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        # A shift of int64 copies the sign bit; the mask makes it a logical shift.
        shifted = (numbers >> shift) & (2 ** (64 - shift) - 1)
        numbers = (numbers ^ shifted) * factor
    return numbers


__all__ = ["SeededNucleus", "caption_seed", "gumbel_noise"]
