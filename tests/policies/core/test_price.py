"""The price of offloading: its text, what it makes of measurements, and budgets that make their own."""

import numpy as np
import pytest

from eex.policies.core.errors import EexError
from eex.policies.core.price import Budget, Meter, Price, TokenBucket, parse_price


@pytest.mark.parametrize(
    ("text", "per_frame", "per_s", "per_mb", "budget"),
    [
        (0.1, 0.1, 0, 0, None),
        (0.123456789, 0.123456789, 0, 0, None),
        ("1e-3", 0.001, 0, 0, None),
        (" 0.05 + 0.2/s + .01/MB ", 0.05, 0.2, 0.01, None),
        ("0.1/s+0.2/s", 0, 0.3, 0, None),
        ("0.05/J@1.3W", 0, 0.065, 0, None),
        ("0.05/J@4J/MB+0.05/J@2W", 0, 0.1, 0.2, None),
        ("1e+1/MB+1e-1/s", 0, 0.1, 10, None),
        ("budget=10/s", 0, 0, 0, Budget(10.0, "/s", 100.0)),
        ("budget=0.5/s", 0, 0, 0, Budget(0.5, "/s", 32.0)),
        ("budget=2MB/s", 0, 0, 0, Budget(2.0, "MB/s", 20.0)),
        ("0.1+budget=20%:50", 0.1, 0, 0, Budget(0.2, "%", 50.0)),
    ],
)
def test_parse(text, per_frame, per_s, per_mb, budget):
    price = parse_price(text)
    np.testing.assert_allclose([price.per_frame, price.per_s, price.per_mb], [per_frame, per_s, per_mb])
    assert price.budget == budget
    assert parse_price(price.text) == price
    assert price.constant == (budget is None and not per_s and not per_mb)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (2, "overhead must lie in [0, 1], units of confidence; got 2"),
        (float("nan"), "overhead must lie in [0, 1]"),
        (-0.1, "overhead must lie in [0, 1]"),
        ("inf", "overhead must lie in [0, 1]"),
        ("0.9+0.9", "a frame's price must lie in [0, 1]"),
        ("cheap", "'cheap' is no price; expected NUMBER, NUMBER/s"),
        ("0.1/ms", "'0.1/ms' is no price"),
        ("0.1/J", "'0.1/J' is no price"),
        ("0.1/s+", "'' is no price"),
        ("", "'' is no price"),
        ("-1/s", "'-1/s' is no price"),
        ("1e999/s", "a price must be finite"),
        ("budget=0/s", "a budget must be more than 0"),
        ("budget=120%", "at most 100 %"),
        ("budget=10", "'budget=10' is no price"),
        ("budget=10/s:0", "what a budget saves up must be more than 0"),
        ("budget=1/s+budget=1MB/s", "there is more than one budget"),
    ],
)
def test_prices_that_cannot_be(text, says):
    with pytest.raises(EexError) as caught:
        parse_price(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_price_is_what_was_measured():
    price = parse_price("0.02+0.2/s+0.5/MB")
    assert price.of(round_trip_ms=100, bytes=20_000) == pytest.approx(0.02 + 0.02 + 0.01)
    assert price.of(float("nan"), 20_000) == pytest.approx(0.03)  # nothing is known of the link yet
    assert price.of(1e9) == 1.0
    assert parse_price("0.05/J@1.3W").of(round_trip_ms=1000) == pytest.approx(0.065)


def test_a_meter_expects_what_it_last_saw():
    meter = Meter(parse_price("0.1+0.5/s+1/MB"), bytes=50_000)
    assert meter.expected(float("nan")) == pytest.approx(0.15)
    assert meter.expected(200.0) == pytest.approx(0.25)
    meter.sent(4, 40_000)
    assert meter.expected(200.0) == pytest.approx(0.21)
    np.testing.assert_allclose(meter.paid(np.zeros(3), 400.0, 20_000), 0.1 + 0.2 + 0.02)
    np.testing.assert_allclose(meter.paid(np.array([0.0, 0.9]), 400.0, 0.0), [0.3, 1.0])
    assert meter.admits(32) == 32
    assert meter.withheld == 0


def test_a_bucket_by_hand():
    bucket = TokenBucket(Budget(2.0, "/s", 10.0))
    assert (bucket.price, bucket.admits(32, 1.0)) == (0.0, 10)
    bucket.spend(4, 99.0)
    assert bucket.price == pytest.approx(0.4)
    bucket.fill(1.0, 1000)
    assert bucket.price == pytest.approx(0.2)
    bucket.spend(8, 0.0)
    assert (bucket.price, bucket.admits(1, 1.0)) == (1.0, 0)
    bucket.fill(1e9, 0)
    assert bucket.price == 0.0

    share = TokenBucket(Budget(0.25, "%", 10.0))
    share.spend(10, 0.0)
    share.fill(1e9, 8)
    assert share.admits(5, 0.0) == 2

    volume = TokenBucket(Budget(1.0, "MB/s", 2.0))
    assert volume.admits(100, 0.25) == 8
    volume.spend(100, 2.5)  # frames were larger than thought: a debt
    assert (volume.price, volume.admits(1, 0.25)) == (1.0, 0)
    volume.fill(0.75, 0)
    assert volume.admits(3, 0.25) == 1


@pytest.mark.parametrize(("unit", "rate", "each"), [("MB/s", 0.001, 0.012), ("%", 0.2, 1.0)])
def test_a_budget_is_spent_though_less_than_a_frame_is_saved_up(unit, rate, each):
    bucket, sent = TokenBucket(Budget(rate, unit, each / 2)), 0
    for _ in range(1000):
        bucket.fill(1.0, 1)
        sent += (admitted := bucket.admits(1, 0.012))
        bucket.spend(admitted, 0.012 * admitted)
    assert sent == pytest.approx(1000 * rate / each, abs=2)


def test_a_meter_counts_what_it_withholds():
    meter = Meter(parse_price("budget=10/s:40"))
    meter.arrive(100.0, 32)
    assert meter.admits(50) == 40
    meter.sent(40, 4000)
    assert (meter.withheld, meter.scarcity) == (10, 1.0)
    meter.arrive(101.0, 32)
    assert meter.admits(32) == 10
    assert (meter.scarcity, meter.admits(1)) == (1.0, 0)  # though none of them has been sent yet
    meter.released(10)
    assert meter.expected(float("nan")) == pytest.approx(0.75)
    meter.arrive(50.0, 32)  # a clock that goes back fills nothing
    assert meter.scarcity == pytest.approx(0.75)
    # paid is the price at the time of the choice, whatever was spent since
    np.testing.assert_allclose(meter.paid(np.array([0.25]), 0.0, 0.0), 0.25)


@pytest.mark.parametrize("share", [5, 20, 50])
def test_a_budget_is_spent_on_the_frames_that_gain_most(share):
    """A chooser that knows each frame's gain and heeds the price earns what the best constant price would."""
    rng = np.random.default_rng(share)
    gain = np.where(rng.random(20_000) < 0.6, rng.beta(2, 5, 20_000), 0.0)
    meter = Meter(parse_price(f"budget={share}%"))
    earned = spent = 0.0
    for start in range(0, len(gain), 32):
        batch = gain[start : start + 32]
        meter.arrive(0.0, len(batch))
        worth = np.flatnonzero(batch > meter.expected(float("nan")))
        sent = worth[: meter.admits(len(worth))]
        if len(sent):
            meter.sent(len(sent), 0.0)
        earned, spent = earned + batch[sent].sum(), spent + len(sent)
    allowed = len(gain) * share / 100
    assert spent <= allowed + meter.bucket.budget.burst
    best = np.sort(gain)[::-1][: int(spent)].sum()
    assert spent > 0.95 * min(allowed, (gain > 0).sum())
    assert earned > 0.95 * best


def test_a_policy_that_ignores_the_price_is_held_to_the_budget():
    meter = Meter(parse_price("budget=10/s"))
    spent = 0
    for second in range(1000):
        meter.arrive(float(second), 100)
        sent = meter.admits(100)
        meter.sent(sent, 0.0)
        spent += sent
    assert spent == 100 + 10 * 999
    assert Price().of() == 0.0


def test_a_meter_goes_on_where_another_was():
    """Time for which nothing streamed brings in no budget."""
    price = parse_price("0.1+1/MB+budget=10/s:40")
    meter = Meter(price, bytes=50_000)
    meter.arrive(100.0, 32)
    assert meter.admits(45) == 40
    meter.sent(30, 600_000)
    meter.released(10)
    other = Meter(price, bytes=50_000)
    other.load_state_dict(meter.state_dict())
    assert (other.bucket.level, other.withheld, other.bytes) == (10.0, 5, 20_000.0)
    assert other.expected(float("nan")) == meter.expected(float("nan"))
    other.arrive(9e9, 32)  # another clock, another day
    assert other.bucket.level == 10.0
    other.arrive(9e9 + 1, 32)
    assert other.bucket.level == 20.0


def test_a_meters_state_fits_its_price():
    meter = Meter(parse_price("budget=10/s:40"))
    with pytest.raises(KeyError):
        meter.load_state_dict(Meter(parse_price("0.1")).state_dict())
    with pytest.raises(ValueError, match="finite"):
        meter.load_state_dict(meter.state_dict() | {"level": np.array(np.nan)})
    meter.load_state_dict(meter.state_dict() | {"level": np.array(1e9)})
    assert meter.bucket.level == 40.0
