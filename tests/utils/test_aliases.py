import inspect

import pytest

from ccsrp_jax.utils.aliases import keyword_aliases


@keyword_aliases(kept="keep_counts", harm="importance")
def function(first, *, keep_counts=None, importance=1):
    return first, keep_counts, importance


def test_earlier_and_current_names_give_the_same_arguments():
    assert function(0) == (0, None, 1)
    assert function(0, kept=3) == function(0, keep_counts=3) == (0, 3, 1)
    assert function(0, harm=None, keep_counts=2) == (0, 2, None)


def test_both_names_of_an_argument_are_refused():
    with pytest.raises(TypeError, match="'keep_counts' and its earlier name 'kept'"):
        function(0, kept=3, keep_counts=3)


def test_the_signature_shows_current_names_only():
    assert list(inspect.signature(function).parameters) == ["first", "keep_counts", "importance"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'tried'"):
        function(0, tried=3)
