"""The settings of a study: given, or as they follow from the model; what contradicts itself is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from standin import make_checkout

from agent import constants, ideas
from agent.commands.study_settings import Settled, settle, settle_alone
from agent.ideas import Fixed, Idea
from agent.lab import defaults
from agent.lab.errors import UserError
from agent.lab.model_shape import shape_of
from agent.lab.results import FinalInfo, Training
from agent.lab.verdicts import Verdict
from agent.running import preflight
from agent.study.agreement import departure
from agent.study.outcomes import RunFailed

GEMMA = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "head_dim": 256,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "n_positions": 1024}
HIERARCHICAL = ideas.load("hierarchical_sae")


def model(folder: Path, config: dict[str, Any]) -> str:
    """Return the path of a model of which there is the config alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def gemma(tmp_path: Path) -> str:
    return model(tmp_path / "gemma", GEMMA)


def settled(*sets: str, idea: Idea = HIERARCHICAL, **given: Any) -> Settled:
    return settle(idea, given, sets)


def refusal(*sets: str, idea: Idea = HIERARCHICAL, **given: Any) -> str:
    with pytest.raises(UserError) as error:
        settle(idea, given, sets)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(**fields: Any) -> Idea:
    """Return the idea hierarchical_sae with other fields in its idea.yaml."""
    path = HIERARCHICAL.folder / "idea.yaml"
    return ideas.parse(yaml.safe_dump(yaml.safe_load(path.read_text()) | fields), path)


@pytest.mark.parametrize(
    ("name", "hook", "tokens", "d_sae", "k", "batch", "rate"),
    [
        ("tiny-lm", "blocks.1.hook_resid_post", 1_500_000, 1024, 16, 1024, 8e-3),
        ("synth2k", "activations", 1_000_000, 512, 8, 256, 4e-3),
        ("synth-sae-bench-16k", "activations", 10_000_000, 4096, 25, 1024, 1e-3),
    ],
)
def test_tiny_lm_and_the_worlds_keep_their_values(
    name: str, hook: str, tokens: int, d_sae: int, k: float, batch: int, rate: float
):
    fixed = settled(model=name).fixed
    assert fixed == Fixed(model=name)
    assert (fixed.hook_name, fixed.tokens, fixed.d_sae) == (hook, tokens, d_sae)
    assert (fixed.k, fixed.batch, fixed.learning_rate, fixed.seed) == (k, batch, rate, 0)
    assert (fixed.context, fixed.constants) == (None, {})
    assert ideas.render_baseline(fixed) == ideas.render_baseline(Fixed(model=name))


def test_settings_follow_from_the_model(gemma: str, tmp_path: Path):
    fixed = settled(model=gemma).fixed
    assert (fixed.hook_name, fixed.d_sae, fixed.k) == ("blocks.12.hook_resid_post", 16_384, 64)
    assert (fixed.tokens, fixed.batch, fixed.learning_rate) == (20_000_000, 2048, 2e-4)
    fixed = settled(model=model(tmp_path / "gpt2", GPT2)).fixed
    assert (fixed.hook_name, fixed.d_sae, fixed.k) == ("blocks.5.hook_resid_post", 8192, 45)
    assert (fixed.tokens, fixed.batch, fixed.learning_rate) == (12_000_000, 1024, 2.8e-4)


def test_the_doctor_takes_what_a_study_would(gemma: str):
    assert settle_alone({}) == Fixed()
    ours, studied = settle_alone({"model": gemma, "tokens": 10_000_000}), settled(model=gemma, tokens=10_000_000).fixed
    for name in ("model", "hook_name", "tokens", "d_sae", "batch"):
        assert getattr(ours, name) == getattr(studied, name)


def test_what_is_given_is_kept_and_the_rest_follows_from_it(gemma: str):
    given = settled(model=gemma, layer=19, d_sae=65_536, k=320, tokens=500_000_000)
    fixed = given.fixed
    assert (fixed.hook_name, fixed.d_sae, fixed.k, fixed.tokens) == (
        "blocks.19.hook_resid_post",
        65_536,
        320,
        500_000_000,
    )
    assert (fixed.batch, fixed.learning_rate) == (4096, 1e-4)
    assert given.reasons["d_sae"] == "given on the command line"
    assert given.reasons["learning_rate"].startswith("follows from d_sae: ")
    source = ideas.render_baseline(fixed)
    for line in ("TOKENS = 500_000_000 ", "D_SAE = 65536 ", "K = 320 ", "BATCH = 4096 ", "LEARNING_RATE = 0.0001 "):
        assert f"\n{line}" in source


