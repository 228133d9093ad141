"""Headers that are for one hop only, and errors of the proxy's own."""

from ts_parity.errors import Overloaded, error_body
from ts_parity.proxy.http.messages import error_response, without_hop_by_hop


def test_hop_by_hop_headers_and_those_that_connection_names_are_dropped():
    headers = (("Connection", "keep-alive, X-Mine"), ("x-mine", "1"), ("Keep-Alive", "1"), ("X-Kept", "2"))
    assert without_hop_by_hop(headers) == (("X-Kept", "2"),)


def test_errors_of_the_proxy_have_torchserves_shape():
    made = error_response(Overloaded("full", retry_after_s=0.2))
    assert (made.status, made.phrase, made.header("retry-after")) == (503, "Service Unavailable", "1")
    assert made.body == error_body(503, "ServiceUnavailableException", "full")
