"""For each image the perturbation of the largest margin so far, from which seeded attacks go on."""

import base64
import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from ccsrp_jax.attacks.losses import infinite_where_not_finite, margin
from ccsrp_jax.attacks.queries import query
from ccsrp_jax.data.splits import to_unit_range


class BestFound(NamedTuple):
    """Of every image the adversarial image of the largest margin that attacks have found.

    Attributes:
      images: adversarial images in [0, 1]; clean ones where no attack was run.
      margins: largest other logit minus that of the label; -inf where no attack was run.
    """

    images: Float[np.ndarray, "N H W C"]
    margins: Float[np.ndarray, "N"]

    @classmethod
    def none_yet(cls, images: Shaped[np.ndarray, "N H W C"]) -> "BestFound":
        """Before any attack on these images."""
        unit = np.asarray(to_unit_range(jnp.asarray(images)), np.float32)
        return cls(unit, np.full(len(unit), -np.inf, np.float32))

    def updated(
        self,
        places: Int[np.ndarray, "B"],
        images: Float[np.ndarray, "B H W C"],
        margins: Float[np.ndarray, "B"],
    ) -> "BestFound":
        """With the images at these places replaced where the margin is not less."""
        better = margins >= self.margins[places]
        found = BestFound(self.images.copy(), self.margins.copy())
        found.images[places[better]] = images[better]
        found.margins[places[better]] = margins[better]
        return found

    def record(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {name: _to_text(array) for name, array in self._asdict().items()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "BestFound":
        """Inverse of `record`."""
        return cls(_from_text(record["images"]), _from_text(record["margins"]))


@partial(jax.jit, static_argnums=(0, 1))
def margins_of(classifier, draws, network_state, images, labels, key):
    """Margins of images, of the mean logits of so many draws; inf where a logit is not finite."""
    z = query(classifier, draws, network_state, images, key, 0)
    return infinite_where_not_finite(margin(z, labels), z)


def _to_text(array):
    data = zlib.compress(np.ascontiguousarray(array, "<f4").tobytes(), 1)
    return {"shape": list(array.shape), "zlib": base64.b64encode(data).decode()}


def _from_text(text):
    data = zlib.decompress(base64.b64decode(text["zlib"]))
    return np.frombuffer(data, "<f4").reshape(text["shape"]).copy()
