"""`agent show RUN --latent N` and `--neuronpedia FILE`, on features made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import OK
from small_lab import one_line, run

from agent.commands import show_latent
from agent.lab import features, results
from agent.lab.errors import UserError
from agent.lab.features import Context, Feature, Features, Neighbour, TrueFeature
from agent.lab.results import FinalInfo, Training

HOSTILE = "\x1b[2J\u202e[red]x[/red]\n"


def context(peak: float, *tokens: str) -> Context:
    return Context(tokens=["The", *tokens, " end"], activations=[0.5, *(peak for _ in tokens), 0.0], peak=1)


FEATURE = Feature(
    latent=17,
    labels=["tier 2, composed of 3"],
    related=[3],
    fired=1234,
    density=0.0123,
    max_activation=4.0,
    histogram=[10, 0, 0, 5, *([1] * 16)],
    top=[context(4.0, " cat"), context(3.5, HOSTILE)],
    spread=[context(1.0, " dog")],
    promoted=[(" meow", 1.5)],
    suppressed=[(HOSTILE, -1.25)],
    near=[Neighbour(latent=3, value=0.5)],
    fires_with=[Neighbour(latent=4, value=0.25)],
    in_baseline=Neighbour(latent=99, value=0.875),
)
RARE = Feature(latent=3, fired=2, density=2e-6, max_activation=1.0, top=[], spread=[])


def run_dir(folder: Path, *found: Feature, **fields: Any) -> Path:
    settings = {"text": "1,000 tokens of the dev text", "tokens": 1000, "d_sae": 1024, "alive": 900, "sampled": [3]}
    folder.mkdir()
    features.write(folder, Features.model_validate(settings | fields | {"features": list(found or (RARE, FEATURE))}))
    training = Training(
        model="tiny-lm",
        hook_name="blocks.1.hook_resid_post",
        layer=1,
        d_in=192,
        d_sae=1024,
        steps=10,
        tokens=100,
        final_loss=1.0,
        seconds=1.0,
        learning_rate=1e-3,
        seed=0,
        settings={},
    )
    results.write(folder, FinalInfo(verdict=OK, training=training))
    return folder


def test_all_that_is_kept_of_a_latent_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert show_latent.show_latent(run_dir(tmp_path / "run_1"), 17)
    shown = capsys.readouterr().out
    for text in (
        "tier 2, composed of 3",
        "related: 3",
        "1,000 tokens of the dev text",
        "fired on 1,234 tokens, density 0.0123",
        "promotes: ' meow' +1.50",
        "decoder rows near it: 3 (0.50)",
        "fires with: 4 (0.25)",
        "counterpart in the baseline: 99 (0.88)",
    ):
        assert text in shown
    assert shown.index(" cat") < shown.index("weaker") < shown.index(" dog")


def test_where_a_latent_fires_is_readable_without_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    show_latent.show_latent(run_dir(tmp_path / "run_1"), 17)
    assert "[The]⟦ cat⟧ end" in capsys.readouterr().out


def test_with_colour_the_strongest_tokens_are_the_brightest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    show_latent.show_latent(run_dir(tmp_path / "run_1"), 17)
    line = next(line for line in capsys.readouterr().out.splitlines() if " cat" in line)
    assert "⟦" not in line
    styles = {text: style for style, _, text in (part.partition("m") for part in line.split("\x1b[")[1:]) if text}
    assert styles["The"] != styles[" cat"]


def test_tokens_are_made_visible_and_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    show_latent.show_latent(run_dir(tmp_path / "run_1"), 17)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "⟦\\x1b[2J\\u202e[red]x[/red]↵⟧" in shown


def test_a_latent_that_hardly_fired_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert show_latent.show_latent(run_dir(tmp_path / "run_1"), 3)
    assert "fired on 2 tokens, density 2e-06; fewer than 10: too little is known of it" in capsys.readouterr().out


def test_a_world_has_a_true_feature_and_no_direct_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    true = TrueFeature(feature=40, cosine=0.91, f1=0.8, parents=[7, 1])
    folder = run_dir(
        tmp_path / "run_1", FEATURE.model_copy(update={"true_feature": true}), direct_effect="a world has no logits"
    )
    show_latent.show_latent(folder, 17)
    shown = capsys.readouterr().out
    assert "true feature: 40 (cosine 0.910, F1 0.800; above it 7, 1)" in shown
    assert "no direct effect on tokens: a world has no logits" in shown


def test_a_latent_that_is_not_kept_is_one_line_with_those_that_are(tmp_path: Path):
    folder = run_dir(tmp_path / "run_1")
    ended = run("-P", "-m", "agent", "show", str(folder), "--latent", "5")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "latent 5 of" in (line := one_line(ended.stderr))
    assert line.endswith("is not kept: 2 of 1,024 are, among them 3, 17")


def test_what_is_no_run_with_features_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="is not a directory"):
        show_latent.show_latent(tmp_path / "run_9", 1)
    with pytest.raises(UserError, match=r"has no features\.json\.gz"):
        show_latent.show_latent(tmp_path, 1)
    (tmp_path / features.FILE).write_bytes(b"\x1f\x8b nonsense")
    with pytest.raises(UserError, match=r"features\.json\.gz is damaged"):
        show_latent.show_latent(tmp_path, 1)


# Fields of NeuronpediaDashboardFeature and NeuronpediaDashboardActivation in sae-dashboard 0.8.0.
OF_A_FEATURE = {
    *("feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_indices", "correlated_features_l1", "correlated_features_pearson"),
    *("neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero"),
    *("freq_hist_data_bar_values", "freq_hist_data_bar_heights"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    *("n_prompts_total", "n_tokens_in_prompt", "dataset", "activations", "decoder_weights_dist", "vector"),
}
OF_AN_ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


def test_the_latents_are_written_in_the_format_of_neuronpedia(tmp_path: Path):
    folder = run_dir(tmp_path / "run_1")
    assert show_latent.write_neuronpedia(folder, tmp_path / "batch.json")
    batch = json.loads((tmp_path / "batch.json").read_text())
    assert set(batch) == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
    assert (batch["model_id"], batch["layer"]) == ("tiny-lm", 1)
    assert [set(feature) for feature in batch["features"]] == [OF_A_FEATURE] * 2
    feature = batch["features"][1]
    assert (feature["feature_index"], feature["frac_nonzero"]) == (17, 0.0123)
    assert (feature["pos_str"], feature["neg_values"]) == ([" meow"], [-1.25])
    assert len(feature["freq_hist_data_bar_values"]) == len(feature["freq_hist_data_bar_heights"]) == 20
    assert feature["freq_hist_data_bar_values"][0] == 0.1
    assert [set(activation) for activation in feature["activations"]] == [OF_AN_ACTIVATION] * 3
    top, _, weak = feature["activations"]
    assert (top["bin_min"], top["bin_max"], top["bin_contains"]) == (-1, 4.0, -1)
    assert (top["tokens"], top["values"], top["qualifying_token_index"]) == (["The", " cat", " end"], [0.5, 4.0, 0], 1)
    assert (weak["bin_min"], weak["bin_max"]) == (0.8, 1.6)
    assert weak["bin_contains"] == pytest.approx(4 / 31, abs=1e-3)
