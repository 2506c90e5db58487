import dataclasses


def test_its_own_pictures_are_those_of_its_sample(make_question):
    question = dataclasses.replace(make_question(7), pictures=("a", "b"))
    assert question.own == ((7, 0), (7, 1))
    assert make_question(7).own == ()
