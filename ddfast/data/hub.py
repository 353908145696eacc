"""Sets on the Hugging Face Hub: a repository with a set's files and a card that says how to train on it."""

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddfast.data.card import card
from ddfast.data.sheet import sheet
from ddfast.data.synthetic import SyntheticSet
from ddfast.runtime.files import read_json

log = logging.getLogger("ddfast")

NAME = "synthetic"  # stem of the set's files
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def write_repository(
    synthetic: SyntheticSet,
    folder: Path,
    repo_id: str,
    *,
    run: str | Path | None = None,
    licence: str | None = None,
) -> None:
    """Write the files of a Hub repository: the set's two files, README.md (the card), images.png, and train.parquet for
    the Hub's viewer if `datasets` is installed.

    Errors: ValueError for a run folder with damaged files, and for a `repo_id` that is not USER/NAME; FileExistsError
    for a folder that is not empty.
    """
    _expect_name(repo_id)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: expected a new or an empty folder; choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: _read(run, f"{name}.json") for name in ("config", "summary", "transfer")}
    synthetic.save(folder / NAME)
    sheet(synthetic).save(folder / "images.png")
    try:
        _write_table(synthetic, folder / "data" / "train.parquet")
    except ImportError:
        log.info("skipped train.parquet (for the Hub's viewer), which needs the package datasets")
    text = card(synthetic, repo_id, licence=licence, has_table=(folder / "data").is_dir(), **known)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _write_table(synthetic: SyntheticSet, path: Path) -> None:
    import datasets

    table, shown = synthetic.to_hf(), datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        table.to_parquet(str(path))
    finally:
        if shown:
            datasets.enable_progress_bars()


def push(
    synthetic: SyntheticSet,
    repo_id: str,
    *,
    run: str | Path | None = None,
    licence: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload a set and return its address.

    Errors: ImportError if `huggingface_hub` is not installed; ValueError for a `repo_id` that is not USER/NAME;
    PermissionError without access, ConnectionError if the Hub cannot be reached.
    """
    hub = _hub()
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        write_repository(synthetic, Path(temporary), repo_id, run=run, licence=licence)
        words = "Upload of a distilled set"
        with _reaching(hub, repo_id):
            url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            api.upload_folder(folder_path=temporary, repo_id=repo_id, repo_type="dataset", commit_message=words)
    return str(url)


def pull(repo_id: str, *, revision: str | None = None, token: str | None = None) -> SyntheticSet:
    """Download the set of a repository.

    Errors: ImportError if `huggingface_hub` is not installed; ValueError for a repository without a set, and for a
    `repo_id` that is not USER/NAME; PermissionError without access, ConnectionError if the Hub cannot be reached.
    """
    _expect_name(repo_id)
    hub = _hub()
    how = {"repo_type": "dataset", "revision": revision, "token": token}
    with _reaching(hub, repo_id):
        path = hub.hf_hub_download(repo_id, f"{NAME}.safetensors", **how)
    return SyntheticSet.load(path)


def _expect_name(repo_id: str) -> None:
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"repo_id: expected USER/NAME of letters, digits, '-', '_' and '.', got {repo_id!r}")


@contextlib.contextmanager
def _reaching(hub: Any, repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub into one-sentence errors."""
    errors = hub.errors
    try:
        yield
    except (errors.LocalEntryNotFoundError, ConnectionError) as error:  # neither on the Hub nor in the cache
        raise ConnectionError(f"{repo_id}: the Hugging Face Hub cannot be reached ({error})") from None
    except errors.EntryNotFoundError:
        raise ValueError(f"{repo_id}: holds no {NAME}.safetensors; expected a set that push_to_hub wrote") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):
            what = f"no such data set, or no access to it (status {status})"
            raise PermissionError(f"{repo_id}: {what}; check the name, and log in by `hf auth login`") from None
        raise ConnectionError(f"{repo_id}: the Hugging Face Hub refused it ({error})") from None
    except errors.HTTPError as error:
        raise ConnectionError(f"{repo_id}: the Hugging Face Hub cannot be reached ({error})") from None


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(f"the Hub needs the package huggingface_hub ({error}); pip install huggingface_hub") from None
    return huggingface_hub


def _read(run: str | Path | None, name: str) -> dict[str, Any]:
    """The contents of a file in a run folder; empty if the file is missing."""
    path = None if run is None else Path(run) / name
    if path is None or not path.is_file():
        return {}
    found = read_json(path, checksum=False)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a file of a run")
    return found