def test_the_width_is_that_of_the_hook(gemma: str):
    assert settled(model=gemma, hook_name="blocks.3.mlp.hook_post").fixed.d_sae == 65_536  # d_mlp 9,216
    shape = shape_of({"text_config": GEMMA | {"num_attention_heads": 10}, "vision_config": GPT2}, "it")
    assert [shape.width_at(f"blocks.3.{hook}") for hook in ("attn.hook_z", "hook_mlp_out")] == [2560, 2304]
    assert shape_of(GPT2, "gpt2").width_at("blocks.3.mlp.hook_post") == 3072


def test_a_model_has_one_name_however_it_is_spelled(gemma: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(gemma).parent)
    (Path(gemma).parent / "link").symlink_to(gemma)
    assert {settled(model=name).fixed.model for name in (gemma, "./gemma", "gemma/", "./link")} == {gemma}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": 129}, "k 129 (given on the command line) is more than an eighth of d_sae 1,024 (tiny-lm's own)"),
        ({"d_sae": 64}, "k 16 (tiny-lm's own) is more than an eighth of d_sae 64 (given on the command line)"),
        ({"tokens": 1000}, "batch 1,024 (tiny-lm's own) is more than tokens 1,000 (given on the command line)"),
        (
            {"tokens": 100, "batch": 100},
            "tokens 100 (given on the command line) is less than one window of context 128",
        ),
        ({"context": 257}, "context 257 (given on the command line) is more than the 256 positions of tiny-lm"),
        ({"context": 8}, "--context: expected greater than or equal to 16, found 8"),
        ({"layer": 4}, "hook blocks.4.hook_resid_post (given on the command line): tiny-lm has layers 0 to 3"),
        (
            {"layer": 1, "hook_name": "blocks.1.hook_mlp_out"},
            "--layer 1 and --hook blocks.1.hook_mlp_out both name the",
        ),
        ({"hook_name": "blocks.01.hook_resid_post"}, "hook 'blocks.01.hook_resid_post' has no per-token activation"),
        ({"model": "synth2k", "hook_name": "blocks.1.hook_resid_post"}, "a world's one hook is activations"),
        ({"text": "./no_such.txt"}, "--text ./no_such.txt does not exist: give a file, a folder or a hub dataset"),
        ({"model": "./no_such"}, "--model ./no_such is no directory: give a model's directory, or its name"),
        ({"learning_rate": float("inf")}, "--lr: expected a finite number, found inf"),
        ({"batch": 0}, "--batch: expected greater than 0, found 0"),
        ({"smallest_effect": 0.0}, "--smallest-effect 0: give a number above 0"),
        ({"model": "synth2k", "layer": 1}, "--layer is a language model's, and synth2k is a world without one"),
        ({"model": "synth2k", "context": 64}, "--context is a language model's, and synth2k is a world without one"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], said: str):
    assert said in refusal(**given)


