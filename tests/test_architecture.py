"""The structure of the code: imports go down, no circles, small files and functions, one home for each seam."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "videoseek": ROOT / "src/videoseek",
    "videoseek_kernels": ROOT / "kernels/videoseek_kernels",
    "kernel_bench": ROOT / "kernels/kernel_bench",
}

#: A room is a package, or a file beside the packages. It may import from rooms on lower floors and from itself.
#: Rooms on the ground floor may also import from each other.
FLOORS = (
    {"types", "trajectory_record", "config", "config_merge", "command"}
    | {"user_code", "files", "attempts", "metrics", "trackers", "runtime", "distributed", "timing", "wire", "endpoint"},
    {"algorithms", "video"},
    {"tools"},
    {"trajectory"},
    {"rewards", "batches"},
    {"model", "samples", "serving"},
    {"rollout", "engine"},
    {"checkpoint", "evaluation", "pages", "memory"},
    {"stages", "data_tools", "synthesis"},
    {"train", "evaluate", "ask", "score", "compare", "report", "data", "serve"},
)  # fmt: skip
#: Libraries that one room imports, so that a new version or an absence of the library concerns one room.
SEAMS = {
    "triton": ("videoseek_kernels.dispatch", "videoseek_kernels.impl", "kernel_bench"),
    "videoseek_kernels": ("videoseek.model", "kernel_bench"),
    "kernel_bench": (),
    "deepspeed": ("videoseek.engine",),
    "vllm": ("videoseek.serving",),
    "lmms_eval": ("videoseek.evaluation.lmms_plug",),
    "vlmeval": ("videoseek.evaluation.vlmevalkit_plug",),
}

#: The learning core: what a training run on a real checkpoint imports from these rooms.
CORE_ROOMS = {
    "stages", "rollout", "algorithms", "rewards", "trajectory", "batches", "model", "engine", "checkpoint",
}  # fmt: skip
#: 5,000 lines; and 150 for state that any number of ranks resumes, 60 for steps that are skipped, 170 for one plan of
#: all ranks, 80 for loading ahead, 40 for checkpoints by time and runs that are finished, 120 for saved folders that
#: other tools open and the position rule, 120 for questions that share a film, 15 for the run's shortest window in the
#: reward, 200 for evaluation within a stage with its best checkpoint and for checkpoints written in the background, 570
#: for episodes as state machines over a sampler, continuous batching and a decode step for a CUDA graph, 180 for
#: sampling by vLLM, 120 for rollouts a step ahead, 240 for tools by name and several calls a turn, 115 for
#: mended faults.
MAX_CORE_LINES = 7180
PEER_FORMATS = re.compile(r"videoseek\.trajectory\.formats\.(?!grounding|hermes)\w+")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = {"videoseek": 60, "videoseek_kernels": 160, "kernel_bench": 100}
MAX_PARAMETERS = 8


@cache
def modules() -> dict[str, Path]:
    """Every module by its import name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(module: str) -> Iterator[str]:
    """Names that a module imports, the ones inside functions too, as far as they are modules."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno} imports relatively"
            assert node.module is not None
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [member for member in members if member in modules()]
            yield from submodules
            if len(submodules) < len(members):
                yield node.module


def floor(module: str) -> int:
    room = module.split(".")[1]
    floors = [index for index, rooms in enumerate(FLOORS) if room in rooms]
    assert floors, f"{module} stands on no floor; give its room a place in FLOORS"
    return floors[0]


def inner_modules() -> list[str]:
    return [module for module in modules() if module.startswith("videoseek.")]


@pytest.mark.parametrize("module", inner_modules())
def test_imports_go_down(module: str) -> None:
    for target in imports(module):
        if target.split(".")[0] != "videoseek":
            continue
        assert target != "videoseek", f"{module} imports the package root"
        same_room = target.split(".")[1] == module.split(".")[1]
        ground = floor(module) == floor(target) == 0
        assert same_room or ground or floor(target) < floor(module), f"{module} imports {target}, which is not below it"


def test_imports_form_no_circle() -> None:
    graph = {module: {target for target in imports(module) if target in modules()} for module in modules()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' <- '.join(error.args[1])}")


def test_packages_hold_no_command() -> None:
    """A `__main__` file would be a command below the top floor."""
    assert [module for module in modules() if module.endswith("__main__")] == []


def test_imports_name_their_module_literally() -> None:
    """`import_module` and `__import__` draw arrows that the tests above cannot see, unless the name is a literal."""
    shipped = {module: path for module, path in modules().items() if not module.startswith("kernel_bench")}
    for module, path in shipped.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                target = node.args[0]
                assert isinstance(target, ast.Constant), f"{module} line {node.lineno} imports a computed name"
                assert not str(target.value).startswith("videoseek"), f"{module} line {node.lineno}"


def reached_from(module: str) -> set[str]:
    """Every module that importing `module` may load, also lazily."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting += [target for target in imports(current) if target in modules()]
    return reached


