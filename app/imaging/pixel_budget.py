"""Limits the pixels that are decoded at once.

    budget = PixelBudget(25_000_000)
    with budget.hold(1_000_000, deadline) as held:      # waits; `held` is False if the deadline passes first
        ...

Claims get their pixels in order, so that a large image does not wait for ever while smaller ones pass. Those of clients
that decode nothing else come before all others.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class Claim:
    pixels: int
    held: bool = False  # else it waits


class PixelClaims:
    """For one thread at a time. An image larger than the whole budget waits until no other image is decoded."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._first: list[Claim] = []
        self._others: list[Claim] = []

    def add(self, pixels: int, *, first: bool = False) -> Claim:
        """`first`: before those that wait and are not first. `grant` must follow, and `drop` at the end."""
        claim = Claim(min(pixels, self.limit))
        (self._first if first else self._others).append(claim)
        return claim

    def grant(self) -> list[Claim]:
        """Give pixels to the next claims, as far as there are any. Returns these claims."""
        granted = []
        while claim := next(iter(self._first or self._others), None):
            if self.used + claim.pixels > self.limit:
                break
            (self._first or self._others).pop(0)
            claim.held = True
            self.used += claim.pixels
            granted.append(claim)
        return granted

    def drop(self, claim: Claim) -> None:
        """It has its pixels no more, or wants none any more."""
        for waiting in (self._first, self._others):
            if claim in waiting:
                waiting.remove(claim)
        if claim.held:
            self.used -= claim.pixels


class PixelBudget:
    """For any thread."""

    def __init__(self, limit: int) -> None:
        self._claims = PixelClaims(limit)
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        return self._claims.used

    @contextmanager
    def hold(self, pixels: int, deadline: float, *, first: bool = False) -> Iterator[bool]:
        """Wait for the pixels; yields False if `deadline` (seconds of time.monotonic()) passes first."""
        with self._changed:
            claim = self._claims.add(pixels, first=first)
            self._claims.grant()
            left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            held = self._changed.wait_for(lambda: claim.held, left)
        try:
            yield held
        finally:
            with self._changed:
                self._claims.drop(claim)
                if self._claims.grant():
                    self._changed.notify_all()
