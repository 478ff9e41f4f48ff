# SPDX-License-Identifier: BSD-3-Clause
"""Nucleus sampling whose draws belong to the caption and not to the batch.

A draw from a softmax is the arg-max of its logits plus Gumbel noise. The noise here is a hash of (seed, image, caption,
position, token): whatever batch, batch size, process or device a caption is written in, it sees the same noise.
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
    """A 64-bit number for one caption of one image.

    Args:
        seed (`int`):
            Seed of the run.
        sample_id (`str`):
            Which image.
        caption_index (`int`):
            Which of its captions.

    Returns:
        `int`: from -2^63 up to 2^63.

    Example:
        >>> caption_seed(0, "000001", 0) == caption_seed(0, "000001", 0) != caption_seed(0, "000001", 1)
        True
    """
    name = f"{seed} {caption_index} {sample_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def gumbel_noise(seeds: Tensor, position: int, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise of the given seeds, position and tokens: a function, without a state.

    Args:
        seeds (`torch.Tensor` of shape `(r,)`):
            Seeds, int64.
        position (`int`):
            Position in the caption.
        tokens (`torch.Tensor` of shape `(r,)`):
            Token ids, int64.

    Returns:
        `torch.Tensor` of shape `(r,)`: fp32.
    """
    bits = _mix(_mix(seeds + position) + _GOLDEN * tokens)
    uniform = ((bits & (2**_NUM_BITS - 1)).float() + 0.5) / 2**_NUM_BITS
    return -(-uniform.log()).log()


class SeededNucleus(LogitsProcessor):
    """Makes greedy search draw from the nucleus, each row with noise of its own.

    Args:
        seeds (`torch.Tensor` of shape `(rows,)`):
            A [`caption_seed`] a row, int64, on the device of the scores.
        top_p (`float`):
            The nucleus: the fewest tokens whose probabilities make up this much.
    """

    def __init__(self, seeds: Tensor, top_p: float) -> None:
        self.seeds = seeds
        self.warper = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of the next token plus noise, `-inf` outside the nucleus: `(rows, v)` -> `(rows, v)`."""
        nucleus = self.warper(input_ids, scores.float())
        rows, tokens = nucleus.isfinite().nonzero(as_tuple=True)
        noise = gumbel_noise(self.seeds[rows], input_ids.shape[1], tokens)
        return nucleus.index_put((rows, tokens), noise, accumulate=True)


def _mix(numbers: Tensor) -> Tensor:
    """Spreads 64-bit numbers: each bit of the input flips each bit of the output with a chance of one half."""
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        # The shift of int64 copies the sign bit; an unsigned one fills with zeros.
        shifted = (numbers >> shift) & (2 ** (64 - shift) - 1)
        numbers = (numbers ^ shifted) * factor
    return numbers


__all__ = ["SeededNucleus", "caption_seed", "gumbel_noise"]
