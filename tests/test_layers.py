"""Who may import whom, in which direction, and that settings are checked before torch is imported."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "vlm").rglob("*.py"))
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "files": set(),
    "ranks": {"errors"},
    "pipeline": {"config", "errors", "files", "names"},
    "data": {"config", "errors", "files", "ranks"},
    "model": {"config", "errors", "files", "ranks"},
    "train": {"config", "errors", "files", "ranks", "data", "model"},
    "endpoint": {"config", "errors", "files"},
    "eval": {"config", "errors", "files", "ranks", "data", "model", "endpoint"},
    "instruct": {"config", "errors", "files", "data", "endpoint"},
    "demo": {"errors", "files"},
    "names": {"config", "errors", "data", "eval"},
}
ONLY_IN = {
    "submitit": {"pipeline/cluster.py"},
    "deepspeed": {"train/engine.py", "train/checkpoint.py"},
    "openai": {"endpoint/client.py"},
    "httpx2": {"endpoint/client.py"},
    "gradio": {"eval/chat_page.py"},
}
TORCH_FREE = [
    "vlm.config",
    "vlm.pipeline.stage",
    "vlm.pipeline.artifact",
    "vlm.model.hub",
    "vlm.names",
    "vlm.data.plan",
    "vlm.pipeline.preflight",
]
TORCH_FREE += ["vlm.train.workload", "vlm.train.planning", "vlm.train.memory"]


def nodes_at_load(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is loaded, but for those that are only for a type checker."""
    for node in tree.body:
        yield node
        if isinstance(node, ast.Try):
            yield from node.body


def imported_at_load(path: Path, modules: Collection[str]) -> set[str]:
    """The modules among `modules` that one imports when it is loaded."""
    return imports_in(nodes_at_load(ast.parse(path.read_text()))) & set(modules)


def imports_of(path: Path) -> set[str]:
    return imports_in(ast.walk(ast.parse(path.read_text())))


def imports_in(nodes: Iterable[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(name: str) -> str:
    return name.split(".")[1]


def place_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "vlm"))


@pytest.mark.parametrize("path", MODULES, ids=place_of)
def test_a_module_imports_only_layers_below_its_own(path):
    """Seen to fail with vlm.train.loop imported by vlm/data/plan.py."""
    if path == ROOT / "vlm/__init__.py":
        return
    layer = path.relative_to(ROOT / "vlm").with_suffix("").parts[0]
    used = {layer_of(name) for name in imports_of(path) if name.startswith("vlm.")} - {layer}
    assert used <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", MODULES, ids=place_of)
def test_engine_and_cluster_libraries_stay_in_their_modules(path):
    """Seen to fail with submitit imported by vlm/pipeline/jobs.py."""
    used = {name.split(".")[0] for name in imports_of(path)} & set(ONLY_IN)
    assert all(place_of(path) in ONLY_IN[name] for name in used)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_settings_are_checked_before_torch_is_imported(module):
    """Seen to fail with torch imported by vlm/config/data.py; the next test is what it says of a module with torch."""
    loaded = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT).returncode == 0


def test_the_torch_test_can_fail():
    loaded = "import sys, vlm.model.forward; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT).returncode == 1


def test_no_modules_import_each_other_in_a_circle():
    """Imports that run when a module is loaded; seen to fail with vlm.data.loader imported by vlm/data/plan.py."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: imported_at_load(path, names) for name, path in names.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as problem:
        pytest.fail(" → ".join(problem.args[1]))


def test_peft_is_imported_where_adapters_are_meant_and_not_before():
    """It takes more than a second; seen to fail with vlm.train.adapters imported at the head of vlm/train/run.py."""
    names = {"peft", "peft.PeftModel", "vlm.train.adapters"}
    assert {place_of(path) for path in MODULES if imported_at_load(path, names)} == {"train/adapters.py"}


UNTESTED_BY_NAME = {place_of(path) for path in MODULES if path.parent.name == "config"}  # tests/conf composes them


def test_each_module_has_its_test_at_the_same_place():
    """Seen to fail without tests/test_names.py."""
    untested = {place_of(path) for path in MODULES if path.name not in {"__init__.py", "__main__.py"}} - {
        str(path.relative_to(ROOT / "tests")).replace("test_", "") for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert untested <= UNTESTED_BY_NAME
