"""Every fault that a run must survive or refuse, and the tests that show it."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

KILLS = "faults/test_kills.py"
DISK = "faults/test_full_disk.py"
FILES = "faults/test_resumed_files.py"
CHECKPOINT = "runs/test_checkpoint.py"
SAVING = "runs/test_saving.py"
METRICS = "runs/test_metrics_log.py"
LOCK = "runs/test_lock.py"
TRAIN = "runs/test_train.py"
PRUNED = "runs/test_pruned_runs.py"
GROUPS = "runs/test_kept_groups.py"
CAPACITY = "runs/test_capacity.py"
DROPS = "engine/test_drops.py"
PROCESSES = "runs/test_processes.py"
PARTICIPATION = "engine/test_participation.py"
LOG_OF_ROWS = "engine/test_rows_on_disk.py"

FAULTS = {
    "killed between rounds": [
        (KILLS, "test_a_run_survives_the_places_that_matter_most"),
        (KILLS, "test_fedavg_survives"),
    ],
    "killed within the write of a checkpoint": [
        (KILLS, "test_feddp_survives"),
        (CHECKPOINT, "test_a_half_written_checkpoint_is_ignored"),
    ],
    "SIGTERM, SIGHUP and SIGINT within a round": [
        (KILLS, "test_autoflip_on_compacted_rounds_survives"),
        (TRAIN, "test_stopped_and_resumed_run_ends_with_the_same_bits"),
        ("runs/test_interrupt.py", "test_a_run_whose_terminal_is_closed_ends_in_order"),
    ],
    "killed before the first checkpoint": [
        (METRICS, "test_before_the_first_checkpoint_all_rows_are_cut_in_silence"),
        (KILLS, "test_fedavg_survives"),
    ],
    "stopped in the exploration": [
        (GROUPS, "test_groups_of_explorers_that_are_done_are_kept"),
        (GROUPS, "test_groups_that_cannot_be_used_are_explored_again"),
    ],
    "a background save that fails": [
        (SAVING, "test_rounds_go_on_and_an_error_is_told_at_the_next"),
        (SAVING, "test_where_a_round_fails_the_save_before_it_still_counts"),
        (SAVING, "test_a_save_that_cannot_be_read_does_not_count"),
    ],
    "a full disk": [
        (DISK, "test_a_run_goes_on_when_there_is_room"),
        (DISK, "test_what_could_not_be_saved_is_not_begun"),
        (DISK, "test_rows_that_find_no_room"),
    ],
    "the newest checkpoint is damaged": [
        (CHECKPOINT, "test_the_one_before_a_damaged_checkpoint_is_taken"),
        (CHECKPOINT, "test_damaged_rows_are_found_where_rows_are_read"),
    ],
    "all checkpoints are damaged": [
        (CHECKPOINT, "test_where_all_are_damaged_nothing_is_deleted"),
    ],
    "metrics are damaged": [
        (METRICS, "test_rows_behind_a_damaged_line_stay_and_the_line_is_kept_aside"),
        (FILES, "test_rows_of_removed_checkpoints_are_kept_aside"),
    ],
    "resumed, leaf by leaf": [
        (KILLS, "test_feddp_survives"),
        (KILLS, "test_autoflip_on_compacted_rounds_survives"),
        (
            "engine/test_contract.py",
            "test_save_and_restore_between_rounds_changes_no_bit",
        ),
    ],
    "resumed on compacted rounds": [
        (PRUNED, "test_compacted_rounds_end_as_whole_ones"),
        (KILLS, "test_autoflip_on_compacted_rounds_survives"),
    ],
    "resumed on other devices and lanes": [
        (CAPACITY, "test_a_run_goes_on_with_what_another_machine_has"),
        (CAPACITY, "test_a_fixed_order_goes_on_elsewhere_with_the_same_bits"),
    ],
    "resumed with another number of processes": [
        (PROCESSES, "test_a_run_goes_on_with_another_number_of_processes"),
    ],
    "one of several processes is killed, silent or late": [
        (PROCESSES, "test_a_process_is_lost_and_the_same_command_goes_on"),
        (PROCESSES, "test_a_lost_process_is_named_by_its_silence"),
        (PROCESSES, "test_a_process_that_compiles_much_longer_does_no_harm"),
        (PROCESSES, "test_a_failure_of_one_process_ends_all"),
        (PROCESSES, "test_rows_on_disk_survive_a_killed_process"),
        ("engine/test_rows_of_processes.py", "test_any_sequence_of_two_processes"),
    ],
    "rows on disk that are cut, changed or not yet named": [
        (LOG_OF_ROWS, "test_killed_around_the_renaming"),
        (LOG_OF_ROWS, "test_damaged_files_are_found_when_rows_are_restored"),
        ("runs/test_disk_rows.py", "test_rows_after_a_damaged_checkpoint"),
        (
            "runs/test_disk_rows.py",
            "test_a_full_disk_ends_the_run_with_the_last_checkpoint",
        ),
    ],
    "object storage that cannot be used": [
        (
            "runs/test_rows_dir.py",
            "test_storage_that_cannot_be_used_is_told_before_the_first_round",
        ),
        ("runs/test_rows_dir.py", "test_a_bucket_that_cannot_be_used_is_one_line"),
        ("engine/test_row_folder.py", "test_a_write_that_fails_leaves_no_file"),
    ],
    "two runs on one workdir": [
        (LOCK, "test_a_second_process_is_told_who_holds_the_folder"),
        (LOCK, "test_the_holder_notices_that_another_process_has_taken_its_folder"),
    ],
    "a finished run is started again": [
        (TRAIN, "test_finished_run_started_again_only_reports"),
    ],
    "a changed configuration": [
        ("runs/test_workdir.py", "test_all_other_changes_are_refused_and_named"),
        (FILES, "test_the_checkpoint_knows_its_config_where_the_file_is_gone"),
    ],
    "changed data": [(FILES, "test_changed_data_are_refused")],
    "clients whose numbers are not finite": [
        (DROPS, "test_a_dropped_client_equals_a_cohort_without_it"),
        (DROPS, "test_a_message_that_is_not_finite_counts_like_a_loss"),
        (TRAIN, "test_clients_that_diverge_are_dropped_and_named"),
        (TRAIN, "test_diverging_client_stops_the_run_and_is_named"),
    ],
    "clients that do not report or are slow, replayed": [
        (PARTICIPATION, "test_absent_clients_are_missing_and_nothing_else"),
        (PARTICIPATION, "test_lanes_devices_and_order_draw_the_same"),
        (
            PARTICIPATION,
            "test_scaffold_controls_are_the_mean_gradients_of_the_steps_really_made",
        ),
    ],
    "clients that attack": [
        ("engine/test_robust.py", "test_a_bad_client_is_clipped_and_its_row_follows"),
        (
            "engine/test_hostile.py",
            "test_what_each_aggregator_is_worth_with_a_fifth_of_hostile_clients",
        ),
    ],
    "no client is left": [
        (DROPS, "test_a_round_without_arrivals_is_counted_and_changes_nothing"),
        (TRAIN, "test_a_round_whose_clients_all_diverge_is_empty"),
    ],
    "bad pixels and labels": [
        ("data/test_arrays.py", "test_as_dataset_names_the_first_bad_value"),
        ("data/test_numbers.py", "test_labels_that_are_no_class_are_refused"),
    ],
    "clients with no, one or few examples": [
        ("engine/test_cohort.py", "test_a_client_without_examples_has_no_round"),
        ("engine/test_cohort.py", "test_num_steps_counts_the_partial_batch"),
        (DROPS, "test_padding_reads_no_example_of_another_client"),
    ],
    "degenerate masks": [
        (PRUNED, "test_a_layer_without_weights_ends_the_run"),
        (
            "pruning/test_pruning.py",
            "test_equal_guidance_is_pruned_except_for_the_guard",
        ),
    ],
    "a corrupt data folder": [("data/test_load.py", "test_damaged_files_are_named")],
    "impossible splits": [
        ("data/test_partition.py", "test_impossible_splits_say_why"),
        (TRAIN, "test_impossible_split_is_refused_and_leaves_nothing"),
    ],
    "mistakes in the configuration": [
        (
            "runs/test_settings.py",
            "test_all_mistakes_of_a_command_line_are_reported_at_once",
        ),
    ],
    "memory that is too small": [
        ("runs/test_image_memory.py", "test_images_beyond_the_memory_are_refused"),
        ("runs/test_image_memory.py", "test_a_network_beyond_the_memory_is_refused"),
        (PRUNED, "test_what_does_not_fit_is_refused_before_data_are_loaded"),
        (CAPACITY, "test_rows_that_the_host_cannot_hold_are_refused"),
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_tests(fault):
    for file, name in FAULTS[fault]:
        module = ast.parse((TESTS / file).read_text())
        names = {x.name for x in module.body if isinstance(x, ast.FunctionDef)}
        assert name in names, f"{fault}: {file} has no {name}"
