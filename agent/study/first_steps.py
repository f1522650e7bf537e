"""The first tokens of a training, tried before the whole of it: whether they lead where the baseline's do."""

from agent.lab.defaults import SMOKE_TOKENS

CHECKPOINT = "smoke_checkpoint"  # in the environment of final_info.json: the hash of the checkpoint they left


def like_the_baselines(found: str, baselines: str, tokens: int) -> str:
    """Return a warning if the checkpoint that they left has the hash of the baseline's, else ""; `tokens` are those of
    the whole training. An empty hash is not known."""
    if not found or found != baselines:
        return ""
    return f"the first {min(tokens, SMOKE_TOKENS):,} tokens are those of the baseline; a change that acts later is fine"
