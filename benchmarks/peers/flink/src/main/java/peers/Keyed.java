package peers;

/** An event and the key that its record has in Kafka. */
public record Keyed(String key, Event event) {}
