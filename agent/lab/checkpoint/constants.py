"""The constants of an encoder: what its graph reads besides the SAE's weights, and how much text that can hold.

Weights are bounded by their shapes. What else an encoder holds may be a table of the evaluation's activations, from
which it knows what follows. However a table is laid out or packed, it takes bytes.
"""

from dataclasses import dataclass

from agent.lab.checkpoint import Checkpoint

WEIGHTS = frozenset({"W_enc", "b_enc", "W_dec", "b_dec", "threshold"})
MOST_TIMES_W_DEC = 8.0
MOST_OF_THE_TEXT = 0.1  # constant rows for each of the evaluation's tokens
VALUE_BYTES = 4  # of a float32


@dataclass(frozen=True)
class Constants:
    """The size of an encoder's constants."""

    values: float  # each of four bytes; without one [d_sae, d_sae] matrix, as an unrolled encoder has
    times_W_dec: float
    rows: float  # rows of d_in values that they could hold


def measure(checkpoint: Checkpoint) -> Constants:
    """Return the size of the constants that the encoder's graph reads."""
    d_in, d_sae = checkpoint.header.d_in, checkpoint.header.d_sae
    read = [checkpoint.tensors[name] for name in checkpoint.graph.tensor_names - WEIGHTS]
    values = sum(tensor.nbytes for tensor in read) / VALUE_BYTES
    if any(tensor.shape == (d_sae, d_sae) and tensor.is_floating_point() for tensor in read):
        values -= d_sae * d_sae
    return Constants(values, values / (d_sae * d_in), values / d_in)


def warning(checkpoint: Checkpoint, tokens: int) -> str:
    """Return a warning about an encoder whose constants could hold much of an evaluation of `tokens`, or ""."""
    found = measure(checkpoint)
    if found.times_W_dec <= MOST_TIMES_W_DEC and found.rows < MOST_OF_THE_TEXT * tokens:
        return ""
    return (
        f"its encoder holds {found.times_W_dec:.1f} times W_dec in constants, room for {found.rows:,.0f} of the "
        f"evaluation's {tokens:,} tokens: it may know the evaluation text; the test text decides"
    )
