package peers;

/** The counters of a cell; `spend` in nano units of its currency. */
public record Counts(long served, long measurable, long viewable, long spend) {
    public static final Counts NONE = new Counts(0, 0, 0, 0);

    public Counts plus(Counts more) {
        return new Counts(
                served + more.served,
                measurable + more.measurable,
                viewable + more.viewable,
                spend + more.spend);
    }
}
