"""Which of our errors an answer of the API server is, or of a gateway before it."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("lightkube")
import httpx2
from lightkube import ApiError
from lightkube.core.generic_client import GenericClient
from lightkube.models.meta_v1 import Status

from dask_tide.errors import LaunchRejected, QuotaExceeded, Unauthorized, Unavailable, UnparseableReply
from dask_tide.providers.kubernetes.api import Gone, translated

JSON = "application/json"


def status(code: int, message: str = "in its words", **details: Any) -> dict[str, Any]:
    """As the API server says it."""
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "details": details}


def error(code: int, body: Any, **headers: str) -> Exception:
    """What an answer is for us."""
    content = body if isinstance(body, str) else json.dumps(body)
    named = {"Content-Type": JSON} | {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx2.Request("PATCH", "https://example.org/")
    response = httpx2.Response(code, text=content, headers=named, request=request)
    with pytest.raises(Exception) as raised, translated("scaling"):  # noqa: PT011 -- which one is the question
        GenericClient.raise_for_status(response)
    return raised.value


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (401, status(401), Unauthorized),
        (403, status(403), Unauthorized),
        (403, status(403, "exceeded quota: q"), QuotaExceeded),
        (404, status(404), LaunchRejected),
        (410, status(410), Gone),
        (422, status(422), LaunchRejected),
        (429, status(429, retryAfterSeconds=1), Unavailable),
        (500, status(500), Unavailable),
        (503, status(503), Unavailable),
    ],
)
def test_what_the_api_server_says(code: int, body: dict[str, Any], kind: type[Exception]) -> None:
    found = error(code, body)
    assert type(found) is kind
    assert str(found) == f"scaling: {body['message']}"


#: What gateways answer, and the words of it that can be read: Envoy, Kong, gRPC (whose codes are others),
#: Spring; and some that are broken.
BODIES = [
    ({"message": "no healthy upstream"}, "no healthy upstream"),
    ({"error": "rate limited"}, ""),
    ({"code": 14, "message": "upstream unavailable"}, "upstream unavailable"),
    ({"code": 8, "message": "too much", "details": []}, ""),
    ({"status": "Internal Server Error", "code": "E500"}, ""),
    ({}, ""),
    ([], ""),
    ("upstream connect error", ""),
    ("", ""),
    (None, ""),
]


@pytest.mark.parametrize(("body", "message"), BODIES, ids=str)
@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_gateway_that_has_words_of_its_own_is_away_and_rejects_nothing(
    code: int, body: Any, message: str
) -> None:
    found = error(code, body, Retry_After="7")
    assert isinstance(found, Unavailable)
    assert found.retry_after_s == 7.0
    assert str(found) == f"scaling: {message or f'HTTP {code}'}"


@pytest.mark.parametrize("kind", ["text/html", "application/json; charset=utf-8"])
def test_so_is_one_that_says_it_in_another_format(kind: str) -> None:
    found = error(503, "<html>", Content_Type=kind, Retry_After="7")
    assert isinstance(found, Unavailable)
    assert (str(found), found.retry_after_s) == ("scaling: HTTP 503", 7.0)


@pytest.mark.parametrize("code", [400, 404, 410, 422])
def test_what_a_gateway_rejects_is_rejected(code: int) -> None:
    assert type(error(code, {"message": "no such route"})) is LaunchRejected


@pytest.mark.parametrize("code", [401, 403])
def test_whom_a_gateway_does_not_know_has_no_rights(code: int) -> None:
    assert type(error(code, {"message": "who are you"})) is Unauthorized


@pytest.mark.parametrize(
    ("said", "retry_s"),
    [("", 1.0), ("0", 1.0), ("12", 12.0), ("-3", 1.0), ("86400", 60.0), ("Wed, 21 Oct 2015", 1.0)],
)
def test_how_long_to_wait_is_the_servers_word_if_it_can_be_read(said: str, retry_s: float) -> None:
    bodies: list[Any] = [{"message": "x"}, status(503), []]
    for body in bodies:
        found = error(503, body, Retry_After=said)
        assert isinstance(found, Unavailable)
        assert found.retry_after_s == retry_s


def test_how_long_to_wait_is_in_the_status_first() -> None:
    found = error(503, status(503, retryAfterSeconds=5), Retry_After="7")
    assert isinstance(found, Unavailable)
    assert found.retry_after_s == 5.0


def test_an_error_in_a_watch_has_no_answer_of_its_own() -> None:
    for code, kind in ((410, Gone), (500, Unavailable), (None, LaunchRejected)):
        with pytest.raises(kind), translated("watching"):
            raise ApiError(status=Status(code=code, message="x"))


def test_an_answer_that_is_well_and_cannot_be_read_is_another_matter() -> None:
    with pytest.raises(UnparseableReply), translated("listing"):
        json.loads("{")
