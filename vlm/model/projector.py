"""The projector, from the tower's width to the language model's: its kinds, and its first weights.

The stock module is linear_1, activation, linear_2. One layer alone, as in LLaVA v1, is that module with no activation
("linear" in transformers, which is the identity) and with linear_2 the identity matrix and no bias: x·I + 0 is x to
the bit, so the folder loads in plain transformers and computes one layer exactly. linear_2 then must not train.
"""

import torch
from torch import Tensor, nn
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vlm.config import ProjectorKind

ACTIVATIONS = {ProjectorKind.mlp2x_gelu: "gelu", ProjectorKind.linear: "linear"}


def first_weights(config: LlavaConfig, seed: int) -> dict[str, Tensor]:
    """Return the float32 weights of a projector before any training, drawn from the seed alone."""
    with torch.device("meta"):
        projector = LlavaMultiModalProjector(config)
    projector = projector.to_empty(device="cpu").float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in (projector.linear_1, projector.linear_2):
            layer.reset_parameters()
    if is_linear(config):
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
    return projector.state_dict()


def is_linear(config: LlavaConfig) -> bool:
    """Whether the projector is one layer; its `linear_2` is then the identity and stays frozen."""
    return config.projector_hidden_act == ACTIVATIONS[ProjectorKind.linear]
