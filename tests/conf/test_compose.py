"""Every choice of every group composes, and cross-field checks refuse what cannot be."""

from operator import attrgetter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from vlm.config import RootConfig, Schedule, Strategy
from vlm.errors import Unusable
from vlm.pipeline.settings import typed

CONF = Path(__file__).parents[2] / "conf"
CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in {"cluster", "deepspeed", "instruct"}
]
ZERO = [f"deepspeed@finetune.deepspeed={path.stem}" for path in sorted((CONF / "deepspeed").glob("*.yaml"))]
EXPERIMENTS, CLUSTERS = (sorted(path.stem for path in CONF.glob(f"{of}/*.yaml")) for of in ("experiment", "cluster"))


def composed(*overrides: str) -> RootConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", list(overrides)))


@pytest.mark.parametrize("choice", [*CHOICES, *ZERO])
def test_every_choice_composes(choice):
    """Seen to fail with a key of conf/eval/pope.yaml misspelt, and with its format and its scorer misspelt."""
    assert composed(choice).run == "demo"


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_with_every_cluster(experiment, cluster):
    """Seen to fail with a key of conf/cluster/slurm_cpu.yaml misspelt, and with its hardware set to h100."""
    cfg = composed(f"experiment={experiment}", f"+cluster={cluster}", "cluster.partition=mine")
    assert cfg.cluster.partition == "mine"
    assert cfg.hardware.is_gpu == (cfg.cluster.gpus_per_node > 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("cluster.min_nodes=2", r"^cluster\.min_nodes=2 is not in \[1, cluster\.nodes=1\]"),
        ("cluster.signal_delay_seconds=7200", r"^cluster\.signal_delay_seconds=7200 is not within the 120 minutes"),
        ("cluster.tasks_per_node=-1", "^cluster: nodes, tasks_per_node"),
        ("part=3", "^part=3: it is I/N"),
        ("part=2/2", "^part=2/2: it is I/N"),
    ],
)
def test_a_job_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(Unusable, match=said):
        composed("+cluster=slurm_cpu", wrong)


def test_zero_stage_is_chosen_for_each_training():
    cfg = composed("deepspeed@finetune.deepspeed=zero1")
    assert cfg.finetune.deepspeed["zero_optimization"]["stage"] == 1
    assert cfg.pretrain.deepspeed["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        "pretrain.warmup_ratio=1.5",
        "finetune.betas=[0.9]",
        "data.finetune.held_out_fraction=1",
        "pretrain.pack_tokens=0",
    ],
)
def test_a_value_that_cannot_be_is_refused(wrong):
    with pytest.raises(Unusable):
        composed(wrong)


def test_a_setting_without_a_value_is_named():
    with pytest.raises(Unusable, match=r"model\.language_model has no value"):
        composed("model.language_model=???")


