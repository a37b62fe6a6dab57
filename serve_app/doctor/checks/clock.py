"""How far another clock is from this machine's."""

from email.utils import parsedate_to_datetime

from serve_app.doctor.finding import Finding, fault, ok, skipped, warning

# A header Date has whole seconds, and an answer takes its time.
RESOLUTION_S = 1.0
WARN_S = 5.0
# Deadlines, retention and signed links go wrong by as much; a store refuses requests from 15 minutes on.
FAULT_S = 60.0
SET_CLOCKS = "set both clocks by NTP (`timedatectl set-ntp true`, chronyd); `date -u` on both shows which is off"


def clock_finding(name: str, whose: str, theirs: float, before: float, after: float) -> Finding:
    """Compare a clock with ours.

    Args:
        name: of the finding.
        whose: clock, for people.
        theirs: Unix seconds, read at some time between `before` and `after`, which are ours.
    """
    skew = theirs - after if theirs > after else min(0.0, theirs + RESOLUTION_S - before)
    told = f"{whose} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine"
    if abs(skew) >= FAULT_S:
        return fault(name, told, SET_CLOCKS)
    if abs(skew) >= WARN_S:
        return warning(name, told, SET_CLOCKS)
    return ok(name, f"{whose} has this machine's time" if abs(skew) < RESOLUTION_S else told)


def date_finding(name: str, whose: str, header: str | None, before: float, after: float) -> Finding:
    """As `clock_finding`, by a header Date."""
    try:
        theirs = parsedate_to_datetime(header or "").timestamp()
    except ValueError:
        return skipped(name, f"{whose} sends no date")
    return clock_finding(name, whose, theirs, before, after)
