package peers;

import java.nio.file.Path;
import java.time.Duration;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.core.execution.CheckpointingMode;
import org.apache.flink.core.execution.JobClient;
import org.apache.flink.streaming.api.datastream.DataStreamUtils;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.kafka.clients.consumer.ConsumerConfig;

/** The job by Flink, in this process. Arguments: bootstrap, prefix, events, partitions. */
public final class FlinkPeer {
    private FlinkPeer() {}

    public static void main(String[] arguments) throws Exception {
        var environment = StreamExecutionEnvironment.getExecutionEnvironment(settings());
        var events = environment.fromSource(source(arguments[0], arguments[1]), watermarks(), "events");
        // One task, so each key is its own wherever Kafka put it: nothing has to be serialized and sent to another.
        DataStreamUtils.reinterpretAsKeyedStream(events, Keyed::key, Types.STRING)
                .process(new Counting())
                .returns(Types.VOID)
                .sinkTo(new DiscardingSink<>());
        JobClient job = environment.executeAsync();
        job.getJobExecutionResult().whenComplete((result, failed) -> {
            failed.printStackTrace();
            Runtime.getRuntime().halt(1);
        });
        Progress.tell(Long.parseLong(arguments[2]), Counting::cells);
        Runtime.getRuntime().halt(0); // the job has no end of its own
    }

    private static Configuration settings() {
        var settings = new Configuration();
        settings.set(PipelineOptions.OBJECT_REUSE, true);
        settings.set(StateBackendOptions.STATE_BACKEND, "hashmap");
        settings.set(CheckpointingOptions.CHECKPOINTING_INTERVAL, Duration.ofSeconds(10));
        settings.set(CheckpointingOptions.CHECKPOINTING_CONSISTENCY_MODE, CheckpointingMode.EXACTLY_ONCE);
        settings.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY,
                Path.of(System.getProperty("java.io.tmpdir"), "checkpoints").toUri().toString());
        settings.set(TaskManagerOptions.MANAGED_MEMORY_SIZE, MemorySize.ZERO);
        // A restart would count progress twice: a failure ends the run.
        settings.set(RestartStrategyOptions.RESTART_STRATEGY, "none");
        settings.setString("parallelism.default", "1");
        return settings;
    }

    private static KafkaSource<Keyed> source(String bootstrap, String prefix) {
        return KafkaSource.<Keyed>builder()
                .setBootstrapServers(bootstrap)
                .setTopics(prefix + "renders", prefix + "viewability")
                .setGroupId(prefix + "flink")
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setDeserializer(new Decoding(prefix + "renders"))
                .setProperty(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, "10000")
                .build();
    }

    private static WatermarkStrategy<Keyed> watermarks() {
        return WatermarkStrategy.<Keyed>forBoundedOutOfOrderness(Duration.ofSeconds(10))
                .withTimestampAssigner((keyed, appended) -> keyed.event() == null ? Long.MIN_VALUE : keyed.event().ts())
                .withIdleness(Duration.ofMinutes(1));
    }
}
