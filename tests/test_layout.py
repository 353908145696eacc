"""The package's rooms: which module may import which, and where things may happen."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddfast"
LEAVES = {
    "seeds",
    "files",
    "devices",
    "arguments",
    "ranks",
    "forecast",
    "memory_limits",
}  # small modules that everything may use
SURFACE = {"ddfast", "cli", "options", "printing", "__main__"}  # may import everything

MAY_IMPORT = {
    "ops": set(),
    "networks": {"ops"},
    "students": {"ops", "networks"},
    "planner": {"students"},
    "repeatable": set(),
    "adjoints": {"students", "planner", "ops", "repeatable"},
    "distances": {"ops"},
    "matching": {"students", "adjoints", "distances", "ops"},
    "data": {"ops"},
    "timing": {"matching", "adjoints", "planner", "students", "networks", "data"},
    "experts": {"students", "networks", "data", "timing"},
    "methods": {"matching", "distances", "adjoints", "planner", "students", "networks", "data", "experts"},
    "compat": {"experts", "networks", "data"},
    "presets": set(),
    "runs": {"data"},
    "report": {"runs", "data"},
    "evaluate": {"runs", "students", "networks", "data", "installation", "timing"},
    "own_data": {"data", "timing"},
    "probe": {"job", "methods", "experts", "data"},
    "verdict": {"job", "methods", "experts", "data"},
    "job_forecast": {"job", "evaluate", "timing"},
    "installation": {"ops"},
    "job": {"networks", "students", "planner", "methods", "experts", "data"},
    "configuration": {
        "job",
        "networks",
        "students",
        "planner",
        "methods",
        "experts",
        "data",
        "evaluate",
        "presets",
        "installation",
        "own_data",
        "probe",
    },
    "expert_options": {"configuration", "job", "networks", "methods", "experts", "data"},
    "preset_plan": {"configuration", "networks", "methods", "planner", "presets", "students", "experts"},
    "distillation": {"job", "methods", "experts", "data"},
    "recording": {"distillation", "job", "runs", "evaluate", "report"},
    "distill": {
        "own_data",
        "probe",
        "verdict",
        "job_forecast",
        "recording",
        "configuration",
        "job",
        "distillation",
        "runs",
        "experts",
        "data",
        "evaluate",
        "report",
    },
    "seeds": set(),
    "files": set(),
    "devices": set(),
    "arguments": set(),
    "ranks": set(),
    "forecast": set(),
    "memory_limits": set(),
}
LAZY = {"torchvision", "kornia", "matplotlib", "sklearn", "PIL", "safetensors", "tqdm", "click"}
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    here = room(path)
    if here in SURFACE:
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("ddfast.")} - {here} - LEAVES
    assert used <= MAY_IMPORT[here]
    assert not {name.partition(".")[0] for name in imports(path, only_at_the_top=True)} & LAZY


def test_the_arrows_have_no_cycle():
    rooms = {name: set(targets) for name, targets in MAY_IMPORT.items()}
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