def test_an_sae_narrower_than_its_activations_must_be_asked_for(gemma: str):
    narrow = changed(fixed={"d_sae": 1024})
    said = refusal(idea=narrow, model=gemma)
    assert "d_sae 1,024 (given by idea.yaml) is less than d_in 2,304 of" in said
    assert "give --d-sae" in said
    assert settled(idea=narrow, model=gemma, d_sae=1024).fixed.d_sae == 1024
    assert settled(idea=changed(fixed={"d_sae": 128})).fixed.d_sae == 128  # the idea is about this model


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["WARMAP=0.1"], "--set WARMAP: no experiment of this study has a constant WARMAP: did you mean WARMUP?"),
        (["TIER_FRACTION=[1.0]"], "did you mean TIER_FRACTIONS"),
        (["WARMUP=long"], "--set WARMUP=long: expected a number"),
        (["WARMUP=1e999"], "--set WARMUP=1e999: expected a number"),
        (["DEAD_AFTER=0.5"], "--set DEAD_AFTER=0.5: expected a whole number"),
        (["LEARNED_IMPORTANCE=1"], "--set LEARNED_IMPORTANCE=1: expected True or False"),
        (["TIER_FRACTIONS=0.5"], "--set TIER_FRACTIONS=0.5: expected a list"),
        (["WARMUP"], "--set WARMUP: give NAME=VALUE"),
        (["WARMUP=0.1", "WARMUP=0.2"], "--set WARMUP=0.2 gives what another --set WARMUP gives too"),
        (["D_SAE=wide"], "--set D_SAE=wide: expected a whole number"),
        (["K=0"], "--k: expected greater than 0, found 0"),
        (["COMPOSITION_COEFFICIENT=0.5"], "sets COMPOSITION_COEFFICIENT to 0.015, and the study fixes it at 0.5"),
    ],
)
def test_a_constant_that_is_not_there_or_of_another_kind_is_refused(sets: list[str], said: str):
    assert said in refusal(*sets)


def test_a_setting_is_given_once():
    assert "--set K=8 gives what another --k gives too: leave one of them out" in refusal("K=8", k=16)


def test_constants_with_options_of_their_own_are_taken_as_those():
    fixed = settled("D_SAE=2048", "K=24", "LEARNING_RATE=1e-3", "HOOK_NAME=blocks.2.hook_resid_post").fixed
    assert fixed == settled(d_sae=2048, k=24, learning_rate=1e-3, hook_name="blocks.2.hook_resid_post").fixed


def test_a_constant_is_replaced_in_every_program_that_has_it():
    fixed = settled("WARMUP=0.1", "AUX_COEFFICIENT=0", "LEAST_ENERGY=1", batch=2048).fixed
    assert fixed.constants == {"BATCH": 2048, "WARMUP": 0.1, "AUX_COEFFICIENT": 0.0, "LEAST_ENERGY": 1.0}
    baseline = ideas.render_baseline(fixed)
    assert "\nWARMUP = 0.1  # share of the steps over which the learning rate rises\n" in baseline
    assert "\nAUX_COEFFICIENT = 0.0  # weight of the dead" in baseline
    assert "LEAST_ENERGY" not in baseline
    for step in HIERARCHICAL.plan:
        found = constants.values(ideas.render_step(HIERARCHICAL, step, fixed))
        assert {name: found[name] for name in fixed.constants} == fixed.constants


def test_a_list_is_written_as_the_tuple_that_it_replaces():
    idea = ideas.load("absorption_prevention_sae")
    fixed = settled("ADAPTIVE_SPANS=(0.05, 0.2)", idea=idea).fixed
    reread = Fixed.model_validate_json(fixed.model_dump_json())
    assert "\nADAPTIVE_SPANS = (0.05, 0.2)  # shares" in ideas.render_step(idea, idea.plan[0], reread)


def test_what_a_step_of_the_plan_would_change_is_refused_at_the_start():
    sorted_prefixes = ideas.load("use_sorted_matryoshka_sae")
    said = refusal("DECAY=0.2", idea=sorted_prefixes)
    assert "step six_prefixes of use_sorted_matryoshka_sae sets DECAY to 0.3333, and the study fixes it at 0.2" in said
    assert "DECAY" not in settled("WARMUP=0.2", idea=sorted_prefixes).fixed.constants


def test_an_idea_fixes_settings_and_has_a_baseline_of_its_own():
    idea = changed(
        fixed={"d_sae": 512, "batch": 512, "constants": {"WARMUP": 0.1, "SEED": 3}},
        defaults=HIERARCHICAL.defaults | {"k": 12, "learning_rate": 1e-3},
    )
    found = settled(idea=idea)
    fixed = found.fixed
    assert (fixed.d_sae, fixed.batch, fixed.seed, fixed.k, fixed.learning_rate) == (512, 512, 3, 12, 1e-3)
    assert fixed.constants == {"BATCH": 512, "WARMUP": 0.1}  # the rate is the baseline's: a step may have another
    assert found.reasons["k"] == found.reasons["WARMUP"] == "given by idea.yaml"
    assert "\nLEARNING_RATE = 0.001 " in ideas.render_baseline(fixed)
    asked = settled("WARMUP=0.2", idea=idea, k=20, batch=256).fixed
    assert (asked.k, asked.constants) == (20, {"BATCH": 256, "WARMUP": 0.2})
    assert "\nK = 20 " in ideas.render_step(idea, idea.plan[0], asked)


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        ({"constants": {"WARMAP": 1}}, "fixed.constants.WARMAP of hierarchical_sae: no experiment of this study has"),
        ({"constants": {"WARMUP": "long"}}, "fixed.constants.WARMUP: expected a number, found 'long'"),
        ({"k": 200}, "k 200 (given by idea.yaml) is more than an eighth of d_sae 1,024 (tiny-lm's own)"),
    ],
    ids=["unknown", "kind", "k"],
)
def test_what_an_idea_gives_is_checked_too(fixed: dict[str, Any], said: str):
    assert said in refusal(idea=changed(fixed=fixed))


