from dataclasses import replace

import pytest

from vlm.errors import Unusable
from vlm.pipeline.forecast import Limits, forecast, largest_rows, nearest, require_room, seconds_of_step, warnings_of

GIB = 2**30
STEP = 4e15 / 0.8 / (100e12 * 0.4 * 4) + 10**10 / 100e9  # seconds: computing, and sending over the link


def test_time_and_cost_follow_from_flops_padding_peak_utilisation_and_link(found, card, tmp_path):
    seen = forecast(found, card, Limits(), tmp_path, None)
    assert seen.seconds_per_step == seen.assumed_seconds_per_step == pytest.approx(STEP)
    assert seen.hours == pytest.approx(1000 * STEP / 3600)
    assert seen.device_hours == pytest.approx(4 * seen.hours)
    assert seen.cost == pytest.approx(seen.hours * 4 * 2.0)
    assert seen.disk_needed == 3 * 100 + 200
    assert seen.jobs is None
    assert seconds_of_step(found, found["choices"][2], card, Limits(nodes=2)) == pytest.approx(
        STEP - 0.1 + 10**10 / 25e9
    )


def test_measured_seconds_replace_the_assumption_and_do_not_hide_it(found, card, tmp_path):
    seen = forecast(found, card, Limits(), tmp_path, 4.0)
    assert seen.hours == pytest.approx(1000 * 4.0 / 3600)
    assert seen.is_measured and seen.assumed_seconds_per_step == pytest.approx(STEP)


def test_without_an_index_or_on_another_kind_of_machine_there_is_no_time(found, card, tmp_path):
    assert forecast(found, replace(card, is_gpu=False), Limits(), tmp_path, None).hours is None
    found["workload"]["steps"] = 0
    seen = forecast(found, card, Limits(minutes=60), tmp_path, None)
    assert (seen.hours, seen.cost, seen.jobs) == (None, None, None)


def test_the_largest_micro_batch_that_fits_with_all_else_as_it_is(found):
    assert largest_rows(found, 24 * GIB) == 2
    assert largest_rows(found, 14 * GIB) is None


def test_what_cannot_fit_is_refused_with_the_item_and_the_nearest_setting(found, card, tmp_path):
    seen = forecast(found, card, Limits(), tmp_path, None)
    said = r"30.0 GiB.*24.0 are there; what breaks it is activations, 20.0 GiB: finetune.runtime.rows_at_once=2 fits"
    with pytest.raises(Unusable, match=said):
        require_room(found, seen, card, Limits(), "finetune")


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (14, "deepspeed@f.deepspeed=zero3 f.runtime.rows_at_once=1"),  # recomputing would fit too, and be slower
        (8, "f.runtime.recompute=full f.runtime.rows_at_once=1"),
        (6, "deepspeed@f.deepspeed=zero3 f.runtime.recompute=full f.runtime.rows_at_once=1"),
        (3, None),
    ],
)
def test_the_nearest_changes_fewest_settings_and_is_the_fastest_of_these(found, card, gib, expected):
    found["choices"] = [one | {"sent": 10**9} for one in found["choices"]]
    assert nearest(found, card, Limits(), "f", gib * GIB) == expected


def test_more_devices_are_the_last_resort(found, card, tmp_path):
    more = found["choices"][-3] | {"ranks": 8, "memory": 2 * GIB}
    found["choices"].append(more)
    assert "hardware.devices=8" in nearest(found, card, Limits(), "f", 3 * GIB)
    found["choices"] = [one | {"memory": 99 * GIB} for one in found["choices"]]
    with pytest.raises(Unusable, match="more would help"):
        require_room(found, forecast(found, card, Limits(), tmp_path, None), card, Limits(), "f")


def test_a_full_disk_is_refused(found, card, tmp_path):
    found |= {"memory": {"weights": GIB}, "checkpoint_bytes": 2**60}
    with pytest.raises(Unusable, match="make room, or keep fewer checkpoints"):
        require_room(found, forecast(found, card, Limits(), tmp_path, None), card, Limits(), "f")


def test_a_time_limit_cuts_into_jobs_and_what_they_lose_is_said(found, card, tmp_path):
    found["memory"] = {"weights": GIB}
    limits = Limits(minutes=60, signal_seconds=10, requeues=2)
    seen = forecast(found, card, limits, tmp_path, 8.0)  # 2.2 hours
    assert seen.jobs == 3 and not warnings_of(found, seen, limits, "f")
    require_room(found, seen, card, limits, "f")

    slow = forecast(found, card, limits, tmp_path, 12.0)  # 3.3 hours; a save every 20 minutes
    one, other = warnings_of(found, slow, limits, "f")
    assert "put back 2 times only" in one and "up to 20 minutes of each job are lost" in other
    with pytest.raises(Unusable, match="4 jobs of 60 minutes"):
        require_room(found, slow, card, limits, "f")
    assert "NO JOB SAVES ANYTHING" in warnings_of(found | {"save_every": 1000}, slow, limits, "f")[1]
    require_room(
        found, forecast(found, card, limits, tmp_path, None), card, limits, "f"
    )  # assumed times refuse nothing
