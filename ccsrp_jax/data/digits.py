"""scikit-learn's 8 x 8 handwritten digits."""

from typing import Any

import numpy as np

from ccsrp_jax.data.division import draw_test_split
from ccsrp_jax.data.source import ReadOptions, SourceDataset
from ccsrp_jax.data.splits import Split


def read(options: ReadOptions) -> SourceDataset:
    """The digits in [0, 1]; they have no official test split, so one is drawn."""
    import sklearn
    from sklearn.datasets import load_digits

    source: Any = load_digits()
    images = (source.images[..., None] / 16).astype(np.float32)
    whole = Split(images, source.target.astype(np.int32))
    train, test, footnote = draw_test_split(whole, options.seed)
    return SourceDataset(
        name="digits",
        train=train,
        test=test,
        classes=10,
        augmentation="none",  # the digits are centred: shifts lowered the robust accuracy
        source="sklearn.datasets.load_digits",
        version=sklearn.__version__,
        footnotes=(footnote,),
    )
