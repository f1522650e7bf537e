"""python -P -m agent.lab.describe_model MODEL: print the hub's name and config.json of one of its models, as JSON.

What cannot be had is left out, with the reason: {"model": "...", "error": "..."}. Only that config.json is fetched.
"""

import json
import sys

from agent.lab import hub, model_files, models
from agent.lab.errors import UserError


def main() -> None:
    described = {}
    try:
        described["model"] = models.hub_repository(sys.argv[1])
        described["config"] = model_files.read_config(hub.config_folder(described["model"]))
    except UserError as error:
        described["error"] = str(error)
    print(json.dumps(described))


if __name__ == "__main__":
    main()
