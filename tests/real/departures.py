"""Where other servers differ from S3: tests that cannot pass there, and why.

Only what the server does differently stands here. What s3dcp makes of it is in ``test_departures.py``.
"""

from __future__ import annotations

import pytest

NO_CHECKSUMS = "checksums are neither verified nor kept"
PEERS_ETAG = "the reference package's client wants an ETag that the answer lacks"

BY_SERVER: dict[str, dict[str, str]] = {
    "rgw": {
        "test_a_bucket_is_made_once": "making a bucket again is no error",
        "test_a_bucket_tells_its_region": "buckets tell no region",
        "test_a_composite_checksum_is_of_the_parts_checksums": NO_CHECKSUMS,
        "test_a_conditional_completion_holds": "conditions of CompleteMultipartUpload are ignored",
        "test_a_copy_of_another_object_than_expected_is_refused": "the condition is ignored",
        "test_a_longer_key_is_refused": "the code is InvalidObjectName",
        "test_a_made_up_continuation_token_is_refused": "a continuation token is a key like any other",
        "test_a_multipart_upload_has_one_checksum_of_the_whole_object": NO_CHECKSUMS,
        "test_a_part_with_another_algorithm_than_its_upload_is_refused": NO_CHECKSUMS,
        "test_a_put_that_wants_an_object_replaces_no_other": "If-Match compares with the quotes of an ETag",
        "test_a_repeated_completion_answers_like_the_first": "the answer to CompleteMultipartUpload has no ETag",
        "test_checksums_in_headers_are_verified_and_returned": NO_CHECKSUMS,
        "test_checksums_in_trailers_are_verified": "bodies with a trailer are refused",
        "test_completing_an_upload_checks_its_parts": "parts out of order are InvalidPart",
        "test_copies_have_the_checksum_of_their_bytes": NO_CHECKSUMS,
        "test_from_the_reference_to_us": PEERS_ETAG,
        "test_of_racing_conditional_writers_exactly_one_wins[rgw-multipart]": (
            "conditions of CompleteMultipartUpload are ignored"
        ),
        "test_parts_can_be_read_by_number": "the number of a part is ignored",
        "test_the_peers_client_reads_writes_and_lists": PEERS_ETAG,
        "test_uploads_of_one_key_are_listed_in_the_order_they_began": "uploads are listed by their ids",
        "test_we_overwrite_what_the_reference_wrote_and_leave_nothing_of_it": PEERS_ETAG,
        "test_we_read_what_the_reference_wrote": PEERS_ETAG,
        "test_what_is_damaged_on_the_way_to_the_server_is_sent_again": NO_CHECKSUMS,
    },
    "garage": {},
}


def reason(server: str, item: pytest.Item) -> str | None:
    """Why this test fails on this server; None where it must pass."""
    expected = BY_SERVER.get(server, {})
    return expected.get(item.name) or expected.get(getattr(item, "originalname", item.name))
