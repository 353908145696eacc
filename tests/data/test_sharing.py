"""Sets as other libraries take them, and on the Hub."""

import re
import shutil
from dataclasses import replace

import numpy
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader

import ddfast
from ddfast.cli import cli
from ddfast.data import SyntheticSet, load_dataset
from ddfast.data.card import card
from ddfast.data.hub import write_repository
from ddfast.data.parameterisation import with_canvas
from ddfast.runtime import seeds
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def hard(data):
    images, labels = data.random_real(2, seeds.generator(0))
    about = (torch.tensor(0.02), data.class_names, data.preprocessing)
    return SyntheticSet(images, labels, *about, network="mlp", dsa_strategy="flip_scale")


@pytest.fixture(params=["hard", "soft", "tiles"])
def kind(request, hard):
    if request.param == "soft":
        return replace(hard, labels=5 * one_hot(hard.labels, 10).float() + torch.randn(20, 10), lr=None)
    if request.param == "tiles":
        from ddfast.data.parameterisation import described

        return replace(hard, labels=hard.labels.repeat_interleave(4), parameterisation=described(
            {"name": "tiles", "factor": 2}))  # fmt: skip
    return hard


def equal(one: SyntheticSet, other: SyntheticSet) -> bool:
    same = torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    rates = (one.lr is None) == (other.lr is None) and (one.lr is None or float(one.lr) == float(other.lr))
    names = ("class_names", "dsa_strategy", "network", "parameterisation")
    matches = one.preprocessing.matches(other.preprocessing)
    return same and rates and matches and all(getattr(one, n) == getattr(other, n) for n in names)


def test_a_data_loader_gives_what_networks_see(kind):
    dataset = kind.as_dataset()
    assert len(dataset) == len(kind) and dataset.classes == list(kind.class_names)
    images, targets = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    assert torch.equal(images, kind.decoded().images) and torch.equal(targets, kind.targets)


def test_textures_are_seen_at_other_places_every_time(hard):
    canvas = replace(hard, images=torch.randn(20, 1, 32, 32), parameterisation=with_canvas(2))
    dataset = canvas.as_dataset()
    torch.manual_seed(0)
    first, second = dataset[0][0], dataset[0][0]
    assert first.shape == (1, 16, 16) and not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, dataset[0][0])


def test_arrays_are_those_of_the_set(kind):
    arrays = kind.to_numpy()
    decoded = kind.decoded()
    assert numpy.array_equal(arrays["images"], decoded.images.numpy())
    assert numpy.array_equal(arrays["labels"], kind.labels.numpy()) and ("lr" in arrays) == (kind.lr is not None)
    assert arrays["pixels"].dtype == numpy.uint8 and arrays["pixels"].shape == (len(kind), *decoded.image_size, 1)
    assert numpy.array_equal(arrays["pixels"][..., 0], kind.preprocessing.pixels(decoded.images)[:, 0].numpy())


