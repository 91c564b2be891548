"""Faults in pre-training and in the reading of backbones."""

from faults.fault import Fault

FAULTS = [
    # reading of backbones
    Fault("weights-not-finite", "mmlfer_commands/_backbones.py",
          "not given.to_dense().isfinite().all()", "given.to_dense().isnan().all()",
          "training_details::test_weights_that_are_not_finite_are_refused"),
    Fault("imagenet-not-loaded", "mmlfer_commands/_backbones.py",
          'net.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})',
          "pass", "training_details::test_imagenet_tensors_are_all_loaded"),
    Fault("bgr-not-turned", "mmlfer_commands/_backbones.py",
          "].flip(1)", "].flip(0)", "weights::test_weights_trained_on_bgr_see_the_same_with_rgb"),
    Fault("imagenet-normalisation-lost", "mmlfer_commands/_backbones.py",
          '"imagenet" if norm == "auto" else norm', '"half" if norm == "auto" else norm',
          "weights::test_imagenet_brings_its_tensors_and_its_normalisation"),
    Fault("casia-of-current-folder-first", "mmlfer_commands/_backbones.py",
          "in (HERE / casia, casia):", "in (casia, HERE / casia):",
          "weights::test_auto_takes_the_casia_file_of_the_checkout_then_of_the_current_folder"),
    Fault("casia-not-found", "mmlfer_commands/_backbones.py",
          "in (HERE / casia, casia):", "in ():",
          "weights::test_auto_takes_the_casia_file_of_the_checkout_then_of_the_current_folder"),
    Fault("misfits-not-finite", "mmlfer_commands/_backbones.py",
          "elif not given.to_dense().isfinite().all():", "elif False:",
          "training_details::test_weights_that_are_not_finite_are_refused"),
    # pre-training
    Fault("pretrain-share-with-margin", "mmlfer_commands/pretrain.py",
          "(cosines.argmax(1) == y)", "(logits.argmax(1) == y)",
          "pretrain::test_a_step_is_the_loss_on_flipped_faces_with_the_margin_after_the_warm_up"),
    Fault("pretrain-gradients-add-up", "mmlfer_commands/pretrain.py",
          "    run.sgd.zero_grad()\n", "",
          "pretrain::test_a_step_is_the_loss_on_flipped_faces_with_the_margin_after_the_warm_up"),
    Fault("pretrain-without-a-lock", "mmlfer_commands/pretrain.py",
          "contextlib.nullcontext() if world.rank else",
          "contextlib.nullcontext() if True else",
          "pretrain::test_a_file_has_one_process_at_a_time"),
]
