package peers;

import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ListState;
import org.apache.flink.api.common.state.ListStateDescriptor;
import org.apache.flink.api.common.state.MapState;
import org.apache.flink.api.common.state.MapStateDescriptor;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;

/** The one operator: impressions and ads are state of a viewer, the cells state of the task. */
final class Counting extends KeyedProcessFunction<String, Keyed, Void> implements CheckpointedFunction, State {
    private static final List<Map<Cell, Counts>> TASKS = new CopyOnWriteArrayList<>();
    private static final long PRUNE_MS = 600_000;

    private transient AtomicLong events;
    private transient MapState<String, Impression> impressions;
    private transient MapState<String, Long> ads;
    private transient Map<Cell, Counts> cells;
    private transient ListState<Tuple2<Cell, Counts>> keptCells;

    /** Returns the cells of all tasks: they run in this process. */
    static Map<Cell, Counts> cells() {
        var found = new HashMap<Cell, Counts>();
        TASKS.forEach(cells -> cells.forEach((cell, counts) -> found.merge(cell, counts, Counts::plus)));
        return found;
    }

    @Override
    public void open(OpenContext context) {
        impressions = getRuntimeContext().getMapState(
                new MapStateDescriptor<>("impressions", Types.STRING, Types.POJO(Impression.class)));
        ads = getRuntimeContext().getMapState(new MapStateDescriptor<>("ads", Types.STRING, Types.LONG));
        events = Progress.ofTask();
    }

    @Override
    public void initializeState(FunctionInitializationContext context) throws Exception {
        keptCells = context.getOperatorStateStore().getListState(new ListStateDescriptor<>(
                "cells", Types.TUPLE(Types.POJO(Cell.class), Types.POJO(Counts.class))));
        cells = new HashMap<>();
        for (Tuple2<Cell, Counts> kept : keptCells.get()) {
            cells.merge(kept.f0, kept.f1, Counts::plus);
        }
        TASKS.add(cells);
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) throws Exception {
        keptCells.update(cells.entrySet().stream()
                .map(cell -> Tuple2.of(cell.getKey(), cell.getValue()))
                .toList());
    }

    @Override
    public void processElement(Keyed keyed, Context context, Collector<Void> out) throws Exception {
        Event event = keyed.event();
        if (event != null) {
            if (impressions.isEmpty()) {
                pruneAfter(event.ts() + Rules.HORIZON_MS + Rules.EARLY_MS, context);
            }
            Rules.apply(event, this);
        }
        events.lazySet(events.get() + 1);
    }

    /** Forgets what of a viewer no event can meet any more. */
    @Override
    public void onTimer(long now, OnTimerContext context, Collector<Void> out) throws Exception {
        for (Iterator<Impression> each = impressions.values().iterator(); each.hasNext(); ) {
            if (each.next().ts + Rules.HORIZON_MS + Rules.EARLY_MS < now) {
                each.remove();
            }
        }
        for (Iterator<Long> each = ads.values().iterator(); each.hasNext(); ) {
            if (each.next() + PRUNE_MS < now) {
                each.remove();
            }
        }
        if (!impressions.isEmpty()) {
            pruneAfter(now, context);
        }
    }

    /** Sets one timer for all that is due within ten minutes. */
    private static void pruneAfter(long ts, KeyedProcessFunction<String, Keyed, Void>.Context context) {
        context.timerService().registerEventTimeTimer((ts / PRUNE_MS + 1) * PRUNE_MS);
    }

    @Override
    public Impression impression(String id) throws Exception {
        return impressions.get(id);
    }

    @Override
    public void remember(String id, Impression impression) throws Exception {
        impressions.put(id, impression);
    }

    @Override
    public Long lastCounted(Render render) throws Exception {
        return ads.get(ad(render));
    }

    @Override
    public void countedLast(Render render) throws Exception {
        ads.put(ad(render), render.ts());
    }

    @Override
    public void add(Cell cell, Counts more) {
        cells.merge(cell, more, Counts::plus);
    }

    private static String ad(Render render) {
        return render.slot() + '\0' + render.creative();
    }
}
