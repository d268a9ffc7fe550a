"""Secrets in texts that a manifest keeps."""

from wellread import provenance


def test_a_password_in_an_address_is_masked() -> None:
    text = "see https://ada:pa55@example.org/x, http://example.org:80/a@b, mail ada@example.org"
    assert provenance.without_secrets(text) == text.replace("ada:pa55@", "[secret]@")
