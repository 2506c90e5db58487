import numpy as np
import pytest

from vlm.eval.stats import intervals, paired_test, share_interval, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 27.75), (5, 10, 23.66, 76.34), (10, 10, 72.25, 100.0), (81, 263, 25.53, 36.62)],
)
def test_the_interval_of_a_share_is_wilson_s(right, n, low, high):
    assert [100 * bound for bound in wilson(right / n, n)] == pytest.approx([low, high], abs=0.01)


def test_an_interval_of_resamples_is_that_of_the_normal_law_where_there_are_many():
    marks = [float(i % 4 == 0) for i in range(2000)]
    low, high = share_interval(marks, range(2000), 0)
    half = 1.96 * (0.25 * 0.75 / 2000) ** 0.5
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.003)


def test_questions_about_one_picture_count_together():
    marks = [float(i // 10 % 2) for i in range(200)]  # ten questions a picture, all right or all wrong
    wide = np.diff(share_interval(marks, [i // 10 for i in range(200)], 0))
    assert wide > 2.5 * np.diff(share_interval(marks, range(200), 0))


def test_marks_that_are_all_the_same_are_not_taken_for_certain():
    assert share_interval([1.0] * 10, range(10), 0) == wilson(1, 10)


def test_the_columns_are_resampled_together():
    marks = np.random.default_rng(0).random(50)
    (low, high), gain = intervals([marks, marks - marks], range(50), 0)
    assert low < marks.mean() < high and gain == (0.0, 0.0)
    assert intervals([marks], range(50), 0) == [pytest.approx((low, high))] != intervals([marks], range(50), 1)


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 6, 0.03125), (1, 9, 0.021484375), (5, 5, 1.0), (0, 0, 1.0)])
def test_right_and_wrong_answers_are_compared_by_mcnemar_s_exact_test(lost, gained, p):
    before = [1.0] * lost + [0.0] * gained + [1.0] * 20
    after = [0.0] * lost + [1.0] * gained + [1.0] * 20
    assert paired_test(before, after, 0) == (pytest.approx(p), "exact McNemar")


def test_marks_in_part_are_compared_by_flipping_signs():
    before = [0.3] * 6 + [0.5] * 10
    p, test = paired_test(before, [0.6] * 6 + [0.5] * 10, 0)
    assert p == pytest.approx(2 / 2**6, abs=0.006) and "permutation" in test  # all six signs the same way
    assert paired_test(before, before, 0)[0] == 1.0
