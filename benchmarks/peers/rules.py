"""The job's rules for the Bytewax peer, in plain Python: what common/src/main/java/peers/Rules.java says for Java.

State is in memory only: nothing survives the process. Several views that come before their render are remembered as
one, which says what any of them said.
"""

from collections import defaultdict
from decimal import ROUND_HALF_EVEN, Decimal

import msgspec

HORIZON_MS = 3_600_000
EARLY_MS = 10_000
REFRESH_MS = 30_000
PANE_MS = 10_000
_ADS_MS = 600_000
"""After that long nothing is compared with a counted render any more."""
_CPM_TO_NANO = 1_000_000
"""A price for a thousand, in units, is that many nano units for one."""

COUNTED, MEASURABLE, VIEWABLE, PENDING = 1, 2, 4, 8
_SAYS = {
    "viewable": MEASURABLE | VIEWABLE,
    "measurable": MEASURABLE,
    "not_viewable": MEASURABLE,
    "undetermined": 0,
}


class Render(msgspec.Struct, gc=False):
    """An ad was rendered; `ts` is event time in ms, `price` for a thousand."""

    impression_id: str
    campaign_id: str
    ts: int
    viewer_id: str = ""
    slot_id: str = ""
    creative_id: str = ""
    price: str | int | float = "0"
    currency: str = "USD"


class View(msgspec.Struct, gc=False):
    """What was measured of an impression."""

    impression_id: str
    ts: int
    kind: str


class Impression(msgspec.Struct, gc=False):
    """What is remembered of one. While it is PENDING, `ts` is its first view's, and it has no campaign."""

    ts: int
    campaign: str
    currency: str
    flags: int


class Counting:
    """Counts events; `cells` are [served, measurable, viewable, spend in nano units] by (campaign, currency, pane)."""

    def __init__(self) -> None:
        self.cells: defaultdict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self._recent: dict[str, Impression] = {}
        self._old: dict[str, Impression] = {}
        """Impressions in two generations: one is forgotten as a whole, when all of it is beyond every horizon."""
        self._ads: dict[tuple[str, str, str], int] = {}
        self._turn_ms = 0

    def render(self, render: Render) -> None:
        """Count a render that is neither a duplicate nor a refresh, and what its views said before it."""
        if render.ts > self._turn_ms:
            self._turn(render.ts)
        known = self._known(render.impression_id)
        awaited = known is not None and known.flags & PENDING
        if known is not None and not awaited and abs(render.ts - known.ts) <= HORIZON_MS:
            return
        impression = Impression(render.ts, render.campaign_id, render.currency, 0)
        if not self._is_refresh(render):
            impression.flags = COUNTED
            if known is not None and awaited and _belongs(known.ts, render.ts):
                impression.flags |= known.flags & ~PENDING
            cell = self._cell(impression)
            cell[0] += 1
            cell[3] += _nano(render.price)
            _credit(cell, impression.flags)
        self._recent[render.impression_id] = impression

    def view(self, view: View) -> None:
        """Credit a view to its render's cell, or remember it until the render comes."""
        says = _SAYS.get(view.kind)
        if says is None:
            return
        known = self._known(view.impression_id)
        if known is None:
            self._recent[view.impression_id] = Impression(view.ts, "", "", PENDING | says)
        elif known.flags & PENDING:
            known.flags |= says
        elif known.flags & COUNTED and _belongs(view.ts, known.ts):
            _credit(self._cell(known), says & ~known.flags)
            known.flags |= says

    def _known(self, impression_id: str) -> Impression | None:
        return self._recent.get(impression_id) or self._old.get(impression_id)

    def _is_refresh(self, render: Render) -> bool:
        if not render.viewer_id or not render.slot_id:
            return False
        ad = (render.viewer_id, render.slot_id, render.creative_id)
        last = self._ads.get(ad)
        if last is not None and abs(render.ts - last) < REFRESH_MS:
            return True
        self._ads[ad] = render.ts
        return False

    def _cell(self, impression: Impression) -> list[int]:
        return self.cells[impression.campaign, impression.currency, impression.ts // PANE_MS]

    def _turn(self, now: int) -> None:
        self._old, self._recent = self._recent, {}
        self._ads = {ad: ts for ad, ts in self._ads.items() if ts + _ADS_MS >= now}
        self._turn_ms = now + HORIZON_MS + EARLY_MS


def _credit(cell: list[int], flags: int) -> None:
    if flags & MEASURABLE:
        cell[1] += 1
    if flags & VIEWABLE:
        cell[2] += 1


def _belongs(view_ms: int, render_ms: int) -> bool:
    return render_ms - EARLY_MS <= view_ms <= render_ms + HORIZON_MS


def _nano(price: str | int | float) -> int:
    return int((Decimal(str(price)) * _CPM_TO_NANO).to_integral_value(ROUND_HALF_EVEN))
