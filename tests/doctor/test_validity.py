"""When certificates end, read from real ones: trusted or not, ended or not."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from tests.proxy.authority import Authority
from ts_parity.doctor.validity import first_end, not_after, pem_blocks


def test_the_end_is_the_one_that_a_library_reads(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for expired in (False, True):
        chain = pem_blocks(Path(authority.issue(expired=expired)[0]).read_text())
        for der in chain:
            ends = x509.load_der_x509_certificate(der).not_valid_after_utc
            assert not_after(der) == ends.replace(microsecond=0)
        assert first_end(chain) == min(end for der in chain if (end := not_after(der)))


def test_nonsense_has_no_end(tmp_path: Path) -> None:
    (whole, *_) = pem_blocks(Path(Authority(tmp_path).issue()[0]).read_text())
    for cut in range(len(whole)):
        assert not_after(whole[:cut]) is None
    assert first_end([b"", b"\x30", b"\x30\x80", b"nonsense"]) is None
    assert pem_blocks("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----") == []
