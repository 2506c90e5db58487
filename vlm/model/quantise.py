"""NF4 for the language model's linear layers, through bitsandbytes: what QLoRA trains its adapters on.

Normal float of 4 bits, with the blocks' scales quantised once more (arXiv 2305.14314). Layers compute in bfloat16
whatever their neighbours do; norms, embeddings, `lm_head`, tower and projector stay as they are, and so does a layer
whose width is no multiple of a block: bitsandbytes 0.50.2 reads such weights back wrongly on a CPU.
"""

from types import ModuleType

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm import ranks
from vlm.errors import Unusable

BLOCK = 64  # weights that share a scale


def bitsandbytes() -> ModuleType:
    """Return the library.

    Raises Unusable if it is not installed, or does not load on this machine.
    """
    try:
        import bitsandbytes as library
    except Exception as problem:  # a build for another CUDA raises OSError, RuntimeError and others
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise Unusable(
            f"finetune=qlora needs bitsandbytes ({reason}): pip install bitsandbytes==0.50.2, or choose finetune=lora"
        ) from None
    return library


def quantise(llava: LlavaForConditionalGeneration, device: torch.device) -> int:
    """Put the language model's linear layers on `device` as NF4, one by one; return how many there are.

    Raises Unusable if there is none whose width is a multiple of a block.
    """
    bnb = bitsandbytes()
    layers = {n: layer for n, layer in llava.model.language_model.named_modules() if isinstance(layer, nn.Linear)}
    names = [name for name, layer in layers.items() if layer.in_features % BLOCK == 0]
    if not names:
        raise Unusable(f"finetune=qlora: no layer's width is a multiple of {BLOCK}: choose finetune=lora")
    if ranks.first():
        print(f"NF4: {len(names)} of the language model's {len(layers)} linear layers", flush=True)
    for name in names:
        parent = llava.model.language_model.get_submodule(name.rpartition(".")[0])
        layer = parent.get_submodule(name.rpartition(".")[2])
        small = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        weight = layer.weight.detach().contiguous()
        small.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
        if layer.bias is not None:  # the layer would cast it at its first use
            small.bias = nn.Parameter(layer.bias.detach().bfloat16(), requires_grad=False)
        small.support_avx512bf16_for_cpu = (
            False  # or evaluation would repack, and round, what training then goes on with
        )
        setattr(parent, name.rpartition(".")[2], small.to(device))
    llava.is_loaded_in_4bit = True  # PEFT asks for it
    return len(names)
