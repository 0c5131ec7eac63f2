"""Moments of jobs by hand, across changes of the clocks; and against every minute of a year."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.schedule.times import At, Cron, Every, Times
from streamer.config.cron import CronLine

VIENNA = ZoneInfo("Europe/Vienna")
ZONES = [ZoneInfo(name) for name in ("UTC", "Europe/Vienna", "America/St_Johns", "Australia/Lord_Howe")]


def several(times: Times, since: str, count: int, zone: ZoneInfo = VIENNA) -> list[str]:
    moment = datetime.fromisoformat(since).replace(tzinfo=zone)
    found = []
    for _ in range(count):
        later = times.after(moment)
        assert later is not None
        assert later > moment
        moment = later
        found.append(moment.astimezone(zone).strftime("%m-%d %H:%M%z"))
    return found


def test_an_interval_is_counted_from_the_last_start() -> None:
    moment = datetime(2026, 3, 29, 0, 30, tzinfo=VIENNA)
    assert Every(7200).after(moment) == datetime(2026, 3, 29, 3, 30, tzinfo=VIENNA)


@pytest.mark.parametrize("times", [At([time(2, 30)], VIENNA), Cron("30 2 * * *", VIENNA)])
def test_a_time_of_day_comes_once_a_day_whatever_the_clocks_do(times: Times) -> None:
    assert several(times, "2026-03-28 00:00", 3) == [
        "03-28 02:30+0100",
        "03-29 03:30+0200",
        "03-30 02:30+0200",
    ]
    assert several(times, "2026-10-24 12:00", 2) == ["10-25 02:30+0200", "10-26 02:30+0100"]


def test_a_line_of_every_hour_comes_in_the_repeated_hour_too() -> None:
    half_hours = several(Cron("*/30 * * * *", VIENNA), "2026-10-25 01:30", 5)
    assert half_hours == [
        f"10-25 0{h}" for h in ("2:00+0200", "2:30+0200", "2:00+0100", "2:30+0100", "3:00+0100")
    ]
    spring = several(Cron("*/30 * * * *", VIENNA), "2026-03-29 01:00", 3)
    assert spring == ["03-29 01:30+0100", "03-29 03:00+0200", "03-29 03:30+0200"]


def test_cron_knows_months_weekdays_and_what_never_comes() -> None:
    assert several(Cron("0 6 1 * *", VIENNA), "2026-11-22 00:00", 2) == [
        "12-01 06:00+0100",
        "01-01 06:00+0100",
    ]
    assert several(Cron("0 6 * * mon", VIENNA), "2026-11-22 00:00", 1) == ["11-23 06:00+0100"]
    assert several(Cron("0 0 29 2 *", VIENNA), "2026-11-22 00:00", 1) == ["02-29 00:00+0100"]
    century = Cron("0 0 29 2 *", VIENNA).after(datetime(2096, 3, 1, tzinfo=UTC))
    assert century == datetime(2104, 2, 29, tzinfo=VIENNA), "2100 has no leap day"
    weekends = Cron("0 0 29 2 */6", VIENNA).after(datetime(2088, 3, 1, tzinfo=UTC))
    assert weekends == datetime(2116, 2, 29, tzinfo=VIENNA), "both must fit: Saturdays and Sundays"
    assert Cron("0 0 30 2 *", VIENNA).after(datetime(2026, 1, 1, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("line", "days"),
    [
        ("0 6 * * 0", "1 8 15 22 29"),
        ("0 6 * * 7", "1 8 15 22 29"),
        ("0 6 * * SUN", "1 8 15 22 29"),
        ("0 6 * * 1-5", "2 3 4 5 6 9 10 11 12 13 16 17 18 19 20 23 24 25 26 27 30"),
        ("0 6 * * mon-fri", "2 3 4 5 6 9 10 11 12 13 16 17 18 19 20 23 24 25 26 27 30"),
        ("0 6 * * 5-7", "1 6 7 8 13 14 15 20 21 22 27 28 29"),
        ("0 6 * * fri-sun", "1 6 7 8 13 14 15 20 21 22 27 28 29"),
        ("0 6 * * sun-mon", "1 2 8 9 15 16 22 23 29 30"),
        ("0 6 * * 0,6", "1 7 8 14 15 21 22 28 29"),
        ("0 6 * * */3", "1 4 7 8 11 14 15 18 21 22 25 28 29"),  # 0, 3, 6
        ("0 6 * * 1-5/2", "2 4 6 9 11 13 16 18 20 23 25 27 30"),
        ("0 6 13 * 5", "6 13 20 27"),  # the 13th, and every Friday, of which it is one
        ("0 6 1,15 * 3", "1 4 11 15 18 25"),
        ("0 6 */10 * 0", "1"),  # with a star in one of them, both: the 1st, 11th, 21st that is a Sunday
        ("0 6 1-7 * *", "1 2 3 4 5 6 7"),
        ("0 6 31 * 2", "3 10 17 24"),
        ("0 6 * nov 1", "2 9 16 23 30"),
    ],
)
def test_cron_counts_days_as_crontab_does(line: str, days: str) -> None:
    """In November 2026, whose first is a Sunday; from cron(8) and crontab(5)."""
    cron, moment, found = Cron(line, VIENNA), datetime(2026, 10, 31, 12, tzinfo=VIENNA), []
    while (later := cron.after(moment)) is not None and later < datetime(2026, 12, 1, tzinfo=VIENNA):
        moment = later
        found.append(moment.astimezone(VIENNA).day)
    assert " ".join(map(str, found)) == days


def test_a_line_of_some_hours_comes_once_in_the_repeated_hour() -> None:
    for line in ("0 */2 * * *", "0 0-22/2 * * *"):
        assert several(Cron(line, VIENNA), "2026-10-25 00:00", 2) == ["10-25 02:00+0200", "10-25 04:00+0100"]
    for line in ("0 */1 * * *", "0 0-23 * * *"):
        assert several(Cron(line, VIENNA), "2026-10-25 01:30", 2) == ["10-25 02:00+0200", "10-25 02:00+0100"]


def test_a_line_of_each_minute_is_looked_at_once_for_each_of_its_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each second asks for what comes after the same one."""
    looks: list[datetime] = []
    look = CronLine.at_or_after

    def counted(line: CronLine, moment: datetime) -> datetime | None:
        looks.append(moment)
        return look(line, moment)

    monkeypatch.setattr(CronLine, "at_or_after", counted)
    moment = datetime(2026, 11, 23, 1, 7, 30, tzinfo=UTC)
    for _ in range(60):
        assert Cron("* * * * *", VIENNA).after(moment) == datetime(2026, 11, 23, 1, 8, tzinfo=UTC)
    assert len(looks) == 1


@given(
    st.sampled_from(ZONES),
    st.lists(
        st.times().map(lambda t: t.replace(second=0, microsecond=0)), min_size=1, max_size=4, unique=True
    ),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
)
def test_between_a_moment_and_the_next_no_clock_shows_the_time(
    zone: ZoneInfo, clocks: list[time], moment: datetime
) -> None:
    """Minute by minute: the first moment at which a clock shows one of the times, or has jumped over it."""
    later = At(clocks, zone).after(moment)
    assert later is not None
    minute = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while minute < later:
        there = minute.astimezone(zone)
        repeated = there.fold == 1
        assert repeated or there.time().replace(fold=0) not in clocks or _jumped(minute, zone)
        minute += timedelta(minutes=1)
    assert later - moment <= timedelta(hours=26)


def _jumped(minute: datetime, zone: ZoneInfo) -> bool:
    """Just behind a gap: the wall clock's times there belong to those that were left out, too."""
    before = (minute - timedelta(hours=2)).astimezone(zone)
    return before.utcoffset() != minute.astimezone(zone).utcoffset()
