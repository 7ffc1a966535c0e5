"""Notes and checkpoints, against notes that other programs signed."""

from __future__ import annotations

import pytest

from scope_runtime.audit.note import Checkpoint, PublicKey, SigningKey
from scope_runtime.errors import AuditError
from tests.support.audit_logs import KEY

# The example in the documentation of Go's golang.org/x/mod/sumdb/note.
GO_PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
GO_SIGNATURE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb"
    "6KE6RyyBwJnAM=\n"
)


def test_what_go_signs_we_sign_alike() -> None:
    key = SigningKey.parse(GO_PRIVATE + "\n")
    assert key.public.text == GO_PUBLIC
    assert key.sign(GO_TEXT) == GO_TEXT + "\n" + GO_SIGNATURE
    assert PublicKey.parse(GO_PUBLIC).signed(GO_TEXT + "\n" + GO_SIGNATURE)
    assert not PublicKey.parse(GO_PUBLIC).signed(
        GO_TEXT.replace("answer", "anwser") + "\n" + GO_SIGNATURE
    )


def test_signatures_of_others_are_passed_over() -> None:
    note = SigningKey("other", bytes(32)).sign("text\n") + KEY.sign("text\n").split("\n\n")[1]
    assert KEY.public.signed(note)
    assert not PublicKey("example.com/audit", bytes(32)).signed(note)
    assert not KEY.public.signed("text\n\n")


def test_a_checkpoint_reads_as_it_was_made() -> None:
    made = Checkpoint.make("example.com/log", 7, bytes(32), KEY)
    assert Checkpoint.parse(made.note) == made
    assert (made.signed, made.signers) == (True, ("example.com/audit",))
    plain = Checkpoint.make("example.com/log", 7, bytes(32), None)
    assert Checkpoint.parse(plain.note) == plain
    assert (plain.signed, plain.signers) == (False, ())


@pytest.mark.parametrize(
    "note",
    [
        "",
        "o\n7\n",
        "o\n07\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n",
        "o\n7\nAAAA\n\n",
        "\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n",
        "o\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB=\n\n",
        "o\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\nx\n",
        "o\n-7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n",
    ],
)
def test_what_is_no_checkpoint(note: str) -> None:
    with pytest.raises(AuditError, match="this is no checkpoint"):
        Checkpoint.parse(note)


def test_keys_that_are_none() -> None:
    for text in ("", "a+b+c", GO_PUBLIC.replace("c74f", "c74e"), KEY.text):
        with pytest.raises(AuditError):
            PublicKey.parse(text)
    for text in ("", GO_PUBLIC, KEY.text[:-8], KEY.text.replace("audit", "audio")):
        with pytest.raises(AuditError) as caught:
            SigningKey.parse(text)
        assert text not in str(caught.value) or not text
    assert "seed" not in repr(KEY)
    with pytest.raises(AuditError, match="a key cannot have this name"):
        SigningKey.generate("with space")
