"""Faults of a sample that was drawn by reading the source alone, and that no test noticed at that time."""

from faults.fault import Fault

EVAL, RESULTS, TABLE = "mmlfer_commands/eval.py", "mmlfer_commands/_results.py", "mmlfer_commands/table.py"
SEARCH, PLOT = "mmlfer_commands/search.py", "mmlfer_commands/plot.py"
PREDICT, VIDEO = "mmlfer_commands/predict.py", "mmlfer_commands/video.py"

FAULTS = [
    Fault("moves-of-the-stream-of-batches", "mmlfer.py", "Stream.MOVES, epoch]", "Stream.BATCHES, epoch]",
          "augment::test_moves_are_drawn_by_the_seed_and_the_epoch_from_a_stream_of_their_own"),
    Fault("eval-of-trained-unsaid-in-validation", EVAL, 'if trained and split != "train":', 'if trained and split == "test":',
          "runs::test_eval_says_so_when_test_images_were_trained_on"),
    Fault("eval-describes-the-part-alone", EVAL, "describe(everything, data)", "describe(faces, data)",
          "train::test_eval_gives_what_training_reported"),
    Fault("table-of-images-in-any-order", RESULTS, "json.dumps(names).encode()", "json.dumps(sorted(names)).encode()",
          "table::test_table_refuses_what_it_cannot_put_in_one_table"),
    Fault("export-of-folders-of-one-name", TABLE, "place = out / path.parent.relative_to(folder)",
          "place = out / path.parent.name", "table::test_an_export_of_an_export_is_the_same"),
    Fault("search-edge-among-the-values-of-one-run", SEARCH, "zip(*(values for _, values in found))", "(values for _, values in found)",
          "table::test_a_search_over_two_options_warns_of_both_edges_and_quotes_words"),
    Fault("confusion-ink-of-the-mirrored-square", PLOT, "if share[k, j] > 50", "if share[j, k] > 50",
          "plot::test_a_number_is_light_or_dark_by_its_own_square"),
    Fault("predict-one-image-without-a-face", PREDICT, "without += 1", "without = 1",
          "predict::test_photographs_without_a_face_are_no_failure"),
    Fault("label-of-one-line-a-text", PREDICT, "textwrap.wrap(text, wide))", "textwrap.wrap(text, wide)[:1])",
          "predict::test_drawn_pictures_say_the_first_expression_and_the_aus"),
    Fault("label-over-the-label-of-a-neighbour", PREDICT, "        taken.append(spot)\n", "",
          "predict::test_labels_of_neighbours_do_not_cover_each_other"),
    Fault("video-batches-of-a-camera", VIDEO, "predict_crops(net, items, 1 if live else BATCH)", "predict_crops(net, items, BATCH)",
          "video_files::test_a_cameras_frames_are_answered_one_by_one_and_a_files_in_batches"),
]
