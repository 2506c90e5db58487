"""Who may import whom, and that settings are checked before torch is imported."""

import ast
import subprocess
import sys
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


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
    if path == ROOT / "vlm/__init__.py":
        return
    layer = path.relative_to(ROOT / "vlm").with_suffix("").parts[0]
    used = {layer_of(name) for name in imports_of(path) if name.startswith("vlm.")} - {layer}
    assert used <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", MODULES, ids=place_of)
def test_engine_and_cluster_libraries_stay_in_their_modules(path):
    used = {name.split(".")[0] for name in imports_of(path)} & set(ONLY_IN)
    assert all(place_of(path) in ONLY_IN[name] for name in used)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_settings_are_checked_before_torch_is_imported(module):
    loaded = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT).returncode == 0


def test_the_torch_test_can_fail():
    loaded = "import sys, vlm.model.forward; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT).returncode == 1


UNTESTED_BY_NAME = {"errors.py"} | {  # names, and what tests/conf composes
    place_of(path) for path in MODULES if path.parent.name == "config"
}


def test_each_module_has_its_test_at_the_same_place():
    untested = {place_of(path) for path in MODULES if path.name not in {"__init__.py", "__main__.py"}} - {
        str(path.relative_to(ROOT / "tests")).replace("test_", "") for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert untested <= UNTESTED_BY_NAME
