"""Runs that pages are made of, and a browser."""

import shutil

import pytest
import torch
from torch.utils.data import TensorDataset

import ddfast
from ddfast.run.transfer import save_transfer
from tests.conftest import SMALL, interrupt_after, uniform

NAMES = ("<b>one</b>", "two & three")


class Named(TensorDataset):
    classes = NAMES


@pytest.fixture(scope="session")
def pair():
    """A data set whose classes' names are not HTML."""
    labels = torch.arange(40) % 2
    images = uniform(40, 3, 16, 16).float() * 0.5 + labels.view(-1, 1, 1, 1) / 3
    return tuple(Named(part, y) for part, y in ((images, labels), (images + 0.01, labels)))


@pytest.fixture(scope="session")
def runs(pair, tmp_path_factory):
    """Folders: a finished run with a transfer table, one of another method, and one that was stopped."""
    folder = tmp_path_factory.mktemp("runs")
    more = {**SMALL, "iterations": 6, "checkpoint_every": 2, "eval_every": 3, "network": "convnet:width=8"}
    done = ddfast.distill(pair, output=folder / "first", **more)
    how = {"networks": ("mlp", "lenet"), "num_eval": 2, "eval_epochs": 3, "scores": True, "full_epochs": 1}
    save_transfer(ddfast.transfer_table(done.path, pair, **how), done.path / "transfer.json")
    of_dm = {name: more[name] for name in ("iterations", "num_eval", "eval_epochs", "network", "checkpoint_every")}
    ddfast.distill(pair, output=folder / "second", method="dm", lr_img=1.0, **of_dm)
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=folder / "stopped", progress=interrupt_after(4), **more)
    return folder


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()
