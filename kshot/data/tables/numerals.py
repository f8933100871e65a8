"""Numbers as people write them: 10,849.00, 1.200,50 €, 12.3%, (5.0), and how a column of them is understood.

A style is written as the number 1234.5 is in the file, such as "1,234.5", "1.234,5 €" or "1,234.5%".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import polars

SIGNS = {"$": "$", "US$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "₽": "₽", "₩": "₩", "₺": "₺", "₫": "₫",
         "zł": "zł", "kr": "kr", "kr.": "kr", "Kč": "Kč", "Fr.": "Fr.", "R$": "R$", "A$": "A$", "C$": "C$"}  # fmt: skip
CODES = ("USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR", "RUB", "KRW", "TRY", "BRL", "MXN", "CAD", "AUD", "NZD", "SEK",
         "NOK", "DKK", "PLN", "CZK", "HUF", "ZAR", "SGD", "HKD", "ILS")  # fmt: skip
POINTED = ("$", "£", "¥", "₹", "USD", "GBP", "JPY", "CNY", "INR")
"""Currencies written with a decimal point, so that a comma before three digits groups thousands."""

SAMPLED = 1000
"""Number of values that are looked at first."""

_STYLE = re.compile(r"^(\D*?)\s*1(?:[.,' ]?234)([.,])5\s*(\D*)$")
_SPACES = r"[\u00a0\u202f\u2009]"
_BODY = r"(?:\d[\d.,' ]*|[.,]\d+)(?:[eE][+-]?\d+)?"
_WRITTEN = rf"^\(?[+-]?\s*([^\d\s.,()+'-][^\d,()+'-]*?)?\s*[+-]?\s*({_BODY})\s*([^\d\s.,()+'-][^\d,()+'-]*?)?\s*-?\)?$"
_UNIT = re.compile(r"^[^\W\d_]{1,5}[²³]?(/[^\W\d_]{1,5}[²³]?)?$|^[%‰°µΩ][^\W\d_]{0,4}$")
_GROUPS = {".": r"[,' ]", ",": r"[.' ]"}


class Style(NamedTuple):
    """How the numbers of a column are written.

    Attributes:
        decimal: the decimal sign; the other one, spaces and apostrophes group thousands.
        unit: "%", a currency or another unit that is not part of the number; empty if there is none.
        before: whether the unit stands before the number.
    """

    decimal: str = "."
    unit: str = ""
    before: bool = False

    @classmethod
    def parse(cls, text: str) -> Style | None:
        """The style that is written as a number, such as "1.234,5 €"; None if the text is no such number.

        Example:
            >>> Style.parse("1.234,5 €"), Style.parse("%d/%m/%Y")
            (Style(decimal=',', unit='€', before=False), None)
        """
        found = _STYLE.match(text.strip())
        if not found or (found[1] and found[3]):
            return None
        return cls(found[2], found[1] or found[3], bool(found[1]))

    def __str__(self) -> str:
        number = "1,234.5" if self.decimal == "." else "1.234,5"
        if self.before:
            return f"{self.unit}{' ' * self.unit.isalpha()}{number}"
        return f"{number}{' ' * (self.unit not in ('', '%'))}{self.unit}"

    @property
    def about(self) -> str:
        """A description of the unit, and of the decimal sign if it is a comma."""
        money = self.unit in SIGNS.values() or self.unit in CODES
        unit = f"money in {self.unit}" if money else "percent" if self.unit == "%" else f"in {self.unit}"
        return ", ".join(["decimal comma"] * (self.decimal == ",") + [unit] * bool(self.unit))


class Unclear(NamedTuple):
    """Why it is unclear which numbers the values of a column are, as the end of a sentence."""

    why: str


class Evidence(NamedTuple):
    """Counts of the values that can have only one decimal sign, and examples of those that can have either."""

    point: int
    comma: int
    either_comma: str | None
    either_point: str | None


def parse(text: polars.Series, style: Style) -> polars.Series:
    """Numbers of a column of words in a style, null where that fails; a value may lack a unit that is a currency.

    Example:
        >>> import polars
        >>> parse(polars.Series(["$1,234.50", "(7)", "-$8", "x"]), Style(".", "$", True)).to_list()
        [1234.5, -7.0, -8.0, None]
    """
    import polars as pl

    words = _cleaned(text)
    parts = words.str.extract_groups(_WRITTEN).struct.unnest()
    before, body, after = (parts.to_series(index) for index in range(3))
    unit = _unit(before, after)
    optional = style.unit in SIGNS.values() or style.unit in CODES
    fits = (unit == style.unit) | (unit == "" if optional else pl.lit(False))
    fits = pl.select(fits).to_series() if isinstance(fits, pl.Expr) else fits
    body = body.str.strip_chars()
    group = _GROUPS[style.decimal]
    decimal = re.escape(style.decimal)
    grouped = body.str.contains(rf"^\d{{1,3}}({group}\d{{2,3}})*{group}\d{{3}}({decimal}\d*)?$").fill_null(False)
    body = body.str.replace_all(group, "").zip_with(grouped, body)
    if style.decimal == ",":  # a point that groups no thousands is an error
        body = body.set(body.str.contains(".", literal=True).fill_null(False), None).str.replace(",", ".", literal=True)
    values = body.cast(pl.Float64, strict=False)
    negative = words.str.contains(r"^\(.*\)$|^[^\d]*-|-$").fill_null(False)
    values = (-values).zip_with(negative, values)
    return values.set(~fits.fill_null(False), None)


def style_of(text: polars.Series, share: float, file: Evidence | None = None) -> Style | Unclear | None:
    """How the numbers of a column of words (without missing ones) are written; None if it does not hold numbers.

    Args:
        text: the words.
        share: of them that are numbers at least.
        file: evidence of other columns of the file, for values such as "5,012".
    """
    sample = _cleaned(text.gather_every(max(1, len(text) // SAMPLED)))
    if not len(text) or sample.str.contains(_WRITTEN).sum() < 0.5 * len(sample):  # long texts would take minutes
        return None
    parts = _cleaned(text).str.extract_groups(_WRITTEN).struct.unnest()
    before, body, after = (parts.to_series(index) for index in range(3))
    unit, known = _unit(before, after), _evidence(body)
    if body.is_not_null().sum() < share * len(text):
        return None
    units = [word for word in unit.filter(body.is_not_null()).unique().sort().to_list() if word]
    money = all(word in SIGNS.values() or word in CODES for word in units)
    bare = text.filter((unit == "") & body.is_not_null())
    if None in unit.filter(body.is_not_null()).to_list() or (units and not money and (len(units) > 1 or len(bare))):
        counted = unit.drop_nulls().value_counts(sort=True)
        if "%" in units and len(units) == 1 and len(bare):
            return Unclear(f"some in percent and some not, such as {bare[0]!r}: write all with % or all without")
        if not units or counted["count"][0] < share * len(text) or not counted[unit.name][0]:
            return None
        units, money = [counted[unit.name][0]], counted[unit.name][0] in (*SIGNS.values(), *CODES)
    if len(units) > 1:
        return Unclear(f"in several currencies, {' and '.join(units)}: convert them to one")
    own = units[0] if units else ""
    first = bool(own) and bool((before.fill_null("").str.strip_chars() != "").any())
    decimal = _decimal(known, own, file)
    style = decimal if isinstance(decimal, Unclear) else Style(decimal, own, first)
    if isinstance(style, Style):
        values = parse(text, style)
        if values.is_not_null().sum() < share * len(text):
            return None
        spaced = body.str.contains(r"\d \d").fill_null(False)
        if not own and spaced.sum() == len(text) and not body.str.contains("[.,]").any():  # telephone numbers
            return None
    return style


def evidence(text: polars.Series) -> Evidence | None:
    """The evidence of a column of words for its decimal sign; None if few of them are numbers."""
    body = _cleaned(text).str.extract_groups(_WRITTEN).struct.unnest().to_series(1)
    return _evidence(body) if body.is_not_null().sum() >= 0.9 * len(text) else None


def _cleaned(text: polars.Series) -> polars.Series:
    return text.alias("word").str.replace_all(_SPACES, " ").str.replace_all("\u2212", "-", literal=True)


def _unit(before: polars.Series, after: polars.Series) -> polars.Series:
    """The unit of each value: "" if it has none, null if the text beside the number is no unit."""
    import polars as pl

    before, after = (each.fill_null("").str.strip_chars() for each in (before, after))
    known = {**SIGNS, **{code: code for code in CODES}, "": ""}
    first = before.replace_strict(known, default=None, return_dtype=pl.String)
    others = {word: word for word in after.unique().to_list() if _UNIT.match(word)}
    last = after.replace_strict(others | known, default=None, return_dtype=pl.String)
    return (first + last).set((first != "") & (last != ""), None).alias("unit")


def _evidence(body: polars.Series) -> Evidence:
    body = body.drop_nulls().str.strip_chars()
    point, comma = (_decisive(body, decimal) for decimal in ".,")
    either = {sign: body.filter(body.str.contains(rf"^[1-9]\d{{0,2}}{re.escape(sign)}\d{{3}}$")) for sign in ",."}
    examples = {sign: values[0] if len(values) else None for sign, values in either.items()}
    return Evidence(int(point.sum()), int(comma.sum()), examples[","], examples["."])


def _decisive(body: polars.Series, decimal: str) -> polars.Series:
    """Whether each number can only have this decimal sign."""
    sign, group = re.escape(decimal), _GROUPS[decimal]
    other = "," if decimal == "." else r"\."
    forms = [
        rf"^\d+{sign}(\d{{0,2}}|\d{{4,}})$", rf"^0*{sign}\d+$", rf"^\d{{4,}}{sign}\d+$", rf"^\d+{sign}\d+[eE]",
        rf"^\d{{1,3}}({group}\d{{2,3}})*{group}\d{{3}}{sign}\d*$", rf"^\d{{1,3}}({other}\d{{2,3}})+{other}\d{{3}}$",
    ]  # fmt: skip
    return body.str.contains("|".join(forms))


def _decimal(found: Evidence, unit: str, file: Evidence | None) -> str | Unclear:
    """The decimal sign, from the values, else from the unit, else from other columns of the file."""
    if found.point and found.comma:
        if min(found.point, found.comma) > 0.1 * (found.point + found.comma):
            return Unclear("some with a decimal point and some with a decimal comma: write them alike")
        return "." if found.point > found.comma else ","
    if found.point or found.comma:
        return "." if found.point else ","
    of_file = "" if file is None or bool(file.point) == bool(file.comma) else "." if file.point else ","
    if found.either_comma and found.either_point:
        return Unclear(f"such as {found.either_comma!r} and {found.either_point!r}, whose decimal sign is not clear")
    if found.either_comma:
        if of_file == "," and unit not in POINTED:
            return ","
        if of_file == "." or (unit in POINTED and not of_file):
            return "."
        return Unclear(f"such as {found.either_comma!r}, whose comma may be a decimal comma or group thousands")
    if found.either_point and (of_file == "," or unit in ("€", "EUR")) and of_file != ".":
        return Unclear(f"such as {found.either_point!r}, whose point may be a decimal point or group thousands")
    return "."
