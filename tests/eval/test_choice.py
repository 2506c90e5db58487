import pytest

from vlm.eval.choice import parsed_choice


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("B", 1),
        (" B\n", 1),
        ("B. a dog", 1),
        ("It barks. The answer is B.", 1),
        ("The answer is A. No: The answer is B.", None),  # said twice
        ("The answer is B", None),  # LLaVA's form ends in a full stop
        ("D", None),  # not offered
        ("b", None),
        ("a dog", None),
        ("", None),
    ],
)
def test_a_choice_is_read_in_the_forms_of_the_scienceqa_evaluation(answer, number):
    assert parsed_choice(answer, ["a cat", "a dog", "a cow"]) == number
