"""Dates as people write them, and which format each date of a column has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars

ISO = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f",
       "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")  # fmt: skip
"""Default formats of dates: ISO 8601, in UTC unless an offset is given."""
SEPARATOR = " | "
"""Between several formats of one column, as in "%Y-%m-%d | %d.%m.%Y"."""

_TIMES = {"": "", r"[ T]\d{1,2}:\d{2}": " %H:%M", r"[ T]\d{1,2}:\d{2}:\d{2}": " %H:%M:%S"}
_NAMED = {
    r"^\d{1,2} [A-Za-z]{3,9}\.? \d{4}": "%d %B %Y",
    r"^\d{1,2}-[A-Za-z]{3,9}-\d{4}": "%d-%B-%Y",
    r"^\d{1,2}-[A-Za-z]{3}-\d{2}": "%d-%B-%y",
    r"^\d{1,2}\. [A-Za-z]{3,9} \d{4}": "%d. %B %Y",
    r"^[A-Za-z]{3,9}\.? \d{1,2}, \d{4}": "%B %d, %Y",
    r"^\d{4}/\d{1,2}/\d{1,2}": "%Y/%m/%d",
    r"^\d{4}\.\d{1,2}\.\d{1,2}": "%Y.%m.%d",
}
_ISO = r"^\d{4}-\d{2}-\d{2}"


class UnclearDates(ValueError):
    """It is not clear what the dates of a column are; the message is the end of a sentence."""


def formats_of(text: polars.Series, share: float = 1.0) -> str | None:
    """The formats of a column of dates without missing ones, joined by " | "; "date" if all are ISO 8601.

    The numbers above 12 among the dates with one separator show which of day and month comes first.

    Returns:
        None if the values are no dates, or fewer than a share of them.

    Raises:
        UnclearDates: dates of which no value shows whether day or month comes first, or in two orders.

    Example:
        >>> import polars
        >>> formats_of(polars.Series(["2024-01-05", "05/13/2024", "13.5.2024", "6 May 2024"]))
        '%Y-%m-%d | %m/%d/%Y | %d.%m.%Y | %d %B %Y'
        >>> formats_of(polars.Series(["sun", "rain"]))
    """
    sample = text.gather_every(max(1, len(text) // 1000))  # texts of other kinds would take minutes
    if not len(text) or sample.str.contains(r"^\D{0,12}\d.{0,24}\d.{0,8}$").sum() < 0.5 * len(sample):
        return None
    left, formats = text, []
    if (iso := left.str.contains(_ISO)).any():
        formats += [_iso_format(left.filter(iso))]
        left = left.filter(~iso)
    numeric = []
    for separator in "/.-":
        for year, code in ((4, "%Y"), (2, "%y")):
            form = rf"^(\d{{1,2}})[{separator}](\d{{1,2}})[{separator}]\d{{{year}}}"
            for ending, time in _TIMES.items():
                if (found := left.str.contains(f"{form}{ending}$")).any():
                    numeric.append((separator, f"{form}{ending}$", code + time, left.filter(found)))
                    left = left.filter(~found)
    named = []
    for form, code in _NAMED.items():
        for ending, time in _TIMES.items():
            if (found := left.str.contains(f"{form}{ending}$")).any():
                named.append(code + time)
                left = left.filter(~found)
    if len(left) > (1 - share) * len(text):
        return None
    for separator in dict.fromkeys(entry[0] for entry in numeric):
        of_separator = [entry for entry in numeric if entry[0] == separator]
        order = _order([entry[1:] for entry in of_separator])
        formats += [separator.join([*order, code]) for _, _, code, _ in of_separator]
    if not numeric and not named:
        return "date" if formats else None
    return SEPARATOR.join([*formats, *named])


def parse_dates(text: polars.Series, formats: str | None) -> polars.Series:
    """The dates of a column of words in the first of several formats that fits, as Datetime; null where none does."""
    import polars as pl

    dates = pl.Series(text.name, [None] * len(text), pl.Datetime("us"))
    for candidate in formats.split(SEPARATOR) if formats else ISO:
        dates = dates.fill_null(_parse(text, candidate))
        if "%B" in candidate:
            dates = dates.fill_null(_parse(text.str.replace(".", "", literal=True), candidate.replace("%B", "%b")))
        if dates.null_count() == text.null_count():
            break
    return dates


def _iso_format(text: polars.Series) -> str:
    used = [candidate for candidate in ISO if _parse(text, candidate).is_not_null().any()]
    return SEPARATOR.join(used) or ISO[0]


def _order(entries: list[tuple[str, str, polars.Series]]) -> tuple[str, str]:
    """Whether day or month comes first in dates with one separator."""
    day_first = month_first = None
    for form, _, text in entries:
        first, second = (text.str.extract(form, group).cast(int) for group in (1, 2))
        day_first = day_first or next(iter(text.filter(first > 12)), None)
        month_first = month_first or next(iter(text.filter(second > 12)), None)
    if day_first and month_first:
        raise UnclearDates(f"such as {day_first!r} and {month_first!r}, in which day and month change places")
    if not day_first and not month_first:
        raise UnclearDates(f"such as {entries[0][2][0]!r}, whose day and month are ambiguous")
    return ("%d", "%m") if day_first else ("%m", "%d")


def _parse(text: polars.Series, format: str) -> polars.Series:
    import polars as pl

    has_time = any(code in format for code in ("%H", "%I", "%T", "%R", "%s", "%z", "%+"))
    if not has_time:
        return text.str.to_date(format, strict=False).cast(pl.Datetime("us"))
    dates = text.str.to_datetime(format, strict=False, time_unit="us")
    if getattr(dates.dtype, "time_zone", None):
        dates = dates.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return dates.cast(pl.Datetime("us"))
