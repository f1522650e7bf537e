"""An SAE from elsewhere as its import left it in a study's directory: read without torch."""

import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from agent.lab.files import BadFile, read_plain_text
from agent.lab.results import Imported
from agent.lab.visible import Line
from agent.study.records import Reference

IMPORTED = "imported.json"  # in a reference's directory: what the import printed
HEADER = "checkpoint/header.json"


class _Header(BaseModel):
    d_sae: int
    imported: Imported


class _Printed(BaseModel):
    warnings: tuple[Line, ...] = ()


def read(folder: Path, name: str) -> Reference:
    """Return what is known of the imported SAE in a folder. Raise BadFile if its files are not as an import leaves
    them."""
    try:
        header = _Header.model_validate_json(read_plain_text(folder / HEADER))
        printed = _Printed.model_validate(json.loads(read_plain_text(folder / IMPORTED).splitlines()[-1]))
    except (FileNotFoundError, IndexError, ValidationError, ValueError) as error:
        raise BadFile(f"{folder} does not hold an SAE as an import leaves it: {error}") from None
    return Reference(name=name, d_sae=header.d_sae, imported=header.imported, warnings=printed.warnings)
