package peers;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;

/** How keys and values of the stores become bytes: packed, for each is a record of a changelog. */
final class Packed {
    private static final byte SEPARATOR = 0;
    private static final int CURRENCY = 3;

    private Packed() {}

    static final Serde<Impression> IMPRESSION = serde(
            one -> {
                byte[] currency = bytes(one.currency);
                byte[] campaign = bytes(one.campaign);
                return ByteBuffer.allocate(Long.BYTES + 2 + currency.length + campaign.length)
                        .putLong(one.ts)
                        .put((byte) one.flags)
                        .put((byte) currency.length)
                        .put(currency)
                        .put(campaign)
                        .array();
            },
            in -> {
                long ts = in.getLong();
                int flags = in.get();
                String currency = text(in, in.get());
                return new Impression(ts, text(in, in.remaining()), currency, flags);
            });

    static final Serde<Ad> AD = serde(
            ad -> {
                byte[] viewer = bytes(ad.viewer());
                byte[] slot = bytes(ad.slot());
                byte[] creative = bytes(ad.creative());
                return ByteBuffer.allocate(viewer.length + slot.length + creative.length + 2)
                        .put(viewer)
                        .put(SEPARATOR)
                        .put(slot)
                        .put(SEPARATOR)
                        .put(creative)
                        .array();
            },
            in -> {
                String[] parts = text(in, in.remaining()).split("\0", -1);
                return new Ad(parts[0], parts[1], parts[2]);
            });

    static final Serde<Cell> CELL = serde(
            cell -> {
                byte[] campaign = bytes(cell.campaign());
                return ByteBuffer.allocate(Long.BYTES + CURRENCY + campaign.length)
                        .putLong(cell.pane())
                        .put(Arrays.copyOf(bytes(cell.currency()), CURRENCY))
                        .put(campaign)
                        .array();
            },
            in -> {
                long pane = in.getLong();
                String currency = text(in, CURRENCY);
                return new Cell(text(in, in.remaining()), currency, pane);
            });

    static final Serde<Counts> COUNTS = serde(
            counts -> ByteBuffer.allocate(4 * Long.BYTES)
                    .putLong(counts.served())
                    .putLong(counts.measurable())
                    .putLong(counts.viewable())
                    .putLong(counts.spend())
                    .array(),
            in -> new Counts(in.getLong(), in.getLong(), in.getLong(), in.getLong()));

    private interface Write<T> {
        byte[] write(T value);
    }

    private interface Read<T> {
        T read(ByteBuffer in);
    }

    private static <T> Serde<T> serde(Write<T> write, Read<T> read) {
        Serializer<T> serializer = (topic, value) -> value == null ? null : write.write(value);
        Deserializer<T> deserializer = (topic, bytes) -> bytes == null ? null : read.read(ByteBuffer.wrap(bytes));
        return Serdes.serdeFrom(serializer, deserializer);
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String text(ByteBuffer in, int length) {
        var text = new String(in.array(), in.arrayOffset() + in.position(), length, StandardCharsets.UTF_8);
        in.position(in.position() + length);
        return text;
    }
}
