package peers;

/** Where a peer keeps what the rules remember: its own stores, durable in its own way. */
public interface State {
    /** Returns what is remembered of an impression, or null. */
    Impression impression(String id) throws Exception;

    /** Remembers it, also when it is an instance that {@link #impression} returned and that was changed since. */
    void remember(String id, Impression impression) throws Exception;

    /** Returns when the last counted render of the same viewer, slot and creative was, or null. */
    Long lastCounted(Render render) throws Exception;

    void countedLast(Render render) throws Exception;

    void add(Cell cell, Counts more) throws Exception;
}
