"""Work that takes a moment, one processor of each kind.

    dispatcher serve --dev --processors examples.results.processors

A processor gets the task's payload, decoded, and returns what the caller is sent. `ProcessorError` ends the
task with a text that is safe to show; any other exception is tried again, and its text stays in the log.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from dispatcher.errors import ProcessorError
from dispatcher.processors import processor

RATES_FILE = Path(__file__).with_name("rates.json")
#: by language, words of four letters and more that say nothing about a text
COMMON_WORDS: dict[str, str] = json.loads(Path(__file__).with_name("common_words.json").read_text("utf-8"))

WORDS_PER_MINUTE = 220
SUMMARY_SENTENCES = 2
KEYWORDS = 6

RESAMPLES = 4000
#: the interval that holds 95 % of the resampled values
CONFIDENCE = (0.025, 0.975)


# An async function: it may wait for files and services without holding a thread.


@processor("invoice.total", timeout=10, tries=3)
async def invoice_total(payload: dict[str, Any]) -> dict[str, Any]:
    """Totals in the currency's smallest unit, tax by rate, and the total in euro cents for the books."""
    currency = str(payload["currency"])
    taxable: defaultdict[Decimal, int] = defaultdict(int)
    for number, line in enumerate(payload["lines"], start=1):
        taxable[tax_rate(line, number)] += line_amount(line, number)
    reverse_charge = bool(payload.get("reverse_charge", False))
    tax_of = {rate: 0 if reverse_charge else rounded(amount * rate) for rate, amount in taxable.items()}
    net, tax = sum(taxable.values()), sum(tax_of.values())
    rates = json.loads(await asyncio.to_thread(RATES_FILE.read_text, encoding="utf-8"))
    return {
        "invoice": payload["number"],
        "buyer": payload["buyer"]["name"],
        "currency": currency,
        "lines": len(payload["lines"]),
        "taxes": [
            {"rate": str(rate), "taxable": taxable[rate], "tax": tax_of[rate]} for rate in sorted(taxable, reverse=True)
        ],
        "reverse_charge": reverse_charge,
        "net": net,
        "tax": tax,
        "total": net + tax,
        "total_eur_cents": in_euro_cents(net + tax, currency, rates),
        "rates_of": rates["date"],
    }


def line_amount(line: Mapping[str, Any], number: int) -> int:
    """Quantity times unit price less discount, rounded half up as invoices are; never a float."""
    try:
        quantity = Decimal(str(line["quantity"]))
        discount = Decimal(str(line.get("discount_percent", 0)))
    except InvalidOperation as error:
        raise ProcessorError(f"line {number}: quantity and discount must be numbers") from error
    unit_price = line["unit_price"]
    if not isinstance(unit_price, int):
        raise ProcessorError(f"line {number}: unit_price must be a whole number of the smallest unit")
    return rounded(quantity * unit_price * (100 - discount) / 100)


def tax_rate(line: Mapping[str, Any], number: int) -> Decimal:
    """The rate as a fraction: 0.19 is 19 %."""
    rate = Decimal(str(line["tax_rate"]))
    if not 0 <= rate < 1:
        raise ProcessorError(f"line {number}: tax_rate must be a fraction of 1, such as 0.19")
    return rate


def rounded(amount: Decimal) -> int:
    """To whole units, half up."""
    return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def in_euro_cents(amount: int, currency: str, rates: Mapping[str, Any]) -> int:
    """An amount in the smallest unit of a currency, as cents; `rates` says how much of it one euro buys."""
    if currency not in rates["per_euro"]:
        raise ProcessorError(f"there is no exchange rate for {currency}")
    minor_units = 10 ** rates["decimals"].get(currency, 2)
    return rounded(Decimal(amount) / minor_units / Decimal(rates["per_euro"][currency]) * 100)


# A plain function: it runs in a thread.


@processor("text.summary")
def text_summary(payload: dict[str, Any]) -> dict[str, Any]:
    """The sentences that say most of a text, and its key words: frequent in it, and not common elsewhere."""
    text, common = payload["text"], COMMON_WORDS.get(payload["language"], "").split()
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]
    if not sentences:
        raise ProcessorError("there is no sentence in the text")
    counts = Counter(word for word in words(text) if len(word) > 3 and word not in common)
    best = sorted(range(len(sentences)), key=lambda index: -weight(sentences[index], counts))[:SUMMARY_SENTENCES]
    number_of_words = len(words(text))
    return {
        "title": payload["title"],
        "language": payload["language"],
        "sentences": len(sentences),
        "words": number_of_words,
        "reading_minutes": round(number_of_words / WORDS_PER_MINUTE, 1),
        "keywords": [word for word, _ in counts.most_common(KEYWORDS)],
        "summary": " ".join(sentences[index] for index in sorted(best)),
    }


def words(text: str) -> list[str]:
    """Words in lower case; digits and underscores separate them."""
    return re.findall(r"[^\W\d_]+", text.casefold())


def weight(sentence: str, counts: Mapping[str, int]) -> float:
    """How much a sentence says: the mean weight of its words, so that long ones gain nothing by length."""
    found = words(sentence)
    return sum(counts.get(word, 0) for word in found) / (len(found) + 4)


# CPU-bound: it runs in a process of its own, and holds nobody up.


@processor("report.stats", cpu=True)
def report_stats(payload: dict[str, Any]) -> dict[str, Any]:
    """Requests, errors and response times by route of a request log; the 95th percentile with an interval."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    errors: Counter[str] = Counter()
    for _second, route, status, milliseconds in payload["records"]:
        times[route].append(milliseconds)
        errors[route] += status >= 500
    if not times:
        raise ProcessorError("there are no records in the log")
    chance = random.Random(payload["service"])  # the same log always gives the same report
    return {
        "service": payload["service"],
        "requests": sum(map(len, times.values())),
        "errors": errors.total(),
        "routes": [
            {
                "route": route,
                "requests": len(measured),
                "error_percent": round(100 * errors[route] / len(measured), 2),
                "mean_ms": round(fmean(measured), 1),
                "p50_ms": percentile(measured, 50),
                "p95_ms": percentile(measured, 95),
                "p95_interval_ms": bootstrap_interval(measured, 95, chance),
            }
            for route, measured in sorted(times.items(), key=lambda entry: -len(entry[1]))
        ],
    }


def percentile(measured: Sequence[float], percent: int) -> float:
    """The value that `percent` of the measured ones do not exceed."""
    if len(measured) == 1:
        return round(measured[0], 1)
    return round(quantiles(measured, n=100, method="inclusive")[percent - 1], 1)


def bootstrap_interval(measured: Sequence[float], percent: int, chance: random.Random) -> list[float]:
    """How far the percentile would move in other samples of this size (Efron's percentile bootstrap)."""
    resampled: Iterable[Sequence[float]] = (chance.choices(measured, k=len(measured)) for _ in range(RESAMPLES))
    found = sorted(percentile(sample, percent) for sample in resampled)
    return [found[int(share * (RESAMPLES - 1))] for share in CONFIDENCE]