def test_a_run_that_departs_is_refused_or_not_comparable():
    fixed = settled("WARMUP=0.1", "LEAST_ENERGY=1", learning_rate=1e-3).fixed
    source = ideas.render_baseline(fixed)
    preflight.check(source, fixed, {})
    for old, new, said in (
        ("LEARNING_RATE = 0.001", "LEARNING_RATE = 0.01", "LEARNING_RATE is 0.01; this study fixes it at 0.001"),
        ("WARMUP = 0.1", "WARMUP = 2 * 0.1", "WARMUP is 2 * 0.1; this study fixes it at 0.1"),
        ("WARMUP = 0.1", "RISE = 0.1", "WARMUP is not assigned at the top of the module"),
        ("BATCH = 1024", "LEAST_ENERGY = 2.0\nBATCH = 1024", "LEAST_ENERGY is 2.0; this study fixes it at 1.0"),
    ):
        with pytest.raises(RunFailed) as failed:
            preflight.check(source.replace(old, new), fixed, {})
        assert said in failed.value.verdict.evidence
    preflight.check(source.replace("BATCH = 1024", "BATCH = 512").replace("K = 16", "K = 20"), fixed, {})  # not given
    assert departure(fixed, trained(fixed, WARMUP=0.1, LEARNING_RATE=1e-3), 1_500_000, None) == ""
    said = departure(fixed, trained(fixed, WARMUP=0.3, LEARNING_RATE=1e-3), 1_500_000, None)
    assert said == "WARMUP is 0.3, the study's is 0.1"


def trained(fixed: Fixed, **settings: Any) -> FinalInfo:
    named = fixed.model_dump(include={"model", "hook_name", "text", "d_sae", "tokens", "seed"})
    numbers = {"layer": 1, "d_in": 192, "steps": 1465, "final_loss": 0.1, "seconds": 1.0, "learning_rate": 1e-3}
    training = Training.model_validate(named | numbers | {"settings": settings})
    return FinalInfo(verdict=Verdict(name="ok", evidence=""), training=training)


def test_settings_that_were_recorded_before_there_were_more_are_read_as_they_were():
    recorded = {"model": "google/gemma-2-2b", "hook_name": "blocks.1.hook_resid_post", "tokens": 9, "d_sae": 4096}
    fixed = Fixed.model_validate(recorded)
    own = defaults.LANGUAGE_MODEL
    assert (fixed.k, fixed.batch, fixed.learning_rate) == (own.k, own.batch, own.learning_rate) == (16, 1024, 2e-3)
    assert (fixed.baseline, fixed.architecture.knob, fixed.knob) == ("batchtopk", "K", 16)


