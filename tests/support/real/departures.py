"""Where other servers differ from S3, and directory buckets from other buckets: tests that cannot pass there, and why.

Only what the server does differently stands here. What s3dcp makes of it is in ``test_real_s3.py``.
"""

from __future__ import annotations

import pytest


class Sometimes(str):
    """A reason that does not hold in every run."""


NO_CHECKSUMS = "checksums are neither verified nor kept"
NO_SECOND_COMPLETION = "a repeated completion is an internal error"
NO_UPLOADS = "uploads are not listed"
OTHER_ROOT = "the answer to ListParts is no ListPartsResult"
NO_CONDITIONS = "conditional writes are ignored"
ONE_CODE = "every refused signature is AccessDenied"
OTHER_CODE = "another error code"
PEERS_ETAG = "the reference package's client wants the ETag that the answer to CompleteMultipartUpload lacks"

PEERS_HOST = "the reference package's client has a directory bucket in the host's name only, which no address takes"
# How parameters call what the reference package saved.
PEERS = ("theirs", "the reference's", "s3torchconnector")

BY_SERVER: dict[str, dict[str, str]] = {
    "directory": {
        "test_eight_ranks_write_one_large_tensor_alike_and_everyone_reads_it": PEERS_HOST,
        "test_from_the_reference_to_us": PEERS_HOST,
        "test_from_us_to_the_reference_and_to_torch": PEERS_HOST,
        "test_the_reference_reader_reads_what_we_wrote": PEERS_HOST,
        "test_we_overwrite_what_the_reference_wrote_and_leave_nothing_of_it": PEERS_HOST,
        "test_we_read_what_the_reference_wrote": PEERS_HOST,
        "test_a_listing_stops_at_its_limit": "any names of a listing without order are its first",
        "test_an_unsigned_request_is_denied_where_signatures_are_needed": "unsigned is refused before anything is sent",
    },
    "rgw": {
        "test_a_bucket_is_made_once": "making a bucket again is no error",
        "test_a_bucket_tells_its_region": "buckets tell no region",
        "test_a_composite_checksum_is_of_the_parts_checksums": NO_CHECKSUMS,
        "test_a_conditional_completion_holds": "conditions of CompleteMultipartUpload are ignored",
        "test_a_copy_of_another_object_than_expected_is_refused": "the condition is ignored",
        "test_a_longer_key_is_refused": OTHER_CODE,
        "test_a_made_up_continuation_token_is_refused": "a continuation token is a key like any other",
        "test_a_multipart_upload_has_one_checksum_of_the_whole_object": NO_CHECKSUMS,
        "test_a_part_with_another_algorithm_than_its_upload_is_refused": NO_CHECKSUMS,
        "test_a_put_that_wants_an_object_replaces_no_other": "If-Match compares with the quotes of an ETag",
        "test_a_repeated_completion_answers_like_the_first": "the answer to CompleteMultipartUpload has no ETag",
        "test_after_any_sequence_of_saves_every_load_gives_what_the_model_says": Sometimes(
            "a PUT whose connection is closed may be carried out later, after its object was deleted"
        ),
        "test_checksums_in_headers_are_verified_and_returned": NO_CHECKSUMS,
        "test_checksums_in_trailers_are_verified": "bodies with a trailer are refused",
        "test_completing_an_upload_checks_its_parts": OTHER_CODE,
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
        "test_what_others_wrote_is_never_touched[s3torchconnector]": PEERS_ETAG,
    },
    "moto": {
        "test_a_killed_save_leaves_files_and_uploads_that_prune_deletes": OTHER_ROOT,
        "test_what_is_damaged_on_the_way_to_the_server_is_sent_again": NO_CHECKSUMS,
    },
    "s3rver": {
        "test_a_failed_save_that_cannot_delete_says_so_and_keeps_its_error": NO_UPLOADS,
        "test_a_killed_save_leaves_files_and_uploads_that_prune_deletes": NO_UPLOADS,
        "test_a_lost_answer_leaves_a_whole_checkpoint[complete-first]": NO_SECOND_COMPLETION,
        "test_a_lost_answer_leaves_a_whole_checkpoint[complete-overwriting]": NO_SECOND_COMPLETION,
        "test_a_path_without_leftovers_is_told": NO_UPLOADS,
        "test_a_prefix_that_cannot_work_is_refused_and_nothing_written": NO_UPLOADS,
        "test_a_save_that_breaks_off_between_files_commits_none_of_them": NO_UPLOADS,
        "test_a_save_that_breaks_off_leaves_the_old_checkpoint_whole": NO_UPLOADS,
        "test_a_save_that_fails_has_aborted_its_uploads": NO_UPLOADS,
        "test_a_save_that_fails_on_one_rank_leaves_only_what_the_others_completed": NO_UPLOADS,
        "test_a_server_that_honours_conditions_satisfies_a_writer_that_requires_them": NO_CONDITIONS,
        "test_a_stream_that_an_exception_leaves_changes_nothing": NO_UPLOADS,
        "test_paths_of_any_characters_work[x//y]": "a folder without a name is none",
        "test_the_index_is_the_last_thing_a_save_writes": NO_UPLOADS,
        "test_what_is_damaged_on_the_way_to_the_server_is_sent_again": NO_CHECKSUMS,
        "test_what_is_overwritten_while_it_is_read_is_read_whole": "the rest comes from the new object",
        "test_what_others_wrote_is_never_touched": NO_UPLOADS,
    },
    "garage": {
        "test_a_bucket_needs_a_valid_name": OTHER_CODE,
        "test_a_bucket_tells_its_region": "buckets tell no region",
        "test_a_conditional_completion_holds": NO_CONDITIONS,
        "test_a_copy_of_an_object_to_itself_must_change_something": "such a copy is no error",
        "test_a_key_may_have_1024_bytes": "the metadata engine lmdb takes keys of up to some 480 bytes",
        "test_a_longer_key_is_refused": OTHER_CODE,
        "test_a_made_up_continuation_token_is_refused": OTHER_CODE,
        "test_a_multipart_upload_has_one_checksum_of_the_whole_object": OTHER_CODE,
        "test_a_part_with_another_algorithm_than_its_upload_is_refused": OTHER_CODE,
        "test_a_put_that_wants_an_object_replaces_no_other": NO_CONDITIONS,
        "test_a_put_that_wants_no_object_replaces_none": NO_CONDITIONS,
        "test_a_repeated_completion_answers_like_the_first": "a completed upload does not exist any more",
        "test_a_server_that_honours_conditions_satisfies_a_writer_that_requires_them": NO_CONDITIONS,
        "test_a_wrong_secret": ONE_CODE,
        "test_a_wrong_secret_is_denied_and_never_shown": ONE_CODE,
        "test_an_unknown_access_key_is_denied": ONE_CODE,
        "test_an_unknown_bucket": "answers carry no request id",
        "test_any_key_is_kept_listed_and_deleted": "a slash at the start of a key is dropped",
        "test_buckets_are_made_listed_and_deleted": Sometimes("buckets are listed in any order"),
        "test_checksums_in_headers_are_verified_and_returned": "a wrong checksum is InvalidDigest",
        "test_completing_an_upload_checks_its_parts": "parts of any size are joined",
        "test_conditional_reads_hold": "a failed condition of a GET has no error document",
        "test_content_md5_is_verified": OTHER_CODE,
        "test_listings_page_and_group[garage-list_objects]": "groups are repeated on every page",
        "test_listings_start_where_told": "a page holds at least one key",
        "test_of_racing_conditional_writers_exactly_one_wins": NO_CONDITIONS,
        "test_overlapping_async_saves_of_one_path_leave_one_whole_checkpoint": Sometimes(NO_CONDITIONS),
        "test_parts_can_be_read_by_number": OTHER_CODE,
        "test_presigned_urls_work_until_they_are_changed": "signatures of version 2 are refused",
        "test_signatures_are_verified": ONE_CODE,
        "test_the_peers_client_reads_writes_and_lists": "an empty part is refused",
        "test_uploads_are_listed_until_they_end": "uploads are listed by their ids",
        "test_uploads_of_one_key_are_listed_in_the_order_they_began": "uploads are listed by their ids",
    },
}


def reason(server: str, item: pytest.Item) -> str | None:
    """Why this test fails on this server; None where it must pass."""
    expected = BY_SERVER.get(server, {})
    told = expected.get(item.name) or expected.get(getattr(item, "originalname", item.name))
    _, _, parameters = item.name.partition("[")
    if told is None and server == "directory" and any(peer in parameters for peer in PEERS):
        return Sometimes(PEERS_HOST)
    return told
