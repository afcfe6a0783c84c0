import io

from shared.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def go(stream, steps=4):
    progress = Progress(0, steps, stream=stream, every_s=0.0)
    for step in range(1, steps + 1):
        progress.step()
        progress.report(step, {"loss": 1 / step, "accuracy": step / steps, "other": 7.0}, 2.0)
        if step == 2:
            progress.evaluated(step, {"test/accuracy": 0.25})
    progress.close()
    return stream.getvalue()


def test_without_a_terminal_there_is_a_plain_line_now_and_then():
    lines = go(io.StringIO()).splitlines()
    assert lines[0] == "step 1/4  loss 1  accuracy 0.25  2 steps/s  0:02 left"
    assert lines[2].endswith("0:00 left  (step 2:  test/accuracy 0.25)")
    assert not any(character in "".join(lines) for character in "\r\x1b")
    assert "other" not in "".join(lines)


def test_lines_are_seconds_apart_and_the_last_is_always_there():
    stream = io.StringIO()
    progress = Progress(0, 1000, stream=stream, every_s=3600.0)
    for step in range(1, 1001):
        progress.report(step, {"loss": 1.0}, 10.0)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/1000", "1000/1000"]


def test_a_terminal_gets_a_bar_with_loss_accuracy_rate_and_time_left():
    told = go(Terminal())
    assert "\r" in told
    assert "4/4 [" in told
    assert "step/s" in told
    assert "<00:00" in told  # tqdm's elapsed<left
    assert "accuracy=1" in told
    assert "loss=0.25" in told
    assert "step 2/4  test/accuracy 0.25" in told


def test_quiet_writes_nothing():
    stream = io.StringIO()
    progress = Progress(0, 4, show=False, stream=stream)
    progress.report(4, {"loss": 1.0}, 1.0)
    progress.close()
    assert stream.getvalue() == ""
