package peers;

/** What was measured of an impression: `says` are bits of {@link Impression}, none for "undetermined". */
public record View(String impression, long ts, int says) implements Event {}
