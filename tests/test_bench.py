"""The cost of a step."""

import json

from conftest import invoke


def test_bench_prints_one_object():
    result = invoke("bench", "--batch-size", 2, "--size", 32, "--rounds", 1, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert list(rows) == ["forward", "plain", "create_graph", "jvp"]
    for row in rows.values():
        assert list(row) == ["seconds", "per_forward", "per_plain", "images_per_second", "peak_mb"]
        assert all(v > 0 for v in row.values())
    assert rows["forward"]["per_forward"] == rows["plain"]["per_plain"] == 1
