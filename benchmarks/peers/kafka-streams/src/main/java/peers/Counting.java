package peers;

import java.time.Duration;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Predicate;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;

/** The one processor, an instance a task: both topics of a partition come to it, and it keeps three stores. */
final class Counting implements Processor<byte[], Event, Void, Void>, State {
    static final String IMPRESSIONS = "impressions";
    static final String ADS = "ads";
    static final String CELLS = "cells";
    private static final Duration PRUNE = Duration.ofMinutes(10);

    private final AtomicLong events = Progress.ofTask();
    private KeyValueStore<String, Impression> impressions;
    private KeyValueStore<Ad, Long> ads;
    private KeyValueStore<Cell, Counts> cells;

    @Override
    public void init(ProcessorContext<Void, Void> context) {
        impressions = context.getStateStore(IMPRESSIONS);
        ads = context.getStateStore(ADS);
        cells = context.getStateStore(CELLS);
        context.schedule(PRUNE, PunctuationType.STREAM_TIME, this::prune);
    }

    @Override
    public void process(Record<byte[], Event> record) {
        if (record.value() != null) {
            try {
                Rules.apply(record.value(), this);
            } catch (Exception failed) {
                throw new IllegalStateException(failed);
            }
        }
        events.lazySet(events.get() + 1);
    }

    @Override
    public Impression impression(String id) {
        return impressions.get(id);
    }

    @Override
    public void remember(String id, Impression impression) {
        impressions.put(id, impression);
    }

    @Override
    public Long lastCounted(Render render) {
        return ads.get(Ad.of(render));
    }

    @Override
    public void countedLast(Render render) {
        ads.put(Ad.of(render), render.ts());
    }

    @Override
    public void add(Cell cell, Counts more) {
        Counts counts = cells.get(cell);
        cells.put(cell, counts == null ? more : counts.plus(more));
    }

    /** Forgets what no event can meet any more; `now` is stream time in ms. */
    private void prune(long now) {
        drop(impressions, impression -> impression.ts + Rules.HORIZON_MS + Rules.EARLY_MS < now);
        drop(ads, ts -> ts + PRUNE.toMillis() < now);
    }

    private static <K, V> void drop(KeyValueStore<K, V> store, Predicate<V> old) {
        try (KeyValueIterator<K, V> all = store.all()) {
            while (all.hasNext()) {
                KeyValue<K, V> entry = all.next();
                if (old.test(entry.value)) {
                    store.delete(entry.key);
                }
            }
        }
    }
}
