"""The cases, in the order in which a round goes through them."""

from __future__ import annotations

from scripts.benchmark.cases import backlogs, delays, shared, soak, throughput

ALL = {case.name: case for case in (*throughput.CASES, *delays.CASES, *backlogs.CASES, *shared.CASES, *soak.CASES)}
