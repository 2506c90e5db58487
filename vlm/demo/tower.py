"""A CLIP vision tower from nothing: pictures against captions, as wholes and phrase by phrase.

Two objectives, with captions as the only teacher. The whole: a picture's CLS token finds its caption among
those of the batch. The parts: every phrase a caption
may hold ("a red circle at the top left") is compared with every patch, and its best patches must tell
whether the caption holds it; the phrases that differ in one trait are its hard negatives, and this is what makes
patches say what is where.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from vlm.demo.scenes import COLOURS, KINDS, PIXELS, PLACES, Scene, draw, imagine
from vlm.demo.training import THREADS, Training, descend

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, so that its processor needs no word about it
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TowerSettings:
    """Sizes of the tower and of its training."""

    width: int = 96
    layers: int = 4
    heads: int = 4
    patch: int = 16
    position_std: float = 0.5  # at CLIP's own 0.02 patches lose where they are
    read_layer: int = -2  # the hidden states whose patches the phrases are compared with
    pictures: int = 10_000
    training: Training = Training(steps=900, batch=128, lr=1.5e-3)


PHRASES = [(colour, kind, place) for colour in COLOURS for kind in KINDS for place in range(len(PLACES))]


class Contrast(nn.Module):
    """The captions' side, which is thrown away after training: F phrases, each the sum of its three words."""

    def __init__(self, width: int, joint: int = 64) -> None:
        super().__init__()
        words = [*COLOURS, *KINDS, *range(len(PLACES))]
        self.register_buffer("spelling", torch.tensor([[words.index(word) for word in phrase] for phrase in PHRASES]))
        self.words = nn.Embedding(len(words), joint)
        self.phrase = nn.Sequential(nn.Linear(joint, 4 * joint), nn.GELU(), nn.Linear(4 * joint, joint))
        self.caption = nn.Sequential(nn.Linear(joint, 4 * joint), nn.GELU(), nn.Linear(4 * joint, joint))
        self.patch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, joint))
        self.picture = nn.Linear(width, joint)
        self.scales = nn.Parameter(torch.tensor([2.3, 2.3]))  # logs of inverse temperatures
        self.bias = nn.Parameter(torch.tensor(-6.0))

    def forward(self, patches: Tensor, pooled: Tensor, held: Tensor) -> Tensor:
        """The loss of B pictures.

        patches (B, P, E), pooled (B, E); held (B, F) is 1 where the caption holds the phrase.
        """
        phrases = self.phrase(self.words(self.spelling).sum(1))
        unit = nn.functional.normalize
        likeness = unit(self.patch(patches), dim=-1) @ unit(phrases, dim=-1).T * self.scales[0].exp()
        parts = nn.functional.binary_cross_entropy_with_logits(likeness.logsumexp(1) + self.bias, held) * 10
        captions = unit(self.caption(held @ phrases), dim=-1)
        match = unit(self.picture(pooled), dim=-1) @ captions.T * self.scales[1].exp()
        targets = torch.arange(len(match))
        whole = nn.functional.cross_entropy(match, targets) + nn.functional.cross_entropy(match.T, targets)
        return parts + whole / 2


def train_tower(folder: Path, seed: int, settings: TowerSettings | None = None) -> None:
    """Train a tower and save it as a CLIPVisionModel with its image processor."""
    settings = settings or TowerSettings()
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    rng = random.Random(f"{seed} vision tower")
    pixels, held = _draw_pool(rng, seed, settings.pictures)
    tower = build_tower(settings)
    contrast = Contrast(settings.width)
    parameters = [*tower.parameters(), *contrast.parameters()]

    def loss_of_step(step: int) -> Tensor:
        chosen = torch.randint(len(pixels), (settings.training.batch,))
        seen = tower(pixels[chosen], output_hidden_states=True)
        return contrast(seen.hidden_states[settings.read_layer][:, 1:], seen.pooler_output, held[chosen])

    optimizer = torch.optim.AdamW(parameters, lr=settings.training.lr, weight_decay=0.01, betas=(0.9, 0.98))
    descend("vision tower", settings.training, parameters, [optimizer], loss_of_step)
    tower.save_pretrained(folder)
    size = {"height": PIXELS, "width": PIXELS}
    CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=size, image_mean=MEAN, image_std=STD).save_pretrained(
        folder
    )


def build_tower(settings: TowerSettings) -> CLIPVisionModel:
    """Return a CLIP tower with random weights."""
    config = CLIPVisionConfig(
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        image_size=PIXELS,
        patch_size=settings.patch,
        projection_dim=settings.width,
    )
    tower = CLIPVisionModel(config)
    for name, weight in tower.named_parameters():
        if "position_embedding" in name:
            nn.init.normal_(weight, std=settings.position_std)
        elif weight.ndim > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return tower


def _draw_pool(rng: random.Random, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` pictures (N, 3, H, W), normalised, and which phrases their captions hold (N, F)."""
    pixels = torch.empty(count, PIXELS, PIXELS, 3)
    held = torch.zeros(count, len(PHRASES))
    for row in tqdm(range(count), desc="vision tower: drawing", unit=" scenes"):
        scene = imagine(rng, seed)
        pixels[row] = torch.frombuffer(bytearray(draw(scene).tobytes()), dtype=torch.uint8).view(PIXELS, PIXELS, 3)
        held[row, _phrases_of(scene)] = 1
    return ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous(), held


def _phrases_of(scene: Scene) -> list[int]:
    return [PHRASES.index((shape.colour, shape.kind, shape.place)) for shape in scene.shapes]