def test_a_hugging_face_data_set_goes_both_ways(kind, tmp_path):
    datasets = pytest.importorskip("datasets")
    made = kind.to_hf()
    assert made.features["label"].names == list(kind.class_names) and made.num_rows == len(kind)
    assert numpy.array_equal(numpy.asarray(made[3]["image"]), kind.to_numpy()["pixels"][3, :, :, 0])
    assert equal(SyntheticSet.from_hf(made), kind.decoded())
    made.save_to_disk(tmp_path / "saved")
    assert equal(SyntheticSet.from_hf(datasets.load_from_disk(str(tmp_path / "saved"))), kind.decoded())
    other = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(ValueError, match=r"dataset: expected one that SyntheticSet\.to_hf made"):
        SyntheticSet.from_hf(other)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """huggingface_hub whose repositories are folders."""
    hub = pytest.importorskip("huggingface_hub")
    root = tmp_path / "hub"

    def create_repo(self, repo_id, repo_type, private, exist_ok):
        (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://huggingface.co/{repo_type}s/{repo_id}"

    def upload_folder(self, folder_path, repo_id, repo_type, commit_message):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def download(repo_id, filename, repo_type, revision, token):
        path = root / repo_id / filename
        if not path.exists():
            raise hub.errors.EntryNotFoundError("404")
        return str(path)

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return root


def test_a_set_comes_back_from_the_hub_as_it_went(hub, kind):
    assert kind.push_to_hub("me/set") == "https://huggingface.co/datasets/me/set"
    assert equal(SyntheticSet.from_hub("me/set"), kind)
    (hub / "me" / "set" / "synthetic.safetensors").unlink()
    with pytest.raises(ValueError, match=r"me/set: holds no synthetic\.safetensors"):
        SyntheticSet.from_hub("me/set")


def test_the_card_says_what_the_run_reached_and_its_code_runs(hub, tmp_path, monkeypatch):
    hugging_face = pytest.importorskip("huggingface_hub")
    done = ddfast.distill(output=tmp_path / "run", network="mlp", **SMALL)
    done.synthetic.push_to_hub("me/digits", run=done.path)
    text = (hub / "me/digits/README.md").read_text()
    card = hugging_face.DatasetCard(text)
    assert card.data.license == "cc-by-4.0" and "dataset-distillation" in card.data.tags
    for name in ("distilled", "random_real", "full_data"):
        row = done.accuracy[name]
        assert f"| ddfast | mlp | {name.replace('_', ' ')} | {row['mean']:.1f} ± {row['std']:.1f} |" in text
    assert "| `syn_steps` | 3 |" in text and "| `method` | mtt |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    state: dict = {}
    exec(code.replace("range(1000)", "range(40)"), state)
    images, targets = done.synthetic.as_dataset()[:]
    assert cross_entropy(state["net"](images), targets) < 1.5


def test_the_command_writes_what_would_be_uploaded(tmp_path, hard, capsys, monkeypatch):
    hard.save(tmp_path / "set")
    cli(["share", str(tmp_path / "set"), "me/set", "--folder", str(tmp_path / "out")], standalone_mode=False)
    assert capsys.readouterr().out == f"written, not uploaded: {tmp_path / 'out'}\n"
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in text and "Ask its owner" in text and "Not measured." in text
    assert equal(SyntheticSet.load(tmp_path / "out" / "synthetic"), hard)
    assert (tmp_path / "out" / "images.png").exists()


def test_without_the_package_the_sentence_says_what_to_install(hard, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        hard.push_to_hub("me/set")


def test_a_folder_that_holds_files_is_not_written_to(tmp_path, hard):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine")
    for folder in (tmp_path / "run", tmp_path / "run" / "README.md"):
        with pytest.raises(FileExistsError, match="expected a new or an empty folder"):
            write_repository(hard, folder, "me/set")
    assert (tmp_path / "run" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["me", "me/a/b", "me/a set", "", "me/", "../set"])
def test_a_name_that_the_hub_has_not_is_refused_before_any_work(tmp_path, hard, name):
    with pytest.raises(ValueError, match="repo_id: expected USER/NAME"):
        write_repository(hard, tmp_path / "out", name)
    with pytest.raises(ValueError, match="repo_id: expected USER/NAME"):
        SyntheticSet.from_hub(name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [None, 401, 500])
def test_a_hub_that_does_not_answer_is_one_sentence(hard, monkeypatch, tmp_path, status):
    hub = pytest.importorskip("huggingface_hub")

    class Answer:
        status_code = status

    def create_repo(*args, **options):
        if status is None:
            raise hub.errors.HTTPError("Name or service not known")
        error = hub.errors.HfHubHTTPError.__new__(hub.errors.HfHubHTTPError)
        error.response, error.args = Answer(), ("Client error",)
        raise error

    def download(*args, **options):
        raise hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    kind, words = {401: (PermissionError, "hf auth login")}.get(
        status, (ConnectionError, "me/set: the Hugging Face Hub")
    )
    with pytest.raises(kind, match=words):
        hard.push_to_hub("me/set")
    with pytest.raises(ConnectionError, match="me/set: the Hugging Face Hub cannot be reached"):
        SyntheticSet.from_hub("me/set")


def test_the_card_claims_nothing_that_the_run_did_not_reach(hard):
    text = card(hard, "me/set", config={"dataset": "fashion-mnist"}, summary={"useless": "no better than random"})
    assert "**Warning**: no better than random" in text and "nearly as well" not in text
    assert "has not finished" not in text and "license: mit" in text
    assert "The run has not finished" in card(hard, "me/set", config={"dataset": "digits"})


def test_the_metadata_of_the_card_are_yaml(hard):
    yaml = pytest.importorskip("yaml")
    text = card(hard, "me/set", licence="ours: ask #us", has_table=False)
    about = yaml.safe_load(text.split("---")[1])
    assert about["license"] == "ours: ask #us" and "configs" not in about  # no table that is not there
    assert yaml.safe_load(card(hard, "me/set").split("---")[1])["configs"]
