import socket

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from workers import population
from workers.processes import finish, on_cpu, start

from ccsrp_jax.coevolution import call_size, subproblem
from ccsrp_jax.data import splits
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError

JOIN = "import jax; jax.distributed.initialize('127.0.0.1:{}', 2, {})"
WORK = "from workers import population; population.{}"


def test_four_devices_score_as_one(tmp_path):
    """With a shared set and white-box, for 8 members and for 6 and 3, which four do not divide,
    and in a race; where a device takes one at a time, the odd ones are dealt out by batch."""
    worker = start(WORK.format(f"save_scores({str(tmp_path / 'out.npz')!r})"), forced=4)
    try:
        alone = on_cpu(population.scores)
    finally:
        finish([worker])
    with np.load(tmp_path / "out.npz") as found:
        assert found["devices"] == 4
        assert found["shares"].tolist() == [2, 2, 2, 2]
        assert set(alone) < set(found)
        for name, expected in alone.items():
            error, robust_error, loss, robust_loss, macs, images, *_ = found[name]
            assert expected[0].std() > 0 and expected[3].std() > 0
            assert name != "single race" or len(set(images)) > 1  # some dropped out
            for i, exact in ((0, error), (1, robust_error), (4, macs), (5, images)):
                np.testing.assert_array_equal(exact, expected[i])
            np.testing.assert_allclose([loss, robust_loss], expected[2:4], rtol=1e-6)


def test_two_processes_search_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [str(tmp_path / f"{i}.npz") for i in range(2)]
    workers = [
        start(JOIN.format(port, i), WORK.format(f"save_round({out!r}, {i})"))
        for i, out in enumerate(outs)
    ]
    try:
        alone = on_cpu(population.search_round)
    finally:
        finish(workers)
    for out in outs:
        with np.load(out) as found:
            assert found["devices"] == 2
            assert found["free bytes"] == 5 << 30  # the smaller figure of the two processes
            for name, expected in alone.items():
                np.testing.assert_allclose(found[name], expected, rtol=1e-6)


@pytest.mark.parametrize("least", [0, 1, 70])
def test_largest_count_equals_brute_force(least):
    for slope in (1, 3, 17):
        for limit in range(0, 200, 7):
            for wanted in (1, 2, 9, 40):
                fit = [count for count in range(wanted + 1) if least + slope * count <= limit]
                found = devices.largest_fitting(lambda c, k=slope: least + k * c, wanted, limit)
                assert found == max([0, *fit])


def test_largest_asks_few_times():
    asked = []

    def need(count):
        asked.append(count)
        return 10**9 + 10**7 * count

    assert devices.largest_fitting(need, 10**6, 3 * 10**9) == 200
    assert len(asked) <= 12  # each is a compilation


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    there = len(jax.devices())
    for count in (0, there + 1):
        with pytest.raises(InputError) as refused:
            devices.mesh(count)
        message = str(refused.value)
        assert str(count) in message and str(there) in message
        assert message.endswith(".") and "\n" not in message


def test_one_device_needs_no_mesh():
    assert devices.mesh(1) is None


def test_what_is_placed_on_a_mesh_keeps_its_values():
    """Random keys of any kind among them."""
    mesh = jax.make_mesh((1,), (devices.DEVICES,), (AxisType.Auto,), devices=jax.devices()[:1])
    tree = {"bits": np.arange(6).reshape(2, 3), "keys": jax.random.key(5, impl="rbg")}
    for sharded in (False, True):
        placed = devices.put(mesh, {"bits": tree["bits"]}, sharded=sharded)
        np.testing.assert_array_equal(placed["bits"], tree["bits"])
    key = devices.put(mesh, tree)["keys"]
    assert jax.random.bits(key) == jax.random.bits(tree["keys"])


def test_program_bytes_grow_with_the_number_of_members(network, digits):
    architecture, variables = network
    clean = splits.Split(*(part[:10] for part in digits.search))
    task = subproblem.make_task(
        Classifier(architecture), variables, masks.ones(architecture), "conv3", clean, clean
    )
    one, two, six = (call_size.call_bytes(task, task.clean[0], count) for count in (1, 2, 6))
    assert 0 < one < two < six
    assert six > 5 * (two - one)  # in line


def test_free_memory_is_some_of_what_there_is():
    assert 0 < devices.free_bytes() < 2**50
