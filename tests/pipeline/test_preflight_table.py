from vlm.pipeline.forecast import Limits, forecast
from vlm.pipeline.preflight_table import FASTEST, comparison_table, fastest_of, table, total_table

GIB = 2**30


def row(strategy: str, zero: str, rows: int, memory: float, hours: float, fits: bool) -> dict:
    return {
        "strategy": strategy, "zero": zero, "recompute": "none", "rows": rows, "memory": int(memory * GIB), "hours": hours, "fits": fits,
        "flops": 1.0, "overrides": f"finetune={strategy} zero={zero} rows={rows}",
    }  # fmt: skip


ROWS = [
    row("full", "zero2", 1, 20, 5.0, True),
    row("full", "zero2", 2, 30, 4.0, False),
    row("full", "zero3", 1, 10, 6.0, True),
    row("lora", "zero2", 1, 5, 3.0, True),
    row("lora", "zero2", 2, 6, 3.0, True),
]


def test_the_table_of_a_stage_says_parts_memory_time_and_disk(found, card, tmp_path):
    said = table("04_finetune", found, card, forecast(found, card, Limits(), tmp_path, None), ["beware"])
    assert "DOES NOT FIT" in said and "rows_at_once=2 is the largest tried that fits" in said
    assert "1,000 steps, 8,000 samples" in said and "40% of the peak rate assumed" in said and "cost" in said
    assert said.endswith("WARNING: beware")
    measured = table("04_finetune", found, card, forecast(found, card, Limits(minutes=60), tmp_path, 8.0), [])
    assert "8 s a step (measured)" in measured and "2 requeues" in measured
    found["workload"]["steps"] = 0
    assert "no shards yet" in table("04_finetune", found, card, forecast(found, card, Limits(), tmp_path, None), [])


def test_the_fastest_that_fits_of_each_strategy_is_marked(card):
    lines = comparison_table("04_finetune", ROWS, card, 24 * GIB).splitlines()
    marked = [line.split()[:2] for line in lines if line.endswith(FASTEST)]
    assert marked == [["full", "zero2"], ["lora", "zero2"]]
    assert lines[-2].endswith("full, 5.00 h:  finetune=full zero=zero2 rows=1")
    assert lines[-1].endswith("finetune=lora zero=zero2 rows=2")
    assert "(30)" in lines[2]


def test_what_fits_nowhere_is_said(card):
    lines = comparison_table("04_finetune", ROWS[1:2], card, 24 * GIB).splitlines()
    assert lines[-1] == "04_finetune: full fits in none of these"
    assert fastest_of(ROWS[1:2], 24 * GIB) is None


def test_of_equally_fast_ones_the_most_rows_that_leave_some_room():
    rows = [row("a", "z", rows, memory, 3.0, True) for rows, memory in ((1, 10), (2, 20), (4, 23))]
    assert fastest_of(rows, 24 * GIB)["rows"] == 2


def test_the_total_adds_up_and_says_whether_all_of_it_fits(found, card, tmp_path):
    seen = forecast(found, card, Limits(), tmp_path, None)
    stage = found | {"forecast": seen.__dict__}
    lines = total_table("mine", {"03_pretrain": stage, "04_finetune": stage}, 0).splitlines()
    assert f"{2 * seen.hours:.2f}" in lines[-2] and f"{2 * seen.cost:,.2f}" in lines[-2]
    assert "DOES NOT ALL FIT" in lines[-1]
    fits = stage | {"forecast": seen.__dict__ | {"bytes_needed": GIB}}
    assert "all of it fits" in total_table("mine", {"03_pretrain": fits}, 5 * GIB).splitlines()[-1]
    assert "5.0 GiB of disk" in total_table("mine", {"03_pretrain": fits}, 5 * GIB)
    unknown = fits | {"forecast": fits["forecast"] | {"hours": None, "device_hours": None, "cost": None}}
    assert total_table("mine", {"03_pretrain": fits, "04_finetune": unknown}, 0).splitlines()[-2].split()[1] == "-"
