"""python -P -m agent.lab.text_stream DATASET SEED BUFFER [REVISION]: print a hub dataset's documents as they arrive.

Its files are read in an order by the seed, and its documents mixed in a buffer of so many.

The first line of stdout is a JSON object with the commit, each line after it a document as a JSON string, the last one
null: without it the stream has broken off. The dataset is streamed by the `datasets` library; nothing is kept on disk.
This is a process of its own because that library reads at its import whether it may use the network.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from agent.lab.errors import UserError
from agent.lab.text_files import FIELD, no_text_column

READ_RETRIES, RETRY_SECONDS = 3, 1  # after a disconnection, in place of the library's 20 times 5 s


def main() -> None:
    name, seed, buffer, *revision = sys.argv[1:]
    try:
        print_documents(name, int(seed), int(buffer), revision[0] if revision else None)
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the reader has enough
        sys.stdout = None  # type: ignore[assignment]  # so that it is not flushed again at exit


def print_documents(name: str, seed: int, buffer: int, revision: str | None) -> None:
    """Print the commit and the documents of a hub dataset. Raises UserError."""
    commit = find_commit(name, revision)
    print(json.dumps({"commit": commit}), flush=True)
    for document in documents(name, commit, seed, buffer):
        print(json.dumps(document))
    print("null", flush=True)


def find_commit(name: str, revision: str | None) -> str:
    """Return the commit of a hub dataset. Raises UserError if it does not exist, or is not for this user."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=30).sha or ""
    except HfHubHTTPError as error:
        raise _refused(name, revision, error.response.status_code, bool(get_token())) from None
    except Exception as error:  # of whichever library makes the connection
        raise UserError(
            f"{name} is no file here, and the hub ({ENDPOINT}) cannot be reached for a dataset of that name "
            f"({_short(error)}): give a file or a folder, or try again later"
        ) from None


def _refused(name: str, revision: str | None, status: int, token: bool) -> UserError:
    if status == 403:
        return _gated(name)
    if status == 401 and token:
        return UserError(
            f"the hub refused the token (HF_TOKEN or the stored one) for the dataset {name}, or there is no such "
            "dataset: check both"
        )
    if status in (401, 404):
        at = f" at {revision}" if revision else ""
        return UserError(
            f"there is no file {name} here and no such dataset on the hub{at}, or it is private: check the name, or "
            "set HF_TOKEN"
        )
    return UserError(f"the hub answered {status} for the dataset {name}: try again later")


def _gated(name: str) -> UserError:
    from huggingface_hub.constants import ENDPOINT

    return UserError(f"the dataset {name} is gated: accept its terms at {ENDPOINT}/datasets/{name}, set HF_TOKEN")


def documents(name: str, commit: str, seed: int, buffer: int) -> Iterator[str]:
    """Yield the documents of the split `train`. Raises UserError, also where the hub breaks off."""
    import datasets
    from datasets import config

    config.STREAMING_READ_MAX_RETRIES = READ_RETRIES
    config.STREAMING_READ_RETRY_INTERVAL = RETRY_SECONDS
    datasets.disable_progress_bars()
    try:
        streamed: Any = datasets.load_dataset(
            name, split="train", revision=commit, streaming=True, trust_remote_code=False
        )
        rows = iter(streamed.shuffle(seed=seed, buffer_size=buffer))
    except Exception as error:  # the library raises many kinds for a dataset that it cannot open
        if "is a gated dataset" in str(error):
            raise _gated(name) from None
        raise UserError(f"the dataset {name} cannot be opened ({_short(error)}): give another, or its files") from None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # likewise, when a file ends early, is damaged, or the hub is gone
            raise UserError(
                f"the dataset {name} could not be read any further ({_short(error)}): try again later"
            ) from None
        if not isinstance(row.get(FIELD), str | None):
            raise UserError(f"the dataset {name}: the column {FIELD} is {type(row[FIELD]).__name__}, not text")
        if FIELD not in row:
            raise no_text_column(f"the dataset {name}", list(row))
        yield row[FIELD] or ""


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    main()
