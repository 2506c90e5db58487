"""Scenes: a clean split, captions, pictures that differ."""

import random

from vlm.demo.scenes import COLOURS, KINDS, PIXELS, Scene, Shape, draw, imagine, is_held_out

from .conftest import scene_of


def test_training_and_test_share_no_set_of_shapes() -> None:
    rng = random.Random(0)
    trained = {imagine(rng, seed=1).key() for _ in range(2000)}
    tested = {imagine(rng, seed=1, held_out=True).key() for _ in range(500)}
    assert not trained & tested


def test_a_scenes_side_depends_on_its_set_alone() -> None:
    near = Shape("red", "circle", 0, 14, 15, 9, (225, 45, 45))
    far = Shape("red", "circle", 0, 18, 16, 11, (220, 50, 40))
    assert is_held_out(Scene((near,), 0), seed=5) == is_held_out(Scene((far,), 40), seed=5)


def test_captions_name_shapes_in_reading_order() -> None:
    scene = scene_of(("red", "circle", 0), ("blue", "cross", 1), ("white", "square", 3))
    assert scene.caption() == (
        "a red circle at the top left, a blue cross at the top right and a white square at the bottom right."
    )


def test_every_kind_and_colour_looks_different() -> None:
    pictures = [
        draw(Scene((Shape(colour, kind, 0, 16, 16, 9, fill),), 0)).tobytes()
        for colour, fill in COLOURS.items()
        for kind in KINDS
    ]
    assert len(set(pictures)) == len(pictures)
    assert draw(scene_of(("red", "circle", 0))).size == (PIXELS, PIXELS)
