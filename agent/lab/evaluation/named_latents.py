"""The latents that an idea names of a run, with what it calls them. Its code is not trusted: they are bounded."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.lab.files import MIB, BadFile, read_plain, write_atomically
from agent.lab.verdicts import Count
from agent.lab.visible import one_line

FILE = "latents.json"  # in a run's eval/analysis
MOST_NAMED, MOST_LABELS, MOST_RELATED, LONGEST_LABEL = 200, 4, 16, 120
MOST_BYTES = MIB


class NamedLatent(BaseModel):
    """One latent, and what the idea calls it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent: Count
    labels: list[Annotated[str, Field(max_length=LONGEST_LABEL)]] = Field(max_length=MOST_LABELS)
    related: list[Count] = Field(default=[], max_length=MOST_RELATED)


class NamedLatents(BaseModel):
    """All that an idea has named of a run, those it named first first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latents: list[NamedLatent] = Field(default=[], max_length=MOST_NAMED)


def read(folder: Path) -> dict[int, NamedLatent]:
    """Return what was named, by latent; nothing if there is no file. Raises BadFile."""
    try:
        named = NamedLatents.model_validate_json(read_plain(folder / FILE, MOST_BYTES))
    except FileNotFoundError:
        return {}
    except (ValidationError, UnicodeDecodeError) as error:
        raise BadFile(f"{folder / FILE} is damaged: {str(error).splitlines()[0]}") from None
    return {each.latent: each for each in named.latents}


def add(folder: Path, d_sae: int, labels: Mapping[int, str], related: Mapping[int, Iterable[int]]) -> None:
    """Name latents in addition to those that were named before, as far as there is room.

    A label is cut to one line of LONGEST_LABEL characters. Raises ValueError for what is no latent of the SAE.
    """
    named = read(folder)
    for latent, label in labels.items():
        others = [int(other) for other in related.get(latent, ())][:MOST_RELATED]
        if wrong := [number for number in (int(latent), *others) if not 0 <= number < d_sae]:
            raise ValueError(f"{wrong[0]} is none of the {d_sae} latents, and was named {label!r}")
        before = named.get(int(latent), NamedLatent(latent=int(latent), labels=[]))
        label = one_line(str(label))[:LONGEST_LABEL]
        named[before.latent] = NamedLatent(
            latent=before.latent,
            labels=list(dict.fromkeys([*before.labels, label]))[:MOST_LABELS],
            related=list(dict.fromkeys([*before.related, *others]))[:MOST_RELATED],
        )
    kept = list(named.values())[:MOST_NAMED]
    write_atomically(folder / FILE, json.dumps({"latents": [each.model_dump() for each in kept]}))
