"""Digests tell every change of a bit, and tell nothing of data that has none."""

import hashlib

import numpy as np
import pytest

from ccsrp_jax.utils import digests


def test_digests_are_those_of_hashlib(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a[0]").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert digests.sha256(b"abc") == digests.sha256_file(tmp_path / "sub" / "a[0]") == expected
    assert digests.sha256_files(tmp_path) == {"sub/a[0]": expected}
    assert digests.sha256_json({"b": 1, "a": 2}) == digests.sha256_json({"a": 2, "b": 1})


def test_every_flipped_bit_of_sealed_data_is_noticed():
    sealed = digests.seal(b"the state of training")
    assert digests.unseal(sealed) == b"the state of training"
    begin = len(digests.MARK)
    for place in range(8 * begin, 8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="SHA-256"):
            digests.unseal(bytes(flipped))
    assert digests.unseal(b"of an earlier version") == b"of an earlier version"


def test_arrays_of_other_values_shapes_or_types_have_other_digests():
    images = np.arange(12, dtype=np.uint8).reshape(3, 4)
    others = [images.T, images.reshape(4, 3), images.astype(np.int32), images + np.uint8(1)]
    found = {digests.sha256_arrays([each]) for each in [images, *others]}
    assert len(found) == 5
    assert digests.sha256_arrays([np.asfortranarray(images)]) in found
    assert digests.sha256_arrays([images[:0]]) not in found