def test_a_baseline_of_another_kind_has_its_own_knob_and_the_idea_must_work_on_it(gemma: str):
    orthogonal = ideas.load("adaptive_orthogonal_sae")
    found = settled(idea=orthogonal, baseline="gated", l1_coefficient=3)
    assert (found.fixed.baseline, found.fixed.architecture.knob, found.fixed.knob) == ("gated", "L1_COEFFICIENT", 3)
    assert (found.reasons["baseline"], found.reasons["l1_coefficient"]) == ("given on the command line",) * 2
    assert "\nL1_COEFFICIENT = 3 " in ideas.render_baseline(found.fixed)
    assert settled(idea=orthogonal, baseline="gated", model=gemma).reasons["l1_coefficient"].startswith("tiny-lm's own")
    assert settled("L1_COEFFICIENT=3", idea=orthogonal, baseline="gated").fixed == found.fixed
    by_idea = changed(baselines=["topk", "batchtopk"], fixed={"k": 12})
    assert (settled(idea=by_idea).fixed.baseline, settled(idea=by_idea).fixed.knob) == ("topk", 12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"baseline": "relu"},
            "hierarchical_sae is not made for the baseline relu: its tiers silence and move latents",
        ),
        ({"l1_coefficient": 2.0}, "--l1-coefficient means nothing for the baseline batchtopk: give --k"),
        ({"baseline": "topk", "k": 12.5}, "TopK keeps a whole number of latents per token"),
    ],
    ids=["idea", "knob", "fraction"],
)
def test_a_baseline_or_a_knob_that_does_not_belong_is_refused(given: dict[str, Any], said: str):
    assert said in refusal(**given)


def test_any_baseline_suits_a_plan_in_words(tmp_path: Path):
    content = yaml.safe_load((HIERARCHICAL.folder / "idea.yaml").read_text())
    in_words = ideas.parse(yaml.safe_dump({**content, "baselines": ["relu"]}), tmp_path / "idea.yaml")
    assert not in_words.works_on("gated")
    del content["baselines"], content["why_not_others"]
    assert ideas.parse(yaml.safe_dump(content), tmp_path / "idea.yaml").works_on("gated")


def test_a_dry_run_shows_every_setting_and_starts_nothing(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("better")
    for name in ("gemma-2-2b", "google/gemma-2-2b"):
        shown = checkout.run(1, "--model", name, "--layer", "19", "--k", "320", "--d-sae", "65_536", "--dry-run")
        assert shown.returncode == 0, shown.stderr
        rows = {row.split("  ")[0].strip(): " ".join(row.split()) for row in shown.stdout.splitlines()}
        assert rows["--model"] == "--model google/gemma-2-2b given on the command line"
        assert rows["--d-sae"] == "--d-sae 65,536 given on the command line"
        assert rows["--lr"].startswith("--lr 0.0001 follows from d_sae: 2e-4 at 16,384, falling with its root; tuned")
        assert rows["--set BEHAVIOUR"] == "--set BEHAVIOUR 'sound' the baseline's"
    assert not (checkout.root / "runs").exists()
    away = ("--model", "google/unreachable", "--dry-run")
    assert checkout.run(1, *away).stderr == "error: model google/unreachable cannot be reached\n"
    known = checkout.run(1, *away, "--d-sae", "16384", "--layer", "12")
    assert known.returncode == 0, known.stderr
    assert checkout.run(1, "--dry-run", "--reference", "./no_sae").stderr == "error: there is no directory ./no_sae\n"
    (checkout.root / "templates/ideas/stand_in/experiment.py.j2").unlink()
    in_words = checkout.run(1, "--dry-run")
    assert (in_words.returncode, in_words.stdout) == (2, "")
    assert "--proposer llm" in in_words.stderr


@pytest.mark.slow
def test_a_study_has_the_settings_it_was_given(tmp_path: Path):
    checkout = make_checkout(tmp_path)
    checkout.plan("worse")
    given = ("--k", "20", "--seed", "3", "--context", "64", "--smallest-effect", "0.25", "--tokens", "40_000")
    ended = checkout.run(1, *given, "--set", "D_SAE=2048")
    assert ended.returncode == 0, ended.stderr
    started = checkout.state.started
    fixed = started.fixed
    assert (fixed.k, fixed.seed, fixed.context, fixed.d_sae, fixed.tokens) == (20, 3, 64, 2048, 40_000)
    assert started.smallest_effect == 0.25
    directory = checkout.study.directory
    environment = json.loads((directory / "run_1/environment.json").read_text())
    assert environment["SAE_AGENT_CONTEXT"] == "64"
    assert json.loads(environment["SAE_AGENT_FIXED"])["k"] == 20
    assert "seed 3, context 64; baseline BatchTopK with K 20; evaluated by" in checkout.notes
    assert {(baseline.k, baseline.seed) for baseline in checkout.state.baselines} >= {(20, 3), (20, 7), (40, 3)}
