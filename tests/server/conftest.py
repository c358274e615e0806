"""The decoder processes that the services of the tests share end with the tests."""

from __future__ import annotations

import pytest

from tests.server.service import end_shared_pools


@pytest.fixture(scope="session", autouse=True)
def _end_decoders():
    yield
    end_shared_pools()
