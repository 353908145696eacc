"""The code in the documentation runs, and what it shows as a change changes nothing."""

import re
import shlex
import sys
import types
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import ddfast
from ddfast.cli import cli
from ddfast.data import hub, registry
from ddfast.runtime import seeds
from tests.conftest import SMALL, relative_error

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXACT = 1e-9  # float64, sums in another order


@pytest.fixture
def float64():
    """Random numbers and networks are float64, and the global state is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


def run(code: str, names: dict) -> dict[str, torch.Tensor]:
    """Run it; the gradients that it leaves in the leaves that were there before."""
    tensors = {key: value for key, value in names.items() if isinstance(value, torch.Tensor)}
    leaves = {key: tensor for key, tensor in tensors.items() if tensor.is_leaf and tensor.requires_grad}
    for leaf in leaves.values():
        leaf.grad = None
    torch.manual_seed(0)
    exec(code, names)
    return {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def side(diff: str, sign: str) -> str:
    """The code before, "-", or after, "+"."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in (" ", sign))


def test_what_drop_in_shows_runs_and_the_gradients_before_and_after_are_the_same(float64):
    names: dict = {}
    blocks = BLOCK.findall((DOCS / "drop-in.md").read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("diff") == 10
    for kind, code in blocks:
        if kind == "python":
            run(code, names)
            continue
        before, after = (run(side(code, sign), dict(names)) for sign in "-+")
        assert before and before.keys() == after.keys()
        for key, gradient in before.items():
            assert gradient.abs().max() > 0 and relative_error(after[key], gradient) < EXACT, f"{key}:\n{code}"


ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = {"iterations": 2, "num_eval": 1, "eval_epochs": 1, "device": "cpu"}
TINY_EXPERTS = {"num_experts": 1, "train_epochs": 1, "batch_train": 6}
TINY_UNROLL = TINY_EXPERTS | {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "segments": 1}


def commands(page: Path) -> list[list[str]]:
    """The words after `ddfast` of every command that a page shows."""
    found = []
    for block in SHELL.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if word != "…"]
            if "ddfast" in words:
                found.append(words[words.index("ddfast") + 1 :])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_is_one(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuning").mkdir()
    for name in ("my.yaml", "tuning/tuned.yaml"):
        (tmp_path / name).write_text("iterations: 3\n")
    for words in commands(page):
        if words and words[0] != "--traceback":
            cli.commands[words[0]].make_context(words[0], words[1:])  # UsageError for what it does not take


def test_commands_are_found():
    assert sum(len(commands(page)) for page in PAGES) > 30


@pytest.fixture
def small_world(pair, tmp_path, monkeypatch):
    """What a reader has: a folder to work in, data, and a machine on which the examples take a second."""
    monkeypatch.chdir(tmp_path)
    distill, evaluate, train = ddfast.distill, ddfast.evaluate, ddfast.train_experts

    def little(dataset=None, method="mtt", **options):
        unrolls = ddfast.methods.METHODS[method].needs.unroll
        tiny = TINY | (TINY_UNROLL if unrolls and "experts" not in options else {})
        if dataset == "cifar10":
            dataset, tiny = pair, tiny | {"ipc": 1}
        return distill(dataset, method=method, **options | tiny)

    monkeypatch.setattr(ddfast, "distill", little)
    monkeypatch.setattr(ddfast, "evaluate", lambda *a, **o: evaluate(*a, **o | {"num_eval": 1, "eval_epochs": 1}))
    monkeypatch.setattr(
        ddfast, "train_experts", lambda dataset, **o: train(pair, **o | TINY_EXPERTS | {"output": None})
    )
    known = dict(ddfast.methods.METHODS._known)
    yield {"train_set": pair[0], "test_set": pair[1]}
    ddfast.methods.METHODS._known = known
    registry.REGISTERED.clear()
    ddfast.networks.NETWORKS.pop("small", None)


def run_page(page: Path, names: dict) -> None:
    blocks = PYTHON.findall(page.read_text(encoding="utf-8"))
    assert blocks
    module = types.ModuleType("shown")  # dataclasses look for the module of their fields
    module.__dict__.update(names)
    sys.modules["shown"] = module
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(compile(block, str(page), "exec"), module.__dict__)
    names |= vars(module)


@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "docs/own-method.md"])
def test_the_python_that_is_shown_runs(small_world, name):
    run_page(ROOT / name, small_world)
    assert small_world["result"].path.is_dir()


