"""The table of faults that the tests must notice, and the controls of the tool that plants them."""

from faults import answers, data, method, safety, training
from faults.fault import Fault

NEAREST = {  # short names of tests that many faults name
    "theta": "reference::test_theta",
    "psi": "reference::test_psi",
    "log": "reference::test_log",
    "buffers": "reference::test_running_statistics",
    "seeds": "reference::test_seed_reaches_the_net_and_the_batches",
    "am_loss": "losses::test_eq05_to_eq09_match_naive_loops",
    "half": "bilevel::test_psi_starts_at_weights_of_one_half",
    "fixed": "bilevel::test_fixed_weights_are_the_methods",
    "constants": "train::test_constants_of_the_paper_are_the_defaults",
    "resume": "train::test_a_resumed_run_has_its_meta_net_its_schedule_and_its_batches",
    "skip": "images::test_labels_stay_with_their_images_when_bad_ones_are_left_out",
    "numbers": "eval::test_evaluation_of_150_faces_matches_naive_counts",
    "rafce": "data::test_rafce_is_recognised_by_its_counts",
    "nearly": "data::test_data_that_are_nearly_rafce_are_not_called_rafce",
    "labels": "data::test_label_files_as_people_have_them",
    "found": "data::test_images_are_found_where_people_have_them",
    "place": "images::test_the_inner_place_of_an_image_is_preferred",
    "resized": "images::test_images_are_resized_bilinearly",
    "disk": "files::test_a_file_is_whole_on_the_disk_before_it_takes_its_name",
    "least": "data::test_least_numbers_of_images",
    "best": "train::test_best_is_the_first_epoch_of_the_highest_validation_accuracy",
    "tested": "train::test_best_and_last_of_the_test_are_those_checkpoints",
}

UNCHANGED = Fault("control-unchanged", "mmlfer.py", "def loss_au(", "def loss_au(",
                  "losses::test_eq01_matches_naive_loop")
BROKEN = Fault("control-broken", "mmlfer.py", "def loss_au(", "def loss_nothing(",
               "losses::test_eq01_matches_naive_loop")
CONTROLS = {UNCHANGED: "SURVIVED", BROKEN: "killed"}  # what must come out, in every run

FAULTS = [*method.FAULTS, *data.FAULTS, *training.FAULTS, *answers.FAULTS, *safety.FAULTS]
