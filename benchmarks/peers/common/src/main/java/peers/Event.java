package peers;

/** What lies in the input topics. `ts` is event time in ms since the epoch. */
public sealed interface Event permits Render, View {
    String impression();

    long ts();
}
