package peers;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import com.sun.management.OperatingSystemMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Supplier;

/** Counts the events of all tasks and tells standard output of it: the protocol of the Python driver. */
public final class Progress {
    private static final List<AtomicLong> TASKS = new CopyOnWriteArrayList<>();
    private static final OperatingSystemMXBean SYSTEM =
            (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    private static final long LOOK_MS = 5;
    private static final double TELL_S = 0.5;

    private Progress() {}

    /** Returns a counter for one task: only its thread writes it, after the state, so that it publishes the state. */
    public static AtomicLong ofTask() {
        var events = new AtomicLong();
        TASKS.add(events);
        return events;
    }

    /** Returns when the expected events were processed and everything was told. */
    public static void tell(long expected, Supplier<Map<Cell, Counts>> cells) throws IOException, InterruptedException {
        while (events() == 0) {
            Thread.sleep(LOOK_MS);
        }
        double began = now();
        double cpu = cpu();
        for (double told = began; events() < expected; Thread.sleep(LOOK_MS)) {
            if (now() - told >= TELL_S) {
                told = now();
                System.out.printf(Locale.ROOT, "progress %d %.3f %.3f%n", events(), told, cpu());
            }
        }
        end(now() - began, cpu() - cpu, cells.get());
    }

    private static long events() {
        long sum = 0;
        for (AtomicLong task : TASKS) {
            sum += task.get();
        }
        return sum;
    }

    private static double now() {
        return System.nanoTime() / 1e9;
    }

    private static double cpu() {
        return SYSTEM.getProcessCpuTime() / 1e9;
    }

    private static void end(double seconds, double cpu, Map<Cell, Counts> cells) throws IOException {
        var campaigns = new TreeMap<String, Counts>();
        cells.forEach((cell, counts) -> campaigns.merge(cell.campaign(), counts, Counts::plus));
        try (JsonGenerator out = new JsonFactory().createGenerator(System.out)) {
            out.writeStartObject();
            out.writeNumberField("events", events());
            out.writeNumberField("seconds", seconds);
            out.writeNumberField("cpu_s", cpu);
            out.writeNumberField("peak_mib", peakMib());
            for (String figure : List.of("served", "measurable", "viewable")) {
                out.writeObjectFieldStart(figure);
                for (Map.Entry<String, Counts> campaign : campaigns.entrySet()) {
                    out.writeNumberField(campaign.getKey(), figure(campaign.getValue(), figure));
                }
                out.writeEndObject();
            }
            out.writeEndObject();
            out.writeRaw('\n');
        }
    }

    private static long figure(Counts counts, String name) {
        return switch (name) {
            case "served" -> counts.served();
            case "measurable" -> counts.measurable();
            default -> counts.viewable();
        };
    }

    private static long peakMib() throws IOException {
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmHWM:")) {
                return Long.parseLong(line.replaceAll("\\D", "")) >> 10;
            }
        }
        throw new IOException("the system does not say how much memory was resident");
    }
}