def test_the_folder_of_formats_is_read_as_shown(small_world, tmp_path):
    for split in ("train", "val"):
        for k in range(2):
            (tmp_path / "photos" / split / str(k)).mkdir(parents=True)
            for n in range(3):
                deep = Image.fromarray(numpy.full((20, 20), 900 * k + 100 * n, dtype=numpy.uint16))
                deep.save(tmp_path / "photos" / split / str(k) / f"{n}.png")
    run_page(DOCS / "data.md", small_world)
    assert small_world["data"].preprocessing.value_range == (0.0, 4095.0)


def test_files_for_dd_ranking_are_given_to_it_as_shown(small_world, pair, tmp_path):
    data = ddfast.load_dataset(pair)
    synthetic = ddfast.SyntheticSet(
        *data.random_real(1, seeds.generator(0)), 0.01, data.class_names, data.preprocessing
    )
    synthetic.save(tmp_path / "set")
    ddfast.compat.convert(tmp_path / "set", tmp_path / "for-ranking", "dd-ranking")
    given = {}
    small_world |= {
        "torch": torch,
        "evaluator": types.SimpleNamespace(compute_metrics=lambda **values: given.update(values)),
    }
    run_page(DOCS / "files.md", small_world)
    assert given["image_tensor"].shape == synthetic.images.shape and float(given["syn_lr"]) == pytest.approx(0.01)


def test_ray_runs_what_is_shown(small_world, monkeypatch, tmp_path):
    """With a ray that runs in this process."""

    class Trainer:
        def __init__(self, function, train_loop_config, scaling_config):
            self.function, self.options = function, train_loop_config

        def fit(self):
            self.function(self.options | {"output": tmp_path / "my-run"})

    modules = {
        "ray": types.SimpleNamespace(
            remote=lambda **how: lambda function: types.SimpleNamespace(remote=function), get=lambda values: values
        ),
        "ray.train": types.SimpleNamespace(ScalingConfig=lambda **how: how),
        "ray.train.torch": types.SimpleNamespace(TorchTrainer=Trainer),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    run_page(DOCS / "processes.md", small_world)
    assert (tmp_path / "my-run" / "summary.json").is_file()


def test_a_set_is_shared_as_shown(small_world, monkeypatch, tmp_path):
    """With a Hub that is a folder."""
    monkeypatch.chdir(tmp_path)
    done = ddfast.distill(output="runs/0001", network="mlp", **SMALL)
    repositories = {}

    def push(synthetic, repo_id, run):
        hub.write_repository(synthetic, tmp_path / "hub", repo_id, run=run)
        repositories[repo_id] = tmp_path / "hub"

    monkeypatch.setattr(hub, "push", push)
    monkeypatch.setattr(hub, "pull", lambda repo_id: ddfast.SyntheticSet.load(repositories[repo_id] / "synthetic"))
    run_page(DOCS / "sharing.md", small_world | {"synthetic": done.synthetic, "ddfast": ddfast})
    assert (tmp_path / "hub" / "README.md").is_file()


def test_every_page_with_code_is_run_here():
    shown = {page.name for page in PAGES if PYTHON.search(page.read_text(encoding="utf-8"))}
    run_here = {"README.md", "python.md", "own-method.md", "data.md", "files.md", "processes.md"}
    run_here |= {"drop-in.md", "sharing.md"}
    assert shown == run_here


def test_the_readme_is_short_and_its_links_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_pages_of_the_site_are_those_there_are():
    """`make docs` builds them strictly; a page that no menu names would only be told."""
    import yaml

    def files(entry):
        if isinstance(entry, str):
            return [entry]
        return [file for one in (entry.values() if isinstance(entry, dict) else entry) for file in files(one)]

    menu = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(menu) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
