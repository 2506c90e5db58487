import json

import pytest

from vlm.config import HardwareConfig
from vlm.errors import Unusable
from vlm.pipeline.preflight import forecast, measured_seconds, require_room, table, write

GIB = 2**30
CARD = HardwareConfig(name="card", memory_gib=24.0, bfloat16_tflops=100.0, float32_tflops=50.0, price_per_hour=2.0)
FOUND = {
    "workload": {
        "steps": 1000, "samples": 8000, "images": 8000, "packs": 4000, "micro_batches": 1, "tokens": 10**6,
        "image_tokens": 5 * 10**5, "targets": 10**5, "padding": 0.1, "squares": 1, "rows": 4, "length": 2048,
    },
    "parameters": {"projector": 10, "language_model": 100},
    "trainable": {"projector": 10},
    "flops": {"language model": 4e18},
    "memory": {"weights": 10 * GIB, "activations": 20 * GIB},
    "host_memory": 0,
    "dtype": "bfloat16",
    "ranks": 4,
    "checkpoint_bytes": 100,
    "model_bytes": 200,
    "rows_that_fit": {1: 15 * GIB, 2: 20 * GIB, 4: 30 * GIB},
    "advice": "more devices would help",
}  # fmt: skip


def test_time_and_cost_follow_from_flops_peak_and_utilisation(tmp_path):
    seen = forecast(FOUND, CARD, tmp_path, "03_pretrain", keep=2)
    assert seen.hours == pytest.approx(4e18 / (100e12 * 0.4 * 4) / 3600)
    assert seen.cost == pytest.approx(seen.hours * 4 * 2.0)
    assert seen.disk_needed == 3 * 100 + 200


def test_seconds_that_a_run_measured_replace_the_assumption(tmp_path):
    folder = tmp_path / "03_pretrain.partial"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "seconds_per_step": 3.0}\n{"step": 2, "seconds_per_step": 5.0}\n{"st'
    )
    assert measured_seconds(tmp_path, "03_pretrain") == 4.0
    assert forecast(FOUND, CARD, tmp_path, "03_pretrain", keep=2).hours == pytest.approx(1000 * 4.0 / 3600)


def test_what_cannot_fit_is_refused_with_the_item_and_the_nearest_setting(tmp_path):
    seen = forecast(FOUND, CARD, tmp_path, "03_pretrain", keep=2)
    with pytest.raises(Unusable, match=r"30.0 GiB.*24.0 are there.*activations, 20.0 GiB: runtime.rows_at_once=2 fits"):
        require_room(FOUND, seen)
    assert "DOES NOT FIT" in table("03_pretrain", FOUND, CARD, seen)


def test_where_not_even_one_row_fits_it_says_what_would_help(tmp_path):
    found = FOUND | {"rows_that_fit": {1: 25 * GIB}}
    with pytest.raises(Unusable, match="more devices would help"):
        require_room(found, forecast(found, CARD, tmp_path, "03_pretrain", keep=2))


def test_what_fits_passes_and_stages_share_one_file(tmp_path):
    found = FOUND | {"memory": {"weights": GIB}}
    seen = forecast(found, CARD, tmp_path, "03_pretrain", keep=2)
    require_room(found, seen)
    write(tmp_path, "03_pretrain", found, seen)
    path = write(tmp_path, "04_finetune", found, seen)
    assert set(json.loads(path.read_text())) == {"03_pretrain", "04_finetune"}
