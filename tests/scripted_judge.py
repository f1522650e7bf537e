"""A judge of explanations for the scripted server: it explains a latent by a token, and looks for that in a text."""

import re
from collections import Counter

from scripted_server import Request


def by_rule(request: Request) -> str:
    """Explain a latent by the token it fires on most often, and count on the text that holds that token."""
    question = request.body["messages"][-1]["content"]
    if tokens := re.findall(r"<<(.+?)>>", question):
        return f"This neuron activates on {Counter(sorted(tokens)).most_common(1)[0][0].strip() or 'a space'}"
    if "Here are the examples:" not in question:
        return "yes"
    explanation, examples = question.split("Here are the examples:")
    token = explanation.split("this neuron fires on ")[1].strip().rstrip(".")
    numbers = [n for n, text in re.findall(r"(?m)^(\d+)\. (.*)$", examples) if token in text]
    return ", ".join(numbers) or "None"
