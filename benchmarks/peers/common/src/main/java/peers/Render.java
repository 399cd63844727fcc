package peers;

/** An ad was rendered. `cost` is nano units of the currency; an empty viewer is anonymous. */
public record Render(
        String impression,
        long ts,
        String campaign,
        String currency,
        long cost,
        String viewer,
        String slot,
        String creative)
        implements Event {}
