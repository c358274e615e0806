"""schemathesis holds the service to its own description. $FMCNET_OPENAPI sets the cases of each route (8)."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks

from fmcnet.server.app import create_app
from fmcnet.server.limits import Limits
from tests.server.process import started, until_it_answers
from tests.server.service import KEYS, SECRETS, bearer, files, png

CASES = int(os.environ.get("FMCNET_OPENAPI", "8"))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with started(tmp_path_factory.mktemp("openapi"), keys=SECRETS, wait=0.0005) as (process, address):
        until_it_answers(address)
        sent = {"modality": "visible", "id": ["a", "b"], "camera": "gate"}
        reply = httpx.post(f"{address}/v1/entries", files=files(1, 2), data=sent, headers=bearer("admin"))
        assert reply.status_code == 201
        yield address
        assert httpx.get(f"{address}/readyz").status_code == 200
        process.terminate()
        process.wait(60)
        assert "Traceback" not in "".join(process.said)


DESCRIBED = create_app(
    SimpleNamespace(limits=Limits(), metrics=None, audit=None, read_only=False), KEYS
).openapi()
"""Of a service that does not run: schemathesis wants to know the routes before any test starts."""
description = schemathesis.openapi.from_dict(DESCRIBED)


def test_the_description_is_the_one_that_is_served(address):
    assert httpx.get(f"{address}/openapi.json").json() == json.loads(json.dumps(DESCRIBED))


@description.parametrize()
@settings(
    max_examples=CASES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case, address):
    """Statuses, types and forms of answers; what is not described is refused; no route is open without a key.

    What the description cannot say (ids without line breaks, one condition at least) is refused though it fits.
    """
    left_out = [checks.positive_data_acceptance]
    if case.meta.generation.mode.is_positive and isinstance(case.body, dict) and "images" in case.body:
        case.body = {**case.body, "images": [png(1)], "modality": ["visible"]}
        left_out.append(checks.negative_data_rejection)  # schemathesis holds bytes to be no string
    case.call_and_validate(base_url=address, headers=bearer("admin"), excluded_checks=left_out)
