"""Verifies an audit log that was exported with proof=true, as docs/audit-log.md describes.

    verify_audit_log.py PROOF.ndjson KEYS.json CHECKPOINT.json ...

This shares no code with the service: it is what a customer would write.
"""

import base64
import datetime
import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def canonical(event):
    """Returns the canonical JSON (RFC 8785). The log has neither fractions nor non-ASCII names."""
    return json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def genesis(workspace_id):
    return hashlib.sha256(f"call2me audit chain v1 {workspace_id}".encode()).digest()


ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def month_of(event_id):
    """Returns the month of an event. Its id is a UUIDv7 in base32 (TypeID)."""
    number = 0
    for letter in event_id.removeprefix("event_"):
        number = number * 32 + ALPHABET.index(letter)
    at = datetime.datetime.fromtimestamp((number >> 80) / 1000, datetime.timezone.utc)
    return at.strftime("%Y-%m")


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def verify_checkpoint(checkpoint, key_set):
    """Verifies the signature of a checkpoint and returns its content (RFC 7515, RFC 8037)."""
    head, payload, signature = checkpoint["signature"].split(".")
    header = json.loads(decode(head))
    assert header["typ"] == "audit-checkpoint+jws", "the signature is not that of a checkpoint"
    assert header["alg"] == "EdDSA", "the signature has an unexpected algorithm"
    key = next(key for key in key_set["keys"] if key["kid"] == header["kid"])
    try:
        Ed25519PublicKey.from_public_bytes(decode(key["x"])).verify(
            decode(signature), f"{head}.{payload}".encode()
        )
    except InvalidSignature:
        raise AssertionError("the signature is not genuine") from None
    signed_content = json.loads(decode(payload))
    content = {name: value for name, value in checkpoint.items() if name != "signature"}
    assert signed_content == content, "the signature is that of another checkpoint"
    return signed_content


def main(proof_path, keys_path, *checkpoint_paths):
    with open(keys_path) as file:
        key_set = json.load(file)
    checkpoints = {}
    for path in checkpoint_paths:
        with open(path) as file:
            checkpoint = verify_checkpoint(json.load(file), key_set)
        workspace_id = checkpoint["workspace_id"]
        checkpoints[checkpoint["sequence"]] = checkpoint["hash"]
    # Known hashes of the chain before the first line: at its start, and at the checkpoints.
    known_hashes = {0: genesis(workspace_id).hex(), **checkpoints}
    expected = hash = None
    # The first missing event of each month, and the months that have events.
    missing_months, present_months, dropped_before = {}, set(), ""
    with open(proof_path) as file:
        for text in file:
            line = json.loads(text)
            if expected is None:
                expected = line["sequence"]
                before = known_hashes.get(expected - 1)
                assert before, f"the hash before {expected} is unknown"
                hash = bytes.fromhex(before)
            assert line["sequence"] == expected, f"number {expected} is missing"
            month = month_of(line["event_id"])
            event = line["event"]
            if event is None:
                # The recorded hash is used. The end of this function checks if the event may be
                # missing.
                hash = bytes.fromhex(line["hash"])
                missing_months.setdefault(month, expected)
            else:
                assert event["id"] == line["event_id"], f"number {expected} was changed"
                present_months.add(month)
                digest = hashlib.sha256(canonical(event)).digest()
                hash = hashlib.sha256(hash + digest).digest()
                if event["action"] == "workspace.log_pruned":
                    before = event["metadata"]["before"]
                    # Retention drops whole months that are over.
                    if before.endswith("-01T00:00:00.000000Z") and before <= event["at"]:
                        dropped_before = max(dropped_before, before)
            assert hash.hex() == line["hash"], f"number {expected} was changed"
            assert checkpoints.get(expected, hash.hex()) == hash.hex(), (
                f"the chain does not match the checkpoint at {expected}"
            )
            expected += 1
    for month, sequence in sorted(missing_months.items(), key=lambda item: item[1]):
        assert month not in present_months and month < dropped_before[:7], f"number {sequence} was removed"
    last = (expected or 1) - 1
    for sequence in checkpoints:
        assert sequence <= last, f"the log was cut off after {last}"
    print(f"{last} events verified")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as problem:
        sys.exit(str(problem))
