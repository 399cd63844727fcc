package peers;

/** Where something is counted: `pane` is the start of 10 s of event time, in ms. */
public record Cell(String campaign, String currency, long pane) {}
