"""Several devices and their memory: where arrays lie, what is free, what fits.

A mesh here has one axis, `MEMBERS`, over which a population is dealt out; everything else
lies on every device. It may span the processes that `jax.distributed.initialize` joined (before
this package is imported, as evosax then computes): all run the same script, and each gets the
whole result. A CPU is one device, all of whose cores work on one member; made into as many
devices as it has cores, by `jax.config.update("jax_num_cpu_devices", n)` before anything
else, it works on as many members at a time, which is faster where layers are small.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ccsrp_jax.utils.errors import InputError

MEMBERS = "members"


def mesh(devices: int | None = None) -> Mesh | None:
    """A mesh of that many devices, or of all there are; None for one alone.

    Raises:
      InputError: more devices than there are.
    """
    there = jax.devices()
    count = len(there) if devices is None else devices
    if not 1 <= count <= len(there):
        raise InputError(
            f"{count} devices asked for where JAX sees {len(there)}: ask for 1 to {len(there)}."
        )
    if count == 1:
        return None
    return jax.make_mesh((count,), (MEMBERS,), (AxisType.Auto,), devices=there[:count])


def count(mesh: Mesh | None) -> int:
    """Devices of a mesh; one without."""
    return 1 if mesh is None else mesh.size


def place(mesh: Mesh | None, tree: Any, *, dealt: bool = False) -> Any:
    """Arrays as they are needed: on the default device, or on every device of a mesh, or
    with their first axis dealt out over it."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = NamedSharding(mesh, P(MEMBERS) if dealt else P())

    def put(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        if not mesh.is_multi_process:
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def joined(mesh: Mesh, trees: Sequence[Any]) -> Any:
    """Trees of arrays that lie whole on every device, one tree a device of the mesh, as one tree
    of arrays dealt out over it: each device gets its own by keeping what it has."""

    def join(*leaves: Array) -> Array:
        places = zip(leaves, mesh.devices.flat, strict=True)
        parts = [
            next(shard.data for shard in leaf.addressable_shards if shard.device == device)
            for leaf, device in places
        ]
        shape = (len(parts) * leaves[0].shape[0], *leaves[0].shape[1:])
        sharding = NamedSharding(mesh, P(MEMBERS))
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return jax.tree.map(join, *trees)


def replicated(x: Array, mesh: Mesh | None) -> Array:
    """Something dealt out, whole on every device if other processes hold parts of it; under jit."""
    if mesh is None or not mesh.is_multi_process:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def free_bytes(mesh: Mesh | None = None) -> int:
    """Memory that is free on a device: the smallest figure of those in use here.

    The devices of a CPU share the machine's. All processes of a mesh get the same figure, as
    they must run the same programs.
    """
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        free = min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    else:
        free = psutil.virtual_memory().available // len(devices)
    if mesh is not None and mesh.is_multi_process:
        mib = multihost_utils.process_allgather(np.int32(free >> 20))  # JAX has no int64
        free = int(mib.min()) << 20
    return free


def size(tree: Any) -> int:
    """Bytes of arrays, or of what `jax.eval_shape` says of them."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def program_bytes(program: jax.stages.Wrapped, *args: Any, **options: Any) -> int:
    """Memory that a jitted function takes for these arguments, beside them; compiles it."""
    found = program.lower(*args, **options).compile().memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes


def largest(need: Callable[[int], int], wanted: int, limit: int) -> int:
    """The largest count up to `wanted` whose need, which grows in line, is within the limit;
    0 if not even one is."""
    count = wanted
    while count and (needed := need(count)) > limit:
        count = min(count - 1, int(count * limit / needed))
    return count


def gib(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.3g} GiB"


PACKAGES = ("ccsrp-jax", "jax", "jaxlib", "flax", "optax", "evosax", "numpy")


def machine() -> dict:
    """What figures depend on beside the code."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
    }
