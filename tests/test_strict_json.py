"""JSON that every reader takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutorial_lib import strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_what_is_not_finite_is_null() -> None:
    text = strict_json.dumps({"a": [float("nan"), 1.5, (float("inf"), "é")], "b": np.float64("-inf")})
    assert text == '{"a": [null, 1.5, [null, "é"]], "b": null}'


@given(VALUES)
def test_any_value_is_read_back_by_a_strict_reader(value: object) -> None:
    read = json.loads(strict_json.dumps(value, indent=2), parse_constant=pytest.fail)
    assert strict_json.dumps(read) == strict_json.dumps(value)
