package peers;

/** What is remembered of an impression. Public fields and an empty constructor: Flink's POJO serializer wants them. */
public class Impression {
    public static final int COUNTED = 1;
    public static final int MEASURABLE = 2;
    public static final int VIEWABLE = 4;

    /** Its render has not come yet: `ts` is its first view's, and there is no campaign. */
    public static final int PENDING = 8;

    public long ts;
    public String campaign = "";
    public String currency = "";
    public int flags;

    public Impression() {}

    public Impression(long ts, String campaign, String currency, int flags) {
        this.ts = ts;
        this.campaign = campaign;
        this.currency = currency;
        this.flags = flags;
    }

    boolean has(int flag) {
        return (flags & flag) != 0;
    }
}
