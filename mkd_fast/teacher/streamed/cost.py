"""What streaming costs: bytes read for each token, and when reading stops being the limit.

A block of T tokens reads every weight once, while the layer before computes:

    bytes read per token   = W / T                      W bytes of layers and head as stored
    seconds per block      = max(W / rate, T F / speed) F operations per token, about 2 per weight
    T in balance           = (W / rate) * (speed / F)   about (bytes per weight / 2) * speed / rate

so the balance does not depend on the model's size: with weights of 2 bytes it is speed / rate,
100 tokens for a CPU of 200 GFLOP/s beside a disk of 2 GB/s, and 130,000 for a GPU of 400 TFLOP/s
beside one of 3 GB/s. Blocks a few times that size cost nothing any more.

Spilling states to disk is seldom worth it: a state is written and read once a layer, 2 D b bytes a
token, while the weights of an ordinary layer are about 12 D^2 b bytes a block. At 6 D tokens, whose
states need half a layer's memory, the states would already move as many bytes as the weights do.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one block of a teacher costs.

    Attributes:
        block_bytes: read once for each block: the layers, and the head where it is needed.
        flops_per_token: multiplications and additions in the products with these weights;
            attention to other tokens comes on top.
    """

    block_bytes: int
    flops_per_token: float

    def bytes_per_token(self, block_tokens: int) -> float:
        """Bytes of weights read for each token of blocks of this size."""
        return self.block_bytes / block_tokens

    def seconds_per_token(
        self, block_tokens: int, bytes_per_second: float, flops_per_second: float
    ) -> float:
        """Time for each token where reading and computing overlap perfectly."""
        reading = self.bytes_per_token(block_tokens) / bytes_per_second
        return max(reading, self.flops_per_token / flops_per_second)

    def balanced_block_tokens(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The block size from which on reading is no longer the limit."""
        return self.block_bytes / bytes_per_second * flops_per_second / self.flops_per_token
