"""Hostile trials by the thousand: ``python tests/hostile --trials 10000``; status 1 if any fails.

A family has seeds from --seed on. A trial that failed is run alone by its family and seed, and shows its trace with --trace.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "ops")]

from families import FAMILIES, Failure, batches, flush, shares, table  # noqa: E402
from trial import FAILED  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/hostile", description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="of all families together")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY",
                        help="; ".join(FAMILIES))  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="the first of each family")
    parser.add_argument("--trace", action="store_true", help="let the call of the first seed raise")
    args = parser.parse_args()
    if args.trace:
        with tempfile.TemporaryDirectory() as folder:
            attempt = FAMILIES[args.only[0]](Path(folder))(Random(f"{args.only[0]} {args.seed}"))
            print(attempt.what)
            print(attempt.call())
        return 0
    counts: dict[str, Counter[str]] = {}
    failures = []
    begun = time.monotonic()
    for name, many in shares(args.trials, args.only).items():
        counts[name] = Counter()
        for seed, outcome in batches(name, range(args.seed, args.seed + many)):
            counts[name][outcome.kind] += 1
            if outcome.kind in FAILED:
                failures.append(Failure(name, seed, outcome))
                flush(str(failures[-1]))
    flush(table(counts))
    flush(f"{time.monotonic() - begun:.0f} s; seeds from {args.seed} of each family")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
