"""A stand-in for what the hub says of a model: it has one, of the shape of gemma-2-2b."""

import json
import sys

CONFIG = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "head_dim": 256,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
}
KNOWN = {"gemma-2-2b": "google/gemma-2-2b", "google/gemma-2-2b": "google/gemma-2-2b"}

if name := KNOWN.get(sys.argv[1]):
    print(json.dumps({"model": name, "config": CONFIG}))
elif sys.argv[1] == "google/unreachable":
    print(json.dumps({"model": sys.argv[1], "error": "model google/unreachable cannot be reached"}))
else:
    print(json.dumps({"error": f"unknown model {sys.argv[1]!r}: did you mean tiny-lm?"}))
