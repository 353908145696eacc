"""The package's rooms: which module may import which, and where things may happen."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import ddfast

PACKAGE = Path(__file__).parent.parent / "ddfast"
SURFACE = {"ddfast", "cli", "__main__"}  # may import everything

MAY_IMPORT = {  # beside runtime, which everything may use
    "runtime": set(),
    "ops": set(),
    "networks": {"ops"},
    "engine": {"networks", "ops"},
    "data": {"ops"},
    "experts": {"engine.students", "engine.timing", "networks", "data"},
    "methods": {"engine", "networks", "experts", "data", "ops"},
    "compat": {"experts", "networks", "data"},
    "evaluation": {"engine.students", "engine.timing", "networks", "data", "ops"},
    "run": {"methods", "experts", "evaluation", "data", "engine", "networks", "ops"},
    "pages": {"run", "studies", "data", "ops"},
    "studies": {"run", "methods", "experts", "evaluation", "data", "engine", "networks"},
    "tuning": {"run", "methods", "experts", "data", "engine.timing", "studies.tables"},
}
WITHIN = {  # a room, in which some may be imported by others
    "engine": {
        "students": set(),
        "repeatable": set(),
        "distances": set(),
        "optimizers": set(),
        "data_loss": {"students"},
        "planner": {"students"},
        "inner_loop": {"students", "planner", "optimizers"},
        "reverse": {"students", "planner", "repeatable", "inner_loop"},
        "adjoints": {"students", "planner", "repeatable", "optimizers", "inner_loop", "reverse"},
        "unroll": {"students", "adjoints", "distances", "optimizers", "inner_loop"},
        "timing": {"unroll", "adjoints", "planner", "students"},
    },
    "evaluation": {
        "protocols": set(),
        "costs": set(),
        "scores": set(),
        "corruptions": set(),
        "cache": set(),
        "training": {"protocols"},
        "schedule": {"protocols", "training"},
        "judging": {"scores", "corruptions"},
        "rates": {"protocols"},
        "result": set(),
        "trainings": {"cache", "judging", "rates", "result", "schedule"},
        "evaluate": {"protocols", "rates", "result", "schedule", "trainings"},
        "baselines": {
            "cache",
            "evaluate",
            "judging",
            "protocols",
            "rates",
            "result",
            "schedule",
            "training",
            "trainings",
        },
    },
    "run": {
        "folder": set(),
        "trackers": {"folder"},
        "result": set(),
        "progress": set(),
        "config": {"trackers"},
        "presets": set(),
        "curves": set(),
        "pictures": {"curves"},
        "own_data": {"config"},
        "job": {"config"},
        "probe": {"job"},
        "verdict": {"job"},
        "loop": {"job"},
        "costs": {"job", "loop", "own_data"},
        "resolve": {"config", "job", "own_data", "presets", "probe", "costs", "trackers"},
        "resume": {"config", "job", "resolve"},
        "transfer": {"folder", "resume"},
        "expert_options": {"config", "job", "resolve"},
        "preset_plan": {"resolve", "presets"},
        "recorder": {"job", "loop", "folder", "pictures", "trackers"},
        "distill": {
            "job",
            "costs",
            "loop",
            "own_data",
            "probe",
            "recorder",
            "resolve",
            "resume",
            "result",
            "trackers",
            "folder",
            "verdict",
        },
    },
    "tuning": {
        "clock": set(),
        "space": set(),
        "storage": {"clock", "space"},
        "begin": {"clock", "space"},
        "trial": {"begin", "clock", "storage"},
        "importance": {"clock"},
        "report": {"begin", "clock", "importance", "storage", "trial"},
        "tune": {"begin", "clock", "report", "storage", "trial"},
    },
}
LAZY = {"torchvision", "kornia", "matplotlib", "sklearn", "PIL", "safetensors", "tqdm", "yaml", "jinja2", "optuna"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "ddfast" if part == "__init__" else part


def imports(path: Path, only_at_the_top: bool = False) -> set[str]:
    """The full names of what a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if only_at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def allowed(name: str, rooms: set[str]) -> bool:
    """Whether one of the rooms, or the module of a room, is the one of an imported name."""
    parts = name.split(".")[1:]
    return any(parts[: len(room.split("."))] == room.split(".") for room in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    here = room(path)
    if here in SURFACE:
        return
    used = {name for name in imports(path) if name.startswith("ddfast.")}
    assert not {name for name in used if not allowed(name, MAY_IMPORT[here] | {here, "runtime"})}
    assert here == "ops" or not {name for name in used if name.startswith("ddfast.ops._")}
    assert not {name.partition(".")[0] for name in imports(path, only_at_the_top=True)} & LAZY
    inner = path.relative_to(PACKAGE).parts[1].removesuffix(".py")
    if here in WITHIN and inner != "__init__":
        near = {name.split(".")[2] for name in used if name.startswith(f"ddfast.{here}.")} - {inner}
        assert near <= WITHIN[here][inner]


@pytest.mark.parametrize("arrows", [MAY_IMPORT, *WITHIN.values()], ids=["rooms", *WITHIN])
def test_the_arrows_have_no_cycle(arrows):
    rooms = {name: {target.split(".")[0] for target in targets} for name, targets in arrows.items()}
    while rooms:
        free = {name for name, targets in rooms.items() if not targets & set(rooms)}
        assert free, f"a cycle among {sorted(rooms)}"
        rooms = {name: targets for name, targets in rooms.items() if name not in free}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_house_rules_that_a_machine_can_check(path):
    text = path.read_text(encoding="utf-8")
    assert path.stem not in ("utils", "common", "helpers")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "a file opens with one sentence on what it holds"
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    if room(path) not in SURFACE:
        assert not [f for f in calls if isinstance(f, ast.Name) and f.id in ("print", "exit")]
    assert not [
        f
        for f in calls
        if ast.unparse(f) in ("torch.manual_seed", "torch.set_default_dtype", "warnings.filterwarnings")
    ]


def exported(module) -> dict[str, object]:
    return {name: getattr(module, name) for name in getattr(module, "__all__", ())}


@pytest.mark.parametrize("name", ["", "ops", "networks", "data", "methods", "compat", "experts", "evaluation"])
def test_everything_public_has_a_docstring(name):
    module = importlib.import_module(f"ddfast.{name}".rstrip("."))
    for what, value in exported(module).items():
        if not callable(value):
            continue
        assert inspect.getdoc(value), what
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert inspect.getdoc(function), f"{what}.{method}"


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


PUBLIC = ("adjoints", "students", "ranks", "ops", "networks", "data", "methods", "compat", "experts")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_modules_are_imported_by_their_public_names(name):
    assert importlib.import_module(f"ddfast.{name}") is getattr(ddfast, name)
