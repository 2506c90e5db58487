import pytest
import torch
from torch import Tensor

from vlm.model.forward import CHUNK, IGNORED, PackedLoss, layers_used, splice, tower_features

PICTURE, TOKENS = 63, 4
KINDS = [
    ("qwen2", "clip", "sdpa"),
    ("qwen2", "clip", "eager"),
    ("qwen3", "clip", "sdpa"),
    ("qwen3", "clip", "eager"),
    ("llama", "siglip", "sdpa"),
    ("llama", "siglip", "eager"),
]


def sample(length: int, images: int, seed: int) -> dict[str, Tensor]:
    """Return one sample: pictures after its first token, some targets in its second half."""
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(0, PICTURE, (length,), generator=random)
    ids = torch.cat([words[:1], torch.full((images * TOKENS,), PICTURE), words[1:]])
    is_target = torch.rand(len(ids), generator=random) < 0.7
    is_target[: len(ids) - length // 2] = False
    is_target[-1] = True
    pixels = torch.randn((images, 3, 16, 16), generator=random)
    return {"ids": ids, "labels": torch.where(is_target, ids, IGNORED), "pixels": pixels}


SAMPLES = [sample(9, 1, 0), sample(6, 0, 1), sample(7, 2, 2), sample(12, 1, 3), sample(5, 0, 4)]
ROWS = [SAMPLES[:3], SAMPLES[3:]]


def packed(rows: list[list[dict[str, Tensor]]], padding: int = 3) -> dict[str, Tensor]:
    """Return a batch of rows: samples one after the other, positions beginning anew, padding as a sample of its own."""
    length = max(sum(len(one["ids"]) for one in row) for row in rows) + padding
    ids, labels = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), IGNORED)
    positions = torch.zeros(len(rows), length, dtype=torch.int64)
    for number, row in enumerate(rows):
        at = 0
        for one in row:
            here = slice(at, at + len(one["ids"]))
            ids[number, here], labels[number, here] = one["ids"], one["labels"]
            positions[number, here] = torch.arange(len(one["ids"]))
            at = here.stop
        positions[number, at:] = torch.arange(length - at)
    pixels = torch.cat([one["pixels"] for row in rows for one in row])
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "pixel_values": pixels}


def alone(model, one: dict[str, Tensor]) -> Tensor:
    """Return the sample's summed loss as transformers computes it, without anything of ours."""
    ids = one["ids"].unsqueeze(0)
    mean = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=one["pixels"] if len(one["pixels"]) else None,
        labels=one["labels"].unsqueeze(0),
    ).loss
    return mean * (one["labels"] != IGNORED).sum()


def gradients(model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("language", "tower", "attention"), KINDS)
def test_the_packed_loss_is_the_sum_of_the_samples_own(llava, language, tower, attention):
    model = llava(language, tower, attention=attention)
    expected = sum(alone(model, one) for one in SAMPLES).item()
    assert PackedLoss(model)(**packed(ROWS)).item() == pytest.approx(expected, rel=1e-5)
    assert PackedLoss(model)(**packed([SAMPLES])).item() == pytest.approx(expected, rel=1e-5)
    assert PackedLoss(model)(**packed([[one] for one in SAMPLES])).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("language", "tower", "attention"), KINDS)
def test_the_packed_gradient_is_the_sum_of_the_samples_own(llava, language, tower, attention):
    model = llava(language, tower, attention=attention)
    model.model.vision_tower.requires_grad_(False)
    expected = gradients(model, sum(alone(model, one) for one in SAMPLES))
    found = gradients(model, PackedLoss(model)(**packed(ROWS)))
    assert found.keys() == expected.keys()
    assert {name.split(".")[1] for name in found} == {"multi_modal_projector", "language_model", "weight"}
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
        assert gradient.norm() > 0, name


def test_a_tower_that_trains_gets_its_gradient(llava):
    model = llava()
    expected = gradients(model, sum(alone(model, one) for one in SAMPLES))
    found = gradients(model, PackedLoss(model)(**packed(ROWS)))
    name = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
    assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4 * expected[name].abs().max())
    assert "model.vision_tower.encoder.layers.2.mlp.fc1.weight" not in found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_sample_does_not_see_its_neighbours(llava, attention, changed):
    model = llava(attention=attention)
    batch = packed([SAMPLES[:3]])
    starts = [0, 13, 19, 34]
    mine = slice(starts[changed], starts[changed + 1])
    other = batch["input_ids"].clone()
    other[0, mine] = torch.where(other[0, mine] == PICTURE, PICTURE, (other[0, mine] + 1) % PICTURE)
    hidden = PackedLoss(model).hidden_states(batch["input_ids"], batch["position_ids"], batch["pixel_values"])
    moved = PackedLoss(model).hidden_states(other, batch["position_ids"], batch["pixel_values"])
    differs = (hidden != moved).any(-1)[0]
    assert differs[mine].any()
    assert not differs[: mine.start].any()
    assert not differs[mine.stop :].any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_run_of_positions_breaks_the_isolation(llava, attention):
    model = llava(attention=attention)
    expected = sum(alone(model, one) for one in SAMPLES).item()
    batch = packed([SAMPLES])
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).unsqueeze(0)
    assert PackedLoss(model)(**batch).item() != pytest.approx(expected, rel=1e-3)


