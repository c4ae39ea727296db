"""What the summary on the screen says."""

import pytest

from eex.stream.run.display import print_summary

ROW = {
    "policy": "ucb:[b]c",
    "frames": 2,
    "accuracy": None,
    "mean_reward": None,
    "exit_shares": {"cloud": 1.0},
    "offloaded_share": 1.0,
    "bytes_offloaded": 0,
    "bytes_per_offloaded_frame": None,
    "seconds": 1.0,
    "frames_per_second": 2.0,
    "latency_ms": {"p50": None},
    "agreement": {"overconfident": False},
}
SOURCE = {
    "name": "photos",
    "images": 3,
    "distortion": "pristine",
    "notes": [],
    "labelled": False,
    "unknown_classes": [],
    "model_classes": ["a"],
    "known_classes": 0,
}


@pytest.mark.parametrize("name", ["cat[copy].jpg", "a[/b].jpg", "[red]x"])
def test_names_are_printed_as_they_are(name, capsys):
    numbers = dict.fromkeys(("mean_overhead", "overhead", "withheld", "fallbacks", "seconds"), 0)
    summary = {
        **numbers,
        "policies": [ROW],
        "frames": 2,
        "send": {"encoding": None},
        "price": "0.1",
        "worker": True,
        "unrecorded": "",
        "skipped": 1,
        "skipped_images": [f"{name}: is truncated"],
        "interrupted": False,
        "by_class": [],
        "folder": f"runs/{name}",
        "source": SOURCE,
    }
    print_summary(summary)
    text = capsys.readouterr().out
    for line in (
        f"1 images skipped: {name}: is truncated",
        f"records and summary: runs/{name}",
        f"eex-report runs/{name}",
    ):
        assert line in text
    assert "[b]c" in text
