"""When a task with ``cron=`` is due."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from ..errors import ConfigError

#: A slot remembered as done this many seconds ahead of the clock shows that the clock was wrong.
CLOCK_TOLERANCE = 2 * 24 * 3600.0


class Schedule:
    """A cron expression in a time zone. Moments are seconds since the epoch.

    A fixed time that daylight saving skips falls on the moment after the gap, and one that it
    repeats comes once, as in Debian's cron; the zone's rules are applied by cronsim. What comes
    every so many minutes goes on through both.

    :param expression: five fields (minute, hour, day of month, month, day of week), or six with
        the second in front.
    :param timezone: such as "Europe/Berlin".
    :raises ConfigError: if either is not valid.
    """

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        try:
            self._zone = UTC if timezone == "UTC" else ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ConfigError(f"{timezone!r} is not the name of a time zone.") from error
        self.expression = expression
        self.timezone = timezone
        try:
            self.after(0.0)
        except CronSimError as error:
            raise ConfigError(f"cron = {expression!r} is not a cron expression: {error}.") from None
        except StopIteration:
            raise ConfigError(f"cron = {expression!r} never comes.") from None

    def after(self, moment: float) -> float:
        """Return the first slot after a moment."""
        # In the second pass of an hour that is repeated, cronsim begins with slots of the first.
        slots = (slot.timestamp() for slot in CronSim(self.expression, self._local(moment)))
        return next(slot for slot in slots if slot > moment)

    def latest(self, moment: float) -> float:
        """Return the last slot at or before a moment."""
        backwards = CronSim(self.expression, self._local(moment + 1), reverse=True)
        return next(slot for slot in (s.timestamp() for s in backwards) if slot <= moment)

    def due(self, done: float, now: float) -> float | None:
        """Return the slot to enqueue now, or None.

        Of several slots that were missed (the box was off) only the latest is made up for.

        :param done: the last slot that was enqueued.
        """
        if self.after(done) > now:
            return None
        return max(self.latest(now), self.after(done))

    def _local(self, moment: float) -> datetime:
        return datetime.fromtimestamp(moment, self._zone)