def test_a_mask_of_ones_breaks_the_isolation_of_eager_attention(llava, monkeypatch):
    model = llava(attention="eager")
    expected = sum(alone(model, one) for one in SAMPLES).item()
    decoder = model.model.language_model
    own = decoder.forward

    def masked(inputs_embeds: Tensor, **given) -> object:
        return own(
            inputs_embeds=inputs_embeds, **given | {"attention_mask": torch.ones(inputs_embeds.shape[:2]).long()}
        )

    monkeypatch.setattr(decoder, "forward", masked)
    assert PackedLoss(model)(**packed([SAMPLES])).item() != pytest.approx(expected, rel=1e-3)


def test_lost_bounds_break_the_isolation_of_packed_attention(llava, monkeypatch):
    model = llava()
    expected = sum(alone(model, one) for one in SAMPLES).item()
    monkeypatch.setattr("vlm.model.forward.told_of", lambda positions, *_: {"position_ids": positions})
    assert PackedLoss(model)(**packed([SAMPLES])).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("layer", [-1, -2, 2, 1])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_tower_features_are_those_of_transformers(llava, tower, layer):
    model = llava(tower=tower, layer=layer)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model.get_image_features(pixels)
        features = tower_features(model, pixels)
        assert features.shape == (3, TOKENS, 16)
        assert torch.allclose(PackedLoss(model).patches(pixels), torch.stack(list(expected.pooler_output)), atol=1e-5)
        hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[layer]
        assert torch.allclose(features, hidden[:, 1:] if tower == "clip" else hidden, atol=1e-5)


@pytest.mark.parametrize(("layer", "used"), [(-1, 3), (-2, 2), (-3, 1), (1, 1), (0, 0), (3, 3)])
def test_layers_after_the_feature_layer_are_not_run(llava, layer, used):
    model = llava(layer=layer)
    run = []
    for number, tower_layer in enumerate(model.model.vision_tower.encoder.layers):
        tower_layer.register_forward_hook(lambda *_, number=number: run.append(number))
    tower_features(model, torch.randn(1, 3, 16, 16))
    assert run == list(range(used))
    assert layers_used(model) == used


@pytest.mark.parametrize("trains_tower", [False, True])
def test_a_batch_without_pictures_gives_every_vision_weight_a_zero_gradient(llava, trains_tower):
    model = llava()
    model.model.vision_tower.requires_grad_(trains_tower)
    text = [[SAMPLES[1], SAMPLES[4]]]
    expected = sum(alone(model, one) for one in text[0]).item()
    loss = PackedLoss(model)(**packed(text))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    found = gradients(model, loss)
    projector = [name for name, _ in model.named_parameters() if "multi_modal_projector" in name]
    tower = [name for name in found if "vision_tower" in name]
    assert set(projector) <= found.keys()
    assert bool(tower) is trains_tower
    assert all(not found[name].any() for name in projector + tower)


def test_a_batch_without_targets_has_no_loss_and_a_zero_gradient(llava):
    model = llava()
    batch = packed(ROWS)
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    loss = PackedLoss(model)(**batch)
    assert loss.item() == 0
    found = gradients(model, loss)
    assert any("multi_modal_projector" in name for name in found)
    assert all(not gradient.any() for gradient in found.values())


def test_a_frozen_tower_builds_no_graph(llava):
    model = llava()
    model.model.vision_tower.requires_grad_(False)
    seen = []
    model.model.vision_tower.encoder.layers[0].register_forward_hook(lambda *given: seen.append(given[2].requires_grad))
    model.model.multi_modal_projector.requires_grad_(True)
    assert PackedLoss(model)(**packed(ROWS)).requires_grad
    assert seen == [False]


def test_many_targets_are_summed_in_chunks_to_the_same_loss(llava, monkeypatch):
    model = llava()
    whole = PackedLoss(model)(**packed(ROWS)).item()
    assert CHUNK > 1000
    monkeypatch.setattr("vlm.model.forward.CHUNK", 3)
    assert PackedLoss(model)(**packed(ROWS)).item() == pytest.approx(whole, rel=1e-6)


def test_the_loss_is_summed_by_source_where_sources_are_given(llava, monkeypatch):
    model = llava()
    batch = packed(ROWS)
    targets = [int((one["labels"] != IGNORED).sum()) for one in SAMPLES]
    sources = torch.repeat_interleave(torch.tensor([2, 0, 0, 2, 0]), torch.tensor(targets))
    monkeypatch.setattr("vlm.model.forward.CHUNK", 3)
    found = PackedLoss(model)(**batch, sources=sources, source_count=4)
    own = [alone(model, one).item() for one in SAMPLES]
    assert found.tolist() == pytest.approx([own[1] + own[2] + own[4], 0, own[0] + own[3], 0], rel=1e-5)


def test_patches_are_put_in_place_in_reading_order():
    words = torch.zeros(1, 6, 1)
    places = torch.tensor([1, 2, 3, 4])
    patches = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    assert splice(words, patches, places)[..., 0].tolist() == [[0, 1, 2, 3, 4, 0]]


@pytest.mark.parametrize("pictures", [1, 3])
def test_another_number_of_placeholders_than_patches_is_refused(llava, pictures):
    batch = packed([[SAMPLES[2]]]) | {"pixel_values": torch.randn(pictures, 3, 16, 16)}
    with pytest.raises(ValueError, match=f"8 placeholders for {pictures} pictures of 4 patches"):
        PackedLoss(llava())(**batch)
