package peers;

import java.nio.charset.StandardCharsets;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.consumer.ConsumerRecord;

/** Records of both topics to events; the topic says which. What is malformed is an event too: it has none. */
final class Decoding implements KafkaRecordDeserializationSchema<Keyed> {
    private final String renders;

    Decoding(String renders) {
        this.renders = renders;
    }

    @Override
    public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<Keyed> out) {
        byte[] json = record.value();
        Event event = record.topic().equals(renders) ? Json.render(json) : Json.view(json);
        out.collect(new Keyed(new String(record.key(), StandardCharsets.UTF_8), event));
    }

    @Override
    public TypeInformation<Keyed> getProducedType() {
        return TypeInformation.of(Keyed.class);
    }
}
