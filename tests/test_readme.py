"""README.md is true: the paths, commands, settings and names that it gives are there.

Seen to fail with a stage, a module, an option, a setting, an extra and a constant misspelt in the README, each by
itself, and with a key of its YAML misspelt.
"""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vlm.config import ClusterConfig, RootConfig
from vlm.pipeline.settings import typed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TEXT = re.sub(r"^ {4}.*\n", "", README, flags=re.M)
BLOCKS = [re.sub(r"^ {4}", "", block, flags=re.M) for block in re.findall(r"(?<=\n\n)(?: {4}.*\n)+", README)]
WRITTEN = {found[1]: block for block in BLOCKS if (found := re.match(r"# (conf/\S+\.yaml)", block))}
INLINE = re.findall(r"`([^`\n]+)`", TEXT)
YOURS = {*WRITTEN, "conf/model/mine.yaml", "conf/experiment/mine.yaml"}  # files that the reader writes
PATHS = sorted(set(re.findall(r"(?:launch|stages|conf|vlm|tests|benchmarks|docs)/[\w./]*\w", README)) - YOURS)
PROGRAM = re.compile(r"(launch/\w+\.sh|python(?: -m)? [\w./]+|torchrun) ?")
LINES = [line for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]
COMMANDS = sorted({line for line in [*LINES, *INLINE] if PROGRAM.match(line)})
SETTINGS = sorted({text for text in [*LINES, *INLINE] if re.match(r"\+?[a-z_@.]+=\S", text)})
GROUPS = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
NAMES = OmegaConf.to_container(OmegaConf.structured(RootConfig(cluster=ClusterConfig())), throw_on_missing=False)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the YAML files that the README has its reader write."""
    folder = tmp_path_factory.mktemp("mine")
    for path, text in WRITTEN.items():
        file = folder / Path(path).relative_to("conf")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return folder


def words_of(command: str) -> list[str]:
    return [word.replace("…", "x") for word in shlex.split(command, comments=True) if word != "…"]


def settings_in(words: list[str]) -> list[str]:
    """The overrides among a command's words; of a sweep's choices the first."""
    found = [word for word in words if re.match(r"\+?[a-z][\w@.]*=", word)]
    return [re.sub(r"^([^\[{]*?),.*", r"\1", word) for word in found] if "-m" in words else found


def compose_with(overrides: list[str], mine: Path, root: str = "config") -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        typed(compose(root, [f"hydra.searchpath=[file://{mine}]", *overrides]))


def program_of(words: list[str]) -> Path:
    """The file that gets a command's arguments."""
    if words[0] == "torchrun":
        return ROOT / next(word for word in words if word.endswith(".py"))
    if words[:2] == ["python", "-m"]:
        return Path(find_spec(words[2]).origin)
    script = ROOT / (words[1] if words[0] == "python" else words[0])
    handed_on = re.search(r"python -m ([\w.]+) \"\$@\"", script.read_text()) if script.suffix == ".sh" else None
    return Path(find_spec(handed_on[1]).origin) if handed_on else script


@pytest.mark.parametrize("path", PATHS)
def test_a_named_path_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists_and_takes_its_settings_and_options(command, mine):
    words = words_of(command)
    program = program_of(words)
    assert program.is_file()
    if settings := settings_in(words):
        compose_with(settings, mine, "02a_instruct" if "02a" in command else "config")
    options = [word for word in words if re.match("--[a-z]", word)] if words[0] != "torchrun" else []
    assert all(f'"{option}"' in program.read_text() for option in options)


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_in_the_text_compose(text, mine):
    words = words_of(text)
    known = [one for one in settings_in(words) if re.split("[.=@]", one.lstrip("+"))[0] in {*NAMES, *GROUPS}]
    compose_with(known, mine)


def test_a_setting_that_is_named_without_a_value_is_there():
    named = [text for text in INLINE if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", text) and text.split(".")[0] in NAMES]
    assert "cluster.single.array" in named
    for name in named:
        value = NAMES
        for part in name.split("."):
            value = value[part]


def test_a_constant_is_in_the_file_that_is_named_with_it():
    named = re.findall(r"`(\w+)` (?:in|of) `(vlm/[\w/]+\.py)`", README)
    assert {"FORMATS", "SCORERS"} <= {constant for constant, _ in named}
    for constant, path in named:
        assert re.search(rf"^(class |def )?{constant}\b", (ROOT / path).read_text(), re.M), constant


def test_extras_are_those_of_the_package():
    package = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"'\.\[(\w+)\]'", README):
        assert f"\n{extra} = [" in package


def test_there_is_something_to_check():
    assert {"launch/all.sh", "launch/test.sh", "stages/03_pretrain.py"} <= set(PATHS)
    assert len(COMMANDS) > 20 and len(SETTINGS) > 10 and len(WRITTEN) == 2
