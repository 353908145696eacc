"""Sets on the Hugging Face Hub: a repository of a set's files, with a card that says how to train on it."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from ddfast.data.card import card
from ddfast.data.sheet import sheet
from ddfast.data.synthetic import SyntheticSet
from ddfast.runtime.files import read_json

log = logging.getLogger("ddfast")

NAME = "synthetic"  # of the set's files


def write_repository(
    synthetic: SyntheticSet,
    folder: Path,
    repo_id: str,
    *,
    run: str | Path | None = None,
    licence: str | None = None,
) -> None:
    """Write what goes to the Hub: the set's two files, README.md (the card), images.png, and train.parquet for the
    Hub's viewer where `datasets` is installed.

    Errors: ValueError for a run folder whose files are damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: _read(run, f"{name}.json") for name in ("config", "summary", "transfer")}
    synthetic.save(folder / NAME)
    sheet(synthetic).save(folder / "images.png")
    text = card(synthetic, repo_id, licence=licence, **known)
    (folder / "README.md").write_text(text, encoding="utf-8")
    try:
        synthetic.to_hf().to_parquet(str(folder / "data" / "train.parquet"))
    except ImportError:
        log.info("train.parquet, for the Hub's viewer: left out, for it needs the package datasets")


def push(
    synthetic: SyntheticSet,
    repo_id: str,
    *,
    run: str | Path | None = None,
    licence: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload a set; its address.

    Errors: ImportError where `huggingface_hub` is not installed; what it raises where there is no access.
    """
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        write_repository(synthetic, Path(temporary), repo_id, run=run, licence=licence)
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        words = "Upload of a distilled set"
        api.upload_folder(folder_path=temporary, repo_id=repo_id, repo_type="dataset", commit_message=words)
    return str(url)


def pull(repo_id: str, *, revision: str | None = None, token: str | None = None) -> SyntheticSet:
    """The set of a repository.

    Errors: ImportError where `huggingface_hub` is not installed; ValueError for a repository without one.
    """
    hub = _hub()
    how = {"repo_type": "dataset", "revision": revision, "token": token}
    try:
        path = hub.hf_hub_download(repo_id, f"{NAME}.safetensors", **how)
    except hub.errors.EntryNotFoundError:
        raise ValueError(f"{repo_id}: holds no {NAME}.safetensors; expected a set that push_to_hub wrote") from None
    return SyntheticSet.load(path)


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(f"the Hub needs the package huggingface_hub ({error}); pip install huggingface_hub") from None
    return huggingface_hub


def _read(run: str | Path | None, name: str) -> dict[str, Any]:
    """A file of a run folder; nothing where it is not there."""
    path = None if run is None else Path(run) / name
    if path is None or not path.is_file():
        return {}
    found = read_json(path, checksum=False)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a file of a run")
    return found
