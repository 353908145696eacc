"""An iteration that is stopped at every line of the outer loop, one after another."""

import pytest

from tests.methods.test_outer_step import STOPPED, assert_stops_leave_no_trace


@pytest.mark.parametrize("name, options", STOPPED)
def test_an_iteration_that_is_stopped_at_any_line_did_not_happen(pair, name, options):
    assert_stops_leave_no_trace(pair, name, options, every=1)
