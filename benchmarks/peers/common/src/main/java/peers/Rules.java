package peers;

/**
 * The job, as every peer does it: no duplicates, no refreshes, each view credited to its render's campaign and pane.
 *
 * <p>Several views that come before their render are remembered as one: it says what any of them said.
 */
public final class Rules {
    public static final long HORIZON_MS = 3_600_000;
    public static final long EARLY_MS = 10_000;
    public static final long REFRESH_MS = 30_000;
    private static final long PANE_MS = 10_000;

    private Rules() {}

    public static void apply(Event event, State state) throws Exception {
        if (event instanceof Render render) {
            render(render, state);
        } else {
            view((View) event, state);
        }
    }

    private static void render(Render render, State state) throws Exception {
        Impression known = state.impression(render.impression());
        boolean awaited = known != null && known.has(Impression.PENDING);
        if (known != null && !awaited && Math.abs(render.ts() - known.ts) <= HORIZON_MS) {
            return; // a duplicate
        }
        var impression = new Impression(render.ts(), render.campaign(), render.currency(), 0);
        if (!isRefresh(render, state)) {
            impression.flags = Impression.COUNTED;
            if (awaited && belongs(known.ts, render.ts())) {
                impression.flags |= known.flags & ~Impression.PENDING;
            }
            state.add(cell(impression), counts(1, impression.flags, render.cost()));
        }
        state.remember(render.impression(), impression);
    }

    private static void view(View view, State state) throws Exception {
        Impression known = state.impression(view.impression());
        if (known == null) {
            state.remember(view.impression(), new Impression(view.ts(), "", "", Impression.PENDING | view.says()));
            return;
        }
        int news = view.says() & ~known.flags;
        boolean counts = known.has(Impression.COUNTED) && belongs(view.ts(), known.ts);
        if (news == 0 || !(counts || known.has(Impression.PENDING))) {
            return; // it says nothing new, or is an orphan
        }
        if (counts) {
            state.add(cell(known), counts(0, news, 0));
        }
        known.flags |= news;
        state.remember(view.impression(), known);
    }

    private static boolean isRefresh(Render render, State state) throws Exception {
        if (render.viewer().isEmpty() || render.slot().isEmpty()) {
            return false;
        }
        Long last = state.lastCounted(render);
        if (last != null && Math.abs(render.ts() - last) < REFRESH_MS) {
            return true;
        }
        state.countedLast(render);
        return false;
    }

    private static boolean belongs(long viewTs, long renderTs) {
        return viewTs >= renderTs - EARLY_MS && viewTs <= renderTs + HORIZON_MS;
    }

    private static Cell cell(Impression impression) {
        return new Cell(impression.campaign, impression.currency, impression.ts - impression.ts % PANE_MS);
    }

    private static Counts counts(int served, int flags, long spend) {
        return new Counts(
                served,
                (flags & Impression.MEASURABLE) / Impression.MEASURABLE,
                (flags & Impression.VIEWABLE) / Impression.VIEWABLE,
                spend);
    }
}
