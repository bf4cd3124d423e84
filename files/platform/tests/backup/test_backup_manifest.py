"""Set ids, signatures, verifications and retention: properties that hold for all values."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.backup import manifest, retention, verification
from n8n_platform.backup.config import Gfs
from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.sets import Found

MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC))
HOSTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(st.text(), JSON).map(lambda found: {**found, "format": 1})


@given(MOMENTS, HOSTS)
def test_ids_can_be_read_back(moment: datetime, host: str) -> None:
    found = manifest.set_id(moment, host)
    assert manifest.parse_id(found) == (moment.replace(microsecond=0), host)
    assert "/" not in found


@given(st.lists(MOMENTS, min_size=2), HOSTS)
def test_ids_sort_by_time(moments: list[datetime], host: str) -> None:
    ids = sorted(manifest.set_id(moment, host) for moment in moments)
    assert [manifest.parse_id(found) for found in ids] == sorted(
        (moment.replace(microsecond=0), host) for moment in moments
    )


@pytest.mark.parametrize("host", ["", "../x", "a/b", "a b", "-x"])
def test_hosts_that_are_no_file_names(host: str) -> None:
    with pytest.raises(BackupError, match="cannot be part of a file name"):
        manifest.set_id(datetime.now(UTC), host)


@pytest.mark.parametrize("text", ["", "latest", "20261122T000000Z", "20261322T000000Z-h", "20261122T000000Z-../x"])
def test_what_is_no_id(text: str) -> None:
    assert manifest.parse_id(text) is None


@given(DOCUMENTS, st.text(min_size=1))
def test_signatures_survive_the_file(document: dict[str, Any], key: str) -> None:
    signed = manifest.sign(document, key)
    assert manifest.decode(manifest.encode(signed), key, "it") == signed
    # The order of names in the file makes no difference.
    shuffled = json.dumps(dict(reversed(signed.items())), indent=7).encode()
    assert manifest.decode(shuffled, key, "it") == signed


@given(DOCUMENTS, st.text(min_size=1), st.text(min_size=1), JSON)
def test_any_change_breaks_the_signature(document: dict[str, Any], key: str, name: str, value: Any) -> None:
    signed = manifest.sign(document, key)
    changed = {**signed, name: value}
    if manifest.canonical(changed) == manifest.canonical(signed) and changed["signature"] == signed["signature"]:
        return
    with pytest.raises(manifest.SignatureError):
        manifest.decode(manifest.encode(changed), key, "it")
    with pytest.raises(manifest.SignatureError, match="another backup_manifest_key"):
        manifest.decode(manifest.encode(signed), key + "x", "it")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"{", b'{"signature": 1}', b"\xff"])
def test_damaged_documents(data: bytes) -> None:
    with pytest.raises(manifest.SignatureError, match="is damaged"):
        manifest.decode(data, "key", "the manifest")


def test_documents_of_a_newer_program() -> None:
    data = manifest.encode(manifest.sign({"format": 2}, "key"))
    with pytest.raises(manifest.SignatureError, match="Use the newer collection"):
        manifest.decode(data, "key", "it")
    assert manifest.decode(manifest.encode({"format": 1, "signature": "?"}), None, "it")["format"] == 1


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_files_never_lead_out_of_the_set(name: str) -> None:
    with pytest.raises(manifest.SignatureError, match="impossible name"):
        manifest.files({"files": [{"name": name, "part": "n8n", "size": 1, "sha256": ""}]})


def test_the_fingerprint_is_stable() -> None:
    # Computed with: printf '%s' 'n8n-platform encryption key fingerprint v1' | openssl dgst -sha256 -hmac key
    assert manifest.fingerprint("key") == "9c11eedea211315b7a8165451354e9e0"
    assert manifest.fingerprint("key2") != manifest.fingerprint("key")


# --- verification ----------------------------------------------------------------------------------------------------


def entry(by: str, result: str, at: str) -> dict[str, Any]:
    """Return an entry."""
    return {"at": f"2026-11-{at}T00:00:00+00:00", "by": by, "result": result, "detail": f"{by} {at}"}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], ("", "")),
        ([entry("checksums", "ok", "01")], ("ok", "checksums")),
        ([entry("checksums", "ok", "02"), entry("drill", "failed", "01")], ("failed", "drill")),
        ([entry("drill", "ok", "02"), entry("drill", "failed", "01")], ("ok", "drill")),
        ([entry("drill", "ok", "01"), entry("checksums", "ok", "02"), entry("archive", "ok", "03")], ("ok", "drill")),
        ([entry("checksums", "ok", "01"), entry("checksums", "failed", "02")], ("failed", "checksums")),
    ],
)
def test_what_entries_say_together(entries: list[dict[str, Any]], expected: tuple[str, str]) -> None:
    found = verification.state(entries)
    assert (found.result, found.by) == expected
    assert found.ok == (expected[0] == "ok")


def test_verifications_are_signed_and_belong_to_their_set() -> None:
    entries = [entry("checksums", "ok", "02"), entry("drill", "ok", "01")]
    data = verification.document("a", entries, "key")
    assert verification.parse(data, "a", "key") == entries
    assert verification.parse(data, "b", "key") == []
    assert verification.parse(data, "a", "other") == []
    assert verification.parse(None, "a", "key") == []
    made = verification.entry("drill", [], 12.5, 3.0, "well")
    assert (made["result"], made["rto_seconds"], made["detail"]) == ("ok", 12.5, "well")
    assert verification.entry("drill", ["a", "b"])["detail"] == "a; b"


# --- retention -------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def found(hours: float, host: str = "h", complete: bool = True, result: str = "ok", problem: str = "") -> Found:
    """Return a set of an age."""
    at = NOW - timedelta(hours=hours)
    document = {} if problem else {"complete": complete, "files": []}
    return Found(manifest.set_id(at, host), at, host, document, verification.State(result), problem)


SETS = st.lists(
    st.builds(
        found,
        st.integers(-100, 24 * 400),
        st.sampled_from(["h", "h", "other"]),
        st.booleans(),
        st.sampled_from(["ok", "failed", ""]),
        st.sampled_from(["", "", "", "damaged"]),
    ),
    max_size=60,
    unique_by=lambda entry: entry.id,
)
GFS = st.none() | st.builds(Gfs, st.integers(0, 10), st.integers(0, 10), st.integers(0, 14))


@given(SETS, st.integers(0, 60), st.integers(0, 5), GFS)
def test_what_is_never_deleted(sets: list[Found], days: int, minimum: int, gfs: Gfs | None) -> None:
    decisions = retention.plan(sets, NOW, "h", days, minimum, gfs)
    assert sorted(entry.found.id for entry in decisions) == sorted(entry.id for entry in sets)
    gone = [entry.found for entry in decisions if not entry.keep]
    past = [entry for entry in sets if entry.host == "h" and not entry.problem and entry.at <= NOW]
    good = sorted((entry for entry in past if entry.complete and entry.verified.result != "failed"), key=lambda e: e.id)
    verified = [entry for entry in good if entry.verified.ok]
    assert all(entry.host == "h" and not entry.problem for entry in gone)
    assert all(NOW - entry.at >= timedelta(days=days) for entry in gone)
    assert not verified or verified[-1] not in gone
    assert not [entry for entry in good[len(good) - minimum :] if minimum and entry in gone]
    if any(entry.host == "h" and entry.at > NOW + retention.TOLERANCE for entry in sets):
        assert gone == []
    assert all(entry.reason for entry in decisions)


@given(SETS, st.integers(0, 60), GFS)
def test_deciding_again_changes_nothing(sets: list[Found], days: int, gfs: Gfs | None) -> None:
    kept = [entry.found for entry in retention.plan(sets, NOW, "h", days, 3, gfs) if entry.keep]
    assert all(entry.keep for entry in retention.plan(kept, NOW, "h", days, 3, gfs))


@given(SETS, st.integers(0, 60), GFS)
def test_a_clock_in_doubt_deletes_nothing(sets: list[Found], days: int, gfs: Gfs | None) -> None:
    assert all(entry.keep for entry in retention.plan(sets, NOW, "h", days, 3, gfs, "the clock leapt"))


def test_nightly_sets_and_generations() -> None:
    nightly = [found(24 * age + 10) for age in range(400)]
    kept = [entry for entry in retention.plan(nightly, NOW, "h", 7, 3) if entry.keep]
    assert len(kept) == 7
    generations = Gfs(daily=10, weekly=4, monthly=12)
    kept = [entry for entry in retention.plan(nightly, NOW, "h", 7, 3, generations) if entry.keep]
    reasons = "\n".join(entry.reason for entry in kept)
    assert "is the monthly one of 2025-12" in reasons
    assert "is the weekly one of 2026 week 45" in reasons
    # Ten days; of four weeks and twelve months the newest night each, the newest of both are among the days.
    assert len(kept) == 10 + 2 + 11


def test_old_sets_stay_when_nothing_new_comes() -> None:
    old = [found(24 * age, result="ok" if age == 103 else "") for age in range(100, 106)]
    decisions = {entry.found.id: entry for entry in retention.plan(old, NOW, "h", 7, 2)}
    assert [decisions[entry.id].keep for entry in old] == [True, True, False, True, False, False]
    assert decisions[old[3].id].reason == "is the newest verified one"
    assert decisions[old[5].id].reason == "is 105 days old, 7 days are kept"
