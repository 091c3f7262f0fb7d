"""Device meshes and memory: placement of arrays, free bytes, the largest size that fits.

A mesh has one axis, `DEVICES`: the members of a population, or the images of a training batch,
are sharded over it and everything else is replicated. A mesh may span several processes: call
`jax.distributed.initialize` before any other use of JAX and run the same script in each; every
process gets the full result. By default a CPU is one device whose cores all work on one member.
`jax.config.update("jax_num_cpu_devices", n)`, called before any other use of JAX, splits it into n
devices that work on n members at a time, which is faster for small layers.
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
from ccsrp_jax.utils.fields import integer

DEVICES = "devices"  # the name of the mesh axis


def mesh(devices: int | None = None) -> Mesh | None:
    """A mesh of the first `devices` devices, by default of all; None if that is one device.

    Raises:
      InputError: `devices` is below 1 or more than JAX sees.
    """
    there = jax.devices()
    count = len(there) if devices is None else integer("devices", devices)
    if not 1 <= count <= len(there):
        raise InputError(
            f"{count} devices asked for where JAX sees {len(there)}: ask for 1 to {len(there)}."
        )
    if count == 1:
        return None
    return jax.make_mesh((count,), (DEVICES,), (AxisType.Auto,), devices=there[:count])


def device_count(mesh: Mesh | None) -> int:
    """Number of devices of a mesh; 1 for None."""
    return 1 if mesh is None else mesh.size


def check_divisible(batch: int, mesh: Mesh | None) -> None:
    """Checks that a batch of images can be sharded evenly.

    Raises:
      InputError: it cannot.
    """
    if batch % device_count(mesh):
        raise InputError(
            f"a batch of {batch} images cannot be sharded evenly over {device_count(mesh)} "
            "devices: give a batch size that is a multiple of them."
        )


def describe(mesh: Mesh | None) -> str:
    """Number and kind of the devices of a mesh, as text; one device for None."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return f"{device_count(mesh)} x {device.device_kind}"


def put(mesh: Mesh | None, tree: Any, *, sharded: bool = False) -> Any:
    """Arrays on the default device, or on a mesh: replicated, or sharded along their first axis."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = NamedSharding(mesh, P(DEVICES) if sharded else P())

    def put_leaf(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = put_leaf(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        if not mesh.is_multi_process:
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_leaf, tree)


def stack_shards(mesh: Mesh, trees: Sequence[Any]) -> Any:
    """Concatenates replicated trees, one for each device of the mesh, into one sharded tree.

    Device i keeps its own copy of tree i as its shard, so nothing is transferred.
    """

    def stack(*leaves: Array) -> Array:
        parts = [
            next(shard.data for shard in leaf.addressable_shards if shard.device == device)
            for leaf, device in zip(leaves, mesh.devices.flat, strict=True)
        ]
        shape = (len(parts) * leaves[0].shape[0], *leaves[0].shape[1:])
        sharding = NamedSharding(mesh, P(DEVICES))
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return jax.tree.map(stack, *trees)


def replicate(x: Any, mesh: Mesh | None) -> Any:
    """Gathers sharded arrays on every device if other processes hold shards of them; under jit."""
    if mesh is None or not mesh.is_multi_process:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def free_bytes(mesh: Mesh | None = None) -> int:
    """Bytes free on a device: the minimum over the devices of the mesh.

    The devices of a CPU share the machine's memory equally. All processes of a mesh get the same
    number, since they must run the same programs.
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, of the machine or of a device."""
    texts = ("RESOURCE_EXHAUSTED", "Out of memory")
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and any(
        text in str(error) for text in texts
    )
    return exhausted or isinstance(error, MemoryError)


def nbytes(tree: Any) -> int:
    """Bytes of a tree of arrays or of `jax.ShapeDtypeStruct`s."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def program_bytes(program: jax.stages.Wrapped, *args: Any, **options: Any) -> int:
    """Bytes of temporaries and outputs of a jitted function for these arguments; compiles it."""
    analysis = program.lower(*args, **options).compile().memory_analysis()
    assert analysis is not None  # CPU, GPU and TPU all give one
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def largest_fitting(need: Callable[[int], int], wanted: int, limit: int) -> int:
    """The largest count up to `wanted` with `need(count) <= limit`, or 0 if there is none.

    `need` must be affine and increasing in the count.
    """
    count = wanted
    while count and (needed := need(count)) > limit:
        count = min(count - 1, int(count * limit / needed))
    return count


def format_gib(count: int) -> str:
    """A number of bytes as text, in GiB."""
    return f"{count / 2**30:.3g} GiB"


PACKAGES = ("ccsrp-jax", "jax", "jaxlib", "flax", "optax", "evosax", "numpy")


def machine() -> dict:
    """Versions and device that measured numbers depend on."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
    }
