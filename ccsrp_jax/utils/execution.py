"""How programs over a population are executed: sizes of a call, memory and devices."""

from dataclasses import dataclass

from jax.sharding import Mesh

from ccsrp_jax.utils import devices
from ccsrp_jax.utils.fields import Limits, check_fields


@dataclass(frozen=True)
class Execution:
    """Execution of scoring; results depend on it by rounding errors only.

    Attributes:
      batch_size: images per call, at most.
      member_chunk: members per call on each device; None derives it from the kind of device and
        from memory.
      memory_limit: bytes per device that may be used; None means what is free.
      mesh: of `devices.mesh`, over which members are sharded; None means one device.

    Raises:
      InputError: a size that is below 1.
    """

    batch_size: int = 256
    member_chunk: int | None = None
    memory_limit: int | None = None
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        least = Limits(1)
        sizes = {"batch_size": least, "member_chunk": least, "memory_limit": least}
        check_fields(self, limits=sizes)

    def available_bytes(self) -> int:
        """Bytes per device that may be used: `memory_limit`, or what is free at this moment."""
        return devices.free_bytes(self.mesh) if self.memory_limit is None else self.memory_limit
