"""The contract of the managers and their stores on a Cluster: pytest finds these by their names in this module.

What is left out, and why, is in ``test_cluster_reach``.
"""

# ruff: noqa: F401, F403

from __future__ import annotations

from test_buffer_store import (
    buffer,
    test_a_limit_cuts_no_exchange,
    test_a_limit_gives_the_newest,
    test_at_the_message_cap_the_oldest_go,
    test_at_the_token_cap_the_oldest_go,
    test_clearing_the_buffer_of_a_durable_manager_loses_nothing,
    test_clearing_the_buffer_of_an_ephemeral_manager_leaves_the_summary,
    test_facts_about_the_buffer,
    test_messages_come_back_oldest_first,
    test_the_buffer_of_a_manager_is_the_end_of_its_session,
    test_two_buffers_are_two_views_of_one,
    test_when_a_summary_is_due,
)
from test_buffer_store import (
    test_a_message_larger_than_the_cap_stands_alone as test_a_message_larger_than_the_cap_stands_alone_of_buffers,
)
from test_buffer_store import (
    test_clearing as test_clearing_of_buffers,
)
from test_cluster import nodes, raw, redis_url
from test_concurrency import (
    pair,
    test_a_fold_that_was_overtaken_does_no_harm,
    test_a_reader_never_sees_caps_that_are_not_kept,
    test_a_rebuild_never_puts_an_old_state_in_place,
    test_a_session_cleared_between_log_and_redis_stays_cleared,
    test_appends_may_reach_redis_in_another_order,
    test_clearing_while_others_write_resurrects_nothing,
    test_limits_change_while_others_write,
    test_limits_set_between_log_and_redis_hold,
    test_sixty_four_tasks_on_one_session,
    test_summaries_added_while_others_fold,
    test_the_same_appends_from_everywhere_have_one_effect,
)
from test_healing import (
    test_a_batch_after_a_killed_connection_is_stored_once,
    test_a_copy_from_before_a_clearing_is_replaced_by_the_next_append,
    test_a_copy_from_before_a_fold_is_replaced_by_the_next_append,
    test_a_copy_of_an_earlier_moment_is_replaced_by_the_next_append,
    test_an_evicted_summary_is_said_to_be_lost,
    test_garbage_for_a_context_object_is_none,
    test_garbage_in_the_history_is_left_out,
    test_messages_logged_while_redis_knew_nothing_of_them,
    test_random_damage_over_and_over,
)
from test_memory_manager import (
    test_a_batch_has_an_end,
    test_a_batch_keeps_its_order,
    test_a_batch_of_messages_each_larger_than_the_cap,
    test_a_breaker_may_be_brought_along,
    test_a_cleared_session_begins_anew,
    test_a_fold_due_runs_in_the_background,
    test_a_manager_has_defaults_of_its_own,
    test_a_message_larger_than_the_cap_stands_alone,
    test_a_repeated_append_has_one_effect,
    test_a_retry_finds_what_was_folded_away_meanwhile,
    test_a_session_that_was_never_written_is_empty,
    test_a_soft_fold_never_splits_a_call_from_its_results,
    test_a_trigger_is_held_against_the_cap_of_its_session,
    test_a_turn_returns_the_context_with_its_message,
    test_a_with_block_closes,
    test_an_async_with_block_closes,
    test_any_printable_text_is_a_message_id,
    test_batches_may_be_larger_than_a_buffer,
    test_clearing_leaves_no_byte,
    test_closing_finishes_the_folds,
    test_closing_is_no_end,
    test_deadlines_with_a_log,
    test_each_limit_is_obeyed_by_another_process,
    test_every_write_moves_the_deadline_of_the_whole_session,
    test_health,
    test_hostile_ids_are_sessions_of_their_own,
    test_limits_of_a_session,
    test_lowered_caps_hold_for_the_next_context_of_every_process,
    test_messages_come_back_equal_from_either_store,
    test_no_context_ever_holds_more_messages_than_the_cap,
    test_no_context_ever_holds_more_tokens_than_the_cap,
    test_no_key_is_without_a_deadline,
    test_one_deadline_without_a_log,
    test_receipts_count_from_one,
    test_stats,
    test_tenants_do_not_see_each_other,
    test_the_caps_of_this_module_are_those_of_the_helper,
    test_the_context_holds_what_was_added,
    test_the_context_object_is_no_message,
    test_the_context_object_of_either_generation,
    test_the_same_id_with_another_message_is_refused,
    test_what_was_read_belongs_to_the_reader,
)
from test_mending import *
from test_overtaken_appends import *
from test_overtaken_rebuild import *
from test_overtaken_summaries import *
from test_pins import *
from test_recall import *  # type: ignore[assignment]  # both have a helper of that name, for themselves
from test_refining import *
from test_summary_store import (
    summaries,
    test_a_limit_may_be_larger_than_any_history,
    test_clearing_what_never_was,
    test_deadlines,
    test_folds_write_versions_that_meet,
    test_history_is_oldest_first,
    test_metadata_comes_back_equal,
    test_no_more_than_a_hundred_versions_without_a_log,
    test_one_text_above_the_budget_is_shortened,
    test_texts_are_joined_into_one_summary,
    test_texts_come_back_equal,
    test_the_whole_stays_within_its_budget,
    test_there_is_none_at_first,
    test_versions_say_where_they_come_from,
    test_what_is_added_beside_a_conversation_joins_its_summary,
    test_what_was_summarised_stays_covered_after_clearing,
)
from test_summary_store import (
    test_clearing as test_clearing_of_summaries,
)
from test_summary_store import (
    test_stats as test_stats_of_summaries,
)

pytest_plugins = ("memory_fixtures",)
