"""`agent score`: SAEs that were trained elsewhere, from a directory and from the hub, as a user scores them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import LoopbackHub
from small_lab import CONTEXT, HOOK, one_line, run

from agent.lab import results

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))
import foreign_saes  # noqa: E402
from foreign_saes import K, Weights  # noqa: E402

RELEASE, REPOSITORY = "gpt2-small-res-jb/blocks.8.hook_resid_pre", "jbloom/GPT2-Small-SAEs-Reformatted"


def test_a_directory_is_scored_and_shown(small_model: Path, tmp_path: Path) -> None:
    weights = Weights.of(torch.randn(400, 32, generator=torch.Generator().manual_seed(0)), str(small_model))
    sae, out = foreign_saes.sae_lens(tmp_path / "sae", weights, "topk"), tmp_path / "scored"
    command = ("-m", "agent", "score", str(sae), "--evals", "core", "--out", str(out))
    ended = run(*command)
    assert ended.returncode == 0, ended.stderr
    for words in ("explained variance", "L0", f"topk of saelens; by its files L0 {K}", "compared with sae_lens"):
        assert words in ended.stdout
    info = results.read(out)
    assert info.core
    assert info.core.l0
    assert info.core.l0 < K / 1.5  # its weights are not for this model
    assert f"warning: its L0 is {info.core.l0:.1f} here and {K:.1f} by its files" in " ".join(ended.stdout.split())
    assert info.imported
    assert info.imported.context == CONTEXT
    assert list((out / "eval").rglob("*eval_results.json"))
    again = run(*command)
    assert again.returncode == 2
    assert "is there already" in one_line(again.stderr)
    wrong = run(*command[:-1], str(tmp_path / "other"), "--hook", "blocks.0.hook_resid_post")
    assert wrong.returncode == 2
    assert one_line(wrong.stderr) == f"error: {sae} is of the hook {HOOK}, not of blocks.0.hook_resid_post"
    assert not (tmp_path / "other").exists()


def read(*sources: str, **environment: str) -> list[Any]:
    """Read SAEs in one process of their own; return what it says of each, or the line in which it refuses it."""
    code = (
        "import json\nfrom agent.lab.errors import UserError\nfrom agent.lab.foreign import importing\nsaid = []\n"
        f"for source in {sources!r}:\n    try:\n        sae = importing.read(source)\n"
        "        said.append([sae.imported.format, sae.imported.architecture, sae.hook_name, sae.model])\n"
        "    except UserError as error:\n        said.append(str(error))\nprint(json.dumps(said))"
    )
    ended = run("-c", code, **environment)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_run_that_cannot_be_where_it_should(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run("-m", "agent", "score", str(tmp_path), "--out", str(tmp_path / "file/scored"))
    assert ended.returncode == 2
    assert one_line(ended.stderr) == (
        f"error: {tmp_path}/file/scored cannot be made (File exists): give another with --out"
    )
    assert "the name of an SAE is empty" in one_line(run("-m", "agent", "score", "").stderr)


def test_saes_of_the_hub(tmp_path: Path) -> None:
    """A release of SAELens and a folder in any format are fetched once; what cannot be reached is one line."""
    weights = Weights.of(torch.randn(400, 32, generator=torch.Generator().manual_seed(0)), "gpt2-small")
    files = tmp_path / "files"
    foreign_saes.sae_lens(files / "release/blocks.8.hook_resid_pre", weights, "standard")
    foreign_saes.sparse_coder(files / "coders/layers.1", weights)
    with LoopbackHub({REPOSITORY: files / "release", "someone/coders": files / "coders"}) as hub:
        environment = hub.environment(tmp_path / "home")
        release, coder = read(RELEASE, "someone/coders/layers.1", **environment)
        assert release == ["saelens", "standard", HOOK, "gpt2-small"]
        assert coder == ["sparsify", "topk", HOOK, "gpt2-small"]
    unknown = "gpt2-small-res-jb/blocks.99.hook_resid_pre"
    stored, more, misspelt = read(RELEASE, "someone/more/layers.1", unknown, **environment)
    assert stored == release
    assert "the hub cannot be reached" in more
    assert "has no SAE blocks.99.hook_resid_pre: did you mean blocks." in misspelt
