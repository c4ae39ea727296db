"""A report of a test reaches the terminal whatever its text holds: a worker of xdist that cannot send one dies."""

import pytest


@pytest.mark.parametrize("text", ["caf\udce9.png", "café", "\ud83d"])
def test_a_report_can_be_sent(request, text):
    report = pytest.TestReport(f"x[{text}]", ("x.py", 1, "x"), {}, "failed", text, "call", sections=[("stdout", text)])
    sent = request.config.hook.pytest_report_to_serializable(config=request.config, report=report)
    assert sent["longrepr"].encode() == sent["sections"][0][1].encode() == text.encode("utf-8", "backslashreplace")
    assert request.config.hook.pytest_report_from_serializable(config=request.config, data=sent).outcome == "failed"
