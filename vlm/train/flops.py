"""How much arithmetic a step is, for MFU: the share of a device's peak that the model's own arithmetic makes up.

A weight that a token passes costs 2 operations forward, 2 more where the gradient goes back through it, 2 more where
it trains: 2N for a frozen tower, 4N for what is only back-propagated through, 6N for what trains. Tokens are those
without padding; lm_head counts for targets only, tower and projector for patches. The attention's own products and
what is recomputed are left out. Source: Chowdhery et al., PaLM, 2022, appendix B, where everything trains.
"""

from dataclasses import dataclass

import torch
from torch import nn

from vlm.train.strategy import shape_of

PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A40": 150}  # dense bfloat16, data sheets


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one token, target or patch."""

    token: int = 0
    target: int = 0
    patch: int = 0
    patches: int = 0  # of a picture

    @classmethod
    def of(cls, model: nn.Module, patches: int) -> "Cost":
        """Count the matrices of a LLaVA, as frozen and adapted as it is, with `patches` for each picture."""
        names = [name for name, _ in model.named_parameters()]
        tied = not any("lm_head" in name for name in names)
        found = {"token": 0, "target": 0, "patch": 0}
        tower_trains = any("vision_tower" in name and p.requires_grad for name, p in model.named_parameters())
        for name, weight in model.named_parameters():
            shape = getattr(getattr(weight, "quant_state", None), "shape", None) or shape_of(weight)  # 4-bit weights
            if len(shape) != 2 or "position_embedding" in name or ".original_module." in name:
                continue
            operations = 6 if weight.requires_grad else 2 if "vision_tower" in name and not tower_trains else 4
            if "embed_tokens" in name and not tied:
                continue  # looked up, not multiplied
            unit = "patch" if "vision_tower" in name or "multi_modal_projector" in name else "token"
            unit = "target" if "lm_head" in name or "embed_tokens" in name else unit
            found[unit] += operations * shape.numel()
        return cls(**found, patches=patches)

    def of_step(self, tokens: int, targets: int, images: int) -> int:
        """Return the operations of so many tokens, targets and pictures."""
        return self.token * tokens + self.target * targets + self.patch * self.patches * images


def peak_flops(device: torch.device, tflops: float | None) -> float | None:
    """Return a device's peak in operations a second, as given or by its name; None where it is not known."""
    if tflops is None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        tflops = next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)
    return tflops and tflops * 1e12