RECIPES = {  # of each recipe: settings that its source states
    "train_llava": {
        "model.language_model": "Qwen/Qwen1.5-4B-Chat",
        "finetune.strategy": Strategy.lora,
        "finetune.lora.rank": 32,
        "finetune.lora.targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "finetune.lr.lora": 4e-4,
        "finetune.lr.projector": 4e-4,
        "finetune.epochs": 5,
        "finetune.samples_per_step": 6 * 8 * 4,
        "finetune.schedule": Schedule.linear,
        "finetune.runtime.keep": 3,
        "pretrain.lr.projector": 1e-3,
    },
    "okvqa": {
        "model.base": "llava-hf/llava-1.5-7b-hf",
        "finetune.strategy": Strategy.qlora,
        "finetune.lora.rank": 128,
        "finetune.lora.alpha": 256,
        "finetune.lora.dropout": 0.05,
        "finetune.lr.lora": 2e-4,
        "finetune.lr.projector": 2e-5,
        "finetune.evaluation.each_epoch": True,
        "finetune.evaluation.metric": "questions",
        "finetune.evaluation.keep_best": 1,
        "finetune.epochs": 10,
        "finetune.samples_per_step": 16 * 4,
        "finetune.schedule": Schedule.cosine,
        "finetune.warmup_ratio": 0.03,
    },
    "basic_vlm": {
        "model.vision_tower": "google/siglip-so400m-patch14-384",
        "finetune.strategy": Strategy.lora,
        "finetune.lora.rank": 128,
        "finetune.lora.alpha": 32,
        "finetune.lora.dropout": 0.10,
        "finetune.lora.targets": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
        "finetune.lr.lora": 3e-5,
        "finetune.lr.projector": 1e-4,
        "finetune.epochs": 2,
        "finetune.samples_per_step": 4,
        "finetune.schedule": Schedule.linear,
        "finetune.runtime.save_every": 1000,
        "finetune.runtime.keep": 5,
    },
}
LLAVA15 = {
    "pretrain.epochs": 1,
    "pretrain.lr.projector": 1e-3,
    "pretrain.samples_per_step": 256,
    "finetune.epochs": 1,
    "finetune.samples_per_step": 128,
    "finetune.schedule": Schedule.cosine,
    "finetune.warmup_ratio": 0.03,
    "finetune.weight_decay": 0.0,
    "data.max_tokens": 2048,
}
FULL = {"finetune.strategy": Strategy.freeze_vision, "finetune.lr.projector": 2e-5, "finetune.lr.language_model": 2e-5}
ADAPTERS = {
    "finetune.strategy": Strategy.lora,
    "finetune.lora.rank": 128,
    "finetune.lora.alpha": 256,
    "finetune.lora.dropout": 0.05,
    "finetune.lr.lora": 2e-4,
    "finetune.lr.projector": 2e-5,
}
for size in ("7b", "13b"):
    model = {"model.language_model": f"lmsys/vicuna-{size}-v1.5"}
    RECIPES |= {f"llava15_{size}": LLAVA15 | FULL | model, f"llava15_{size}_lora": LLAVA15 | ADAPTERS | model}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_values_of_its_source(recipe):
    """Seen to fail with another alpha in conf/experiment/okvqa.yaml."""
    cfg = composed(f"experiment={recipe}")
    assert {name: attrgetter(name)(cfg) for name in RECIPES[recipe]} == RECIPES[recipe]


@pytest.mark.parametrize("kind", ["", "_lora"])
def test_llava_13b_differs_from_7b_in_its_language_model_alone(kind):
    assert composed(f"experiment=llava15_13b{kind}", "model=demo") == composed(
        f"experiment=llava15_7b{kind}", "model=demo"
    )


@pytest.mark.parametrize("strategy", ["full", "freeze_vision", "lora", "qlora"])
@pytest.mark.parametrize("recipe", ["train_llava", "demo"])
def test_a_recipe_takes_another_strategy_by_one_word(recipe, strategy):
    assert composed(f"experiment={recipe}", f"finetune={strategy}").finetune.strategy.value == strategy


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["finetune.lora.alpha=null"], r"^lora\.alpha has no value"),
        (["finetune.lora.rank=0"], "^lora: rank=0"),
        (["finetune.lora.targets_regex=.*q_proj"], "^say either lora.targets or lora.targets_regex"),
        (["finetune.train.projector=false"], r"^lr\.projector=0\.006 is given, but train\.projector=false freezes it"),
        (["finetune.train.vision_tower=true"], r"^train\.vision_tower=true: under lora adapters and projector alone"),
        (["finetune=qlora", "finetune.lora.dora=true"], r"^lora\.dora=true belongs to finetune=lora"),
        (
            ["finetune.lora.dora=true", "deepspeed@finetune.deepspeed=zero3"],
            r"^lora\.dora=true needs weights that are whole",
        ),
        (["finetune.lr.vision_layer_decay=0"], r"^lr\.vision_layer_decay=0\.0 is not in"),
    ],
    ids=str,
)
def test_what_contradicts_the_strategy_is_refused_in_one_line(wrong, said):
    with pytest.raises(Unusable, match=said) as refused:
        composed("finetune=lora", *wrong)
    assert "\n" not in str(refused.value)