def test_the_learning_core_stays_small() -> None:
    """Peers' formats, rewards and credit functions, one file each, do not count; nothing else is exempt."""
    core = [
        module
        for module in reached_from("videoseek.train")
        # The tiny model's architecture serves no run on a real checkpoint.
        if module.split(".")[1:2]
        and module.split(".")[1] in CORE_ROOMS
        and module != "videoseek.model.tiny"
        and not PEER_FORMATS.fullmatch(module)
    ]
    lines = {module: modules()[module].read_text(encoding="utf-8").count("\n") for module in core}
    assert sum(lines.values()) <= MAX_CORE_LINES, sorted(lines.items(), key=lambda item: -item[1])


@pytest.mark.parametrize(("library", "homes"), SEAMS.items(), ids=SEAMS)
def test_each_special_library_is_imported_in_its_home_only(library: str, homes: tuple[str, ...]) -> None:
    users = {module for module in modules() if library in {name.split(".")[0] for name in imports(module)}}
    strangers = {user for user in users if not f"{user}.".startswith(tuple(f"{home}." for home in (*homes, library)))}
    assert strangers == set(), f"only {homes} may import {library}"


def test_kernels_know_nothing_of_the_project() -> None:
    said = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCES["videoseek_kernels"].rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bvideoseek\b", line)
    ]
    assert said == []


def test_kernels_folder_does_not_shadow_the_library_of_that_name() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()


def test_every_room_has_a_name() -> None:
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert [module for module in modules() if vague & set(module.split("."))] == []


@pytest.mark.parametrize("module", modules())
def test_files_and_functions_keep_their_size_limits(module: str) -> None:
    text = modules()[module].read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    package = module.split(".")[0]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
        assert num_lines <= MAX_FUNCTION_LINES[package], f"{node.name} has {num_lines} lines"
        named = [argument for argument in _parameters(node) if argument.arg not in ("self", "cls")]
        if package == "videoseek":  # a kernel's launch has as many as the hardware asks for
            assert len(named) <= MAX_PARAMETERS, f"{node.name} has {len(named)} parameters"


@pytest.mark.parametrize("module", modules())
def test_public_functions_are_annotated(module: str) -> None:
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue  # a kernel's pointers have no Python type; it annotates its constants
        bare = [a.arg for a in _parameters(node) if a.annotation is None and a.arg not in ("self", "cls")]
        assert bare == [], f"{node.name} leaves {bare} without a type"
        assert node.returns is not None, f"{node.name} leaves its result without a type"


def test_nothing_is_unpickled_and_no_remote_code_runs() -> None:
    for module, path in modules().items():
        assert not {"pickle", "marshal", "shelve", "dill"} & set(imports(module)), module
        assert not re.search(r"trust_remote_code\s*=\s*True|weights_only\s*=\s*False", path.read_text()), module


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
