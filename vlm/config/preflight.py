"""Settings of the estimate before a run: the machine it is for."""

from dataclasses import dataclass

from omegaconf import MISSING

from vlm.errors import Unusable


@dataclass
class HardwareConfig:
    """One accelerator (or CPU), as its vendor describes it: conf/hardware/."""

    name: str = MISSING
    memory_gib: float | None = None  # of one device; null: what this machine has
    bfloat16_tflops: float = MISSING  # peak of dense matrix products
    float32_tflops: float = MISSING
    link_gbytes: float | None = None  # a second, one way, between devices of a node; null: not counted
    host_gbytes: float | None = None  # a second, one way, between a device and its host; null: not counted
    network_gbytes: float = 25.0  # a second, of one device, between nodes: 200 Gbit/s
    utilisation: float = 0.4  # assumed share of the peak that a training reaches
    devices: int | None = None  # ranks that train; null: those of cluster=, of torchrun, or one
    price_per_hour: float | None = None  # of one device, any currency
    is_gpu: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise Unusable(f"hardware.utilisation={self.utilisation} is not in (0, 1]")
        if self.devices is not None and self.devices < 1:
            raise Unusable(f"hardware.devices={self.devices} is not at least 1")


PREFLIGHT_MODES = (False, True, "warn", "sweep", "off")
