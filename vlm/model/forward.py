"""The forward pass of training: packed samples in, summed nats out, on the stock LLaVA modules.

Differences from `LlavaForConditionalGeneration.forward`, all exact: tower layers after the feature layer are not
run; a frozen tower builds no graph; samples of a pack do not see each other; hidden states are selected before
`lm_head`, so logits exist only where there is a target.

Where things are in a batch (targets, patches, bounds of samples) is worked out on the CPU, where the loader left it: asked
of a GPU, each would make the CPU wait until all that was begun there is done, and the GPU then wait for the CPU.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from vlm.model.attention import attend_within_samples, sent, told_of

IGNORED = -100  # the label of a token that the loss does not count
CHUNK = 4096  # targets whose logits exist at once


class PackedLoss(nn.Module):
    """A LLaVA model as a function from a packed batch to the sum of its targets' losses."""

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        """Wrap a model; adapters may already be inside it."""
        super().__init__()
        self.llava = llava
        attend_within_samples(llava.model.language_model)
        self.trains_tower = any(weight.requires_grad for weight in llava.model.vision_tower.parameters())

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        pixel_values: Tensor,
        sources: Tensor | None = None,
        source_count: int = 1,
    ) -> Tensor:
        """Return the cross-entropy summed over the targets, nats, shape (); with `sources`, by source, shape (S,).

        input_ids     (B, L)        pictures as P times the picture token
        labels        (B, L)        the token itself where it is a target, else -100; a sample's first is never one
        position_ids  (B, L)        beginning at 0 in every sample of a row
        pixel_values  (N, 3, S, S)  normalised, in reading order, on the device that computes; all else is best on the CPU
        sources       (T,)          of the T targets, in reading order, below `source_count`
        """
        device = pixel_values.device
        hidden = self.hidden_states(input_ids, position_ids, pixel_values)  # (B, L, D)
        predicted = labels.flatten().ne(IGNORED).nonzero().flatten()  # (T,)
        targets = labels.flatten()[predicted]
        of_target = torch.zeros_like(targets) if sources is None else sources
        read = hidden.flatten(0, 1).index_select(0, sent(predicted - 1, device))  # the state before predicts a target
        nats = _nats(self.llava.lm_head, read, sent(targets, device), sent(of_target, device), source_count)
        return nats.sum() if sources is None else nats

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """Return the language model's last hidden states, (B, L, D), on the device of `pixel_values`."""
        model, device = self.llava.model, pixel_values.device
        words = model.get_input_embeddings()(sent(input_ids.reshape(1, -1), device))  # (1, B·L, D)
        patches = self.patches(pixel_values)
        if patches is None:
            words = words + self._untouched(words)
        else:
            is_patch = input_ids.flatten() == self.llava.config.image_token_id
            words = splice(words, patches, sent(is_patch.nonzero().flatten(), device))
        told = told_of(position_ids, model.language_model.config, device)
        if told["position_ids"].shape != words.shape[:2]:
            words = words.view(*position_ids.shape, -1)
        states = model.language_model(inputs_embeds=words, use_cache=False, **told).last_hidden_state
        return states.view(*position_ids.shape, -1)

    def patches(self, pixel_values: Tensor) -> Tensor | None:
        """Return the projected patches of N pictures, (N, P, D); None without pictures."""
        if not len(pixel_values):
            return None
        with torch.set_grad_enabled(self.trains_tower and torch.is_grad_enabled()):
            features = tower_features(self.llava, pixel_values)
        return self.llava.model.multi_modal_projector(features)

    def _untouched(self, words: Tensor) -> Tensor:
        """Return zero through projector (and tower, if it trains), so that no rank waits for their gradients."""
        vision = self.llava.config.vision_config
        if self.trains_tower:
            blank = words.new_zeros(1, 3, vision.image_size, vision.image_size)
            features = tower_features(self.llava, blank)
        else:
            features = words.new_zeros(1, 1, vision.hidden_size)
        return self.llava.model.multi_modal_projector(features).sum() * 0


def splice(words: Tensor, patches: Tensor, places: Tensor) -> Tensor:
    """Put each picture's patches where its placeholders stand.

    words    (1, T, D)  embeddings, with one placeholder token for each patch
    patches  (N, P, D)  projected patches of the N pictures, in reading order
    places   (N·P,)     of the placeholders in the T tokens; another number is a ValueError
    returns  (1, T, D)
    """
    pictures, each, _ = patches.shape
    if len(places) != pictures * each:
        raise ValueError(f"{len(places)} placeholders for {pictures} pictures of {each} patches")
    return words.index_copy(1, places, patches.flatten(0, 1).unsqueeze(0).to(words.dtype))


def layers_used(llava: LlavaForConditionalGeneration) -> int:
    """Return how many of the tower's layers lie before its feature layer."""
    feature = llava.config.vision_feature_layer
    layers = llava.config.vision_config.num_hidden_layers
    return feature if feature >= 0 else layers + 1 + feature


def tower_features(llava: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """Return the tower's feature layer for N pictures, (N, P, E), running no layer beyond it."""
    tower = llava.model.vision_tower
    hidden = tower.embeddings(pixel_values)
    if hasattr(tower, "pre_layrnorm"):  # CLIP's spelling; SigLIP has none
        hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers[: layers_used(llava)]:
        hidden = layer(hidden, attention_mask=None)
    return hidden[:, 1:] if llava.config.vision_feature_select_strategy == "default" else hidden


def _nats(lm_head: nn.Module, hidden: Tensor, targets: Tensor, sources: Tensor, count: int) -> Tensor:
    """Return the cross-entropy of T hidden states (T, D) against T targets, in float32, summed by source (count,).

    Logits exist for a chunk of targets at once.
    """
    total = hidden.new_zeros(count, dtype=torch.float32)
    if not len(targets):
        return total + lm_head(hidden).sum() * 0  # no logits, but lm_head has a gradient on every rank
    each = torch.arange(count, device=targets.device).unsqueeze(1)
    for part, wanted, source in zip(hidden.split(CHUNK), targets.split(CHUNK), sources.split(CHUNK), strict=True):
        nats = cross_entropy(lm_head(part).float(), wanted, reduction="none")
        total = total + torch.where(source == each, nats, 0.0).sum(1)  # unlike index_add, in one order on every device
    return total
