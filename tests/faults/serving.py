"""Faults in the server and its page."""

from faults.fault import Fault

SERVE, PAGE = "mmlfer_commands/serve.py", "mmlfer_commands/page.html"
LARGE = "serve::test_large_bodies_and_large_pictures"
BROKEN = "serve::test_bodies_that_arrive_slowly_broken_or_not_at_all"
END = "serve::test_nothing_was_written_and_ctrl_c_ends_it_in_a_second"
FOR = "page::test_what_speaks_for_and_against_the_first_expression"
CAMERA = "page::test_the_camera_starts_and_stops_and_sends_one_frame_at_a_time"

FAULTS = [
    Fault("serve-any-host", SERVE, 'if number != str(self.port) or not self.is_called(name):',
          "if number != str(self.port):", "serve::test_pages_elsewhere_get_nothing"),
    Fault("serve-any-origin", SERVE, 'if origin is not None and origin.lower() != f"http://{target}":',
          "if False:", "serve::test_pages_elsewhere_get_nothing"),
    Fault("serve-origin-by-its-end", SERVE, 'origin.lower() != f"http://{target}"', "not origin.lower().endswith(target)",
          "serve::test_pages_elsewhere_get_nothing"),
    Fault("serve-names-that-begin-alike", SERVE, 'return name.strip("[]") in (self.host.lower(), str(self.bound))',
          "return name.startswith(self.host.lower()) or name == str(self.bound)", "serve::test_which_hosts_are_its_own"),
    Fault("serve-to-the-network", SERVE, '@click.option("--host", default="127.0.0.1"', '@click.option("--host", default="0.0.0.0"',
          "serve::test_it_listens_at_this_machine_alone_by_default"),
    Fault("serve-policy-of-anything", SERVE, '''f"default-src 'self'; script-src''', '''f"default-src *; script-src''',
          "serve::test_the_page_allows_its_own_parts_and_nothing_from_elsewhere"),
    Fault("serve-keeps-what-is-too-large", SERVE, "        if size <= MAX_BYTES:\n", "        if True:\n",
          "serve::test_a_body_that_is_too_large_is_not_kept"),
    Fault("serve-any-size", SERVE, "    if size > MAX_BYTES:\n        raise", "    if False:\n        raise", LARGE),
    Fault("serve-any-pixels", SERVE, "if n > MAX_PIXELS:", "if False:", LARGE),
    Fault("serve-starts-ghostscript", SERVE, ", formats=KINDS)", ")",
          "serve::test_postscript_is_not_read_though_pillow_could_with_another_program"),
    Fault("serve-two-at-a-time", SERVE, "ThreadPoolExecutor(1)\n        self.turn, self.taken = asyncio.Lock(), 0",
          "ThreadPoolExecutor(2)\n        self.turn, self.taken = asyncio.Semaphore(2), 0",
          "serve::test_a_picture_waits_for_its_turn_up_to_a_bound"),
    Fault("serve-places-are-lost", SERVE, "            self.taken -= 1", "            pass",
          "serve::test_500_requests_of_good_and_bad_pictures_by_16_at_a_time"),
    Fault("serve-any-number-waits", SERVE, "if self.taken >= PLACES:", "if False:",
          "serve::test_too_many_waiting_pictures_are_turned_away"),
    Fault("serve-waits-for-the-end-of-work", SERVE, "        os._exit(128 + signal.SIGINT)", "        raise", END),
    Fault("serve-long-grace", SERVE, "GRACE = 0.3", "GRACE = 5", END),
    Fault("serve-logs-names", SERVE, 'log_level="critical", access_log=False', 'log_level="info"', END),
    Fault("serve-wrong-crop", SERVE, "for item, result in zip(items if crops else (), results)",
          "for item, result in zip(items[::-1] if crops else (), results)",
          "serve::test_crops_are_what_the_net_saw_and_gradcam_shows_where_it_looked"),
    Fault("serve-cold-is-hot", SERVE, "colour = 1.5 - abs(4 * heat[..., None] - (3, 2, 1))",
          "colour = 1.5 - abs(4 * heat[..., None] - (1, 2, 3))",
          "serve::test_crops_are_what_the_net_saw_and_gradcam_shows_where_it_looked"),
    Fault("serve-more-than-all", SERVE, "min(int(top), len(expressions))", "int(top)",
          "serve::test_top_names_no_more_expressions_than_there_are"),
    Fault("serve-tells-places", SERVE, 'Path(config["data"]).name', 'config["data"]',
          "serve::test_health_describes_the_checkpoint"),
    Fault("page-unsorted", PAGE, ".sort((a, b) => b[1] - a[1])", "",
          "page::test_a_chosen_picture_is_answered_as_predict_answers"),
    Fault("page-called-for-by-another", PAGE, "facts.table[facts.expressions.indexOf(first)]", "facts.table[0]", FOR),
    Fault("page-all-speak-for", PAGE, "seen.filter(a => a.share > 0)", "seen", FOR),
    Fault("page-first-face-alone", PAGE, "shown.results.find(r => r.face === chosen) || shown.results[0]", "shown.results[0]",
          "page::test_two_faces_and_the_second_selected_by_mouse_and_keyboard"),
    Fault("page-focus-lost", PAGE, "  if (again) again.focus();", "",
          "page::test_two_faces_and_the_second_selected_by_mouse_and_keyboard"),
    Fault("page-boxes-of-the-screen", PAGE, "drawBoxes(image.naturalWidth, image.naturalHeight)", "drawBoxes(image.width, image.width)",
          "page::test_two_faces_and_the_second_selected_by_mouse_and_keyboard"),
    Fault("page-two-headers", PAGE, 'text ? table.slice(table.indexOf("\\n") + 1) : table;', "table;",
          "page::test_the_downloads_are_what_predict_writes"),
    Fault("page-crops-in-json", PAGE, ".map(({crop, cam, ...told}) => told)", "", "page::test_the_downloads_are_what_predict_writes"),
    Fault("page-errors-unseen", PAGE, '  $("errors").hidden = false;', "",
          "page::test_what_cannot_be_read_is_reported_and_the_others_are_answered"),
    Fault("page-camera-stays-on", PAGE, "for (const track of stream.getTracks()) track.stop();", "", CAMERA),
    Fault("page-frames-in-parallel", PAGE, "const results = await (await ask(predictPath(\"camera\", {crops: 1}), blob)).json();",
          "const coming = ask(predictPath(\"camera\", {crops: 1}), blob); await wait(5); ask(predictPath(\"camera\"), blob);\n"
          "    const results = await (await coming).json();", CAMERA),
    Fault("page-too-wide", PAGE, ".bars li { display: grid;", ".bars li { min-width: 400px; display: grid;",
          "page::test_on_a_phones_width_nothing_reaches_beyond_it"),
    Fault("page-without-outlines", PAGE, ":focus-visible { outline: 3px solid var(--accent);", ":focus-visible { outline: none;",
          "page::test_a_sample_by_the_keyboard_alone"),
    Fault("page-pale", PAGE, "--soft: #53606d", "--soft: #93a0ad", "page::test_contrast"),
    Fault("page-asks-elsewhere", PAGE, '<link rel="icon" href="data:', '<link rel="stylesheet" href="https://example.org/a.css">'
          '<link rel="icon" href="data:', "page::test_not_one_request_went_elsewhere"),
]
