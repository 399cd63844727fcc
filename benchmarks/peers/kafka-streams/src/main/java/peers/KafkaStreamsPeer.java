package peers;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.AutoOffsetReset;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.TimestampExtractor;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/** The job by Kafka Streams. Arguments: bootstrap, prefix, events, partitions and, for RocksDB, --rocksdb. */
public final class KafkaStreamsPeer {
    /** Lets stream time be event time; what is malformed has none. */
    private static final TimestampExtractor EVENT_TIME =
            (record, before) -> record.value() instanceof Event event ? event.ts() : Math.max(before, 0);

    private static final int THREADS = 2;

    private KafkaStreamsPeer() {}

    public static void main(String[] arguments) throws Exception {
        boolean rocksdb = Arrays.asList(arguments).contains("--rocksdb");
        var streams = new KafkaStreams(
                topology(arguments[1], rocksdb), settings(arguments[0], arguments[1], rocksdb));
        streams.setUncaughtExceptionHandler(failed -> {
            failed.printStackTrace();
            Runtime.getRuntime().halt(1);
            return null;
        });
        streams.start();
        Progress.tell(Long.parseLong(arguments[2]), () -> cells(streams));
        streams.close();
    }

    private static Topology topology(String prefix, boolean rocksdb) {
        return new Topology()
                .addSource(AutoOffsetReset.earliest(), "renders", EVENT_TIME, new ByteArrayDeserializer(),
                        (topic, json) -> Json.render(json), prefix + "renders")
                .addSource(AutoOffsetReset.earliest(), "views", EVENT_TIME, new ByteArrayDeserializer(),
                        (topic, json) -> Json.view(json), prefix + "viewability")
                .addProcessor("counting", Counting::new, "renders", "views")
                .addStateStore(store(Counting.IMPRESSIONS, Serdes.String(), Packed.IMPRESSION, rocksdb), "counting")
                .addStateStore(store(Counting.ADS, Packed.AD, Serdes.Long(), rocksdb), "counting")
                .addStateStore(
                        store(Counting.CELLS, Packed.CELL, Packed.COUNTS, rocksdb).withCachingEnabled(), "counting");
    }

    /** Without a cache: in front of what has a key an impression it costs more than the changelog records it saves. */
    private static <K, V> StoreBuilder<KeyValueStore<K, V>> store(
            String name, Serde<K> key, Serde<V> value, boolean rocksdb) {
        var kind = rocksdb ? Stores.persistentKeyValueStore(name) : Stores.inMemoryKeyValueStore(name);
        return Stores.keyValueStoreBuilder(kind, key, value);
    }

    private static Properties settings(String bootstrap, String prefix, boolean rocksdb) {
        var settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, prefix + "kafka-streams" + (rocksdb ? "-rocksdb" : ""));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.AT_LEAST_ONCE);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, THREADS);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1_000);
        // Views may come before their renders: no need to wait until both topics have something to read.
        settings.put(StreamsConfig.MAX_TASK_IDLE_MS_CONFIG, -1L);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 64L << 20);
        settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 50);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 512 << 10);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 64L << 20);
        return settings;
    }

    private static Map<Cell, Counts> cells(KafkaStreams streams) {
        var found = new HashMap<Cell, Counts>();
        var query = StoreQueryParameters.fromNameAndType(
                Counting.CELLS, QueryableStoreTypes.<Cell, Counts>keyValueStore());
        try (KeyValueIterator<Cell, Counts> all = streams.store(query).all()) {
            all.forEachRemaining(cell -> found.merge(cell.key, cell.value, Counts::plus));
        }
        return found;
    }
}
