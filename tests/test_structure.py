"""The rooms of the project: who may import whom, and files that can be read in one go."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ("config", "distributed", "files", "labelled_data", "model_files", "scores")
COMMANDS = ("training", "evaluation", "prediction")

# What each room of pspfast imports from the others; within itself it may import anything.
ALLOWED = {
    "cli": {
        "app",
        "demo",
        *COMMANDS,
        "deployment",
        "recipes",
        *SHARED,
        "",
        "_extension",
        "backends",
    },
    "app": {"demo", "training", "prediction", "data", *SHARED},
    "demo": {*COMMANDS, "data", *SHARED},
    **{command: {"data", "models", "ops", "published", "", *SHARED} for command in COMMANDS},
    # The dependencies of the shared files among themselves have no circle either: see below.
    **{name: {"data", "models", "published", *SHARED} for name in SHARED},
    # Files of weights make models, and PSPNet.from_pretrained reads files: inside functions.
    "published": {"data", "models", "config", "files"},
    "data": {"files", "published"},
    "recipes": set(),
    "models": {"ops", "backends", "kernels", "published"},
    "rewrite": {"ops", "backends", "flops"},
    "ops": {"backends", "kernels"},
    "backends": {"_extension"},
    "flops": {"backends"},
    "_extension": set(),
    "_source_folder": set(),
    "__main__": {"cli"},
    "deployment": {"models", "ops", "backends", "files", "rewrite"},
    "": {"_source_folder", "backends", "deployment", "flops", "models", "ops", "rewrite"},
}


def imported(file: Path) -> Iterator[str]:
    """The modules of pspfast that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "pspfast" else [str(node.module)]


def room(module: str) -> str:
    """The part of ``pspfast.<room>.…``; empty for what the package itself holds."""
    part = f"{module}.".split(".")[1]
    is_room = (ROOT / "pspfast" / part).is_dir() or (ROOT / "pspfast" / f"{part}.py").is_file()
    return part if part == "kernels" or is_room else ""


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def test_imports_go_one_way() -> None:
    wrong = []
    for file in python_files("pspfast"):
        parts = file.relative_to(ROOT / "pspfast").with_suffix("").parts
        own = "" if parts == ("__init__",) else parts[0]
        for module in imported(file):
            other = room(module)
            if module.split(".")[0] == "pspfast" and other not in {own, *ALLOWED[own]}:
                wrong.append(f"{file.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_shared_files_have_no_circle() -> None:
    imports = {
        name: {room(m) for m in imported(ROOT / f"pspfast/{name}.py")} & {*SHARED} - {name}
        for name in SHARED
    }
    while imports:
        free = [name for name, others in imports.items() if not others & imports.keys()]
        assert free, imports
        for name in free:
            del imports[name]


def test_kernels_know_triton_torch_and_siblings_only() -> None:
    for file in python_files("kernels"):
        assert not [m for m in imported(file) if m.split(".")[0] in ("pspfast", "kernels")], file


def test_nothing_imports_tests() -> None:
    tests = {file.stem for file in python_files("tests")} - {"__init__"}
    for file in python_files("pspfast", "kernels", "benchmarks", "tools"):
        heads = {m.split(".")[0] for m in imported(file)}
        assert not heads & (tests | {"tests"}), file


def test_no_test_module_imports_another() -> None:
    modules = {file.stem for file in python_files("tests") if file.stem.startswith("test_")}
    for file in python_files("tests"):
        assert not {m.split(".")[0] for m in imported(file)} & modules, file


@pytest.mark.parametrize("folder", ["pspfast", "kernels", "tools"])
def test_rooms_hold_at_most_twelve_files(folder: str) -> None:
    for path in (ROOT / folder, *(ROOT / folder).rglob("*")):
        if path.is_dir() and path.name != "__pycache__" and path.name != "emulation":
            files = [f.name for f in path.iterdir() if f.suffix in (".py", ".yaml")]
            assert len(files) <= 12, f"{path}: {sorted(files)}"


def test_files_can_be_read_in_one_go() -> None:
    folders = ("pspfast", "kernels", "tests", "benchmarks", "tools")
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in python_files(*folders)
    }
    assert not {file: length for file, length in lengths.items() if length >= 300}
