"""An SAE from elsewhere as its import left it in a directory: read without torch."""

import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from agent.lab.files import BadFile, read_plain_text
from agent.lab.results import Imported
from agent.study.records import Reference

PRINTED = "imported.json"  # in a reference's directory: what the import printed, the last line as JSON
HEADER = "checkpoint/header.json"


class _Header(BaseModel):
    d_sae: int
    imported: Imported


def read(folder: Path, name: str) -> Reference:
    """Return the imported SAE in a folder. Raise BadFile if it does not hold one."""
    try:
        header = _Header.model_validate_json(read_plain_text(folder / HEADER))
    except (FileNotFoundError, ValidationError) as error:
        raise BadFile(f"{folder} does not hold an SAE as an import leaves it: {error}") from None
    return Reference(name=name, d_sae=header.d_sae, imported=header.imported)


def warnings(folder: Path) -> list[str]:
    """Return what the import warned of."""
    return json.loads(read_plain_text(folder / PRINTED).splitlines()[-1])["warnings"]
