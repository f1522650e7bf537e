"""`agent show RUN --latent N` and `--neuronpedia FILE`: what is kept of a run's latents."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from agent.commands.show import changed_in
from agent.commands.show_study import print_changed
from agent.display.console import make_console
from agent.lab import features, results
from agent.lab.errors import UserError
from agent.lab.features import FEW, Context, Feature, Features, Neighbour
from agent.lab.files import write_atomically
from agent.lab.visible import one_line, visible
from agent.report import neuronpedia

STYLES = ("on grey23", "on dark_green", "bold on green4", "bold black on green3")  # by quarters of the largest
SOME = 8  # latents that are named where another is not kept
BARS = " ▁▂▃▄▅▆▇█"


def show_latent(path: Path, latent: int) -> bool:
    """Print what is kept of one latent. Return False if that was changed after it was recorded.

    Raise UserError if there is nothing.
    """
    console = make_console()
    if (kept := _read(path, console)) is None:
        return False
    by_latent = {feature.latent: feature for feature in kept.features}
    if latent not in by_latent:
        some = ", ".join(str(number) for number in list(by_latent)[:SOME])
        raise UserError(
            f"latent {latent} of {path} is not kept: {len(by_latent)} of {kept.d_sae:,} are, among them {some}"
            if some
            else f"{path} keeps no latents"
        )
    _print_feature(console, path, kept, by_latent[latent])
    return True


def write_neuronpedia(path: Path, out: Path) -> bool:
    """Write a run's latents as Neuronpedia's JSON. Return False if they were changed after they were recorded.

    Raise UserError if there are none.
    """
    console = make_console()
    if (kept := _read(path, console)) is None:
        return False
    training = results.read(path).training
    if training is None:
        raise UserError(f"{path} has no training in its final_info.json: the model and layer are not known")
    name = f"{path.resolve().parent.name}-{path.resolve().name}"
    write_atomically(out, json.dumps(neuronpedia.batch(kept, training, name)) + "\n")
    console.print(f"{out}: {len(kept.features)} latents of {path}")
    return True


def _read(path: Path, console: Console) -> Features | None:
    """Return a run's features, or None, said on the console, if they were changed. Raise UserError without any."""
    if not path.is_dir():
        raise UserError(f"{path} is not a directory: give the directory of a run")
    if changed := [name for name in changed_in(path) if Path(name).name in (features.FILE, "final_info.json")]:
        print_changed(console, changed)
        return None
    if (kept := features.read(path)) is None:
        raise UserError(
            f"{path} has no {features.FILE}: a study keeps that of run 0 and of each run that counts, at its end"
        )
    return kept


def _print_feature(console: Console, path: Path, kept: Features, feature: Feature) -> None:
    console.print(f"latent {feature.latent} of {path}", style="bold", soft_wrap=True)
    for label in feature.labels:
        console.print(f"  {one_line(label)}", style="cyan")
    if feature.related:
        console.print(f"  related: {', '.join(map(str, feature.related))}")
    console.print(f"looked at on {one_line(kept.text)}")
    few = f"; fewer than {FEW}: too little is known of it" if feature.fired < FEW else ""
    console.print(f"fired on {feature.fired:,} tokens, density {feature.density:.3g}{few}")
    if feature.histogram:
        console.print(f"activations 0 {_bars(feature.histogram)} {feature.max_activation:.3g}")
    if kept.direct_effect:
        console.print(f"no direct effect on tokens: {one_line(kept.direct_effect)}")
    else:
        console.print(_tokens("promotes", feature.promoted))
        console.print(_tokens("suppresses", feature.suppressed))
    console.print(f"decoder rows near it: {_neighbours(feature.near)}")
    console.print(f"fires with: {_neighbours(feature.fires_with)}")
    if true := feature.true_feature:
        f1 = "" if true.f1 is None else f", F1 {true.f1:.3f}"
        above = f"; above it {', '.join(map(str, true.parents))}" if true.parents else ""
        console.print(f"true feature: {true.feature} (cosine {true.cosine:.3f}{f1}{above})")
    if feature.in_baseline:
        console.print(f"counterpart in the baseline: {_neighbours([feature.in_baseline])}")
    _print_contexts(console, "strongest", feature.top, feature.max_activation)
    _print_contexts(console, "weaker", feature.spread, feature.max_activation)


def _print_contexts(console: Console, title: str, contexts: Sequence[Context], largest: float) -> None:
    if contexts:
        console.print(f"\n{title}", style="bold")
    for context in contexts:
        line = Text(f"{context.activations[context.peak]:8.3g}  ")
        for place, (token, activation) in enumerate(zip(context.tokens, context.activations, strict=True)):
            line.append_text(_highlighted(token, activation, largest, place == context.peak, console))
        console.print(line)


def _highlighted(token: str, activation: float, largest: float, is_peak: bool, console: Console) -> Text:
    """Return a token as it is shown: without colour in brackets where the latent fires, double ones at the peak."""
    text = visible(token).replace("\n", "↵").replace("\t", "→")
    if not activation:
        return Text(text)
    if console.color_system is None:
        return Text(f"⟦{text}⟧" if is_peak else f"[{text}]")
    level = min(len(STYLES) - 1, int(len(STYLES) * activation / largest)) if largest > 0 else 0
    return Text(text, style=f"{STYLES[max(0, level)]}{' underline' if is_peak else ''}")


def _tokens(verb: str, tokens: Sequence[tuple[str, float]]) -> Text:
    shown = (f"{visible(token)!r} {value:+.2f}" for token, value in tokens)
    return Text(f"{verb}: {', '.join(shown) or 'none'}")


def _neighbours(neighbours: Sequence[Neighbour]) -> str:
    return ", ".join(f"{each.latent} ({each.value:.2f})" for each in neighbours) or "none"


def _bars(heights: Sequence[int]) -> str:
    """Return a histogram on one line; a bar that is not empty is never blank."""
    highest = max(heights)
    return "".join(BARS[-(-8 * height // highest) if highest else 0] for height in heights)
